//! What a rule means for the agent's port.

use super::lower::inexpressible;
use super::{Match, Mismatch, Rule, Unsupported, near_misses};
use crate::model::{Port, RangeSet};
use std::fmt;

/// What a rule means for the agent's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HiddenRuleMatch {
    /// It replaces the hidden rule: its sources are admitted.
    Replaces,
    /// It would replace the hidden rule, but has a limit that agent-fw cannot keep.
    Refused(Unsupported),
    /// It is about other ports.
    OtherPorts(Match<RangeSet<Port>>),
    /// It does not replace the hidden rule: a reason for each field that stands in the way.
    Differs(Vec<Mismatch>),
}

impl HiddenRuleMatch {
    /// What `rule` means where the agent listens on `listening`.
    pub fn of(rule: &Rule, listening: Port) -> Self {
        let misses = near_misses(rule, listening);
        let elsewhere = match &rule.destination.ports {
            Match::Any => false,
            Match::Is(ports) => !ports.contains(listening),
            Match::Not(ports) => ports.contains(listening),
        };
        if elsewhere {
            Self::OtherPorts(rule.destination.ports.clone())
        } else if !misses.is_empty() {
            Self::Differs(misses)
        } else if let Some(limit) = inexpressible(rule) {
            Self::Refused(limit)
        } else {
            Self::Replaces
        }
    }

    /// The meaning in a word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Replaces => "replaces",
            Self::Refused(_) => "refused",
            Self::OtherPorts(_) => "other-port",
            Self::Differs(_) => "does-not-replace",
        }
    }
}

impl fmt::Display for HiddenRuleMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaces => f.write_str("replaces the hidden rule"),
            Self::Refused(limit) => write!(f, "would replace the hidden rule, but {limit}"),
            Self::OtherPorts(ports) => write!(f, "concerns another port: {ports}"),
            Self::Differs(misses) => {
                let misses: Vec<String> = misses.iter().map(ToString::to_string).collect();
                write!(f, "does not replace the hidden rule: {}", misses.join("; "))
            }
        }
    }
}
