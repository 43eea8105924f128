//! How a policy is enforced, by whatever command: everything that can fail is tried before anything
//! is changed; the new is made ready beside the old; they are exchanged; and only then is the old
//! removed. What fails before that is taken back, so that no failure leaves less in force than
//! there was.
//!
//! Tables are exchanged before programs. In between, a packet passes what is already new and what is
//! still old: one that both policies admit is admitted throughout, and one that neither admits never
//! is.

use super::host::{Host, ProgramSpec, policy_path};
use crate::nft::Image;
use std::fmt;
use std::path::PathBuf;

/// What is to be in force, and on disk.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Plan<'a> {
    /// The tables; none: there are to be none.
    pub tables: Vec<Image>,
    /// The tables that keep the port closed while programs change their mode, where there are to be
    /// none.
    pub meanwhile: Vec<Image>,
    /// The programs; none: there are to be none.
    pub programs: Option<ProgramSpec<'a>>,
    /// Files that the policy needs, and what applies it at boot.
    pub files: Vec<(PathBuf, String)>,
    /// The text of `policy.toml`, where it is to be written: once the kernel has taken the policy, so
    /// that one that it refuses is never applied at boot.
    pub policy: Option<String>,
    /// Whether the boot unit is to be enabled.
    pub enable_boot_unit: bool,
    /// Whether the tables are read back and compared.
    pub read_back: bool,
}

/// A policy was not enforced, or what was there before is still there beside it.
#[derive(Debug)]
pub enum EnforceError {
    /// Nothing was changed.
    Refused(anyhow::Error),
    /// What had been changed was taken back.
    TakenBack(anyhow::Error),
    /// It was not enforced, and these could not be taken back.
    NotTakenBack(anyhow::Error, Vec<String>),
    /// It is enforced, but what was there before could not be removed.
    NotRemoved(anyhow::Error),
}

impl EnforceError {
    /// The first thing that went wrong.
    pub fn cause(&self) -> &anyhow::Error {
        match self {
            Self::Refused(cause)
            | Self::TakenBack(cause)
            | Self::NotTakenBack(cause, _)
            | Self::NotRemoved(cause) => cause,
        }
    }
}

impl fmt::Display for EnforceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(_) => f.write_str("nothing was changed"),
            Self::TakenBack(_) => f.write_str("nothing was changed: all steps were taken back"),
            Self::NotTakenBack(_, failed) => {
                write!(f, "not all steps could be taken back:\n{}", failed.join("\n"))
            }
            Self::NotRemoved(_) => {
                f.write_str("the policy is in force, but the previous one could not be removed")
            }
        }
    }
}

impl std::error::Error for EnforceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.cause().as_ref())
    }
}

/// Enforces what is planned.
pub fn enforce<H: Host>(host: &mut H, plan: &Plan<'_>) -> Result<(), EnforceError> {
    let policy = plan.policy.as_deref().map(|text| host.stage_policy(text)).transpose();
    let policy = policy.map_err(EnforceError::Refused)?;
    let prepared = plan.programs.as_ref().map(|programs| host.prepare(programs)).transpose();
    let mut taken = Taken { prepared: prepared.map_err(EnforceError::Refused)?, undo: Vec::new() };
    if let Err(error) = taken.exchange(host, plan, policy) {
        return Err(taken.take_back(host, error));
    }
    taken.settle(host, plan).map_err(EnforceError::NotRemoved)
}

/// What takes back a step. It is known before the step is taken, and is right however far that went.
enum Undo<H: Host> {
    File(PathBuf, Option<String>),
    Tables(Vec<Image>),
    Programs(H::Attached),
}

/// The steps that were taken.
struct Taken<H: Host> {
    /// Programs that are not attached yet.
    prepared: Option<H::Prepared>,
    undo: Vec<Undo<H>>,
}

impl<H: Host> Taken<H> {
    fn exchange(
        &mut self,
        host: &mut H,
        plan: &Plan<'_>,
        policy: Option<H::Staged>,
    ) -> anyhow::Result<()> {
        for (path, text) in &plan.files {
            self.remember_file(host, path.clone())?;
            host.write_file(path, Some(text))?;
        }
        let has_gap = self.prepared.as_ref().is_some_and(|prepared| host.leaves_a_gap(prepared));
        let tables = match &plan.tables[..] {
            [] if has_gap => &plan.meanwhile,
            tables => tables,
        };
        if !tables.is_empty() {
            self.replace_tables(host, plan, tables)?;
        }
        if let Some(prepared) = self.prepared.take() {
            let attached = host.attach(prepared)?;
            self.undo.push(Undo::Programs(attached));
        }
        if let Some(policy) = policy {
            self.remember_file(host, policy_path())?;
            host.commit_policy(policy)?;
        }
        if plan.enable_boot_unit { host.enable_boot_unit() } else { Ok(()) }
    }

    fn remember_file(&mut self, host: &mut H, path: PathBuf) -> anyhow::Result<()> {
        let before = host.read_file(&path)?;
        self.undo.push(Undo::File(path, before));
        Ok(())
    }

    fn replace_tables(
        &mut self,
        host: &mut H,
        plan: &Plan<'_>,
        tables: &[Image],
    ) -> anyhow::Result<()> {
        // Reading a large table back takes seconds. Where nothing follows, the kernel's own
        // transaction is all that there is to take back.
        let is_last = plan.programs.is_none() && plan.policy.is_none() && !plan.enable_boot_unit;
        if !is_last {
            self.undo.push(Undo::Tables(host.tables()?));
        }
        host.replace_tables(tables)?;
        if plan.read_back
            && let [first, ..] = &host.table_differences(tables)?[..]
        {
            anyhow::bail!("a table is not what was sent; something else changed it: {first}");
        }
        Ok(())
    }

    /// Takes the steps back, the last first, all of them, whatever fails.
    fn take_back(self, host: &mut H, error: anyhow::Error) -> EnforceError {
        let mut failed = Vec::new();
        let mut note = |result: anyhow::Result<()>| {
            failed.extend(result.err().map(|error| format!("{error:#}")));
        };
        if let Some(prepared) = self.prepared {
            note(host.abandon(prepared));
        }
        for undo in self.undo.into_iter().rev() {
            note(match undo {
                Undo::File(path, text) => host.write_file(&path, text.as_deref()),
                Undo::Tables(before) => restore(host, &before),
                Undo::Programs(attached) => host.take_back(attached),
            });
        }
        if failed.is_empty() {
            EnforceError::TakenBack(error)
        } else {
            EnforceError::NotTakenBack(error, failed)
        }
    }

    /// Nothing can fail any more for which the old would be needed.
    fn settle(self, host: &mut H, plan: &Plan<'_>) -> anyhow::Result<()> {
        for undo in self.undo {
            if let Undo::Programs(attached) = undo {
                host.settle(attached)?;
            }
        }
        if plan.programs.is_none() {
            host.detach()?;
        }
        if plan.tables.is_empty() {
            host.replace_tables(&[])?;
        }
        Ok(())
    }
}

fn restore<H: Host>(host: &mut H, tables: &[Image]) -> anyhow::Result<()> {
    // A transaction that the kernel has refused has changed nothing.
    if host.table_differences(tables).is_ok_and(|found| found.is_empty()) {
        return Ok(());
    }
    host.replace_tables(tables)
}
