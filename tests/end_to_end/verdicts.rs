//! The loaded program beside the specification: the same verdict on every packet.
//!
//! `AGENT_FW_PACKETS` sets how many packets are tried, `AGENT_FW_SEED` which.

use crate::tests;
use agent_fw::model::rule::AgentPolicy;
use agent_fw::model::{
    AddressRange, AddressSet, Admission, DefaultAction, MacAddr, MacMatch, Origin, OriginMap,
    Packet, Policy, Port, Range, RangeSet, Transport, Verdict,
};
use agent_fw::xdp::{Numbering, OBJECT, plan};
use agent_fw_ebpf::{Image, Mac, OwnFrames, load};
use agent_fw_lab::Lab;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use aya::programs::{TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

tests![the_loaded_program_decides_as_the_policy_does];

const PACKETS_PER_POLICY: u64 = 1_000;
const XDP_DROP: u32 = 1;

fn the_loaded_program_decides_as_the_policy_does() -> Result<()> {
    let packets = setting("AGENT_FW_PACKETS", 100_000)?;
    let seed = setting("AGENT_FW_SEED", 1)?;
    println!("{packets} packets from AGENT_FW_SEED={seed}");
    Lab::run(|_| {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut tally = [0; 4];
        for round in 0..packets.div_ceil(PACKETS_PER_POLICY) {
            compare(&mut random, &mut tally).with_context(|| format!("policy {round}"))?;
        }
        ensure!(tally.iter().all(|count| *count > 0), "a verdict was never due: {tally:?}");
        Ok(())
    })
}

fn setting(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |value| value.parse().context(name.to_owned()))
}

fn compare(random: &mut Random, tally: &mut [u64; 4]) -> Result<()> {
    let lowered = random.policy();
    let program = Program::load(&lowered, random.below(2) == 0)?;
    for _ in 0..PACKETS_PER_POLICY {
        let packet = random.packet();
        let frame = frame(&packet);
        let due = lowered.policy.decide(&packet);
        tally[due as usize] += 1;
        let passes = program.passes(&frame)?;
        ensure!(
            passes == (due != Verdict::Drop),
            "{packet:?} is due {due:?} by {:?}; it passes: {passes}; {frame:02x?}",
            lowered.policy
        );
    }
    Ok(())
}

/// The index of loopback.
const LOOPBACK: u32 = 1;

struct Program(Ebpf);

impl Program {
    fn load(lowered: &AgentPolicy, gate: bool) -> Result<Self> {
        let image = Image::new(&plan(lowered, gate, &mut Numbering::default())?)?;
        let mut ebpf = load(&image, OBJECT, EbpfLoader::new())?;
        let program = ebpf.program_mut("agent_fw_xdp").context("no program")?;
        <&mut Xdp>::try_from(program)?.load()?;
        // A test run comes in by loopback, and this host forwards nothing.
        let own =
            OwnFrames { mac: Mac::new([2; 6]).bits(), receiver: LOOPBACK, flags: OwnFrames::ALONE };
        let map = ebpf.map_mut("INTERFACES").context("no map")?;
        HashMap::<_, u32, OwnFrames>::try_from(map)?.insert(LOOPBACK, own, 0)?;
        Ok(Self(ebpf))
    }

    fn passes(&self, frame: &[u8]) -> Result<bool> {
        let program: &Xdp = self.0.program("agent_fw_xdp").context("no program")?.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        Ok(program.test_run(options)?.return_value != XDP_DROP)
    }
}

