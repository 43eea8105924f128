//! `agent-fw guard`: puts back what somebody else takes away.

use super::apply::{at_boot, enforce, wanted};
use super::kernel::Held;
use super::outcome::{Outcome, Result};
use super::{exceptions, report};
use crate::host::changes::{Change, Changes};
use crate::host::handover::Door;
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

/// Stays, and keeps others from changing the policy in the kernel
///
/// From Linux 6.9 it owns the table: nobody else can change or delete it, and `nft flush ruleset`
/// passes it by. It also listens to what the kernel announces: changes of nf_tables, and interfaces
/// that come and go. If the table or an XDP program is then not as the policy asks for, it is put
/// back, some milliseconds later, and who changed it is written down. `install --guard` has systemd
/// run this.
#[derive(clap::Args, Debug)]
pub(super) struct Guard {}

impl Guard {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("guard")?;
        nix::sys::prctl::set_name(NAME)?;
        let mut changes = Changes::listen()?;
        let door = Door::open()?;
        let mut hold = Hold::default();
        hold.put_back("at the start")?;
        let status = if hold.owner.is_some() { "on guard, owns the table" } else { "on guard" };
        report::remark(status);
        drop(sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]));
        // systemd wants to hear from us twice in its interval; without it, nothing wakes us.
        let interval = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        loop {
            for change in changes.wait(interval, &door)? {
                hold.meet(&change);
            }
            if let Some(guest) = door.guest() {
                hold.owner = None;
                if let Err(error) = guest.serve(interval, still_here) {
                    report::remark(&format!("a command that changes the table: {error}"));
                }
                hold.try_put_back("after a command of agent-fw's");
            }
            still_here();
        }
    }
}

fn still_here() {
    drop(sd_notify::notify(&[NotifyState::Watchdog]));
}

/// The guard's hold on what the kernel enforces.
#[derive(Default)]
struct Hold {
    /// The connection that owns the table, where the kernel has that.
    owner: Option<Nftables>,
}

impl Hold {
    fn meet(&mut self, change: &Change) {
        let cause = match change {
            Change::Table(by) if by.name.as_bytes() == NAME.to_bytes() => return,
            Change::Table(by) => format!("{by} changed the table"),
            Change::Links => "an interface changed".to_owned(),
            Change::Unknown => "more changes than could be heard of".to_owned(),
        };
        self.try_put_back(&cause);
    }

    /// A repair that fails is not the end: the next change is met again.
    fn try_put_back(&mut self, cause: &str) {
        if let Err(failure) = self.put_back(cause) {
            report::failure(failure.error());
        }
    }

    /// Compares the kernel with the policy, enforces it where they differ, and owns the table.
    fn put_back(&mut self, cause: &str) -> Result<()> {
        let _lock = lock::acquire("guard", PATIENCE)?;
        if !super::words::has_policy() {
            // Uninstalled: there is nothing to guard.
            return Ok(());
        }
        let Ok((configuration, compiled)) = wanted() else {
            self.owner = None;
            at_boot()?;
            return self.own();
        };
        let held = Held::read(&mut Nftables::open()?)?;
        let differing = held.differences(&configuration, &compiled);
        if !differing.is_empty() {
            self.owner = None;
            enforce(&configuration, &compiled, true)?;
            exceptions::refresh_at_boot(&configuration, &compiled);
            let what = differing.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
            report::caution("put back:", format_args!("{cause}: {what}"));
        }
        self.own()
    }

    fn own(&mut self) -> Result<()> {
        if self.owner.is_none() {
            let mut nftables = Nftables::open()?;
            self.owner = nftables.own()?.then_some(nftables);
        }
        Ok(())
    }
}
