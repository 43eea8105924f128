//! Asks about packets that come in by one interface, one after the other.

use super::answer::Answerer;
use super::base_chains::{self, Base};
use super::case::ResolvedProbe;
use super::cgroup;
use super::entrance::Entrance;
use super::events::ChainRef;
use super::follow::{Token, send_and_follow};
use super::iptables_legacy;
use super::path::{Conclusion, Observed, PacketTrace};
use super::probe_rule::Protocol;
use super::routing;
use super::socket::Taker;
use super::stateful::{Packet, SideEffects, StatefulRule, Watched, refuse_to_be_remembered};
use super::syn::Syn;
use super::trace_table::{ProbeMatch, TraceTable};
use super::tracked;
use crate::model::MacAddr;
use crate::netlink::link::Interface;
use crate::netlink::nfnetlink::Connection;
use crate::netlink::tap::Tap;
use crate::netlink::{link, route_lookup};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

impl ResolvedProbe {
    /// The rules that would remember the packet, or the one that answers it.
    pub(super) fn remembered_by(
        &self,
        host: &mut Watched,
        entrance: &Entrance,
    ) -> anyhow::Result<Vec<StatefulRule>> {
        let made = |packet: Option<Vec<u8>>| {
            packet
                .map(|bytes| Packet::of(&bytes))
                .context("the addresses are of two versions of IP")
        };
        let own = self.interface.mac.unwrap_or_default();
        let asks = made(self.syn.packet())?.framed(self.mac.0, own);
        host.incoming(asks, &entrance.devices, Some(made(self.syn.answer(0))?))
    }

    /// The packet as the interface receives it.
    fn frame(&self, syn: &Syn) -> anyhow::Result<Vec<u8>> {
        let frame = match own_mac(&self.interface) {
            Some(own) => syn.frame(self.mac, own),
            None => syn.packet(),
        };
        frame.context("the addresses are of two versions of IP")
    }
}

/// The interface's MAC address; none, where it is no Ethernet.
fn own_mac(interface: &Interface) -> Option<MacAddr> {
    interface.mac.filter(|_| interface.is_ethernet).map(MacAddr)
}

/// All that it takes to ask about packets that come in by one interface.
pub struct Session {
    interfaces: Vec<Interface>,
    /// The host's rules, where those that remember packets are not to be asked.
    watched: Option<Watched>,
    gear: Option<Gear>,
}

/// What sends a packet and hears of it.
struct Gear {
    sequence: u32,
    listener: Connection,
    // Goes before the device: no packet that is still on its way escapes.
    tap: Tap,
    snare: TraceTable,
    /// Where packets come in.
    lowest: u32,
}

impl Session {
    /// Begins one. Nothing is set up before something is to be sent.
    pub fn at(interface: &Interface, side_effects: SideEffects) -> anyhow::Result<Self> {
        if !interface.is_up {
            bail!("interface {} is down", interface.name);
        }
        let watched = match side_effects {
            SideEffects::Refused => Some(Watched::open()?),
            SideEffects::Accepted => None,
        };
        Ok(Self { interfaces: link::list()?, watched, gear: None })
    }

    /// Asks the kernel. Fails with [`NotAsked`](super::NotAsked) where rules would remember the
    /// packet.
    pub fn ask(&mut self, case: &ResolvedProbe) -> anyhow::Result<PacketTrace> {
        let entrance = Entrance::of(&case.interface, case.mac, &self.interfaces);
        if let Some(watched) = &mut self.watched {
            refuse_to_be_remembered(case.remembered_by(watched, &entrance)?)?;
        }
        let lowest = entrance.lowest().context("there is no interface")?;
        if self.gear.as_ref().is_none_or(|gear| gear.lowest != lowest.index) {
            // The other one goes first.
            self.gear = None;
            self.gear = Some(Gear::set_up(lowest, own_mac(&case.interface))?);
        }
        let gear = self.gear.as_mut().context("there is nothing to ask with")?;
        let road = gear.ask(case, &entrance);
        entrance.leave_no_trace(case.mac);
        let mut road = road?;
        if let Some(missing) = &entrance.missing {
            road.missing.push(missing.clone());
        }
        Ok(road)
    }
}

