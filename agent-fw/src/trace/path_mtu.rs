//! Asks the running kernel whether a router's word that a packet of the agent's was too large gets
//! in: without it, connections over a link that carries less hang.

use super::icmp::TooBig;
use super::stateful::{Packet, Watched, refuse_to_be_remembered};
use crate::model::MacAddr;
use crate::netlink::conntrack::{Imprint, State, Tracked};
use crate::netlink::nfnetlink::Connection;
use crate::netlink::route_lookup::{self, Flow};
use crate::netlink::tap::Tap;
use crate::trace::case::ResolvedProbe;
use crate::trace::follow::{Token, send_and_follow};
use crate::trace::path::PacketTrace;
use crate::trace::probe_rule::Protocol;
use crate::trace::syn::Syn;
use crate::trace::trace_table::{ProbeMatch, TraceTable};
use crate::trace::{base_chains, driver, path};
use anyhow::Context as _;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Public addresses that stand for any router on the way: those for documentation are what some
/// rules drop on purpose. Nothing is sent to them.
const ROUTERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 9)),
];

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathMtu {
    /// The router that it came from.
    pub router: IpAddr,
    /// What became of it.
    pub road: PacketTrace,
    /// Why it was not about a tracked connection, as in earnest it would be.
    pub untracked: Option<String>,
}

impl PathMtu {
    /// Asks about a connection that this case's source would have with the port. Fails with
    /// [`NotAsked`](super::NotAsked) where rules would remember the packet.
    pub fn ask(case: &ResolvedProbe) -> anyhow::Result<Self> {
        let ResolvedProbe { syn, interface, .. } = case;
        let own = interface.mac.filter(|_| interface.is_ethernet && interface.is_up);
        let own =
            MacAddr(own.with_context(|| {
                format!("interface {} is down, or is no Ethernet", interface.name)
            })?);
        let router = router(syn.source, interface.index);
        let is_v4 = router.is_ipv4();
        let [a, b, c, d, e, f, ..] = RandomState::new().hash_one(router).to_ne_bytes();
        let known = TooBig::known_by(is_v4, u16::from_ne_bytes([a, b]));
        let sent = Syn {
            source: syn.destination,
            source_port: syn.port,
            destination: syn.source,
            port: syn.source_port,
            sequence: u32::from_ne_bytes([c, d, e, f]),
        };
        let asks = known.packet(router, &sent, known.number).context("two versions of IP")?;
        let asks = Packet::made_by_the_kernel(&asks).framed(case.mac.0, own.0);
        refuse_to_be_remembered(Watched::open()?.incoming(
            asks,
            std::slice::from_ref(interface),
            None,
        )?)?;
        let frame = |number| {
            let kind = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
            let packet = known.packet(router, &sent, number).context("two versions of IP")?;
            anyhow::Ok([&own.0[..], &case.mac.0, &kind, &packet].concat())
        };
        let (frame, after) = (frame(known.number)?, frame(known.number + 1)?);
        let protocol = if is_v4 { Protocol::Icmp } else { Protocol::IcmpV6 };
        let token = Token { protocol, first: known.first, number: known.number };
        let mut listener = Connection::to_hear_traces()?;
        let quarry = ProbeMatch { protocol, number: known.number, answer: None, is_tracked: false };
        let snare = TraceTable::set(&interface.name, quarry)?;
        let mut tap = Tap::make(Some(own))?;
        tap.lead_into(interface.index)?;
        let (remote, here) = ((sent.destination, sent.port), (sent.source, sent.source_port));
        let tracked = Tracked::enter(remote, here, here, State::Established, &Imprint::default());
        let events = send_and_follow(&mut tap, &mut listener, token, &frame, &after)?;
        let untracked = tracked.err().map(|errno| errno.to_string());
        let observed = path::Observed {
            events,
            driver: driver::of_interface(interface, &frame),
            routing: route_lookup::of_incoming(&Flow {
                from: Some(router),
                ..Flow::to(syn.destination).by(interface.index)
            }),
            sees_entrance: snare.sees_entrance,
        };
        let mut connection = Connection::open()?;
        let bases = base_chains::list(&mut connection)?;
        Ok(Self { router, road: PacketTrace::of(observed, &bases, &mut connection), untracked })
    }
}

/// A router on the way to the source: any one, where this host has a way to it by that interface;
/// or the next one.
fn router(source: IpAddr, interface: u32) -> IpAddr {
    let any = ROUTERS.iter().find(|router| router.is_ipv4() == source.is_ipv4());
    let is_there = |router: &&IpAddr| {
        route_lookup::of_leaving(&Flow::to(**router)).is_ok_and(|way| way.interface == interface)
    };
    let by_it = Flow::to(source).by(interface);
    let next = || route_lookup::of_leaving(&by_it).map(|way| way.neighbour);
    any.filter(is_there).copied().or_else(|| next().ok()).unwrap_or(source)
}
