//! A new policy in the place of the one that is installed: for good, or on trial.

use super::apply::{self, AtBoot, Read};
use super::enforce::{EnforceError, Plan, enforce};
use super::failure::Result;
use super::history::{self, Made};
use super::host::{Host as _, ThisHost};
use super::interfaces::{self, Found};
use super::pending::{self, Pending};
use super::plan::{Missing, plan};
use super::sources::SourceTexts;
use super::{last_good, policy};
use crate::configuration::{Compiled, Configuration, is_edited};
use crate::input::Lists;
use crate::system;
use crate::system::{awaited_interfaces, file, systemd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A policy that is to be put into force.
pub struct NewPolicy {
    /// In the user's words.
    pub configuration: Configuration,
    /// Its lists, as they are kept for the next boot.
    pub lists: Lists,
    /// Compiled.
    pub compiled: Compiled,
    /// What it is compiled from.
    pub texts: SourceTexts,
    /// What is to be on disk so that it is applied at boot; `None` where that is left alone.
    pub boot: Option<Vec<(PathBuf, String)>>,
}

/// What was done.
#[derive(Default)]
pub struct Done {
    /// Where an edited policy is kept that was replaced.
    pub kept_edit: Option<PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl NewPolicy {
    /// Puts it into force and keeps it, all of it or nothing. The caller has the lock. `before` is what
    /// was installed.
    pub fn put_in_force(
        &self,
        before: Option<(&SourceTexts, &Compiled)>,
        made: Made,
    ) -> Result<Done> {
        let edited = file::read_trusted(Path::new(system::POLICY), file::Trust::Anybody)?;
        let edited = edited.filter(|text| is_edited(text));
        let kept_edit = edited.map(|text| (system::free_name_for_replaced_policy(), text));
        let mut files = self.files();
        files.extend(kept_edit.clone());
        let mut notes = self.take_steps(|plan| {
            plan.files = files;
            plan.policy = Some(self.configuration.to_toml());
            plan.enable_boot_unit = self.boot.is_some();
        })?;
        notes.extend(apply::keep(&self.texts, &self.compiled));
        notes.extend(self.conclude(before, made));
        Ok(Done { kept_edit: kept_edit.map(|(path, _)| path), notes })
    }

    /// What the history and the lists on disk have of it, when it is in force.
    fn conclude(&self, before: Option<(&SourceTexts, &Compiled)>, made: Made) -> Vec<String> {
        let noted = history::note(before, (&self.texts, &self.compiled), made);
        remove_stale_lists(&self.configuration);
        let note = |error: anyhow::Error| format!("this change is not in the history: {error:#}");
        noted.err().map(note).into_iter().collect()
    }

    /// Puts it into force for so long. Whoever starts what takes it back has done so before.
    pub fn put_on_trial(&self, trial: Duration, made: Made) -> Result<Done> {
        let mut pending = Pending::new(self.texts.clone(), trial, made)?;
        pending.files = self.files();
        pending.enable_boot_unit = self.boot.is_some();
        pending.keep()?;
        match self.take_steps(|_| {}) {
            Ok(notes) => Ok(Done { kept_edit: None, notes }),
            Err(failure) => {
                pending::remove()?;
                Err(failure)
            }
        }
    }

    /// The files that it brings.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let lists = self.lists.kept().map(|(path, text)| (path.to_owned(), text.to_owned()));
        lists.chain(self.boot.iter().flatten().cloned()).collect()
    }

    /// Takes all steps, or none; what the user should know.
    fn take_steps(&self, more: impl FnOnce(&mut Plan<'_>)) -> Result<Vec<String>> {
        let found = if self.configuration.backend.has_programs() {
            interfaces::named(&self.configuration.interfaces)?
        } else {
            Found::default()
        };
        let mut plan = plan(&self.configuration, &self.compiled, &found, Missing::Refused)?;
        plan.read_back = true;
        more(&mut plan);
        enforce(&mut ThisHost::open()?, &plan).map_err(|error| match error {
            EnforceError::Refused(cause) | EnforceError::TakenBack(cause) => {
                cause.context("not installed; the previous policy remains in force")
            }
            EnforceError::NotTakenBack(cause, failed) => {
                let failed = failed.join("\n");
                cause
                    .context(format!("not installed, and not all of it could be undone:\n{failed}"))
            }
            EnforceError::NotRemoved(cause) => {
                cause.context("installed, but what was there before could not be removed")
            }
        })?;
        let mut notes = Vec::new();
        if let Err(error) = interfaces::remember(&found) {
            notes.push(format!("interfaces are known by name only: {error:#}"));
        }
        notes.extend(apply::await_interfaces(&self.configuration));
        Ok(notes)
    }
}

/// Keeps the policy that is on trial. The caller has the lock.
pub fn confirm(pending: Pending) -> Result<Done> {
    let before = SourceTexts::read_installed().ok().flatten();
    let compiled = before.as_ref().and_then(|texts| texts.compile(system::POLICY).ok());
    let before = before.as_ref().zip(compiled.as_ref().map(|(_, compiled)| compiled));
    let Pending { texts, files, enable_boot_unit, made, .. } = pending;
    let (configuration, compiled) = texts.compile("the policy on trial")?;
    let mut lists = Lists::default();
    let mut boot = Vec::new();
    for (path, text) in files {
        if configuration.names_list(&path) {
            lists.keep(path, text);
        } else {
            boot.push((path, text));
        }
    }
    let boot = enable_boot_unit.then_some(boot);
    let policy = NewPolicy { configuration, lists, compiled, texts, boot };
    let done = policy.put_in_force(before, made)?;
    pending::remove()?;
    Ok(done)
}

/// Takes back what is on trial: what is in force now, or `None` where nothing was installed before, so
/// that nothing is. The caller has the lock.
pub fn take_back() -> Result<Option<AtBoot>> {
    pending::remove()?;
    if policy::is_installed() || last_good::is_kept() {
        return apply::at_boot(&Read::now()).map(Some);
    }
    leave_the_kernel()?;
    Ok(None)
}

/// Takes everything of agent-fw's out of the kernel.
pub fn leave_the_kernel() -> anyhow::Result<()> {
    let mut host = ThisHost::open()?;
    host.replace_tables(&[])?;
    host.detach()?;
    awaited_interfaces::set(&[])
}

/// Removes kept lists that neither the policy nor one of those names to which `undo` can go. What fails
/// here harms nothing.
fn remove_stale_lists(configuration: &Configuration) {
    for path in system::kept_lists() {
        if !configuration.names_list(&path) && !history::names_list(&path) {
            drop(file::remove(&path));
        }
    }
    // Succeeds only if nothing is left in it.
    drop(std::fs::remove_dir(system::LISTS));
}

/// What takes a policy back that nobody confirms in time: a timer of systemd's.
pub fn start_taking_back(trial: Duration) -> anyhow::Result<()> {
    systemd::start_timer(trial, &["confirm", "--take-back"])
}
