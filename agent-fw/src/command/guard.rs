//! `agent-fw guard`: puts back what somebody else takes away.

use super::apply::{at_boot, enforce, wanted};
use super::kernel::Held;
use super::outcome::{Outcome, Result};
use super::report;
use crate::host::changes::{Change, Changes};
use crate::host::{lock, privilege};
use crate::nft::Nftables;
use sd_notify::NotifyState;
use std::time::Duration;

/// Its changes of the table are told from others' by this name.
const NAME: &std::ffi::CStr = c"agent-fw-guard";
/// Another agent-fw that is at work is waited for so long.
const PATIENCE: Duration = Duration::from_mins(1);
/// Differences that are named in the journal.
const NAMED: usize = 3;

/// Stays, and puts the policy back whenever somebody else changes it in the kernel
///
/// Listens to what the kernel announces: changes of nf_tables, and interfaces that come and go. If
/// the table or an XDP program is then not as the policy asks for, it is put back, and who changed
/// it is written down. `install --guard` has systemd run this. Between the change and the repair
/// are some milliseconds.
#[derive(clap::Args, Debug)]
pub(super) struct Guard {}

impl Guard {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("guard")?;
        nix::sys::prctl::set_name(NAME)?;
        let mut changes = Changes::listen()?;
        put_back("")?;
        report::remark("on guard");
        drop(sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("on guard")]));
        // systemd wants to hear from us twice in its interval; without it, nothing wakes us.
        let interval = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        loop {
            for change in changes.wait(interval)? {
                meet(&change);
            }
            drop(sd_notify::notify(&[NotifyState::Watchdog]));
        }
    }
}

/// A repair that fails is not the end: the next change is met again.
fn meet(change: &Change) {
    let cause = match change {
        Change::Table(by) if by.name.as_bytes() == NAME.to_bytes() => return,
        Change::Table(by) => format!("{by} changed the table"),
        Change::Links => "an interface changed".to_owned(),
        Change::Unknown => "more changes than could be heard of".to_owned(),
    };
    if let Err(failure) = put_back(&cause) {
        report::failure(failure.error());
    }
}

/// Compares the kernel with the policy, and enforces it where they differ.
fn put_back(cause: &str) -> Result<()> {
    let _lock = lock::acquire("guard", PATIENCE)?;
    if !super::words::has_policy() {
        // Uninstalled: there is nothing to guard.
        return Ok(());
    }
    let Ok((configuration, compiled)) = wanted() else { return at_boot().map(drop) };
    let held = Held::read(&mut Nftables::open()?)?;
    let differing = held.differences(&configuration, &compiled);
    if differing.is_empty() {
        return Ok(());
    }
    enforce(&configuration, &compiled, true)?;
    let what = differing.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    let cause = if cause.is_empty() { "at the start" } else { cause };
    report::caution("put back:", format_args!("{cause}: {what}"));
    Ok(())
}
