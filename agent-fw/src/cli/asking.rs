//! What asking the kernel costs: the packets that were sent, and the rules that would remember them.

use super::report::{self, say};
use crate::trace::{NotAsked, PacketTrace, StatefulRule};
use serde_json::{Value, json};
use std::fmt;

/// How many packets were sent: so much have the counters of the rules that they met grown.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct PacketsSent {
    /// As from another host.
    incoming: u64,
    /// As this host's own.
    outgoing: u64,
}

impl PacketsSent {
    /// Takes in the road of a packet that came in, and of its answer.
    pub(super) fn add_incoming(&mut self, road: &PacketTrace) {
        self.incoming += road.sent;
        if let Some(Ok(answer)) = &road.answer {
            self.outgoing += answer.sent;
        }
    }

    /// Takes in the road of a packet that this host has sent.
    pub(super) fn add_outgoing(&mut self, road: &PacketTrace) {
        self.outgoing += road.sent;
    }

    /// Those of one question.
    pub(super) fn of(road: &PacketTrace) -> Self {
        let mut sent = Self::default();
        sent.add_incoming(road);
        sent
    }

    pub(super) fn to_json(self) -> Value {
        json!({ "in": self.incoming, "out": self.outgoing })
    }

    /// By the way that they took.
    pub(super) fn by_way(self) -> [(&'static str, u64); 2] {
        [("in", self.incoming), ("out", self.outgoing)]
    }

    /// Says it.
    pub(super) fn tell(self) {
        if self == Self::default() {
            return report::remark("packets sent to ask the kernel: none");
        }
        report::remark(&format!("packets sent to ask the kernel: {self}"));
    }
}

impl fmt::Display for PacketsSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { incoming, outgoing } = self;
        write!(f, "{incoming} in, {outgoing} out; counters of rules that they met count them")
    }
}

/// Why nothing was asked, where rules would have remembered it.
pub(super) fn not_asked(error: &anyhow::Error) -> Option<&NotAsked> {
    error.downcast_ref()
}

/// Why there is no answer: nothing was asked, or it failed.
pub(super) fn why_not(error: &anyhow::Error) -> String {
    match not_asked(error) {
        Some(why) => why.to_string(),
        None => format!("could not be tried: {error:#}"),
    }
}

/// Prints each rule, and what it does with a packet that asks.
pub(super) fn print_rules(rules: &[StatefulRule]) {
    for rule in rules {
        say!("{}", report::wrapped("  ", "    ", &format!("{rule}: {}", rule.effect)));
    }
}

pub(super) fn rules_to_json(rules: &[StatefulRule]) -> Value {
    let rules = rules.iter().map(|rule| {
        let StatefulRule { table, chain, handle, text, effect } = rule;
        json!({
            "table": table, "chain": chain, "handle": handle, "rule": text, "effect": effect,
        })
    });
    rules.collect()
}
