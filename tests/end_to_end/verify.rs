//! `agent-fw verify`: what it says of the kernel is true, of every change that is made to it.

use crate::chance::Chance;
use crate::mutation::{self, Listing};
use crate::scene::{AGENT, address, install};
use crate::tests;
use agent_fw::configuration::{Compiled, Configuration};
use agent_fw::input::{Catalogue, Lists};
use agent_fw::model::packet_set::Connection;
use agent_fw::model::{MacAddr, Packet, Policy, Port, Transport, Verdict};
use agent_fw::nft::{Nftables, differences};
use agent_fw::verify;
use agent_fw::verify::{Actual, Counterexample, Kernel, PacketDirection, Sample, Scope, Sender};
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp, Udp};
use agent_fw_lab::{Finished, Lab, Peer, Wire, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

tests![
    every_mutation_of_the_table_is_reported_with_a_packet_that_behaves_so,
    verify_says_in_words_and_in_json_what_is_true,
];

/// A packet of a test: where it comes from, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) source: IpAddr,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) is_udp: bool,
    pub(crate) is_local: bool,
    pub(crate) port: u16,
}

impl Probe {
    pub(crate) fn of(sample: &Sample) -> Option<Self> {
        let opens = sample.connection.is_none_or(|connection| connection == Connection::OPENS);
        let is_sendable = matches!(sample.protocol, 6 | 17)
            && !sample.is_without_mac
            && !sample.is_by_vrf
            && sample.source_type.is_none()
            && sample.sender == Sender::Other
            && sample.way != PacketDirection::Outgoing
            && sample.interface != Some(1)
            // Every packet has a source port of its own, and is a SYN.
            && sample.source_port.is_none()
            && sample.flags.is_none_or(|flags| flags == 2 || sample.protocol == 17)
            && opens
            && sample.mac_to.is_none();
        is_sendable.then_some(Self {
            source: sample.source()?,
            mac: sample.mac,
            is_udp: sample.protocol == 17,
            is_local: sample.is_local(),
            port: sample.port.0,
        })
    }

    fn due(&self, policy: &Policy, peer: &Peer) -> bool {
        let packet = Packet {
            loopback: false,
            source: self.source,
            mac: Some(self.mac.unwrap_or_else(|| own_mac(peer))),
            transport: if self.is_udp { Transport::Other } else { Transport::Tcp(Port(self.port)) },
        };
        !self.is_local || policy.decide(&packet) != Verdict::Drop
    }

    fn frame(&self, peer: &Peer, source_port: u16) -> Vec<u8> {
        let MacAddr(mac) = self.mac.unwrap_or_else(|| own_mac(peer));
        let ethernet = Ethernet::new(agent_fw_lab::MacAddr(mac), peer.host_mac());
        let (tcp, udp) = (Tcp::syn(source_port, self.port), Udp::new(source_port, self.port));
        let (v4, v6) = if self.is_local {
            (peer.host_v4(), peer.host_v6())
        } else {
            (Ipv4Addr::new(203, 0, 113, 9), Ipv6Addr::new(0x2001, 0xdba, 0, 0, 0, 0, 0, 9))
        };
        match (self.source, self.is_udp) {
            (IpAddr::V4(from), false) => (ethernet / Ipv4::new(from, v4) / tcp).bytes(),
            (IpAddr::V4(from), true) => (ethernet / Ipv4::new(from, v4) / udp).bytes(),
            (IpAddr::V6(from), false) => (ethernet / Ipv6::new(from, v6) / tcp).bytes(),
            (IpAddr::V6(from), true) => (ethernet / Ipv6::new(from, v6) / udp).bytes(),
        }
    }
}

/// The MAC address that the lab gives a peer: its host's, but for the end.
fn own_mac(peer: &Peer) -> MacAddr {
    let [a, b, c, d, number, _] = peer.host_mac().0;
    MacAddr([a, b, c, d, number, 2])
}

/// The first source port of what is sent.
const FIRST: u16 = 20_000;

