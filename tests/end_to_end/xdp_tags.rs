//! Tags in front of a packet, as many as somebody likes: the stack strips those of priority, all of
//! them, and the program must not give up before it does.

use crate::scene::{AGENT, AMPLE, PATIENCE, install};
use crate::tests;
use crate::xdp::flags;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Packet, Segment, Tcp, Vlan};
use agent_fw_lab::{Lab, Listener, Peer, Wire, agent_fw};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::net::IpAddr;

tests![no_number_of_priority_tags_gets_an_unlisted_source_past_the_program];

/// How many tags are tried. The program reads 16; at the tc hook, one more.
const COUNTS: [u16; 11] = [1, 2, 3, 4, 5, 8, 15, 16, 17, 18, 40];
/// So many it reads everywhere.
const READ: u16 = 16;
/// The port of the first try.
const FIRST_PORT: u16 = 40_000;

/// The numbers of tags behind which a SYN from this source is answered, of each kind and of both in
/// turn. What is due is waited for, and where nothing is, as long as something might come.
fn answered(peer: &Peer, source: IpAddr, due: &BTreeSet<u16>) -> Result<BTreeSet<u16>> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    let priority = Vlan::priority();
    let service = Vlan { service: true, ..priority };
    let kinds = [[priority, priority], [service, service], [priority, service]];
    let mut port = FIRST_PORT;
    for kind in kinds {
        for count in COUNTS {
            let mut frame: Packet = ethernet / kind[0];
            for at in 1..count {
                frame = frame / kind[usize::from(at % 2)];
            }
            let syn = Tcp::syn(port, AGENT);
            let frame = match source {
                IpAddr::V4(source) => frame / Ipv4::new(source, peer.host_v4()) / syn,
                IpAddr::V6(source) => frame / Ipv6::new(source, peer.host_v6()) / syn,
            };
            wire.send(&frame.bytes())?;
            port += 1;
        }
    }
    let count = |port: u16| COUNTS[usize::from(port - FIRST_PORT) % COUNTS.len()];
    let mut awaited: BTreeSet<u16> =
        (FIRST_PORT..port).filter(|port| due.contains(&count(*port))).collect();
    let mut seen = BTreeSet::new();
    let patience = if awaited.is_empty() { PATIENCE } else { AMPLE };
    wire.find(patience, |frame| {
        let segment = Segment::parse(frame).filter(Segment::is_syn_ack)?;
        let port = segment.destination.port();
        seen.insert(count(port));
        (awaited.remove(&port) && awaited.is_empty()).then_some(())
    })?;
    ensure!(
        awaited.is_empty(),
        "{source}: no answer to ports {awaited:?}, answers behind {seen:?}"
    );
    Ok(seen)
}

/// Demands that a listed source is answered behind tags that are read, and an unlisted one never.
pub(crate) fn expect_tags_to_hide_nothing(peer: &Peer) -> Result<()> {
    for (source, is_listed) in SOURCES {
        let due: BTreeSet<u16> =
            COUNTS.into_iter().filter(|count| is_listed && *count <= READ).collect();
        let seen = answered(peer, source.parse()?, &due)?;
        ensure!(is_listed || seen.is_empty(), "{source}: answered behind {seen:?}");
    }
    Ok(())
}

/// Sources, and whether they are listed.
const SOURCES: [(&str, bool); 4] = [
    ("34.205.5.1", true),
    ("198.51.100.7", false),
    ("2001:db8:1::1", true),
    ("2001:db8:2::1", false),
];

pub(crate) const LISTED_V6: [&str; 2] = ["--allow-from", "2001:db8:1::/64"];

/// Gives the peer these sources. That the host answers them all, behind all tags, is shown first.
pub(crate) fn prepare(peer: &Peer) -> Result<()> {
    for (source, _) in SOURCES {
        peer.add_address(source.parse()?)?;
        answered(peer, source.parse()?, &COUNTS.into())?;
    }
    Ok(())
}

fn no_number_of_priority_tags_gets_an_unlisted_source_past_the_program() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        prepare(&peer)?;
        for backend in ["xdp", "both"] {
            for mode in ["native", "generic"] {
                let more = [&LISTED_V6[..], &["--xdp-mode", mode]].concat();
                install(&flags(backend, "manager0", &more))?;
                expect_tags_to_hide_nothing(&peer)?;
                let verified = agent_fw(["verify"])?;
                ensure!(verified.code == Some(0), "{backend}, {mode}: {verified}");
            }
        }
        Ok(())
    })
}
