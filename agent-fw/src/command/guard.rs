//! `agent-fw guard`: puts back what somebody else takes away.

use super::apply::{at_boot, enforce, wanted};
use super::kernel::Held;
use super::outcome::{Outcome, Result};
use super::{exceptions, report};
use crate::host::changes::{Change, Changes};
use crate::host::handover::Door;
use crate::host::{lock, privilege};
use crate::nft::{Hold, Nftables};
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
/// passes it by. From 5.12 it owns a second table like it, which keeps the port closed while the
/// first is put back. It also listens to what the kernel announces: changes of nf_tables, and
/// interfaces that come and go. If the table or an XDP program is then not as the policy asks for,
/// it is put back, some milliseconds later, and who changed it is written down. `install --guard`
/// has systemd run this.
#[derive(clap::Args, Debug)]
pub(super) struct Guard {}

impl Guard {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("guard")?;
        nix::sys::prctl::set_name(NAME)?;
        let mut changes = Changes::listen()?;
        let door = Door::open()?;
        let mut keeper = Keeper::default();
        keeper.put_back("at the start")?;
        let status = match keeper.hold() {
            Hold::Tables => "on guard, owns the table",
            Hold::Twin => "on guard, owns a twin of the table",
            Hold::Nothing => "on guard",
        };
        report::remark(status);
        drop(sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]));
        // systemd wants to hear from us twice in its interval; without it, nothing wakes us.
        let interval = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        loop {
            for change in changes.wait(interval, &door)? {
                keeper.meet(&change);
            }
            if let Some(guest) = door.guest() {
                keeper.let_go();
                if let Err(error) = guest.serve(interval, still_here) {
                    report::remark(&format!("a command that changes the table: {error}"));
                }
                keeper.try_put_back("after a command of agent-fw's");
            }
            still_here();
        }
    }
}

fn still_here() {
    drop(sd_notify::notify(&[NotifyState::Watchdog]));
}

/// Keeps what the kernel enforces as the policy asks for.
#[derive(Default)]
struct Keeper {
    /// The connection that owns something, where the kernel has that.
    owner: Option<(Nftables, Hold)>,
}

impl Keeper {
    fn hold(&self) -> Hold {
        self.owner.as_ref().map_or(Hold::Nothing, |(_, hold)| *hold)
    }

    /// Lets everybody change everything, and the policy alone decide.
    fn let_go(&mut self) {
        self.owner = None;
    }

    /// Lets the tables be changed. A twin stays, and keeps the port closed meanwhile.
    fn let_go_of_tables(&mut self) {
        self.owner.take_if(|(_, hold)| *hold == Hold::Tables);
    }

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
            self.let_go_of_tables();
            at_boot()?;
            return self.own_anew();
        };
        let held = Held::read(&mut Nftables::open()?)?;
        let differing = held.differences(&configuration, &compiled);
        if !differing.is_empty() {
            self.let_go_of_tables();
            enforce(&configuration, &compiled, true)?;
            exceptions::refresh_at_boot(&configuration, &compiled);
            let what = differing.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
            report::caution("put back:", format_args!("{cause}: {what}"));
            return self.own_anew();
        }
        if self.owner.is_none() { self.own_anew() } else { Ok(()) }
    }

    /// Owns what is in force now.
    fn own_anew(&mut self) -> Result<()> {
        self.let_go();
        let mut nftables = Nftables::open()?;
        self.owner = match nftables.own()? {
            Hold::Nothing => None,
            hold => Some((nftables, hold)),
        };
        Ok(())
    }
}
