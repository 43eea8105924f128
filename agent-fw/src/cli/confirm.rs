//! `agent-fw confirm`: keeps a change that is on trial.

use super::apply::conclude;
use super::outcome::{Outcome, Result};
use super::{LockWait, change, exceptions, report};
use crate::engine::change::{confirm, take_back as take_it_back};
use crate::engine::pending;
use crate::system::{lock, privilege, systemd};
use std::time::Duration;

/// So long the timer's command waits for another agent-fw.
const PATIENCE: Duration = Duration::from_mins(10);

/// Keeps the change that was made with --confirm
///
/// Until then policy.toml is the old one. Exit code 1 if no change is on trial: its time may be up.
#[derive(clap::Args, Debug)]
pub(super) struct Confirm {
    /// Take the change back: what the timer runs
    #[arg(long, hide = true)]
    take_back: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Confirm {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("confirm")?;
        if self.take_back {
            return take_back(PATIENCE);
        }
        let lock = lock::acquire_for_change("confirm", self.patience.duration())?;
        let Some(pending) = pending::current() else {
            report::remark("no change is on trial: there is nothing to confirm");
            return Ok(Outcome::False);
        };
        let has_unit = pending.enable_boot_unit;
        change::tell(&confirm(pending)?);
        // What it would take back is gone: that it runs all the same does no harm.
        drop(systemd::end_timer());
        drop(lock);
        if has_unit && let Err(error) = systemd::start() {
            report::caution("note:", format_args!("{} is not started: {error:#}", systemd::UNIT));
        }
        report::good("confirmed:", "the change is kept, also for the next boot");
        Ok(Outcome::Done)
    }
}

/// Takes back what is on trial.
pub(super) fn take_back(patience: Duration) -> Result<Outcome> {
    let _lock = lock::acquire_for_change("confirm", patience)?;
    if pending::read()?.is_none() {
        report::remark("no change is on trial: there is nothing to take back");
        return Ok(Outcome::Done);
    }
    let done = take_it_back()?;
    report::remark("the change on trial is taken back");
    let outcome = if let Some(done) = done {
        conclude(done)
    } else {
        exceptions::close()?;
        report::caution("open:", "no policy was installed before, and so none is in force");
        Outcome::Done
    };
    // Last: the timer's command would end itself.
    drop(systemd::end_timer());
    Ok(outcome)
}
