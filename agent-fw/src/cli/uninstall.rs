//! `agent-fw uninstall`: leaves nothing in the kernel, and nothing on disk that is agent-fw's own.

use super::change::asked;
use super::outcome::{Failure, Outcome, Result};
use super::{LockWait, exceptions, report};
use crate::configuration::is_edited;
use crate::engine::change::leave_the_kernel;
use crate::engine::last_seen::Contact;
use crate::engine::{history, interfaces, last_good, pending};
use crate::system;
use crate::system::{file, lock, privilege, systemd};
use anyhow::anyhow;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

/// Removes table and XDP programs from the kernel, the policy from the disk, and the boot unit's link
///
/// Exceptions that `install --open-host-firewall` made in other firewalls are taken back.
/// The port is then as open as the host's other rules leave it. Your regions.toml stays.
#[derive(clap::Args, Debug)]
pub(super) struct Uninstall {
    /// Delete a policy.toml that was edited by hand without asking
    #[arg(long)]
    yes: bool,
    /// Only take the policy out of force: its files and the boot unit stay, and `apply` is the way
    /// back, but for exceptions in other firewalls, which go
    #[arg(long, conflicts_with = "yes")]
    keep_policy: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Uninstall {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("uninstall")?;
        let _lock = lock::acquire_for_change("uninstall", self.patience.duration())?;
        // Nobody is to take back, later, what is not there.
        pending::remove()?;
        drop(systemd::end_timer());
        if self.keep_policy {
            // The guard would put it back.
            systemd::stop()?;
            let all_closed = exceptions::close()?;
            leave_the_kernel()?;
            report::remark("not in force any more: the port is as open as other rules leave it");
            return Ok(conclude(all_closed));
        }
        let policy = Path::new(system::POLICY);
        // What cannot be read was not written by us.
        let is_edited = file::read_trusted(policy, file::Trust::Anybody)
            .map_or(true, |text| text.is_some_and(|text| is_edited(&text)));
        let mut edited = system::replaced_policies();
        edited.extend(is_edited.then(|| policy.to_owned()));
        if !edited.is_empty() && !self.yes && !confirmed(&edited)? {
            report::remark("nothing was changed");
            return Ok(Outcome::False);
        }
        // While the port is still closed to others: an exception may let in more than these.
        let all_closed = exceptions::close()?;
        // The files first, and what applies them at boot behind these: were the kernel to go first
        // and the rest to fail, the port would be open now or at the next boot, and the policy there.
        file::remove(policy)?;
        interfaces::forget()?;
        Contact::forget()?;
        history::remove()?;
        last_good::remove()?;
        if let Err(error) = systemd::remove() {
            report::caution("note:", format_args!("the boot unit stays enabled: {error:#}"));
        }
        // What an interrupted installation has left.
        drop(file::remove(&policy.with_added_extension("new")));
        drop(file::remove(Path::new(system::EDITED_POLICY)));
        let kept = system::replaced_policies().into_iter().chain(system::kept_lists());
        kept.into_iter().try_for_each(|path| file::remove(&path))?;
        // Stays when the user's own files are in it.
        drop(std::fs::remove_dir(system::LISTS));
        // Stays when the user's own files are in it.
        drop(std::fs::remove_dir(system::DIRECTORY));
        leave_the_kernel()?;
        report::remark("agent-fw is removed: the port is as open as other rules leave it");
        Ok(conclude(all_closed))
    }
}

fn conclude(all_closed: bool) -> Outcome {
    if all_closed {
        return Outcome::Done;
    }
    report::caution("note:", "`agent-fw uninstall` tries again to take exceptions back");
    Outcome::False
}

/// Asks whether these files may be deleted, which somebody has edited.
fn confirmed(edited: &[PathBuf]) -> Result<bool> {
    let names: Vec<String> = edited.iter().map(|path| path.display().to_string()).collect();
    let names = names.join(" and ");
    let [were, them] = if edited.len() == 1 { ["was", "it"] } else { ["were", "them"] };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Input(anyhow!(
            "{names} {were} edited by hand; --yes deletes {them} all the same"
        )));
    }
    asked(&format!("{names} {were} edited by hand. Delete {them}?"))
}
