//! Rules that agent-fw cannot enforce: all of them are named, and those that it has no means for are
//! left out where that was asked for and cannot open anything.

use super::{FieldPath, Options, RuleFiles, Scope, Written};
use crate::model::firewall::{self, Unenforceable};
use crate::model::rule::{Action, Direction, FrameType, Match, Rule, near_misses};
use std::fmt;

/// A rule that cannot be enforced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Its name.
    pub rule: String,
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// Why, all that there is.
    pub why: Vec<Unenforceable>,
    /// Why it was not left out, though that was asked for.
    opens: Option<&'static str>,
}

/// A rule that was left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// The rule.
    pub written: Written,
    /// Why.
    pub why: Vec<Unenforceable>,
}

/// Takes rules that cannot be enforced out of those that are, where they may be left out; the faults
/// of the others, where they are to be enforced.
pub(super) fn settle(found: &mut RuleFiles, options: Options<'_>) -> Vec<(FieldPath, String)> {
    let judged: Vec<(Written, Vec<Unenforceable>)> = std::mem::take(&mut found.rules)
        .into_iter()
        .map(|written| {
            let why = reasons(&written.rule, options);
            (written, why)
        })
        .collect();
    let sound = judged.iter().filter(|(_, why)| why.is_empty());
    let sound: Vec<Rule> = sound.map(|(written, _)| written.rule.clone()).collect();
    let mut faults = Vec::new();
    for (written, why) in judged {
        let may_skip = options.skip_unsupported && why.iter().all(Unenforceable::is_lacking);
        let opens = opens(&written.rule, &sound, options).filter(|_| may_skip);
        if why.is_empty() {
            found.rules.push(written);
        } else if may_skip && opens.is_none() {
            found.left_out.push(LeftOut { written, why });
        } else {
            let refused = Refused {
                rule: written.rule.name.clone(),
                file: written.file.clone(),
                line: written.line,
                why,
                opens,
            };
            faults.push((FieldPath::of_line(&refused.file, refused.line), refused.to_string()));
            found.refused.push(refused);
            found.rules.push(written);
        }
    }
    if options.scope == Scope::Told { Vec::new() } else { faults }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}`: {}", self.rule, reasons_in_words(&self.why))?;
        match self.opens {
            Some(opens) => write!(f, " (--skip-unsupported does not leave it out: {opens})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Written { rule, file, line, .. } = &self.written;
        let Rule { name, action, .. } = rule;
        let why = reasons_in_words(&self.why);
        write!(f, "{file}:{line}: rule `{name}` ({action}) is left out, as asked: {why}")
    }
}

fn reasons_in_words(why: &[Unenforceable]) -> String {
    why.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a rule cannot be enforced, where it would be.
fn reasons(rule: &Rule, options: Options<'_>) -> Vec<Unenforceable> {
    if options.whole || near_misses(rule, options.port).is_empty() {
        firewall::Rule::unenforceable(rule)
    } else {
        Vec::new()
    }
}

/// Why leaving out a rule may open something, if it may. `sound` are the rules that remain.
fn opens(rule: &Rule, sound: &[Rule], options: Options<'_>) -> Option<&'static str> {
    let allows = |direction: Direction| {
        let is_one =
            move |other: &&Rule| other.action == Action::Allow && other.direction == direction;
        sound.iter().filter(is_one)
    };
    match rule.action {
        Action::Deny => Some("what it denies could pass"),
        Action::LogOnly => Some("what it records would not be recorded"),
        // Without --policy, sources that it admits are not admitted, and that is all.
        Action::Bypass | Action::Allow if !options.whole => None,
        Action::ForceAllow => None,
        Action::Bypass => allows(rule.direction.opposite())
            .next()
            .map(|_| "what it lets through has no answers, and without it could have some"),
        Action::Allow => {
            let names_arp = |rule: &Rule| rule.frame_type == Match::Is(FrameType::Arp);
            let is_kept = allows(rule.direction).any(|other| names_arp(other) == names_arp(rule));
            (!is_kept).then_some(
                "it is the last Allow of its direction, which would no longer be restricted",
            )
        }
    }
}