/// Sends packets, and tells of each whether it got through. `must` of them are waited for.
fn through(peer: &Peer, wire: &Wire, probes: &[Probe], must: &[bool]) -> Result<Vec<bool>> {
    mutation::forget()?;
    for (port, probe) in (FIRST..).zip(probes) {
        wire.send(&probe.frame(peer, port))?;
    }
    // One more, behind the others: when it has come, they are done with.
    let last = FIRST + u16::try_from(probes.len())?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let until = |set: &str, wanted: &dyn Fn(&BTreeSet<u16>) -> bool| -> Result<BTreeSet<u16>> {
        loop {
            let seen: BTreeSet<u16> = mutation::seen(set)?.into_iter().collect();
            if wanted(&seen) || Instant::now() > deadline {
                return Ok(seen);
            }
        }
    };
    let came = until("came", &|seen| seen.len() >= probes.len())?;
    ensure!(came.len() >= probes.len(), "not all of the packets came: {came:?}");
    let end = Probe { source: peer.v4().into(), mac: None, is_udp: false, is_local: true, port: 9 };
    wire.send(&end.frame(peer, last))?;
    until("came", &|seen| seen.contains(&last))?;
    // What must be there may be a moment late; what must not is not.
    let needed: Vec<u16> = (FIRST..).zip(must).filter(|(_, must)| **must).map(|(p, _)| p).collect();
    let short = Instant::now() + Duration::from_secs(2);
    let seen = until("passed", &|seen| {
        needed.iter().all(|port| seen.contains(port)) || Instant::now() > short
    })?;
    Ok((FIRST..last).map(|port| seen.contains(&port)).collect())
}

/// Packets around what the policies name, and a few elsewhere.
pub(crate) fn probes(chance: &mut Chance) -> Vec<Probe> {
    let v4 =
        ["34.205.4.255", "34.205.5.0", "34.205.5.31", "34.205.5.32", "18.97.19.0", "198.51.100.7"];
    let v6 = ["2001:db8::1", "2001:db8:8000::1", "2001:db9::1", "2001:db7:ffff::1"];
    let mut sources: Vec<IpAddr> = v4.iter().chain(&v6).map(|text| address(text)).collect();
    sources
        .push(Ipv4Addr::from(0x22cd_0000 + u32::try_from(chance.below(4096)).unwrap_or(0)).into());
    let mut probes = Vec::new();
    for source in sources {
        let port = *chance.pick(&[AGENT, AGENT, AGENT, 4119, 22, 4500]);
        let mac = [None, Some(MacAddr([2, 0x41, 0x18, 0, 0, 1]))][chance.below(2)];
        let (is_udp, is_local) = (chance.once_in(6), !chance.once_in(8));
        probes.push(Probe { source, mac, is_udp, is_local, port });
    }
    probes
}

fn compiled(flags: &str) -> Result<Compiled> {
    let text = format!("{flags}\n");
    let configuration = Configuration::parse("policy.toml", &text)?;
    configuration.compile(&Catalogue::published()?, &Lists::default())
}

/// What `verify` has claimed of a packet.
enum Claim {
    /// A deed that was seen.
    True,
    /// That it is not known.
    Unknown,
    /// Nothing, or of a packet that cannot be sent here.
    None,
}

/// Whether the packet that `verify` names behaves as it says; without such a packet, whether all
/// others behave as the policy says.
fn agree(
    peer: &Peer,
    wire: &Wire,
    policy: &Policy,
    found: Option<&Counterexample>,
    mut probes: Vec<Probe>,
) -> Result<Claim> {
    let Some(found) = found else {
        let due: Vec<bool> = probes.iter().map(|probe| probe.due(policy, peer)).collect();
        for ((probe, due), did) in probes.iter().zip(&due).zip(through(peer, wire, &probes, &due)?)
        {
            ensure!(*due == did, "{probe:?} passes: {did}, and verify is silent");
        }
        return Ok(Claim::None);
    };
    let said = match found.deed {
        Actual::Unknown(_) => return Ok(Claim::Unknown),
        // No rule here gives packets another port.
        Actual::PassesRewritten | Actual::PassesUnlabelled | Actual::PassesLabelled => {
            return Ok(Claim::None);
        }
        Actual::Passes => true,
        Actual::Drops => false,
    };
    let Some(probe) = Probe::of(&found.packet) else {
        println!("DBG {found:?}");
        return Ok(Claim::None);
    };
    probes.clear();
    probes.push(probe);
    let did = through(peer, wire, &probes, &[said])? == [true];
    ensure!(said == did, "{found:?}, passes: {did}");
    ensure!(said != probe.due(policy, peer), "no difference: {found:?}");
    Ok(Claim::True)
}

/// How many mutations are tried.
const MUTATIONS: usize = 150;

