//! Asks the running kernel whether a packet gets through: a marked SYN is sent in by the real
//! interface, traced through every chain of every table, and caught before any socket.
//!
//! What it takes (a device, a table) belongs to this process: the kernel removes it with it.

pub(crate) mod base_chains;
mod destination;
mod detour;
mod driver;
mod entry;
pub(crate) mod events;
mod icmp;
pub(crate) mod iptables_legacy;
mod outbound;
pub(crate) mod path;
mod path_mtu;
mod reach;
mod registers;
mod rewriting;
pub(crate) mod rule_text;
mod stateful;
mod syn;
mod tc;
mod trace_table;

pub use crate::netlink::route_lookup::macs_towards;
pub use crate::netlink::routes::Routes;
pub use base_chains::Base;
pub use detour::{Detour, detours};
pub use driver::Action;
pub use entry::{Entry, Memory, Opener, Tracking};
pub use events::{Place, Verdict};
pub use iptables_legacy::LegacyRule;
pub use outbound::Outbound;
pub use path::{Conclusion, Decider, Decision, Driver, Road};
pub use path_mtu::PathMtu;
pub use stateful::{NotAsked, SideEffects, StatefulRule};
pub use syn::Syn;
pub use tc::tc_programs;

use crate::model::{MacAddr, Port};
use crate::netlink::conntrack::{State, Tracked};
use crate::netlink::link::Interface;
use crate::netlink::nfnetlink::Connection;
use crate::netlink::tap::Tap;
use crate::netlink::{link, route_lookup};
use anyhow::{Context as _, anyhow, bail};
use events::Event;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use stateful::{Packet, Watched};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use trace_table::{Mark, Protocol, Quarry, Snare};

/// How long the packet is waited for. It takes microseconds, but for a machine that is very busy;
/// waited to the end is only where something takes all packets away.
const PATIENCE: Duration = Duration::from_secs(3);

/// The sender's MAC address where this host knows none: one for documentation (RFC 7042).
const STRANGER: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x00, 0x53, 0x01]);

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Where the packet comes from.
    pub source: IpAddr,
    /// The MAC address that it comes from; without one, the neighbour's.
    pub mac: Option<MacAddr>,
    /// Where it goes; without, this host's address towards the source.
    pub destination: Option<IpAddr>,
    /// The port.
    pub port: Port,
    /// The interface that it comes in by; without, the one towards the source.
    pub interface: Option<String>,
}

/// A question with everything that it left open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// The packet.
    pub syn: Syn,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The interface.
    pub interface: Interface,
    /// The answer would go out by this interface, where that is another.
    pub back_by: Option<String>,
}

impl Case {
    /// Settles what a question leaves open.
    pub fn of(question: &Question) -> anyhow::Result<Self> {
        Self::among(question, &link::list()?)
    }

    /// The same, where this host's interfaces are known.
    pub fn among(question: &Question, all: &[Interface]) -> anyhow::Result<Self> {
        let source = question.source;
        let way = route_lookup::back_to(source, None);
        let name_of = |index: u32| {
            all.iter().find(|interface| interface.index == index).map(|i| i.name.clone())
        };
        let interface = match (&question.interface, &way) {
            (Some(name), _) => all.iter().find(|interface| interface.name == *name),
            (None, Ok(way)) => all.iter().find(|interface| interface.index == way.interface),
            (None, Err(errno)) => bail!(
                "this host has no route to {source} ({errno}), so that it would not answer; \
                 --interface says by which interface the packet comes in"
            ),
        };
        let interface = interface.cloned().with_context(|| {
            let name = question.interface.as_deref().unwrap_or("towards the source");
            format!("there is no interface {name}")
        })?;
        if interface.name == "lo" {
            bail!("{source} is this host itself: loopback is never filtered");
        }
        let here = match way {
            Ok(way) if way.interface == interface.index => Ok(way),
            _ => route_lookup::back_to(source, Some(interface.index)),
        };
        let own = here.ok().and_then(|way| way.own);
        let destination = match (question.destination.or(own), &way) {
            (Some(address), _) => address,
            (None, Ok(way)) => way.own.with_context(|| {
                format!("this host has no address towards {source}; --to names one")
            })?,
            (None, Err(_)) => bail!("--to is needed: this host has no route to {source}"),
        };
        if destination.is_ipv4() != source.is_ipv4() {
            bail!("{source} and {destination} are of two versions of IP");
        }
        let known = here.ok().and_then(|way| route_lookup::mac_of(way.neighbour, interface.index));
        let back = way.ok().map(|way| way.interface).filter(|index| *index != interface.index);
        let [a, b, ..] = RandomState::new().hash_one(source).to_ne_bytes();
        let syn = Syn {
            source,
            // One of those that connections begin from.
            source_port: Port(u16::from_ne_bytes([a, b]) | 0x8000),
            destination,
            port: question.port,
            // The session's.
            sequence: 0,
        };
        let mac = question.mac.or(known).unwrap_or(STRANGER);
        Ok(Self { syn, mac, interface, back_by: back.and_then(name_of) })
    }
}

