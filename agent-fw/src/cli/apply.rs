//! `agent-fw apply`: what the boot unit runs.

use super::consent::this_command;
use super::outcome::{Outcome, Result};
use super::{LockWait, exceptions, report};
use crate::configuration::change::{Tense, differences};
use crate::engine::apply::{self, Applied, ApplyConsent, AtBoot, Read};
use crate::engine::history::{self, Made};
use crate::engine::judge::{Beyond, NotClosed, judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::opening::Known;
use crate::engine::sources::SourceTexts;
use crate::engine::{last_good, without_lock};
use crate::nft::Nftables;
use crate::system;
use crate::system::lock::Busy;
use crate::system::privilege;
use sd_notify::NotifyState;
use std::time::Duration;

/// Enforces the policy of /etc/agent-fw/policy.toml
///
/// Lists and regions that the policy names are read again. Counters go on. If the policy cannot be
/// compiled or the kernel refuses it, what was in force stays in force.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
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
    /// Take a list that has lost more than half of its entries since the policy was put into force
    ///
    /// Without it, the list may be half written, and is refused. At boot the last good policy is
    /// enforced then.
    #[arg(long, conflicts_with = "boot")]
    allow_shrink: bool,
    /// Print what would change, and change nothing (exit code 1 if anything would)
    #[arg(long, conflicts_with = "boot")]
    dry_run: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Apply {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("apply")?;
        if self.boot {
            return at_boot(self.patience.duration());
        }
        let consent = ApplyConsent { opening: self.accept_opening, shrinking: self.allow_shrink };
        if self.dry_run {
            return dry_run(consent);
        }
        let (read, _lock) = Read::with_lock_for_change("apply", self.patience.duration())?;
        // The last policy that was put into force, whatever has become of policy.toml since.
        let before = last_good::read().ok().flatten();
        let before = before.and_then(|texts| Some((texts.compile(system::POLICY).ok()?, texts)));
        let applied = apply::apply(&read, consent)?;
        tell(&applied);
        note_change(&read, before.as_ref(), &applied);
        exceptions::refresh(&applied.configuration, &applied.compiled);
        Ok(Outcome::Done)
    }
}

/// What `apply` would change, in words.
fn dry_run(consent: ApplyConsent) -> Result<Outcome> {
    let read = Read::now();
    let (configuration, compiled) = apply::checked(&read, consent)?;
    compiled.notices.iter().for_each(report::notice);
    let before = last_good::compiled().ok().flatten();
    let before = before.as_ref().map(|(configuration, compiled)| (configuration, compiled));
    let changes = differences(before, (&configuration, &compiled));
    let held = KernelState::read(&mut Nftables::open()?)?;
    let differing = held.differences(&configuration, &compiled)?;
    if differing.is_empty() {
        report::remark("the kernel enforces this policy already; nothing would change");
        return Ok(Outcome::Done);
    }
    if changes.is_empty() {
        report::remark(
            "the policy is the one that was last put into force, which the kernel does not enforce \
             as it should: apply would put it right",
        );
    } else {
        report::remark("apply would change:");
        let words = changes.iter().map(|change| change.in_words(Tense::Would));
        report::changes(&words.collect::<Vec<_>>(), false);
    }
    Ok(Outcome::False)
}

/// Writes down that a policy.toml was put into force which somebody has edited.
pub(super) fn note_change(read: &Read, before: Option<&(Known, SourceTexts)>, applied: &Applied) {
    let Some(texts) = read.texts().filter(|_| !read.is_on_trial()) else { return };
    let Applied { configuration, compiled, .. } = applied;
    if before.is_some_and(|(_, before)| before == texts) {
        return;
    }
    let known = before.map(|((words, compiled), _)| (words, compiled));
    let changes = differences(known, (configuration, compiled));
    let made = Made::now(&this_command(&[]), &changes, None);
    let before = before.map(|((_, compiled), texts)| (texts, compiled));
    if let Err(error) = history::note(before, (texts, compiled), made) {
        report::caution("note:", format_args!("this change is not in the history: {error:#}"));
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

pub(super) fn tell(applied: &Applied) {
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
