//! One check of `agent-fw doctor`: what was seen, why it matters, what to do.

use crate::cli::report;
use crate::cli::report::say;
use serde_json::{Value, json};

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Good,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something needs attention.
    Bad,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Check {
    name: &'static str,
    pub(super) health: Health,
    seen: String,
    why: &'static str,
    advice: Option<String>,
}

impl Check {
    pub(super) fn new(
        name: &'static str,
        why: &'static str,
        health: Health,
        seen: impl Into<String>,
    ) -> Self {
        Self { name, health, seen: seen.into(), why, advice: None }
    }

    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    pub(super) fn print(&self) {
        match self.health {
            Health::Good => report::good("good", self.name),
            Health::Note => report::caution("note", self.name),
            Health::Bad => report::bad("bad ", self.name),
        }
        say!("{}", report::wrapped("     ", "     ", &self.seen));
        if self.health != Health::Good {
            say!("{}", report::wrapped("     why: ", "          ", self.why));
        }
        if let Some(advice) = &self.advice {
            say!("{}", report::wrapped("     do:  ", "          ", advice));
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let health = match self.health {
            Health::Good => "good",
            Health::Note => "note",
            Health::Bad => "bad",
        };
        let Self { name, seen, why, advice, .. } = self;
        json!({ "check": name, "health": health, "seen": seen, "why": why, "advice": advice })
    }
}
