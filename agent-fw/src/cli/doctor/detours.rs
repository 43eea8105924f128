//! What brings packets to the agent where no chain of agent-fw's sees them.

use super::check::{Check, Health};
use crate::cli::outcome::Result;
use crate::configuration::{Compiled, Configuration};
use crate::nft::LATE_PRIORITY;
use crate::trace;
use crate::trace::Detour;

/// Whether rules or programs of this host lead past the gate.
pub(super) fn detours(configuration: &Configuration, compiled: &Compiled) -> Result<Check> {
    let why = "the gate sees packets at the hook `input`, with the port that they have there; what \
               is sent on before, or handed to a socket by other means, passes it by";
    let check = |health, seen: String| Check::new("ways past the gate", why, health, seen);
    let policy = &compiled.lowered.policy;
    let offloaded = if configuration.early_drop { trace::offloaded(policy)? } else { None };
    let found: Vec<Detour> = trace::detours(policy.ports(), LATE_PRIORITY)?
        .into_iter()
        .filter(|detour| !is_closed(detour, configuration))
        .chain(offloaded)
        .collect();
    let Some(first) = found.first() else {
        return Ok(check(Health::Good, "no rule and no program that would be one".to_owned()));
    };
    let opens = policy.closes() && found.iter().any(Detour::is_certain);
    let health = if opens { Health::Bad } else { Health::Note };
    let seen: Vec<String> = found.iter().map(Detour::to_string).collect();
    let advice = found.iter().find(|detour| detour.is_certain()).unwrap_or(first).advice();
    Ok(check(health, seen.join("; ")).advise(advice))
}

/// An early drop decides before a rule sends packets on.
fn is_closed(detour: &Detour, configuration: &Configuration) -> bool {
    configuration.early_drop && detour.is_after_early_drop()
}
