//! What somebody tries who is not on the list.

use crate::scene::{AGENT, PATIENCE, address, expect, from, install};
use crate::tests;
use agent_fw_lab::packet::{
    Ethernet, Extension, Fragment, Ipv4, Ipv6, Packet, Raw, Tcp, TcpFlags, Vlan,
};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, Wire, feed};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

tests![
    a_port_that_nat_redirects_to_the_agent_is_closed_too,
    no_disguise_of_a_syn_gets_an_unlisted_source_through,
    no_segment_without_a_syn_from_an_unlisted_source_is_answered,
];

fn a_port_that_nat_redirects_to_the_agent_is_closed_too() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let rules = "table inet nat { chain prerouting { type nat hook prerouting priority dstnat;
                     tcp dport 8118 redirect to :4118\n}\n}";
        feed(["nft", "-f", "-"], rules)?;
        ensure!(from(&manager, "198.51.100.7", 8118)? == Outcome::Talked, "the redirection works");
        let sources = ["--allow-from", "region:us-1", "--allow-from", "2001:db8:1::/64"];
        for extra in [&[][..], &["--early-drop"]] {
            install(&[&sources[..], extra].concat())?;
            for source in ["34.205.5.1", "2001:db8:1::1"] {
                ensure!(from(&manager, source, 8118)? == Outcome::Talked, "{source}");
                ensure!(from(&manager, source, AGENT)? == Outcome::Talked, "{source}");
            }
            for source in ["198.51.100.7", "2001:db8::1"] {
                ensure!(from(&manager, source, 8118)? == Outcome::Silent, "{source}");
                ensure!(from(&manager, source, AGENT)? == Outcome::Silent, "{source}");
            }
        }
        Ok(())
    })
}

/// Somebody who writes frames by hand.
struct Attacker<'a> {
    peer: &'a Peer,
    ethernet: Ethernet,
}

/// A SYN in some form.
struct Disguise {
    name: &'static str,
    frames: Vec<Packet>,
    /// Whether a host that filters nothing answers it.
    answered: bool,
}

impl Attacker<'_> {
    fn disguises(&self, source: IpAddr, port: u16) -> Vec<Disguise> {
        match source {
            IpAddr::V4(source) => self.disguises_v4(source, port),
            IpAddr::V6(source) => self.disguises_v6(source, port),
        }
    }

    fn disguises_v4(&self, source: Ipv4Addr, port: u16) -> Vec<Disguise> {
        let ethernet = self.ethernet;
        // Fragments of different datagrams must not be taken for those of one.
        let ip = Ipv4 { identification: port, ..Ipv4::new(source, self.peer.host_v4()) };
        let syn = || Tcp::syn(port, AGENT);
        let padding = || Raw::data(&[0; 64]);
        let whole = ethernet / ip.clone() / syn() / padding();
        // With routing options: strict and loose source routes are refused by Linux itself.
        let nops = Ipv4 { options: vec![1; 40], ..ip.clone() };
        let alert = Ipv4 { options: vec![148, 4, 0, 0], ..ip.clone() };
        let reversed: Vec<Packet> = whole.fragments(24).into_iter().rev().collect();
        // The first fragment ends before the ports' segment does: no filter of fragments alone
        // could decide on its flags.
        let tiny = whole.fragments(8);
        let twice: Vec<Packet> =
            whole.fragments(40).into_iter().flat_map(|f| [f.clone(), f]).collect();
        vec![
            Disguise::answered("plain", vec![ethernet / ip.clone() / syn()]),
            Disguise::answered(
                "priority tag",
                vec![ethernet / Vlan::priority() / ip.clone() / syn()],
            ),
            Disguise::silent("VLAN tag", vec![ethernet / Vlan::id(7) / ip.clone() / syn()]),
            Disguise::silent(
                "two VLAN tags",
                vec![ethernet / Vlan::service(7) / Vlan::id(8) / ip.clone() / syn()],
            ),
            Disguise::answered("40 bytes of options", vec![ethernet / nops.clone() / syn()]),
            Disguise::answered("router alert", vec![ethernet / alert / syn()]),
            Disguise::answered("fragments", whole.fragments(24)),
            Disguise::answered("fragments in reverse", reversed),
            Disguise::answered("fragments of 8 bytes", tiny),
            Disguise::answered("fragments, each twice", twice),
            Disguise::answered(
                "options and fragments",
                (ethernet / nops / syn() / padding()).fragments(16),
            ),
            Disguise::answered("data with the SYN", vec![whole]),
            Disguise::answered(
                "ECN flags",
                vec![ethernet / ip / Tcp { flags: TcpFlags(0xc2), ..syn() }],
            ),
        ]
    }

    fn disguises_v6(&self, source: Ipv6Addr, port: u16) -> Vec<Disguise> {
        let ethernet = self.ethernet;
        let ip = Ipv6::new(source, self.peer.host_v6());
        let syn = || Tcp::syn(port, AGENT);
        let padding = || Raw::data(&[0; 64]);
        let whole = ethernet / ip / syn() / padding();
        let options = Extension::destination_options();
        let atomic = Fragment { offset: 0, more: false, identification: 7 };
        let behind = |extension: Extension| ethernet / ip / extension / syn() / padding();
        let chain = ethernet
            / ip
            / Extension::hop_by_hop()
            / options
            / Extension::routing()
            / options
            / options
            / syn();
        let reversed: Vec<Packet> = whole.fragments(24).into_iter().rev().collect();
        vec![
            Disguise::answered("plain", vec![ethernet / ip / syn()]),
            Disguise::answered("priority tag", vec![ethernet / Vlan::priority() / ip / syn()]),
            Disguise::answered("destination options", vec![ethernet / ip / options / syn()]),
            Disguise::answered(
                "hop-by-hop options",
                vec![ethernet / ip / Extension::hop_by_hop() / syn()],
            ),
            Disguise::answered(
                "routing header",
                vec![ethernet / ip / Extension::routing() / syn()],
            ),
            Disguise::answered("five extension headers", vec![chain]),
            Disguise::answered("atomic fragment", vec![ethernet / ip / atomic / syn()]),
            Disguise::answered("fragments", whole.fragments(24)),
            Disguise::answered("fragments in reverse", reversed),
            // RFC 7112: the first fragment must hold all headers. Linux drops it otherwise.
            Disguise::silent("fragments of 8 bytes", whole.fragments(8)),
            Disguise::silent(
                "the TCP header in the second fragment",
                (ethernet / ip / options / options / options / options / syn()).fragments(32),
            ),
            Disguise::answered(
                "fragments behind hop-by-hop options",
                behind(Extension::hop_by_hop()).fragments(24),
            ),
            Disguise::answered("fragments with options inside", behind(options).fragments(40)),
            Disguise::answered("data with the SYN", vec![whole]),
        ]
    }

    /// Whether the host answers with a SYN-ACK.
    fn is_answered(&self, source: IpAddr, port: u16, frames: &[Packet]) -> Result<bool> {
        let wire = self.peer.enter(|| Wire::open(self.peer.own_interface()))??;
        for frame in frames {
            wire.send(&frame.bytes())?;
        }
        let agent = self.peer.host_address(source, AGENT);
        let answer = wire.find_syn_ack(SocketAddr::new(source, port), agent, PATIENCE)?;
        Ok(answer.is_some())
    }

    /// Tries every disguise; `listed` tells whether the source is admitted.
    fn try_all(&self, source: IpAddr, listed: bool, first_port: u16) -> Result<()> {
        self.peer.add_address(source)?;
        // All at once: what stays silent is waited for.
        std::thread::scope(|scope| {
            let tries: Vec<_> = (first_port..)
                .zip(self.disguises(source, first_port))
                .map(|(port, Disguise { name, answered, .. })| {
                    scope.spawn(move || -> Result<()> {
                        let all = self.disguises(source, port).into_iter();
                        let frames = all.filter(|one| one.name == name).flat_map(|one| one.frames);
                        let frames: Vec<Packet> = frames.collect();
                        let seen = self.is_answered(source, port, &frames)?;
                        let wanted = listed && answered;
                        ensure!(seen == wanted, "{name} from {source}: answered: {seen}");
                        Ok(())
                    })
                })
                .collect();
            tries.into_iter().try_for_each(|one| one.join().ok().context("a try panicked")?)
        })?;
        self.peer.remove_address(source)
    }
}

