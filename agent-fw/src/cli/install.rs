//! `agent-fw install`: from words to an enforced policy, all of it or nothing.

use super::change::{ChangeArgs, Proposal};
use super::outcome::{Failure, Outcome, Result};
use super::policy_args::{PolicyArgs, compile};
use super::report;
use super::units::Units;

/// Enforces a policy now and keeps it for the next boot
///
/// Writes /etc/agent-fw/policy.toml, and exchanges the rules of agent-fw's tables, or the XDP
/// program of each interface, at one instant. If a step fails, those before it are undone, and the
/// previous policy remains in force.
#[derive(clap::Args, Debug)]
pub(super) struct Install {
    #[command(flatten)]
    words: PolicyArgs,
    #[command(flatten)]
    units: Units,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Install {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self { mut words, units, change } = self;
        // What contradicts itself is told before anybody is asked anything.
        words.clone().configuration()?;
        units.check()?;
        change.check("install")?;
        words.ask_for_sources()?;
        // By a flag, or in the answer.
        let says_any = words.say_any();
        let required = words.require_sources();
        let assumed = words.assumed_direction();
        let mut configuration = words.configuration()?;
        // Standard input can be read once.
        let lists = configuration.keep_lists().map_err(Failure::Input)?;
        if let Err(nobody) = required {
            // Other faults are told first.
            compile(&configuration, &lists)?;
            return Err(nobody);
        }
        let outcome = change.carry_out("install", Some(&units), |_| {
            let proposal = Proposal::new(configuration.clone(), lists.clone());
            Ok(Proposal { says_any, ..proposal })
        })?;
        if let Some(assumed) = assumed {
            report::remark(&assumed);
        }
        Ok(outcome)
    }
}
