//! What this host does with the packet that would answer one which has reached the port: a tracked
//! connection stands for that one's, and the answer goes out as from a socket, and is caught.

use super::base_chains::Base;
use super::cgroup;
use super::egress;
use super::events::{ChainRef, Event};
use super::follow::Token;
use super::iptables_legacy;
use super::outbound::{self, Departure};
use super::path::{Conclusion, Observed, PacketTrace};
use super::probe_rule::Protocol;
use super::routing;
use super::syn::Syn;
use super::tc;
use super::trace_table::{self, Mark};
use super::tracked::Arrival;
use crate::model::{MacAddr, Port};
use crate::netlink::conntrack::{State, Tracked};
use crate::netlink::link::{self, Interface};
use crate::netlink::nfnetlink::Connection;
use crate::netlink::route_lookup::{self, Flow};
use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What it takes to ask about an answer.
pub(super) struct Answerer<'a> {
    pub(super) listener: &'a mut Connection,
    pub(super) bases: &'a BTreeMap<ChainRef, Base>,
    /// Where the first packet has come in.
    pub(super) interface: &'a Interface,
    /// The VRF that it is in.
    pub(super) vrf: Option<&'a (u32, String)>,
    /// The MAC address that it has come from.
    pub(super) neighbour: MacAddr,
    /// That of the interface; none, where it is no Ethernet.
    pub(super) own: Option<MacAddr>,
    /// The cgroup of the socket that answers.
    pub(super) cgroup: Option<u64>,
    /// By which the answer is known.
    pub(super) number: u32,
}

impl Answerer<'_> {
    /// What becomes of the answer to a packet. `syn` is as it has arrived; its sender has asked for
    /// `asked`.
    pub(super) fn answer(
        &mut self,
        syn: &Syn,
        asked: (IpAddr, Port),
        arrival: &Arrival,
        connection: &mut Connection,
    ) -> anyhow::Result<PacketTrace> {
        let (source, destination) = (syn.source, syn.destination);
        let mark = if socket_takes_mark() { arrival.mark } else { 0 };
        let scope = routing::scope(source, self.interface.index, self.vrf);
        let flow = routing::of_answer(syn, mark, scope);
        // A socket that finds no way sends nothing.
        let way = match route_lookup::of_leaving(&flow) {
            Err(errno) => {
                let why = routing::no_way_to(source, errno);
                return Ok(PacketTrace::concluded(Conclusion::Unroutable(why)));
            }
            Ok(way) => way,
        };
        let _tracked = match &arrival.imprint {
            None => None,
            Some(imprint) => {
                let remote = (source, syn.source_port);
                let own = (destination, syn.port);
                let tracked = Tracked::enter(remote, asked, own, State::Asked, imprint);
                Some(tracked.map_err(|errno| {
                    anyhow!("connection tracking cannot be told of it ({errno})")
                })?)
            }
        };
        // What stands for a socket sends without ports, as far as routing knows.
        let without_ports = route_lookup::of_leaving(&Flow { ports: None, ..flow });
        let is_same = without_ports.is_ok_and(|other| other.interface == way.interface);
        let by = match self.vrf {
            Some((_, name)) => Some(name.clone()),
            None => (!is_same).then(|| name_of(way.interface)).transpose()?,
        };
        let scope = self.interface.index;
        let departure = Departure { from: destination, to: source, scope, mark, by };
        let first = syn.port.0.to_be_bytes();
        let token = Token { protocol: Protocol::Tcp, first, number: self.number };
        let mut send = || {
            outbound::depart(self.listener, token, &departure, |number| {
                syn.answer(number).context("the addresses are of two versions of IP")
            })
        };
        let events = send()?;
        let comes_from = events.iter().filter(|event| is_out(event)).find_map(Event::source);
        let leaves_by = events.iter().rev().find_map(|event| event.out);
        let last_mark = events.last().map_or(mark, |event| event.mark);
        let mut road = PacketTrace::of(Observed::leaving(events), self.bases, connection);
        iptables_legacy::name(&mut road, destination.is_ipv4(), || send().map(drop))?;
        if road.conclusion == Conclusion::Reaches {
            let interface = self.left_by(leaves_by)?;
            let wrong_end = comes_from.filter(|end| *end != asked);
            if let Some(stopped) = self.behind(syn, wrong_end, &interface) {
                road.conclusion = stopped;
            } else if let Some(from) = interface.mac.filter(|_| interface.is_ethernet) {
                let from = MacAddr(from);
                let (number, to, by) = (self.number, self.neighbour, &interface);
                let frame = egress::Frame { syn, number, mark: last_mark, from, to, by };
                let exit = egress::ask(&frame, self.listener, self.bases, connection)?;
                if let Some(exit) = exit {
                    road.go_on(exit);
                }
            }
            road.leaves_by = Some(interface.name);
        } else if let Some(errno) = rerouted(&road, Flow { mark: last_mark, ..flow }) {
            road.conclusion = Conclusion::Unroutable(format!(
                "{} with the mark {last_mark:#x}, which a rule has set",
                routing::no_way_to(source, errno)
            ));
        }
        Ok(road)
    }

    /// The interface by which an answer has left.
    fn left_by(&self, index: Option<u32>) -> anyhow::Result<Interface> {
        match index {
            Some(index) if index != self.interface.index => {
                let found = link::list()?.into_iter().find(|interface| interface.index == index);
                found.with_context(|| format!("interface {index} has gone"))
            }
            _ => Ok(self.interface.clone()),
        }
    }

    /// What ends the answer behind all chains of IP. `wrong_end` is where it comes from, where that
    /// is not what was asked for.
    fn behind(
        &self,
        syn: &Syn,
        wrong_end: Option<(IpAddr, Port)>,
        interface: &Interface,
    ) -> Option<Conclusion> {
        if let Some((address, port)) = wrong_end {
            return Some(Conclusion::ByProgram(format!(
                "by the source, which has not asked there: it comes from {address} port {port}"
            )));
        }
        let own = self.own.unwrap_or(self.neighbour);
        let frame = syn.answer_frame(self.number, own, self.neighbour)?;
        let by_cgroup =
            || cgroup::judge(self.cgroup?, cgroup::Direction::Out, &frame, interface.index);
        by_cgroup().or_else(|| tc::at_exit(interface, &frame))
    }
}

/// Whether it has come to the end of all chains there.
fn is_out(event: &Event) -> bool {
    event.place.table == trace_table::TABLE
        && Mark::of_chain(&event.place.chain) == Some(Mark::Through)
}

/// Why an answer that has vanished has no way out, where rules have changed its mark: it is routed
/// anew, by its mark alone.
fn rerouted(road: &PacketTrace, flow: Flow) -> Option<Errno> {
    let is_gone = matches!(road.conclusion, Conclusion::Vanished(_)) && flow.mark != 0;
    if is_gone { route_lookup::of_leaving(&Flow { ports: None, ..flow }).err() } else { None }
}

/// Whether a connection takes its first packet's mark for its own packets.
fn socket_takes_mark() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept");
    setting.is_ok_and(|value| value.trim() != "0")
}

fn name_of(index: u32) -> anyhow::Result<String> {
    let all = link::list()?;
    let found = all.into_iter().find(|interface| interface.index == index);
    Ok(found.with_context(|| format!("interface {index} has gone"))?.name)
}
