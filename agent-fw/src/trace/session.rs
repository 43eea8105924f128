//! Asks about packets that come in by one interface, one after the other.

use super::answer::Answerer;
use super::base_chains;
use super::case::Case;
use super::cgroup;
use super::driver;
use super::follow::{Token, send_and_follow};
use super::iptables_legacy;
use super::path::{Conclusion, Observed, Road};
use super::routing;
use super::socket::Taker;
use super::stateful::{Packet, SideEffects, StatefulRule, Watched, refuse_to_be_remembered};
use super::syn::Syn;
use super::tap::Tap;
use super::tc;
use super::trace_table::{Protocol, Quarry, Snare};
use super::tracked;
use crate::model::MacAddr;
use crate::netlink::link::Interface;
use crate::netlink::nfnetlink::Connection;
use crate::netlink::route_lookup;
use anyhow::{Context as _, bail};
use std::hash::{BuildHasher as _, RandomState};

impl Case {
    /// The rules that would remember the packet, or the one that answers it.
    pub(super) fn remembered_by(
        &self,
        host: &mut Watched,
        own: MacAddr,
    ) -> anyhow::Result<Vec<StatefulRule>> {
        let made = |packet: Option<Vec<u8>>| {
            packet
                .map(|bytes| Packet::of(&bytes))
                .context("the addresses are of two versions of IP")
        };
        let asks = made(self.syn.packet())?.framed(self.mac.0, own.0);
        host.incoming(asks, &self.interface, Some(made(self.syn.answer(0))?))
    }
}

/// All that it takes to ask about packets that come in by one interface.
pub struct Session {
    interface: Interface,
    own: MacAddr,
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
    snare: Snare,
}

impl Session {
    /// Begins one. Nothing is set up before something is to be sent.
    pub fn at(interface: &Interface, side_effects: SideEffects) -> anyhow::Result<Self> {
        let name = &interface.name;
        if !interface.is_up {
            bail!("interface {name} is down");
        }
        let own = interface.mac.filter(|_| interface.is_ethernet).with_context(|| {
            format!("interface {name} has no MAC address; only Ethernet can be asked about")
        })?;
        let watched = match side_effects {
            SideEffects::Refused => Some(Watched::open()?),
            SideEffects::Accepted => None,
        };
        let interface = interface.clone();
        Ok(Self { interface, own: MacAddr(own), watched, gear: None })
    }

    /// Asks the kernel. Fails with [`NotAsked`](super::NotAsked) where rules would remember the
    /// packet.
    pub fn ask(&mut self, case: &Case) -> anyhow::Result<Road> {
        if let Some(watched) = &mut self.watched {
            refuse_to_be_remembered(case.remembered_by(watched, self.own)?)?;
        }
        if self.gear.is_none() {
            self.gear = Some(Gear::set_up(&self.interface, self.own)?);
        }
        let gear = self.gear.as_mut().context("there is nothing to ask with")?;
        gear.ask(case, &self.interface, self.own)
    }
}

impl Gear {
    fn set_up(interface: &Interface, own: MacAddr) -> anyhow::Result<Self> {
        let name = &interface.name;
        let random = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
        let [a, b, c, d, ..] = random;
        let sequence = u32::from_ne_bytes([a, b, c, d]);
        let listener = Connection::to_hear_traces()?;
        let quarry = Quarry {
            protocol: Protocol::Tcp,
            number: sequence,
            answer: Some(answer_to(sequence)),
            is_tracked: tracked::is_in_use(&mut Connection::open()?)?,
        };
        let snare = Snare::set(name, quarry)?;
        let tap = Tap::make(own)?;
        tap.lead_into(interface.index)?;
        Ok(Self { sequence, listener, tap, snare })
    }

    fn ask(&mut self, case: &Case, interface: &Interface, own: MacAddr) -> anyhow::Result<Road> {
        let syn = Syn { sequence: self.sequence, ..case.syn };
        let after = Syn { sequence: self.sequence.wrapping_add(1), ..syn };
        let frame =
            |syn: Syn| syn.frame(case.mac, own).context("the addresses are of two versions of IP");
        let (frame, after) = (frame(syn)?, frame(after)?);
        let token = Token {
            protocol: Protocol::Tcp,
            first: syn.source_port.0.to_be_bytes(),
            number: syn.sequence,
        };
        let mut send = || send_and_follow(&mut self.tap, &mut self.listener, token, &frame, &after);
        let events = send()?;
        let mark = events.last().map_or(0, |event| event.mark);
        let observed = Observed {
            events,
            driver: driver::of_interface(interface, &frame),
            routing: route_lookup::of_incoming(&routing::of_arrival(&syn, mark, interface.index)),
            sees_entrance: self.snare.sees_entrance,
        };
        let mut connection = Connection::open()?;
        let bases = base_chains::list(&mut connection)?;
        let (destination, port) = observed.arrived_at().unwrap_or((syn.destination, syn.port));
        let arrival = tracked::Arrival::of(&observed.events, self.snare.records);
        let mut road = Road::of(observed, &bases, &mut connection);
        match &mut road.conclusion {
            Conclusion::Reaches => {
                let asked = (syn.destination, syn.port);
                let syn = Syn { destination, port, ..syn };
                let taker = Taker::of(&syn, interface.index);
                let cgroup = if let Taker::Socket(cgroup) = &taker { *cgroup } else { None };
                road.taker = Some(taker);
                let judged = cgroup.and_then(|cgroup| {
                    cgroup::judge(cgroup, cgroup::Direction::In, &frame, interface.index)
                });
                if let Some(judged) = judged {
                    road.conclusion = judged;
                    return Ok(road);
                }
                let mut answerer = Answerer {
                    listener: &mut self.listener,
                    bases: &bases,
                    interface,
                    neighbour: case.mac,
                    own,
                    cgroup,
                    number: answer_to(self.sequence),
                };
                let answer = answerer.answer(&syn, asked, &arrival, &mut connection);
                road.answer = Some(answer.map(Box::new).map_err(|error| format!("{error:#}")));
            }
            Conclusion::AtEntrance(suspects) => {
                *suspects = tc::suspects(interface, &frame);
            }
            Conclusion::Unroutable(_) => {}
            _ => iptables_legacy::name(&mut road, syn.source.is_ipv4(), || send().map(drop))?,
        }
        Ok(road)
    }
}

/// The number of the answer to a packet.
fn answer_to(sequence: u32) -> u32 {
    sequence ^ 1 << 31
}
