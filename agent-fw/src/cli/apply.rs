//! `agent-fw apply`: what the boot unit runs.

use super::outcome::{Outcome, Result};
use super::{LockWait, exceptions, report};
use crate::engine::apply::{self, Applied, AtBoot, Read};
use crate::engine::judge::{Beyond, NotClosed, judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::without_lock;
use crate::nft::Nftables;
use crate::system::lock::Busy;
use crate::system::privilege;
use sd_notify::NotifyState;
use std::time::Duration;

/// Enforces the policy of /etc/agent-fw/policy.toml
///
/// Lists and regions that the policy names are read again. Counters go on. If the policy cannot be
/// compiled or the kernel refuses it, what was in force stays in force.
#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    /// As the boot unit does: never leave the port open
    ///
    /// If the policy cannot be enforced, the last one that could be is (exit code 1); if there is
    /// none, the port is closed to every source. Where an interface is still missing that gets an
    /// XDP program, the nftables table holds until it comes. Where another agent-fw is still at work
    /// after --wait, only the tables are exchanged, and XDP programs stay as they are (exit code 1).
    /// Where no policy was ever installed, nothing is changed.
    #[arg(long)]
    boot: bool,
    /// Enforce a policy that no longer restricts a port or a direction which the last one restricts
    ///
    /// Without it, such a policy.toml is refused: it may have been cut off. At boot it never is
    /// enforced; the last good policy is.
    #[arg(long, conflicts_with = "boot")]
    accept_opening: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Apply {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("apply")?;
        if self.boot {
            return at_boot(self.patience.duration());
        }
        let (read, _lock) = Read::with_lock_for_change("apply", self.patience.duration())?;
        let applied = apply::apply(&read, self.accept_opening)?;
        tell(&applied);
        exceptions::refresh(&applied.configuration, &applied.compiled);
        Ok(Outcome::Done)
    }
}

/// Closes the port before anything else; then enforces the policy, or what stands in for it. Whoever
/// stands on the lock cannot keep the port open.
fn at_boot(patience: Duration) -> Result<Outcome> {
    match without_lock::close_at_once() {
        Ok(None) => {}
        Ok(Some(substitute)) => report::remark(&format!("before anything else, {substitute}")),
        Err(error) => report::caution("note:", format_args!("not closed at once: {error:#}")),
    }
    let done = match Read::with_lock_for_change("apply", patience) {
        Ok((read, _lock)) => apply::at_boot(&read),
        Err(failure) => {
            let error = failure.error();
            let read = Read::now();
            let why = error.downcast_ref::<Busy>().map_or_else(
                || format!("could not be taken: {error:#}"),
                |Busy { holder, waited }| format!("{holder} holds; waited {} s", waited.as_secs()),
            );
            report::caution("note:", format_args!("without the lock, which {why}"));
            without_lock::at_boot(&read)
        }
    };
    Ok(conclude(done?))
}

/// Says what was done at boot, or by the guard.
pub(super) fn conclude(done: AtBoot) -> Outcome {
    match done {
        AtBoot::NothingInstalled => {
            report::remark("no policy is installed: nothing is enforced");
            Outcome::Done
        }
        AtBoot::Applied(applied) => {
            tell(&applied);
            exceptions::refresh_at_boot(&applied.configuration, &applied.compiled);
            Outcome::Done
        }
        AtBoot::ByTablesAlone(applied) => {
            tell(&applied);
            let backend = applied.configuration.backend;
            if !backend.has_programs() {
                return Outcome::Done;
            }
            report::caution(
                "note:",
                format_args!(
                    "the XDP programs were left as they are (the backend is {backend}): when the \
                     lock is free, run `agent-fw apply --boot`"
                ),
            );
            Outcome::False
        }
        AtBoot::FellBack(failure, substitute) => {
            let why = failure.error();
            let said = format!("the policy cannot be enforced, so {substitute}: {why:#}");
            report::bad("error:", &said);
            // Anybody may read the unit's status; what is wrong may quote what only root may.
            tell_systemd(&format!(
                "the policy cannot be enforced, so {substitute}; see the journal"
            ));
            Outcome::False
        }
    }
}

fn tell(applied: &Applied) {
    let Applied { configuration, compiled, missing, notes } = applied;
    compiled.notices.iter().for_each(report::notice);
    for note in notes {
        report::caution("note:", note);
    }
    for name in missing {
        report::remark(&format!(
            "there is no interface {name}; the nftables table holds until it comes"
        ));
    }
    let hash = compiled.lowered.policy.hash();
    report::remark(&format!("the kernel enforces policy {hash}"));
    let judged = judge_now(applied);
    match &judged {
        Ok((reasons, beyond)) => {
            if !reasons.is_empty() {
                report::promises(compiled, reasons);
                report::open_is_not_tested(&compiled.lowered);
            }
            if !beyond.is_closed() {
                report::promises_beyond(configuration, beyond);
            }
        }
        Err(error) => report::caution("note:", format_args!("not judged: {error:#}")),
    }
    let reasons = judged.iter().flat_map(|(reasons, _)| reasons);
    let unmeant = reasons.into_iter().find(|reason| !reason.is_meant());
    tell_systemd(
        &unmeant
            .map_or_else(|| report::promise(compiled), |reason| format!("not closed: {reason}")),
    );
}

/// Whether the port is closed now, that the policy is enforced.
fn judge_now(applied: &Applied) -> anyhow::Result<(Vec<NotClosed>, Beyond)> {
    let Applied { configuration, compiled, .. } = applied;
    // What was just enforced is not read back: a large list takes seconds.
    let state = KernelState::outline(&mut Nftables::open()?)?;
    let beyond = judge_beyond(configuration, compiled, &state, false)?;
    Ok((judge(configuration, compiled, &state, false)?, beyond))
}

/// The status line of the unit. Without systemd nobody listens.
fn tell_systemd(status: &str) {
    drop(sd_notify::notify(&[NotifyState::Status(status)]));
}
