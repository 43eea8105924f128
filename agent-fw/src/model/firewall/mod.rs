//! A whole firewall policy: all rules of a file, beyond the agent's port.
//!
//! [`Firewall::decide`] is the specification. What [`tables`](Firewall::tables) compiles to is
//! tested against it.

mod breadth;
mod criteria;
mod meant;
mod packet;
mod reach;
mod rule;
mod shadowing;
mod stateful;
mod verdicts;

pub use criteria::{Criteria, Place, Protocols};
pub use packet::{Datagram, Flow, ICMP, ICMPV6, Packet, Payload, TCP, Transport, UDP};
pub use reach::Service;
pub use rule::{FirewallError, Rule, Unenforceable};
pub use shadowing::ShadowedRule;
pub use stateful::Stateful;
pub use verdicts::Verdicts;
pub(crate) use verdicts::loopback;

use crate::model::rule::{Action, Direction, Priority};

/// A firewall policy: its rules, in the order in which they are evaluated.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Firewall {
    rules: Vec<Rule>,
    /// The direction that is restrictive whatever the rules are.
    denied: Option<Direction>,
    /// The protocols of which an incoming Allow admits replies alone.
    stateful: Stateful,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It passes, and a connection that it opens is not remembered for its answers.
    Bypass,
    /// It passes; so do the answers to it.
    Pass,
    /// It ends here.
    Drop,
}

impl Firewall {
    /// The policy of these rules, in whatever order they are defined.
    pub fn new<'r>(
        rules: impl IntoIterator<Item = &'r crate::model::rule::Rule>,
    ) -> Result<Self, FirewallError> {
        let mut rules: Vec<Rule> = rules.into_iter().map(Rule::new).collect::<Result<_, _>>()?;
        rules.sort_by_key(Rule::rank);
        Ok(Self { rules, ..Self::default() })
    }

    /// The same rules where what none of them admits in this direction is dropped, as if there were
    /// an Allow.
    #[must_use]
    pub fn denying(self, direction: Direction) -> Self {
        Self { denied: Some(direction), ..self }
    }

    /// The same rules where an incoming Allow admits replies alone of these protocols.
    #[must_use]
    pub fn stateful(self, stateful: Stateful) -> Self {
        Self { stateful, ..self }
    }

    /// The protocols of which an incoming Allow admits replies alone.
    pub const fn inspected(&self) -> Stateful {
        self.stateful
    }

    /// The rules, in the order in which they are evaluated.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What becomes of a packet. This is the specification that the kernel's tables must meet.
    pub fn decide(&self, packet: &Packet) -> Verdict {
        // Loopback is never filtered.
        if packet.loopback {
            return Verdict::Pass;
        }
        let rules = self.rules.iter().filter(|rule| rule.direction == packet.direction);
        for rule in rules.filter(|rule| rule.criteria.match_packet(packet)) {
            match rule.action {
                Action::LogOnly => {}
                // Allow has state: what fits no connection and opens none is not what it allows.
                Action::Allow if self.is_left(rule, packet) => {}
                Action::Bypass => return Verdict::Bypass,
                Action::ForceAllow | Action::Allow => return Verdict::Pass,
                Action::Deny => return Verdict::Drop,
            }
        }
        if self.passes_without_rule(packet) { Verdict::Pass } else { Verdict::Drop }
    }

    /// Whether an Allow that matches a packet leaves it to others.
    fn is_left(&self, rule: &Rule, packet: &Packet) -> bool {
        match &packet.payload {
            Payload::Arp => false,
            Payload::Ip(datagram) => self.stateful.leaves(rule, datagram),
        }
    }

    /// What no rule is about passes, unless its direction is restrictive. Even then pass
    /// `ICMPv6`, which no IPv6 goes without, and answers to what passed with state.
    fn passes_without_rule(&self, packet: &Packet) -> bool {
        match &packet.payload {
            Payload::Arp => !self.restricts_arp(packet.direction),
            Payload::Ip(datagram) => {
                !self.restricts(packet.direction)
                    || datagram.is_icmpv6()
                    || datagram.flow == Flow::Back { opened_by_bypass: false }
            }
        }
    }

    /// Whether a direction is restrictive: what no rule admits is dropped.
    pub fn restricts(&self, direction: Direction) -> bool {
        self.denied == Some(direction) || self.allows(direction).next().is_some()
    }

    /// Whether a direction is restrictive for ARP. Only a rule that names ARP makes it so: without
    /// ARP, a host reaches nobody.
    pub fn restricts_arp(&self, direction: Direction) -> bool {
        self.allows(direction).any(|rule| rule.criteria.arp)
    }

    fn allows(&self, direction: Direction) -> impl Iterator<Item = &Rule> {
        let is_one =
            move |rule: &&Rule| rule.action == Action::Allow && rule.direction == direction;
        self.rules.iter().filter(is_one)
    }

    /// Whether connections that a Bypass lets begin are labelled: where their answers are to be
    /// told from those of others.
    pub fn labels(&self) -> bool {
        let opens = |rule: &Rule| {
            rule.action == Action::Bypass && self.restricts(rule.direction.opposite())
        };
        self.rules.iter().any(opens)
    }

    /// Bypass rules below the highest priority, which one page of the vendor's says there are not.
    pub fn low_bypasses(&self) -> impl Iterator<Item = &Rule> {
        let is_low =
            |rule: &&Rule| rule.action == Action::Bypass && rule.priority != Priority::HIGHEST;
        self.rules.iter().filter(is_low)
    }
}