fn every_mutation_of_the_table_is_reported_with_a_packet_that_behaves_so() -> Result<()> {
    let mutations = std::env::var("AGENT_FW_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let mutations = mutations.unwrap_or(MUTATIONS);
    let mut chance = Chance::new(4118);
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _elsewhere = lab.peer("elsewhere")?;
        lab.forward()?;
        run(["ip", "route", "add", "203.0.113.0/24", "via", "10.118.2.2"])?;
        run(["ip", "-6", "route", "add", "2001:dba::/32", "via", "fd00:118:2::2"])?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        mutation::witness()?;
        let us = "\"region:us-1\", \"2001:db8::/32\", \"2001:db9::/32\"";
        // So many lengths that they are looked up as intervals.
        let lengths = (0..16).map(|n| format!("\"2001:db{:x}::/{}\"", n % 10, 32 + 6 * n));
        let many = [us.to_owned()].into_iter().chain(lengths).collect::<Vec<_>>().join(", ");
        let policies = [
            compiled(&format!("allow_from = [{us}]"))?,
            compiled(&format!("allow_from = [{us}]\nearly_drop = true\nlog = true"))?,
            compiled(&format!("allow_from = [{us}]\nallow_mac = [\"02:41:18:00:00:01\"]"))?,
            compiled(&format!("allow_from = [{us}]\notherwise = \"continue\""))?,
            compiled(&format!("allow_from = [{many}]"))?,
        ];
        let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut done, mut decided, mut unknown, mut refused) = (0, 0, 0, 0);
        while done < mutations {
            let compiled = chance.pick(&policies);
            let policy = &compiled.lowered.policy;
            let image = compiled.ruleset.clone().into_image();
            let mut nftables = Nftables::open()?;
            nftables.delete()?;
            nftables.replace(std::slice::from_ref(&image))?;
            let judge = |nftables: &mut Nftables| -> Result<_> {
                let live = nftables.read()?;
                let differing = differences(&image, live.as_ref());
                let kernel =
                    Kernel { table: live.as_ref().map(verify::effect), ..Kernel::default() };
                Ok((verify::counterexample(policy, &Scope::Everywhere, &kernel), differing))
            };
            let (before, differing) = judge(&mut nftables)?;
            ensure!(
                before.is_none() && differing.is_empty(),
                "false alarm: {before:?}, {differing:?}"
            );
            let listing = Listing::read()?;
            let mutation = mutation::draw(&mut chance, &listing)?;
            if !mutation::carry_out(&mutation)? {
                refused += 1;
                continue;
            }
            let script = &mutation.script;
            let (found, differing) = judge(&mut nftables)?;
            if Listing::read()?.without_handles() == listing.without_handles() {
                // nft may have other instructions for the same text; without such, nothing differs.
                ensure!(
                    found.is_none() || !differing.is_empty(),
                    "false alarm: {script}: {found:?}"
                );
                continue;
            }
            ensure!(!differing.is_empty(), "not reported: {script}");
            match agree(&peer, &wire, policy, found.as_ref(), probes(&mut chance)) {
                Ok(Claim::True) => decided += 1,
                Ok(Claim::Unknown) => unknown += 1,
                Ok(Claim::None) => {}
                Err(error) => return Err(error.context(script.clone())),
            }
            done += 1;
            *tally.entry(mutation.words).or_default() += 1;
        }
        println!(
            "{done} mutations ({refused} more were refused by nft): {decided} changed a decision, \
             and the packet named behaved so; of {unknown} that is not known; {tally:?}"
        );
        ensure!(tally.len() > 12 && decided > mutations / 3, "too few kinds or decisions");
        Ok(())
    })
}

pub(crate) fn verify() -> Result<(Value, Finished)> {
    let finished = agent_fw(["verify", "--json"])?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("verify's answer is no JSON: {finished}"))?;
    Ok((value, finished))
}

fn verify_says_in_words_and_in_json_what_is_true() -> Result<()> {
    Lab::run(|_| {
        let nothing = agent_fw(["verify"])?;
        ensure!(nothing.code == Some(1) && nothing.stdout.contains("no policy"), "{nothing}");
        install(&["--allow-from", "region:us-1"])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(0) && value["equal"] == true, "{finished}");
        let plain = agent_fw(["verify"])?;
        let hash = value["policy"].as_str().context("a hash")?;
        ensure!(plain.stdout.contains(&format!("the kernel enforces policy {hash}")), "{plain}");
        run([
            "nft",
            "delete",
            "element",
            "inet",
            "agent_fw",
            "from_region_us-1_v4_27",
            "{ 34.205.5.0 }",
        ])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1) && value["equal"] == false, "{finished}");
        let packet = &value["counterexample"];
        ensure!(packet["source"] == "34.205.5.0" && packet["kernel_drops"] == true, "{value:#}");
        let plain = agent_fw(["verify"])?;
        for part in ["TCP from 34.205.5.0", "the policy: admits it", "the kernel: drops it"] {
            ensure!(plain.stdout.contains(part), "{plain}");
        }
        ensure!(plain.stdout.lines().all(|line| line.chars().count() <= 80), "{plain}");
        agent_fw(["apply"])?.success()?;
        ensure!(verify()?.1.code == Some(0));
        run(["nft", "flush", "ruleset"])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1), "{finished}");
        ensure!(value["counterexample"]["kernel_drops"] == false, "{value:#}");
        Ok(())
    })
}
