//! Rules that never decide anything.

use super::{Firewall, Rule};
use crate::rule::Action;
use std::fmt;

/// A rule that never decides anything, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idle<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The rule before it that matches all that it matches; without one, there is no such packet.
    pub shadow: Option<&'a Rule>,
}

impl fmt::Display for Idle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}` never decides: ", self.rule.name)?;
        match self.shadow {
            Some(Rule { name, action, priority, .. }) => {
                write!(f, "`{name}` ({action}, priority {priority}) matches all that it matches")
            }
            None => f.write_str("there is no packet on Linux that it matches"),
        }
    }
}

impl Firewall {
    /// The rules that never decide anything. A shadow is one rule that covers another in each
    /// field; what several rules cover together is not found.
    pub fn idle_rules(&self) -> Vec<Idle<'_>> {
        let find = |(place, rule): (usize, _)| {
            let rule: &Rule = rule;
            if rule.criteria.is_empty() {
                return Some(Idle { rule, shadow: None });
            }
            let shadow = self.rules[..place].iter().find(|other| other.shadows(rule))?;
            Some(Idle { rule, shadow: Some(shadow) })
        };
        self.rules.iter().enumerate().filter_map(find).collect()
    }
}

impl Rule {
    /// Whether this rule, evaluated first, leaves nothing to the other.
    fn shadows(&self, other: &Self) -> bool {
        // What is invalid, Allow leaves to others; but behind Allow comes only Allow.
        self.direction == other.direction
            && (self.action != Action::LogOnly || other.action == Action::LogOnly)
            && !self.criteria.is_empty()
            && self.criteria.cover(&other.criteria)
    }
}
