//! The kernel against the specification: random policies, random packets, no difference.

use crate::scene::AGENT;
use crate::tests;
use agent_fw::configuration::Configuration;
use agent_fw::input::{Catalogue, Lists};
use agent_fw::model::rule::AgentPolicy;
use agent_fw::model::{
    AddressRange, AddressSet, Admission, DefaultAction, MacMatch, Notation, Origin, OriginMap,
    Packet, Policy, Port, Range, Transport, Verdict,
};
use agent_fw::nft::{Extras, Nftables, Ruleset};
use agent_fw::verify;
use agent_fw::verify::{Kernel, Scope};
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Segment, Tcp};
use agent_fw_lab::{Lab, Listener, MacAddr, Peer, Wire, run};
use anyhow::{Context as _, Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

tests![
    the_kernel_decides_on_random_packets_as_the_specification_says,
    what_was_installed_is_read_back_without_a_difference_for_random_policies,
];

/// A small generator (xorshift64*), so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    /// From `AGENT_FW_SEED`, or from the clock; the seed is printed.
    fn new() -> Self {
        let given = std::env::var("AGENT_FW_SEED").ok().and_then(|text| text.parse().ok());
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |time| u64::from(time.subsec_nanos()) << 32 | time.as_secs())
        };
        let seed = given.unwrap_or_else(clock) | 1;
        println!("AGENT_FW_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        u8::try_from((mixed >> 32) % u64::from(bound)).unwrap_or(0)
    }

    fn chance(&mut self, of: u8) -> bool {
        self.below(of) == 0
    }

    fn range(&mut self) -> AddressRange {
        let (a, b) = (self.below(64), self.below(64));
        // Short ranges more often than long ones.
        let last = if self.chance(3) { a.max(b) } else { (a.min(b) + self.below(4)).min(63) };
        let first = a.min(b).min(last);
        if self.chance(2) {
            AddressRange::V6(Range::new(v6(first), v6(last)).expect("in order"))
        } else {
            AddressRange::V4(Range::new(v4(first), v4(last)).expect("in order"))
        }
    }

    fn addresses(&mut self) -> AddressSet {
        if self.chance(12) {
            return AddressSet::all();
        }
        let few: AddressSet = (0..self.below(6)).map(|_| self.range()).collect();
        let crowd: AddressSet = match self.below(8) {
            0 => (0..40).map(|number| self.bystander(number)).collect(),
            1 => (0..3000).map(|number| self.bystander(number)).collect(),
            _ => AddressSet::default(),
        };
        few.union(&crowd)
    }

    /// A prefix elsewhere: with many, the others are looked up in another way.
    fn bystander(&mut self, number: u16) -> AddressRange {
        let length = [20, 24, 27, 32][usize::from(self.below(4))];
        let [high, low] = number.to_be_bytes();
        if self.chance(3) {
            let bits = 0x2001_0db9_u128 << 96 | u128::from(number) << 64;
            return Ipv6Net::new_assert(bits.into(), 4 * length - 16).trunc().into();
        }
        Ipv4Net::new_assert(Ipv4Addr::new(172, high, low, low), length).trunc().into()
    }

    fn lowered(&mut self) -> AgentPolicy {
        let mut admissions = Vec::new();
        let mut sources = Vec::new();
        for _ in 0..self.below(4) {
            let label = match self.below(3) {
                0 => Origin::Address,
                1 => Origin::Region("us-1".to_owned()),
                _ => Origin::File("/a".into()),
            };
            let addresses = self.addresses();
            let macs = if self.chance(2) {
                MacMatch::Any
            } else {
                let some = (0..self.below(3)).map(|_| Range::single(policy_mac(self.below(4))));
                MacMatch::Only(some.collect())
            };
            sources.push((label, addresses.clone()));
            admissions.push(Admission { macs, addresses });
        }
        let others = if self.chance(6) { DefaultAction::Continue } else { DefaultAction::Drop };
        let ports = if self.chance(4) {
            [(4100, 4110), (4118, 4118)]
                .into_iter()
                .filter_map(|(a, b)| Range::new(Port(a), Port(b)))
                .collect()
        } else {
            Range::single(Port(AGENT)).into()
        };
        AgentPolicy {
            policy: Policy::new(ports, others, admissions),
            ledger: OriginMap::new(sources),
        }
    }

    fn extras(&mut self) -> Extras {
        Extras { early_drop: self.chance(2), log: self.chance(4) }
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}
fn v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())
}
fn policy_mac(last: u8) -> agent_fw::model::MacAddr {
    agent_fw::model::MacAddr(mac(last).0)
}
fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0x41, 0x18, 0, 0, last])
}

fn enforce(lowered: &AgentPolicy, extras: Extras) -> Result<()> {
    let image = Ruleset::compile(lowered, extras).into_image();
    Nftables::open()?.replace(std::slice::from_ref(&image)).context("the kernel refuses a policy")
}

