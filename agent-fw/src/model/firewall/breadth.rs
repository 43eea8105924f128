//! How much of the Internet a firewall policy lets through.

use super::reach::{MOST, opening};
use super::{Firewall, TCP, UDP, Verdicts};
use crate::model::packet_set::{Cube, Field, INCOMING, NO, PacketSet, only};
use crate::model::rule::Direction;
use crate::model::{AddressSet, Port, Range, RangeSet};

/// Half of all ports.
const HALF: u32 = 1 << 15;

impl Firewall {
    /// The sources that reach a TCP port of this host, whatever MAC address their packets come from
    /// and from whatever port.
    pub fn sources_of(&self, port: Port) -> AddressSet {
        let to = Cube::everything().limited(Field::DestinationPort, &only(port.0.into()));
        let asked = to.and_then(|to| unframed(INCOMING, TCP, to));
        let Verdicts { bypass, pass, undecided, .. } =
            self.decide_all(asked.into_iter().collect(), MOST);
        if !undecided.is_empty() {
            // What cannot be told is not called closed.
            return AddressSet::all();
        }
        let passing = bypass.union(pass);
        passing.cubes().iter().fold(AddressSet::default(), |all, cube| all.union(&cube.sources()))
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
        let asked = unframed(direction.number(), protocol, Cube::everything());
        let Verdicts { bypass, pass, undecided, .. } =
            self.decide_all(asked.into_iter().collect(), MOST);
        if !undecided.is_empty() {
            return RangeSet::all();
        }
        let passing: PacketSet = bypass.union(pass);
        let ports = |cube: &Cube| cube.values(Field::DestinationPort).into_owned();
        let bounds = passing.cubes().iter().map(ports).collect::<Vec<_>>();
        let bounds = bounds.iter().flat_map(RangeSet::ranges);
        let mut bounds: Vec<u128> =
            bounds.flat_map(|range| [range.first(), range.last() + 1]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let far = |cube: &Cube| match direction {
            Direction::Incoming => cube.sources(),
            Direction::Outgoing => cube.destinations(),
        };
        let is_open = |port: u128| {
            let cubes = passing.cubes().iter().filter(|cube| ports(cube).contains(port));
            cubes.fold(AddressSet::default(), |all, cube| all.union(&far(cube))).is_most()
        };
        let port = |number: u128| u16::try_from(number).map_or(Port(u16::MAX), Port);
        let spans = bounds.windows(2).filter(|span| is_open(span[0]));
        spans.filter_map(|span| Range::new(port(span[0]), port(span[1] - 1))).collect()
    }
}

/// The packets that open a connection, without MAC addresses.
fn unframed(direction: u128, protocol: u8, ends: Cube) -> Option<Cube> {
    opening(direction, protocol, ends)?.limited(Field::Hardware, &only(NO))
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
        let addresses = Match::Is(Addresses(vec![(crate::model::Origin::Address, addresses)]));
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