/// The packet as it comes in by Ethernet, for this host.
fn frame(packet: &Packet) -> Vec<u8> {
    let source = packet.mac.expect("over Ethernet, there always is one").0;
    let ethernet = Ethernet::new(agent_fw_lab::MacAddr(source), agent_fw_lab::MacAddr([2; 6]));
    let Transport::Tcp(Port(port)) = packet.transport else {
        let ip = Ipv4::new(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::LOCALHOST);
        return (ethernet / ip / agent_fw_lab::packet::Udp::new(4118, 4118)).bytes();
    };
    match packet.source {
        IpAddr::V4(source) => {
            (ethernet / Ipv4::new(source, Ipv4Addr::LOCALHOST) / Tcp::syn(51000, port)).bytes()
        }
        IpAddr::V6(source) => {
            (ethernet / Ipv6::new(source, Ipv6Addr::LOCALHOST) / Tcp::syn(51000, port)).bytes()
        }
    }
}

/// xorshift: the same packets from the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// Some sources, some of them with MAC addresses, by several names.
    fn policy(&mut self) -> AgentPolicy {
        let sources: Vec<(Origin, AddressSet, MacMatch)> =
            (0..self.below(5)).map(|_| (self.label(), self.addresses(), self.macs())).collect();
        let others = if self.below(4) == 0 { DefaultAction::Continue } else { DefaultAction::Drop };
        let admissions = sources.iter().map(|(_, addresses, macs)| Admission {
            macs: macs.clone(),
            addresses: addresses.clone(),
        });
        let ports: RangeSet<Port> = (0..=self.below(2)).map(|_| self.ports()).collect();
        let policy = Policy::new(ports, others, admissions);
        let ledger =
            OriginMap::new(sources.into_iter().map(|(label, addresses, _)| (label, addresses)));
        AgentPolicy { policy, ledger }
    }

    fn label(&mut self) -> Origin {
        match self.below(4) {
            0 => Origin::Address,
            n => Origin::Region(format!("region-{n}")),
        }
    }

    fn ports(&mut self) -> Range<Port> {
        let first = self.port();
        Range::new(Port(first), Port(first + u16::from(self.below(2) == 0))).expect("ordered")
    }

    fn port(&mut self) -> u16 {
        4117 + u16::try_from(self.below(4)).expect("small")
    }

    fn macs(&mut self) -> MacMatch {
        if self.below(2) == 0 {
            return MacMatch::Any;
        }
        let count = self.below(3);
        MacMatch::Only((0..count).map(|_| Range::single(self.mac())).collect())
    }

    fn mac(&mut self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, u8::try_from(self.below(4)).expect("small")])
    }

    /// From few ranges to many, or everything.
    fn addresses(&mut self) -> AddressSet {
        if self.below(12) == 0 {
            return AddressSet::all();
        }
        let count = [1, 3, 30, 3000][usize::try_from(self.below(4)).expect("small")];
        (0..count).map(|_| self.range()).collect()
    }

    fn range(&mut self) -> AddressRange {
        match (self.address(), self.address()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let near = u32::from(a).saturating_add(u32::from(b) % 40);
                Range::new(a, near.into()).map(AddressRange::V4).expect("ordered")
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let near = u128::from(a).saturating_add(u128::from(b) % (1 << 70));
                Range::new(a, near.into()).map(AddressRange::V6).expect("ordered")
            }
            _ => self.range(),
        }
    }

    /// Of few, so that policies and packets meet.
    fn address(&mut self) -> IpAddr {
        let word = self.next() >> 16;
        match self.below(4) {
            0 => Ipv4Addr::from(0x0a00_0000 + (word & 0xffff) as u32).into(),
            1 => Ipv4Addr::from(0xc000_0200 + (word & 0xff) as u32).into(),
            2 => Ipv6Addr::from(
                (0x2001_0db8 << 96) + (u128::from(word & 0xff) << 64) + u128::from(word >> 40 & 3),
            )
            .into(),
            _ => Ipv6Addr::from((0x2a00 << 112) + u128::from(word & 0xff)).into(),
        }
    }

    fn packet(&mut self) -> Packet {
        let transport = match self.below(16) {
            0 => Transport::Other,
            _ => Transport::Tcp(Port(self.port())),
        };
        Packet { loopback: false, source: self.address(), mac: Some(self.mac()), transport }
    }
}