impl Gear {
    /// `own` is the MAC address that frames are to.
    fn set_up(lowest: &Interface, own: Option<MacAddr>) -> anyhow::Result<Self> {
        let random = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
        let [a, b, c, d, ..] = random;
        let sequence = u32::from_ne_bytes([a, b, c, d]);
        let listener = Connection::to_hear_traces()?;
        let quarry = ProbeMatch {
            protocol: Protocol::Tcp,
            number: sequence,
            answer: Some(answer_to(sequence)),
            is_tracked: tracked::is_in_use(&mut Connection::open()?)?,
        };
        let snare = TraceTable::set(&lowest.name, quarry)?;
        let tap = Tap::make(own)?;
        tap.lead_into(lowest.index)?;
        Ok(Self { sequence, listener, tap, snare, lowest: lowest.index })
    }

    fn ask(&mut self, case: &ResolvedProbe, entrance: &Entrance) -> anyhow::Result<PacketTrace> {
        let interface = &case.interface;
        let syn = Syn { sequence: self.sequence, ..case.syn };
        let frame = case.frame(&syn)?;
        let after = case.frame(&Syn { sequence: self.sequence.wrapping_add(1), ..syn })?;
        let (first, after) = (entrance.tagged(&frame), entrance.tagged(&after));
        let token = Token {
            protocol: Protocol::Tcp,
            first: syn.source_port.0.to_be_bytes(),
            number: syn.sequence,
        };
        let mut send = || send_and_follow(&mut self.tap, &mut self.listener, token, &first, &after);
        let events = send()?;
        let mark = events.last().map_or(0, |event| event.mark);
        let observed = Observed {
            events,
            driver: entrance.driver(&frame),
            routing: route_lookup::of_incoming(&routing::of_arrival(&syn, mark, interface.index)),
            sees_entrance: self.snare.sees_entrance,
        };
        let is_routable = observed.routing.is_ok();
        let mut connection = Connection::open()?;
        let bases = base_chains::list(&mut connection)?;
        let arrival = tracked::Arrival::of(&observed.events, self.snare.records);
        let mut road = PacketTrace::of(observed, &bases, &mut connection);
        match &mut road.conclusion {
            Conclusion::Reaches => self.answer(case, &mut road, &arrival, &bases)?,
            Conclusion::AtEntrance(suspects) => *suspects = entrance.suspects(&frame),
            Conclusion::BelowIp(suspects) => *suspects = entrance.suspects_above(&frame),
            // Where bridges have their frames judged by chains of IP, those come first.
            Conclusion::Unroutable(_) if is_routable => {
                let suspects = entrance.suspects_above(&frame);
                if !suspects.is_empty() {
                    road.conclusion = Conclusion::BelowIp(suspects);
                }
            }
            Conclusion::Unroutable(_) => {}
            _ => iptables_legacy::name(&mut road, syn.source.is_ipv4(), || send().map(drop))?,
        }
        Ok(road)
    }

    /// Asks who takes the packet that has reached the port, and what becomes of the answer.
    fn answer(
        &mut self,
        case: &ResolvedProbe,
        road: &mut PacketTrace,
        arrival: &tracked::Arrival,
        bases: &BTreeMap<ChainRef, Base>,
    ) -> anyhow::Result<()> {
        let interface = &case.interface;
        let asked = (case.syn.destination, case.syn.port);
        let (destination, port) = road.arrived_at.unwrap_or(asked);
        let syn = Syn { sequence: self.sequence, destination, port, ..case.syn };
        let own = own_mac(interface);
        let taker = Taker::of(&syn, case.vrf.as_ref().map_or(interface.index, |(index, _)| *index));
        let cgroup = if let Taker::Socket(cgroup) = &taker { *cgroup } else { None };
        road.taker = Some(taker);
        let frame = syn.frame(case.mac, own.unwrap_or(case.mac));
        let judged = cgroup.zip(frame).and_then(|(cgroup, frame)| {
            cgroup::judge(cgroup, cgroup::Direction::In, &frame, interface.index)
        });
        if let Some(judged) = judged {
            road.conclusion = judged;
            return Ok(());
        }
        let mut answerer = Answerer {
            listener: &mut self.listener,
            bases,
            interface,
            vrf: case.vrf.as_ref(),
            neighbour: case.mac,
            own,
            cgroup,
            number: answer_to(self.sequence),
        };
        let answer = answerer.answer(&syn, asked, arrival, &mut Connection::open()?);
        road.answer = Some(answer.map(Box::new).map_err(|error| format!("{error:#}")));
        Ok(())
    }
}

/// The number of the answer to a packet.
fn answer_to(sequence: u32) -> u32 {
    sequence ^ 1 << 31
}
