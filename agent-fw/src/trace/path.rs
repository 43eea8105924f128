//! The road that a packet has taken: each base chain that it met, and what became of it.

use super::case::ResolvedProbe;
use super::driver::Driver;
use super::rule_text::rule_text;
use crate::model::Port;
use crate::netlink::nfnetlink::Connection;
use crate::trace::base_chains::Base;
use crate::trace::events::{ChainRef, Event, Step, Verdict};
use crate::trace::iptables_legacy::LegacyRule;
use crate::trace::socket::Taker;
use crate::trace::trace_table::Mark;
use crate::trace::{full_table, iptables_legacy, routing, trace_table};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What was seen of the packet.
pub(super) struct Observed {
    pub(super) events: Vec<Event>,
    pub(super) driver: Option<Driver>,
    pub(super) routing: nix::Result<()>,
    pub(super) sees_entrance: bool,
}

impl Observed {
    /// The address and the port that the packet has come to in the end, whatever NAT made of them.
    pub(super) fn arrived_at(&self) -> Option<(IpAddr, Port)> {
        let is_end = |event: &&Event| {
            event.place.table == trace_table::TABLE
                && Mark::of_chain(&event.place.chain) == Some(Mark::Through)
        };
        self.events.iter().filter(is_end).find_map(Event::destination)
    }

    /// What was seen of a packet that this host sends.
    pub(super) fn leaving(events: Vec<Event>) -> Self {
        Self { events, driver: None, routing: Ok(()), sees_entrance: true }
    }
}

/// A base chain's decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The base chain.
    pub at: ChainRef,
    /// Where it hangs, unless it has gone since.
    pub base: Option<Base>,
    /// What it said.
    pub verdict: Verdict,
    /// What in it said so.
    pub decider: Decider,
}

/// What decides in a base chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decider {
    /// A rule: its chain, its handle, and its text where it could be read.
    Rule {
        /// The chain that it is in.
        at: ChainRef,
        /// Its number in the table.
        handle: u64,
        /// Its text.
        text: Option<String>,
    },
    /// No rule: the chain's policy.
    Policy,
}

/// What became of the packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Conclusion {
    /// It reaches the port: the next would be a socket.
    Reaches,
    /// A base chain dropped it; by its place among the decisions.
    Dropped(usize),
    /// The XDP program drops it, or sends it elsewhere.
    AtDriver,
    /// It ended where nothing can be traced; in words, where and by what that may be.
    Vanished(String),
    /// It ended by iptables-legacy: by one of these, whose counters grew with it.
    Legacy(Vec<LegacyRule>),
    /// It ended at the entrance of the lowest device, before nf_tables: by one of these, in words.
    AtEntrance(Vec<String>),
    /// It ended behind that, before IP: by one of these, in words.
    BelowIp(Vec<String>),
    /// A BPF program or a filter ended it that nf_tables does not trace; in words, where and which.
    ByProgram(String),
    /// Routing refuses it; in words, why.
    Unroutable(String),
    /// That is not known; in words, why.
    NotKnown(String),
    /// It is for another host.
    Forwarded,
}

/// The road.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketTrace {
    /// The interface's XDP program.
    pub driver: Option<Driver>,
    /// The decisions of base chains, in order.
    pub decisions: Vec<Decision>,
    /// How many of them come before routing.
    pub before_routing: usize,
    /// Whether routing took it for this host.
    pub is_local: bool,
    /// What became of it.
    pub conclusion: Conclusion,
    /// Parts of what was asked that are not known, in words.
    pub missing: Vec<String>,
    /// The road of the packet that would answer, where this one reaches the port; or why it is not
    /// known.
    pub answer: Option<Result<Box<PacketTrace>, String>>,
    /// Where it has come to, whatever rules have made of its destination.
    pub arrived_at: Option<(IpAddr, Port)>,
    /// Who would take it there, where it reaches the port.
    pub taker: Option<Taker>,
    /// The interface by which it has left, where this host sends it.
    pub leaves_by: Option<String>,
    /// How often the packet was sent, and counted by the rules that it met.
    pub sent: u64,
}

impl PacketTrace {
    /// Whether a connection comes about, as far as this host's rules go: the packet reaches the
    /// port, and the answer gets out. Nothing, where that is not known.
    pub fn connects(&self) -> Option<bool> {
        match (&self.conclusion, &self.answer) {
            (Conclusion::NotKnown(_), _) | (Conclusion::Reaches, Some(Err(_))) => None,
            (Conclusion::Reaches, Some(Ok(answer))) => answer.connects(),
            (conclusion, _) => Some(*conclusion == Conclusion::Reaches),
        }
    }

    /// The road of the answer, where it does not get out, or that is not known.
    pub fn stopped_answer(&self) -> Option<&Self> {
        let answer = self.answer.as_ref()?.as_ref().ok()?;
        (answer.conclusion != Conclusion::Reaches).then_some(answer)
    }

    /// The interface by which this host would answer, where that is another than the one that the
    /// packet comes in by.
    pub fn answer_by(&self, case: &ResolvedProbe) -> Option<String> {
        let left = self.answer.as_ref().and_then(|answer| answer.as_ref().ok()?.leaves_by.clone());
        match left {
            Some(name) => (name != case.interface.name).then_some(name),
            None => case.back_by.clone(),
        }
    }

    /// Goes on where this one has reached its end.
    pub(super) fn go_on(&mut self, further: Self) {
        let before = self.decisions.len();
        self.decisions.extend(further.decisions);
        self.missing.extend(further.missing);
        self.conclusion = match further.conclusion {
            Conclusion::Dropped(index) => Conclusion::Dropped(before + index),
            conclusion => conclusion,
        };
    }

