//! `agent-fw set`: some words of the policy changed, and the rest kept.

use super::change::{ChangeArgs, Proposal};
use super::outcome::{Failure, Outcome, Result};
use super::policy_changes::PolicyChanges;
use crate::engine::apply::Read;
use anyhow::anyhow;

/// Changes what the given options say of the installed policy, and keeps the rest
///
/// A list that is given takes the place of the whole list; `none` empties it. `=no` turns a switch
/// off, such as --log=no.
#[derive(clap::Args, Debug)]
pub(super) struct Set {
    #[command(flatten)]
    words: PolicyChanges,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Set {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self { words, change } = self;
        if words.is_empty() {
            return Err(Failure::Input(anyhow!(
                "nothing says what is to be set: name an option, such as --log or --direction"
            )));
        }
        change.check("set")?;
        change.carry_out("set", None, |read| proposal(read, &words))
    }
}

fn proposal(read: &Read, words: &PolicyChanges) -> Result<Proposal> {
    let mut configuration = words.of(&read.compile()?.0)?;
    let lists = configuration.keep_lists().map_err(Failure::Input)?;
    let says_any = words.say_any();
    Ok(Proposal { says_any, ..Proposal::new(configuration, lists) })
}
