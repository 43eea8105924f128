//! The protocols whose connections the vendor's engine inspects: unsolicited packets of theirs are not
//! what an Allow allows.

use super::packet::{Datagram, Flow, ICMP, UDP};
use super::rule::Rule;
use crate::model::rule::{Action, Direction};

/// The protocols of which an incoming Allow admits replies alone. Unsolicited packets need a Force
/// Allow. TCP is not among them: its connections begin with a packet that tells that it opens one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stateful {
    /// UDP: so by default in the vendor's engine.
    pub udp: bool,
    /// ICMP: so for agents up to 8.0.
    pub icmp: bool,
}

impl Stateful {
    /// The numbers of the protocols.
    pub fn protocols(self) -> impl Iterator<Item = u8> {
        [(self.udp, UDP), (self.icmp, ICMP)].into_iter().filter(|(is_so, _)| *is_so).map(|(_, n)| n)
    }

    /// The protocols of which this rule admits replies alone.
    pub fn of(self, rule: &Rule) -> impl Iterator<Item = u8> + use<> {
        let asks = rule.action == Action::Allow && rule.direction == Direction::Incoming;
        let criteria = rule.criteria.protocols.clone();
        self.protocols().filter(move |number| asks && criteria.contains(*number))
    }

    /// Whether an Allow leaves this packet to others, by what it is to its connection.
    pub(super) fn leaves(self, rule: &Rule, datagram: &Datagram) -> bool {
        let number = datagram.transport.protocol();
        match datagram.flow {
            Flow::Invalid => true,
            Flow::Back { opened_by_bypass: false } => false,
            // What Bypass has let out is not remembered.
            Flow::Forth | Flow::Back { .. } => self.of(rule).any(|stateful| stateful == number),
        }
    }
}