impl Case {
    /// The rules that would remember the packet, or the one that answers it.
    fn remembered_by(&self, host: &mut Watched, own: MacAddr) -> anyhow::Result<Vec<StatefulRule>> {
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

    /// Asks the kernel. Fails with [`NotAsked`] where rules would remember the packet.
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
        let quarry =
            Quarry { protocol: Protocol::Tcp, number: sequence, answer: Some(answer_to(sequence)) };
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
        let events = self.send(token, &frame, &after)?;
        let mut connection = Connection::open()?;
        let observed = path::Observed {
            events,
            driver: driver(interface, &frame),
            routing: route_lookup::of_incoming(syn.source, syn.destination, interface.index),
            sees_entrance: self.snare.sees_entrance,
        };
        let bases = base_chains::list(&mut connection)?;
        let arrived = observed.arrived_at().unwrap_or((syn.destination, syn.port));
        let mut road = Road::of(observed, &bases, &mut connection);
        match &mut road.conclusion {
            Conclusion::Reaches => {
                let answer = self.answer(&syn, arrived, &bases, &mut connection);
                road.answer = Some(answer.map(Box::new).map_err(|error| format!("{error:#}")));
            }
            Conclusion::AtEntrance(suspects) => {
                *suspects = tc::suspects(interface, &frame);
            }
            _ => iptables_legacy::name(&mut road, syn.source.is_ipv4(), || {
                self.send(token, &frame, &after).map(drop)
            })?,
        }
        Ok(road)
    }

    fn send(&mut self, token: Token, frame: &[u8], after: &[u8]) -> anyhow::Result<Vec<Event>> {
        send_and_follow(&mut self.tap, &mut self.listener, token, frame, after)
    }

    /// What this host's own rules do with the packet that would answer from where the other one has
    /// arrived.
    fn answer(
        &mut self,
        syn: &Syn,
        arrived: (IpAddr, Port),
        bases: &BTreeMap<Place, Base>,
        connection: &mut Connection,
    ) -> anyhow::Result<Road> {
        let (remote, asked) = ((syn.source, syn.source_port), (syn.destination, syn.port));
        let _tracked = Tracked::enter(remote, asked, arrived, State::Asked)
            .map_err(|errno| anyhow!("connection tracking cannot be told of it ({errno})"))?;
        let (destination, port) = arrived;
        let syn = Syn { destination, port, ..*syn };
        let first = port.0.to_be_bytes();
        let token = Token { protocol: Protocol::Tcp, first, number: answer_to(self.sequence) };
        let mut send = || {
            outbound::depart(&mut self.listener, token, (destination, syn.source), |number| {
                syn.answer(number).context("the addresses are of two versions of IP")
            })
        };
        let mut road = Road::of(path::Observed::leaving(send()?), bases, connection);
        iptables_legacy::name(&mut road, destination.is_ipv4(), || send().map(drop))?;
        Ok(road)
    }
}

/// The number of the answer to a packet.
fn answer_to(sequence: u32) -> u32 {
    sequence ^ 1 << 31
}

/// Sends a frame on its way, and one behind it on the same CPU: when that has come, the first one's
/// trace is complete.
fn send_and_follow(
    tap: &mut Tap,
    listener: &mut Connection,
    token: Token,
    frame: &[u8],
    after: &[u8],
) -> anyhow::Result<Vec<Event>> {
    let _here = Pinned::to_this_cpu();
    tap.send(frame)?;
    tap.send(after)?;
    follow(listener, token)
}

/// Asks the kernel about one packet. Fails with [`NotAsked`] where rules would remember it.
pub fn ask(case: &Case, side_effects: SideEffects) -> anyhow::Result<Road> {
    Session::at(&case.interface, side_effects)?.ask(case)
}

