//! How much of the Internet a firewall policy lets through.

use super::reach::{Passing, SYN};
use super::space::Block;
use super::{Firewall, TCP, UDP};
use crate::model::rule::Direction;
use crate::model::{AddressSet, Family, Port, Range, RangeSet};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Half of all ports.
const HALF: u32 = 1 << 15;

impl Firewall {
    /// The sources that reach a TCP port of this host, whatever MAC address their packets come from
    /// and from whatever port.
    pub fn sources_of(&self, port: Port) -> AddressSet {
        let all = AddressSet::all();
        let mut sources = AddressSet::default();
        for family in FAMILIES {
            let question = Block::to_service(TCP, SYN, &all, (&all, port), family);
            let passing = self.passing(Direction::Incoming, question, (Some(family), false), false);
            if !passing.is_all {
                // What cannot be told is not called closed.
                return all;
            }
            for (part, _) in passing.parts {
                sources = sources.union(&part.sources(family));
            }
        }
        sources
    }

    /// Whether what no rule admits in this direction is dropped, and that is something: not more than
    /// half of the ports of TCP or UDP are open to more than half of all addresses of a version of IP.
    pub fn closes(&self, direction: Direction) -> bool {
        let opens_most = |protocol| {
            let open = self.open_ports(direction, protocol);
            let sizes = open.ranges().iter().map(|r| u32::from(r.last().0 - r.first().0) + 1);
            sizes.sum::<u32>() > HALF
        };
        self.restricts(direction) && !opens_most(TCP) && !opens_most(UDP)
    }

    /// The ports of TCP or UDP that are open to more than half of all addresses of a version of IP.
    pub fn open_ports(&self, direction: Direction, protocol: u8) -> RangeSet<Port> {
        let of = |family| self.open_ports_of(direction, protocol, family);
        let [v4, v6] = FAMILIES.map(of);
        v4.union(&v6)
    }

    fn open_ports_of(&self, direction: Direction, protocol: u8, family: Family) -> RangeSet<Port> {
        let flags = if protocol == TCP { SYN } else { 0 };
        let question = Block::of_protocol(protocol, flags, family);
        let Passing { parts, is_all } =
            self.passing(direction, question, (Some(family), false), false);
        if !is_all {
            return RangeSet::all();
        }
        let bounds = parts.iter().flat_map(|(part, _)| part.ports().ranges());
        let mut bounds: Vec<u128> =
            bounds.flat_map(|range| [range.first(), range.last() + 1]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let far = |part: &Block| match direction {
            Direction::Incoming => part.sources(family),
            Direction::Outgoing => part.destinations(family),
        };
        let is_open = |port: u128| {
            let parts = parts.iter().filter(|(part, _)| part.ports().contains(port));
            let all = parts.fold(AddressSet::default(), |all, (part, _)| all.union(&far(part)));
            all.is_most()
        };
        let port = |number: u128| u16::try_from(number).map_or(Port(u16::MAX), Port);
        let spans = bounds.windows(2).filter(|span| is_open(span[0]));
        spans.filter_map(|span| Range::new(port(span[0]), port(span[1] - 1))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rule::{Action, Addresses, Endpoint, Match, Rule, closing_rule, hidden_rule};

    fn rule(action: Action, prefixes: &[&str]) -> Rule {
        let range = |text: &&str| match text.parse().expect("a prefix") {
            ipnet::IpNet::V4(prefix) => crate::model::AddressRange::from(prefix),
            ipnet::IpNet::V6(prefix) => crate::model::AddressRange::from(prefix),
        };
        let addresses = prefixes.iter().map(range).collect();
        let addresses = Match::Is(Addresses(vec![(crate::model::Label::Address, addresses)]));
        let source = Endpoint { addresses, ..Endpoint::ANY };
        Rule { action, source, ..hidden_rule(Port::RELAY) }
    }

    #[test]
    fn whoever_reaches_a_port_is_found_in_all_rules_together() {
        let half = rule(Action::ForceAllow, &["0.0.0.0/1"]);
        let other = rule(Action::Bypass, &["128.0.0.0/2"]);
        let closing = closing_rule(Port::RELAY);
        let sources = |rules: &[&Rule]| {
            Firewall::new(rules.iter().copied()).expect("valid").sources_of(Port::RELAY)
        };
        assert!(!sources(&[&half, &closing]).is_most());
        assert!(sources(&[&half, &other, &closing]).is_most());
        assert!(sources(&[&half]).is_all());
        let firewall = Firewall::new([&half, &closing]).expect("valid");
        assert!(firewall.sources_of(Port::AGENT).is_all());
    }

    #[test]
    fn a_direction_is_not_closed_where_most_ports_are_open_to_most_addresses() {
        let out = |ports: Match<crate::model::RangeSet<Port>>| {
            let destination = Endpoint { ports, ..Endpoint::ANY };
            let rule = Rule {
                action: Action::ForceAllow,
                direction: Direction::Outgoing,
                destination,
                ..hidden_rule(Port::AGENT)
            };
            Firewall::new([&rule]).expect("valid").denying(Direction::Outgoing)
        };
        let ports = |first, last| {
            Match::Is(crate::model::Range::new(Port(first), Port(last)).into_iter().collect())
        };
        assert!(out(ports(443, 443)).closes(Direction::Outgoing));
        assert!(out(ports(1, 32768)).closes(Direction::Outgoing));
        assert!(!out(ports(1, 32769)).closes(Direction::Outgoing));
        assert!(!out(Match::Any).closes(Direction::Outgoing));
        assert!(!out(ports(443, 443)).closes(Direction::Incoming), "nothing restricts it");
    }
}
