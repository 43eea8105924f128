//! `agent-fw guard`: puts back what somebody else takes away.

use super::apply::conclude;
use super::outcome::{Outcome, Result};
use super::report;
use crate::engine::apply::AtBoot;
use crate::engine::guard::{self, Event};
use crate::nft::{Cover, HeldTables};
use crate::system::privilege;
use sd_notify::NotifyState;

/// Differences that are named in the journal.
const NAMED: usize = 3;

/// Stays, and keeps others from changing the policy in the kernel
///
/// From Linux 6.9 it owns the table: nobody else can change or delete it, and `nft flush ruleset`
/// passes it by. From 5.12 it owns a second table like it, which keeps the port closed while the
/// first is put back. It also listens to what the kernel announces: changes of nf_tables, and
/// interfaces that come and go; XDP programs it looks at every two seconds. If the table or a program
/// is then not as the policy asks for, it is put back, and who changed it is written down.
/// `install --guard` has systemd run this.
#[derive(clap::Args, Debug)]
pub(super) struct Guard {}

impl Guard {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("guard")?;
        // systemd wants to hear from us twice in its interval; without it, nothing wakes us.
        let interval = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        guard::run(interval, || drop(sd_notify::notify(&[NotifyState::Watchdog])), tell)?;
        Ok(Outcome::Done)
    }
}

fn tell(event: Event) {
    match event {
        Event::Standing(hold) => {
            let status = match hold {
                HeldTables::Tables => "on guard, owns the table",
                HeldTables::Twin => "on guard, owns a twin of the table",
                HeldTables::Nothing => "on guard",
            };
            report::remark(status);
            drop(sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]));
        }
        Event::PutBack { cause, differing } => {
            let what = differing.into_iter().take(NAMED).collect::<Vec<_>>().join("; ");
            report::caution("put back:", format_args!("{cause}: {what}"));
        }
        Event::Enforced(done @ AtBoot::FellBack(..)) => {
            conclude(done);
        }
        Event::Enforced(AtBoot::Applied(applied)) => {
            super::exceptions::refresh_at_boot(&applied.configuration, &applied.compiled);
        }
        Event::Covered(Cover::Closed) => report::caution(
            "note:",
            "too little memory: while a command changes the table, no source reaches the port",
        ),
        Event::Enforced(AtBoot::NothingInstalled | AtBoot::ByTablesAlone(_))
        | Event::Covered(_) => {}
        Event::Failed(error) => report::failure(&error),
    }
}