impl Disguise {
    fn answered(name: &'static str, frames: Vec<Packet>) -> Self {
        Self { name, frames, answered: true }
    }

    fn silent(name: &'static str, frames: Vec<Packet>) -> Self {
        Self { name, frames, answered: false }
    }
}

const SOURCES: [&str; 4] = ["--allow-from", "region:us-1", "--allow-from", "2001:db8:1::/64"];

/// Each form is also sent by a listed source, which shows that the form itself works.
fn no_disguise_of_a_syn_gets_an_unlisted_source_through() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("attacker")?;
        let _agent = Listener::bind(AGENT)?;
        let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
        let attacker = Attacker { peer: &peer, ethernet };
        for (round, extra) in [&[][..], &["--early-drop"]].into_iter().enumerate() {
            install(&[&SOURCES[..], extra].concat())?;
            let port = 40_000 + 1000 * u16::try_from(round)?;
            attacker.try_all(address("34.205.5.1"), true, port)?;
            attacker.try_all(address("198.51.100.7"), false, port + 100)?;
            attacker.try_all(address("2001:db8:1::1"), true, port + 200)?;
            attacker.try_all(address("2001:db8:2::1"), false, port + 300)?;
        }
        // And with connection tracking on, which reassembles before any hook.
        let tracking = "table inet host { chain input { type filter hook input priority 0;
                        ct state invalid counter\n}\n}";
        feed(["nft", "-f", "-"], tracking)?;
        attacker.try_all(address("34.205.5.1"), true, 50_000)?;
        attacker.try_all(address("198.51.100.7"), false, 50_100)?;
        attacker.try_all(address("2001:db8:1::1"), true, 50_200)?;
        attacker.try_all(address("2001:db8:2::1"), false, 50_300)
    })
}

/// A closed port answers with a RST, an open one to an ACK too: silence tells nothing.
fn no_segment_without_a_syn_from_an_unlisted_source_is_answered() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("attacker")?;
        let _agent = Listener::bind(AGENT)?;
        install(&SOURCES)?;
        expect(&peer, Outcome::Talked, &["34.205.5.1"])?;
        let source = address("198.51.100.7");
        peer.add_address(source)?;
        let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
        let IpAddr::V4(from) = source else { unreachable!("IPv4") };
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        for flags in 0..=0x3f {
            let tcp = Tcp { flags: TcpFlags(flags), ..Tcp::syn(40_000, AGENT) };
            wire.send(&(ethernet / Ipv4::new(from, peer.host_v4()) / tcp).bytes())?;
        }
        let answer = wire.find(PATIENCE, |frame| {
            let segment = agent_fw_lab::packet::Segment::parse(frame)?;
            (segment.source.port() == AGENT).then_some(segment)
        })?;
        ensure!(answer.is_none(), "answered with {answer:?}");
        Ok(())
    })
}