    pub(super) fn of(
        observed: Observed,
        bases: &BTreeMap<ChainRef, Base>,
        connection: &mut Connection,
    ) -> Self {
        let arrived_at = observed.arrived_at();
        let Observed { events, driver, routing, sees_entrance } = observed;
        let mut marks = BTreeSet::new();
        let mut decisions = Vec::new();
        let mut before_routing = 0;
        for group in groups(&events) {
            let Some(first) = group.first() else { continue };
            if first.place.table == trace_table::TABLE {
                let mark = Mark::of_chain(&first.place.chain);
                marks.extend(mark);
                if mark == Some(Mark::Unrouted) {
                    before_routing = decisions.len();
                }
                continue;
            }
            decisions.extend(decision(group, bases, connection));
        }
        if !marks.contains(&Mark::Unrouted) {
            before_routing = decisions.len();
        }
        let mut missing = Vec::new();
        if !sees_entrance {
            missing.push("chains at the hook ingress: this kernel does not trace them".to_owned());
        }
        if let Some(Driver { action: Err(why), program, .. }) = &driver {
            missing
                .push(format!("XDP program {program}: it could not be run on the packet ({why})"));
        }
        let conclusion = conclusion(&marks, &decisions, driver.as_ref(), routing);
        let is_local = marks.contains(&Mark::Routed);
        Self {
            driver,
            decisions,
            before_routing,
            is_local,
            conclusion,
            missing,
            answer: None,
            arrived_at,
            taker: None,
            leaves_by: None,
            sent: 1,
        }
    }

    /// That of a packet which is not sent, since what becomes of it is clear without.
    pub(super) fn concluded(conclusion: Conclusion) -> Self {
        Self {
            driver: None,
            decisions: Vec::new(),
            before_routing: 0,
            is_local: false,
            conclusion,
            missing: Vec::new(),
            answer: None,
            arrived_at: None,
            taker: None,
            leaves_by: None,
            sent: 0,
        }
    }
}

/// The events of each base chain.
fn groups(events: &[Event]) -> Vec<&[Event]> {
    events.split_inclusive(|event| is_end(&event.step)).collect()
}

fn is_end(step: &Step) -> bool {
    match step {
        Step::Policy(_) => true,
        Step::Rule(_, verdict) => {
            matches!(verdict, Verdict::Accept | Verdict::Drop | Verdict::Queue | Verdict::Stolen)
        }
        Step::Return => false,
    }
}

fn decision(
    group: &[Event],
    bases: &BTreeMap<ChainRef, Base>,
    connection: &mut Connection,
) -> Option<Decision> {
    let (first, last) = (group.first()?, group.last()?);
    let at = first.place.clone();
    let base = bases.get(&at).cloned();
    let (verdict, decider) = match &last.step {
        Step::Policy(verdict) => (verdict.clone(), Decider::Policy),
        Step::Rule(handle, verdict) => {
            let text = rule_text(connection, &last.place, *handle);
            (verdict.clone(), Decider::Rule { at: last.place.clone(), handle: *handle, text })
        }
        Step::Return => return None,
    };
    Some(Decision { at, base, verdict, decider })
}

fn conclusion(
    marks: &BTreeSet<Mark>,
    decisions: &[Decision],
    driver: Option<&Driver>,
    routing: nix::Result<()>,
) -> Conclusion {
    if driver.is_some_and(Driver::ends) {
        return Conclusion::AtDriver;
    }
    if let Some(index) = decisions.iter().position(|d| d.verdict == Verdict::Drop) {
        return Conclusion::Dropped(index);
    }
    if marks.contains(&Mark::Through) {
        return Conclusion::Reaches;
    }
    if marks.contains(&Mark::Away) {
        return Conclusion::Forwarded;
    }
    match decisions.last().map(|decision| &decision.verdict) {
        Some(Verdict::Queue) => {
            let queue = "it was given to a program (queue), whose answer is not known";
            return Conclusion::NotKnown(queue.to_owned());
        }
        Some(Verdict::Stolen) => {
            let proxy = "a rule has taken it, as SYNPROXY does, which answers in the place of the \
                         socket; what comes of the connection then is not known";
            return Conclusion::NotKnown(proxy.to_owned());
        }
        _ => {}
    }
    if marks.contains(&Mark::Routed) {
        return Conclusion::Vanished(format!("in the hook input, {}", untraced()));
    }
    if marks.contains(&Mark::Unrouted) {
        return Conclusion::Unroutable(match routing {
            Err(errno) => routing::refused(errno),
            Ok(()) => "by routing, or by a rule that nf_tables does not trace".to_owned(),
        });
    }
    if marks.contains(&Mark::Leaving) {
        return Conclusion::Vanished(format!("on its way out, {}", untraced()));
    }
    if marks.contains(&Mark::Exiting) {
        return Conclusion::Vanished(
            "at its exit, by something that nf_tables does not trace".into(),
        );
    }
    if marks.contains(&Mark::Arrived) {
        let full = full_table::in_words();
        let by = full.unwrap_or_else(|| untraced().to_owned());
        return Conclusion::Vanished(format!("in the hook prerouting, {by}"));
    }
    if marks.contains(&Mark::Entered) {
        return Conclusion::BelowIp(Vec::new());
    }
    Conclusion::AtEntrance(Vec::new())
}

fn untraced() -> &'static str {
    if iptables_legacy::has_tables() {
        "by a rule of iptables-legacy, which does not trace; see `iptables-legacy-save`"
    } else {
        "by something that nf_tables does not trace"
    }
}