/// Sends a SYN from everywhere in the small world and hears who is answered.
fn answered(peer: &Peer, wire: &Wire, packets: &[(IpAddr, u8, u16)]) -> Result<BTreeSet<u16>> {
    for (source_port, (source, from_mac, port)) in (1024_u16..).zip(packets) {
        let ethernet = Ethernet::new(mac(*from_mac), peer.host_mac());
        let syn = Tcp::syn(source_port, *port);
        let frame = match source {
            IpAddr::V4(source) => ethernet / Ipv4::new(*source, peer.host_v4()) / syn,
            IpAddr::V6(source) => ethernet / Ipv6::new(*source, peer.host_v6()) / syn,
        };
        wire.send(&frame.bytes())?;
    }
    let mut seen = BTreeSet::new();
    // The last packet is always answered: it goes to a port that no policy is about.
    let last = 1024 + u16::try_from(packets.len())? - 1;
    while !seen.contains(&last) {
        let answer = wire.find(Duration::from_secs(5), |frame| {
            Segment::parse(frame).filter(Segment::is_syn_ack)
        })?;
        seen.insert(answer.context("the last packet is not answered")?.destination.port());
    }
    Ok(seen)
}

fn the_kernel_decides_on_random_packets_as_the_specification_says() -> Result<()> {
    const POLICIES: usize = 150;
    const PACKETS: usize = 200;
    let mut random = Random::new();
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agents = [Listener::bind(AGENT)?, Listener::bind(4105)?, Listener::bind(22)?];
        let (interface, via4, via6) =
            (peer.interface(), peer.v4().to_string(), peer.v6().to_string());
        run(["ip", "route", "add", "192.0.2.0/24", "via", &via4, "dev", &interface])?;
        run(["ip", "route", "add", "2001:db8::/64", "via", &via6, "dev", &interface])?;
        // The answers are to be seen, not heard: a RST of the peer would end what they answer.
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        let (mut accepted, mut dropped) = (0, 0);
        for _ in 0..POLICIES {
            let lowered = random.lowered();
            let extras = random.extras();
            enforce(&lowered, extras)?;
            let mut packets: Vec<(IpAddr, u8, u16)> = (1..PACKETS)
                .map(|_| {
                    let last = random.below(64);
                    let six = random.chance(2);
                    let source = if six { IpAddr::V6(v6(last)) } else { IpAddr::V4(v4(last)) };
                    let port =
                        *[AGENT, AGENT, 4105, 22].get(usize::from(random.below(4))).unwrap_or(&22);
                    (source, random.below(4), port)
                })
                .collect();
            packets.push((v4(1).into(), 0, 22));
            let seen = answered(&peer, &wire, &packets)?;
            for (source_port, (source, from_mac, port)) in (1024_u16..).zip(&packets) {
                let packet = Packet {
                    loopback: false,
                    source: *source,
                    mac: Some(policy_mac(*from_mac)),
                    transport: Transport::Tcp(Port(*port)),
                };
                let verdict = lowered.policy.decide(&packet);
                let through = seen.contains(&source_port);
                ensure!(
                    through == (verdict != Verdict::Drop),
                    "{packet:?}: the specification says {verdict:?}, answered: {through}, \
                     {:?}, {extras:?}",
                    lowered.policy
                );
                accepted += u32::from(verdict == Verdict::Accept);
                dropped += u32::from(verdict == Verdict::Drop);
            }
            // Half-open connections of one policy must not answer for the next.
            run(["ss", "--kill", "--tcp", "state", "syn-recv"])?;
        }
        println!(
            "{POLICIES} policies, {accepted} packets accepted, {dropped} dropped: no difference"
        );
        ensure!(accepted > 1000 && dropped > 1000, "the packets did not try both sides");
        Ok(())
    })
}

fn what_was_installed_is_read_back_without_a_difference_for_random_policies() -> Result<()> {
    let mut random = Random::new();
    Lab::run(|_| {
        for _ in 0..1000 {
            let lowered = random.lowered();
            let image = Ruleset::compile(&lowered, random.extras()).into_image();
            let mut nftables = Nftables::open()?;
            nftables.replace(std::slice::from_ref(&image))?;
            let live = nftables.read()?;
            let found = agent_fw::nft::differences(&image, live.as_ref());
            ensure!(found.is_empty(), "{lowered:?}: {found:?}");
            // Nor is there one in what the rules do.
            let table = live.as_ref().map(verify::effect);
            let kernel = Kernel { table, ..Kernel::default() };
            let found = verify::counterexample(&lowered.policy, &Scope::Everywhere, &kernel);
            ensure!(found.is_none(), "{lowered:?}: {found:?}");
        }
        // Words, too: what a configuration compiles to is what its text compiles to.
        let catalogue = Catalogue::published()?;
        for _ in 0..200 {
            let ranges: Vec<AddressRange> = (0..=random.below(6)).map(|_| random.range()).collect();
            let notation = |range: &AddressRange| match range {
                AddressRange::V4(range) => range.notation(),
                AddressRange::V6(range) => range.notation(),
            };
            let configuration = Configuration {
                allow_from: ranges
                    .iter()
                    .map(|range| notation(range).parse())
                    .collect::<Result<_, _>>()?,
                ..Configuration::default()
            };
            let read = Configuration::parse("policy.toml", &configuration.to_toml())?;
            let compile = |configuration: &Configuration| {
                configuration
                    .compile(&catalogue, &Lists::default())
                    .map(|compiled| compiled.lowered)
            };
            ensure!(compile(&configuration)? == compile(&read)?);
        }
        Ok(())
    })
}