/// The rules of this host that would remember the packet, or the one that answers it.
pub fn stateful_rules(case: &Case) -> anyhow::Result<Vec<StatefulRule>> {
    let own = MacAddr(case.interface.mac.unwrap_or_default());
    case.remembered_by(&mut Watched::open()?, own)
}

/// The rules of this host that would remember a connection which it makes to itself.
pub fn stateful_rules_of_loopback(to: IpAddr, port: Port) -> anyhow::Result<Vec<StatefulRule>> {
    let all = link::list()?;
    let loopback = all.iter().find(|interface| interface.name == "lo");
    let loopback = loopback.context("there is no interface lo")?;
    let (source, destination) = (to, to);
    // The kernel draws it.
    let source_port = Port(0);
    let there = Syn { source, source_port, destination, port, sequence: 0 };
    let made = [there.packet(), there.answer(0)].map(Option::unwrap_or_default);
    let [mut there, mut back] = made.map(|packet| Packet::made_by_the_kernel(&packet));
    there.forget_port(true);
    back.forget_port(false);
    Watched::open()?.over_loopback([there, back], loopback)
}

/// Fails where there is such a rule.
fn refuse_to_be_remembered(by: Vec<StatefulRule>) -> anyhow::Result<()> {
    if by.is_empty() { Ok(()) } else { Err(NotAsked(by).into()) }
}

/// The handles of the rules in a chain that have this comment.
pub fn commented(chain: &Place, comment: &str) -> anyhow::Result<Vec<u64>> {
    rule_text::commented(&mut Connection::open()?, chain, comment)
}

/// Removes what an older kernel may have kept of an `explain` that was killed.
pub fn clear() {
    trace_table::clear();
}

/// What the interface's XDP program does with the frame.
fn driver(interface: &Interface, frame: &[u8]) -> Option<Driver> {
    let attached = interface.xdp?;
    let action = driver::ask(attached.program, frame, interface.index);
    let action = action.map_err(|error| error.to_string());
    Some(Driver { place: attached.place.to_string(), program: attached.program, action })
}

/// This thread on one CPU, for as long as it lives: packets that it sends keep their order.
struct Pinned(Option<CpuSet>);

impl Pinned {
    fn to_this_cpu() -> Self {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).ok();
        let mut only = CpuSet::new();
        let pinned = sched_getcpu()
            .and_then(|cpu| only.set(cpu))
            .and_then(|()| sched_setaffinity(this, &only));
        Self(before.filter(|_| pinned.is_ok()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Where that fails, this process stays on one CPU, which harms nobody.
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

/// By what a packet is known among others that are traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Token {
    protocol: Protocol,
    /// What the transport's header begins with: TCP's and UDP's source port, ICMP's type and code.
    first: [u8; 2],
    number: u32,
}

impl Token {
    /// Whether a transport's header is that of the packet with this number.
    fn is_in(self, header: &[u8], number: u32) -> bool {
        let place = self.protocol.place_of_number() as usize;
        header.starts_with(&self.first)
            && header.get(place..).is_some_and(|rest| rest.starts_with(&number.to_be_bytes()))
    }
}

/// The events of this packet, until the one with the next number has come.
fn follow(listener: &mut Connection, token: Token) -> anyhow::Result<Vec<Event>> {
    let deadline = Instant::now() + PATIENCE;
    let next = token.number.wrapping_add(1);
    let (mut ours, mut after) = (BTreeSet::new(), BTreeSet::new());
    let mut events = Vec::new();
    loop {
        let heard = listener.hear(deadline)?;
        for event in heard.iter().filter_map(Event::parse) {
            if let Some(header) = &event.header {
                if token.is_in(header, token.number) {
                    ours.insert(event.packet);
                } else if token.is_in(header, next) {
                    after.insert(event.packet);
                }
            }
            let is_end = after.contains(&event.packet)
                && Mark::of_chain(&event.place.chain).is_some_and(Mark::ends_the_second)
                && event.place.table == trace_table::TABLE;
            if is_end {
                return Ok(events);
            }
            if ours.contains(&event.packet) && !after.contains(&event.packet) {
                events.push(event);
            }
        }
        if Instant::now() >= deadline {
            return Ok(events);
        }
        if events.len() > 100_000 {
            return Err(anyhow!("the packet's trace does not end"));
        }
    }
}
