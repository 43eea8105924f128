//! Rules that never decide anything.

use super::criteria::{Criteria, Protocols};
use super::packet::ICMPV6;
use super::{Firewall, Rule};
use crate::model::packet_set::PacketSet;
use crate::model::rule::Action;
use std::collections::BTreeSet;
use std::fmt;

/// A rule that never decides anything, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShadowedRule<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Rules before it that match, together, all that it matches: one where one does. Without
    /// any, there is no such packet.
    pub shadows: Vec<&'a Rule>,
}

impl<'a> ShadowedRule<'a> {
    /// The shadows' names.
    pub fn names(&self) -> Vec<&'a str> {
        self.shadows.iter().map(|shadow| shadow.name.as_str()).collect()
    }
}

impl fmt::Display for ShadowedRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}` never decides: ", self.rule.name)?;
        let word = |Rule { name, action, priority, .. }: &&Rule| {
            format!("`{name}` ({action}, priority {priority})")
        };
        match self.shadows.as_slice() {
            [] => f.write_str(
                "it matches no IP packet and no ARP frame, and only these are examined on Linux",
            ),
            [one] => write!(f, "{} matches all that it matches", word(one)),
            several => {
                let names: Vec<String> = several.iter().map(word).collect();
                write!(f, "together, {} match all that it matches", names.join(", "))
            }
        }
    }
}

impl Firewall {
    /// The rules that never decide anything.
    pub fn idle_rules(&self) -> Vec<ShadowedRule<'_>> {
        let meant: Vec<PacketSet> = self.rules.iter().map(|r| r.criteria.packets()).collect();
        let find = |(place, rule): (usize, _)| {
            let rule: &Rule = rule;
            if rule.criteria.is_empty() {
                return Some(ShadowedRule { rule, shadows: Vec::new() });
            }
            let before = self.rules[..place].iter().zip(&meant);
            let shadows = before.filter(|(other, _)| other.leaves_nothing_behind(rule)).collect();
            let is_icmpv6_denied = self.rules[place + 1..].iter().any(|later| {
                later.direction == rule.direction
                    && later.action == Action::Deny
                    && !later.criteria.spares_icmpv6
            });
            let in_question = in_question(&rule.criteria, is_icmpv6_denied);
            let shadows = fewest(&in_question, shadows)?;
            Some(ShadowedRule { rule, shadows })
        };
        self.rules.iter().enumerate().filter_map(find).collect()
    }
}

impl Rule {
    /// Whether what this rule, evaluated first, matches does not come to the other.
    fn leaves_nothing_behind(&self, other: &Self) -> bool {
        // What is invalid, Allow leaves to others; but behind Allow comes only Allow.
        self.direction == other.direction
            && (self.action != Action::LogOnly || other.action == Action::LogOnly)
            && !self.criteria.is_empty()
    }
}

/// The packets about which a rule is asked. What becomes of `ICMPv6` is only a question where the rule
/// names it, or keeps it from a Deny that does.
fn in_question(criteria: &Criteria, is_icmpv6_denied: bool) -> PacketSet {
    let names_icmpv6 = criteria.protocols == Protocols::Only(BTreeSet::from([ICMPV6]));
    let spares_icmpv6 = criteria.spares_icmpv6 || !(names_icmpv6 || is_icmpv6_denied);
    Criteria { spares_icmpv6, ..criteria.clone() }.packets()
}

/// More cubes than these are not cut up further: it could take for ever.
const MOST: usize = 256;

/// Whether these, together, leave nothing over. `false` also where that would take too long to find
/// out.
fn is_covered(packets: &PacketSet, others: &[&PacketSet]) -> bool {
    let mut rest = Some(packets.clone());
    for other in others {
        rest = rest.and_then(|rest| rest.difference_within(other, MOST));
    }
    rest.is_some_and(|rest| rest.is_empty())
}

/// Of rules that may cover the packets in question, one that does; else as few as do together;
/// `None` if they do not.
fn fewest<'a>(packets: &PacketSet, rules: Vec<(&'a Rule, &PacketSet)>) -> Option<Vec<&'a Rule>> {
    if let Some((one, _)) = rules.iter().find(|(_, other)| is_covered(packets, &[other])) {
        return Some(vec![one]);
    }
    let covers = |rules: &[(&Rule, &PacketSet)]| {
        let others: Vec<&PacketSet> = rules.iter().map(|(_, other)| *other).collect();
        is_covered(packets, &others)
    };
    if !covers(&rules) {
        return None;
    }
    let mut needed = rules;
    for place in (0..needed.len()).rev() {
        let mut fewer = needed.clone();
        fewer.remove(place);
        if covers(&fewer) {
            needed = fewer;
        }
    }
    Some(needed.into_iter().map(|(rule, _)| rule).collect())
}

#[cfg(test)]
mod tests {
    use super::Firewall;
    use crate::model::Port;
    use crate::model::rule::{
        Action, Endpoint, FrameType, Match, Priority, Protocol, Rule, hidden_rule,
    };

    #[test]
    fn a_rule_that_keeps_icmpv6_from_a_later_deny_decides() {
        let rule = |name: &str, action, priority: u8, protocol| Rule {
            name: name.to_owned(),
            action,
            priority: Priority::new(priority).expect("a priority"),
            frame_type: Match::Is(FrameType::Ip),
            protocol,
            destination: Endpoint::ANY,
            ..hidden_rule(Port(4118))
        };
        // No Deny touches ICMPv6 that does not name it.
        let first = rule("first", Action::Deny, 4, Match::Any);
        let bypass = rule("bypass", Action::Bypass, 2, Match::Not(Protocol::Tcp));
        let last = rule("last", Action::Deny, 0, Match::Is(Protocol::Icmpv6));
        let idle = |rules: &[&Rule]| -> Vec<String> {
            let firewall = Firewall::new(rules.iter().copied()).expect("a policy");
            firewall.idle_rules().iter().map(|idle| idle.rule.name.clone()).collect()
        };
        assert_eq!(idle(&[&first, &bypass]), ["bypass"]);
        assert_eq!(idle(&[&first, &bypass, &last]), ["last"]);
    }
}
