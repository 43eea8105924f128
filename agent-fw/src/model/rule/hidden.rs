//! The agent's hidden rule, and the conditions under which a rule of the user's replaces it.

use super::{Action, Direction, Endpoint, FrameType, Match, Priority, Protocol, Rule};
use crate::model::{Port, Range};
use std::fmt;

/// The rule that the agent applies while no rule of the user's replaces it: from anywhere to its
/// listening port, past every other rule. No list of the vendor's shows it.
pub fn hidden_rule(listening: Port) -> Rule {
    Rule {
        name: "the agent's hidden rule".to_owned(),
        action: Action::Bypass,
        priority: Priority::HIGHEST,
        direction: Direction::Incoming,
        frame_type: Match::Is(FrameType::Ip),
        protocol: Match::Is(Protocol::Tcp),
        source: Endpoint::ANY,
        destination: Endpoint {
            ports: Match::Is(Range::single(listening).into()),
            ..Endpoint::ANY
        },
        tcp_flags: None,
        icmp: None,
        schedule: None,
        context: None,
    }
}

/// The rule that closes the agent's port to what the rules that replace the hidden one do not
/// admit: evaluated behind them, and before every other.
pub fn closing_rule(listening: Port) -> Rule {
    let name = format!("TCP port {listening} is closed to others");
    Rule { name, action: Action::Deny, ..hidden_rule(listening) }
}

/// A field that keeps a rule from replacing the hidden one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The field, in the vendor's words.
    pub field: &'static str,
    /// What the rule has there.
    pub found: String,
    /// What it must have.
    pub required: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, must be {}", self.field, self.found, self.required)
    }
}

/// Why `rule` does not replace the hidden rule of an agent that listens on `listening`: a reason
/// for each field that stands in the way. It replaces it when there is none.
///
/// "Frame type IP" and "protocol TCP" are meant literally: what also covers them, such as Any or
/// TCP+UDP, does not replace the hidden rule.
pub fn near_misses(rule: &Rule, listening: Port) -> Vec<Mismatch> {
    let mut misses = Vec::new();
    let mut require = |holds: bool, field, found: &dyn fmt::Display, required: &str| {
        if !holds {
            let (found, required) = (found.to_string(), required.to_owned());
            misses.push(Mismatch { field, found, required });
        }
    };
    let action = matches!(rule.action, Action::Bypass | Action::ForceAllow);
    require(action, "action", &rule.action, "Force Allow or Bypass");
    require(rule.priority == Priority::HIGHEST, "priority", &rule.priority, "4");
    require(rule.direction == Direction::Incoming, "direction", &rule.direction, "incoming");
    let frame_type = rule.frame_type == Match::Is(FrameType::Ip);
    require(frame_type, "frame type", &rule.frame_type, "IP");
    require(rule.protocol == Match::Is(Protocol::Tcp), "protocol", &rule.protocol, "TCP");
    let ports = &rule.destination.ports;
    let has_port = matches!(ports, Match::Is(ports) if ports.contains(listening));
    let required = format!("{listening}, or a list or range that contains it");
    require(has_port, "destination port", ports, &required);
    misses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RangeSet;

    fn misses(change: impl FnOnce(&mut Rule)) -> Vec<String> {
        let mut rule = hidden_rule(Port::AGENT);
        change(&mut rule);
        near_misses(&rule, Port::AGENT).iter().map(ToString::to_string).collect()
    }

    fn ports(first: u16, last: u16) -> Match<RangeSet<Port>> {
        Match::Is(Range::new(Port(first), Port(last)).expect("ordered").into())
    }

    #[test]
    fn the_hidden_rule_meets_its_own_conditions() {
        assert!(misses(|_| ()).is_empty());
    }

    #[test]
    fn force_allow_and_wider_port_lists_replace_it_too() {
        assert!(misses(|rule| rule.action = Action::ForceAllow).is_empty());
        assert!(misses(|rule| rule.destination.ports = ports(4000, 5000)).is_empty());
    }

    #[test]
    fn each_field_that_differs_is_named_with_what_it_must_be() {
        let expect = |found: Vec<String>, expected: &str| assert_eq!(found, [expected]);
        expect(
            misses(|rule| rule.action = Action::Allow),
            "action is Allow, must be Force Allow or Bypass",
        );
        expect(
            misses(|rule| rule.priority = Priority::new(3).expect("valid")),
            "priority is 3, must be 4",
        );
        expect(
            misses(|rule| rule.direction = Direction::Outgoing),
            "direction is outgoing, must be incoming",
        );
        for (frame_type, found) in [
            (Match::Is(FrameType::Ipv4), "IPv4"),
            (Match::Any, "any"),
            (Match::Not(FrameType::Ip), "not IP"),
            (Match::Not(FrameType::Arp), "not ARP"),
        ] {
            let expected = format!("frame type is {found}, must be IP");
            expect(misses(|rule| rule.frame_type = frame_type), &expected);
        }
        for (protocol, found) in [
            (Match::Is(Protocol::TcpUdp), "TCP+UDP"),
            (Match::Any, "any"),
            (Match::Not(Protocol::Udp), "not UDP"),
        ] {
            let expected = format!("protocol is {found}, must be TCP");
            expect(misses(|rule| rule.protocol = protocol), &expected);
        }
        for (ports, found) in [
            (ports(4119, 4119), "4119"),
            (Match::Any, "any"),
            (Match::Not(RangeSet::from(Range::single(Port(22)))), "not 22"),
        ] {
            let expected = format!(
                "destination port is {found}, must be 4118, or a list or range that contains it"
            );
            expect(misses(|rule| rule.destination.ports = ports), &expected);
        }
    }

    #[test]
    fn all_reasons_are_given_at_once() {
        let found = misses(|rule| {
            rule.action = Action::Deny;
            rule.protocol = Match::Any;
            rule.direction = Direction::Outgoing;
        });
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
