//! `agent-fw install`: from words to an enforced policy, all of it or nothing.

use super::kernel::Held;
use super::outcome::{Failure, Outcome, Result};
use super::words::{Words, compile, installed};
use super::{Patience, report};
use crate::configuration::{Backend, Compiled, Configuration, is_edited};
use crate::host::{self, boot, file, lock, privilege};
use crate::nft::{Image, Live, Nftables, differences};
use crate::source::Lists;
use crate::xdp::{self, Change, Targets};
use anyhow::{Context as _, anyhow};
use std::path::{Path, PathBuf};

/// Enforces a policy now and keeps it for the next boot
///
/// Writes /etc/agent-fw/policy.toml, replaces the table inet agent_fw in one transaction, or the XDP
/// program of each interface in one step. If a step fails, those before it are undone, and the policy of before stays in force.
#[derive(clap::Args, Debug)]
pub(super) struct Install {
    #[command(flatten)]
    words: Words,
    /// Print what would change in the kernel, and change nothing (exit code 1 if anything would)
    #[arg(long)]
    dry_run: bool,
    /// Leave the boot unit alone
    #[arg(long)]
    no_boot: bool,
    #[command(flatten)]
    patience: Patience,
}

impl Install {
    pub(super) fn run(self) -> Result<Outcome> {
        let mut configuration = self.words.configuration()?;
        privilege::require_net_admin("install")?;
        let lists = configuration.keep_lists().map_err(Failure::Input)?;
        name_interfaces(&mut configuration)?;
        let compiled = compile(&configuration, &lists)?;
        let mut nftables = Nftables::open()?;
        if self.dry_run {
            let held = Held::read(&mut nftables)?;
            return Ok(dry_run(&held.differences(&configuration, &compiled)));
        }
        let _lock = lock::acquire("install", self.patience.duration())?;
        let held = Held::read(&mut nftables)?;
        let unit = !self.no_boot && boot::has_unit();
        let differing = held.differences(&configuration, &compiled);
        if differing.is_empty() && is_installed(&configuration) {
            if unit {
                boot::enable()?;
            }
            report::remark("no change: the kernel and policy.toml are as they should be");
            report::promises(&compiled.lowered);
            return Ok(Outcome::Done);
        }
        let mut steps = Steps { nftables, undo: Vec::new() };
        steps
            .all(&configuration, &lists, &compiled, held.table, unit)
            .map_err(|error| steps.undo(error))?;
        steps.finish(configuration.backend)?;
        remove_stale_lists(&configuration);
        report::programs(&configuration, &xdp::attachments()?);
        report::promises(&compiled.lowered);
        Ok(Outcome::Done)
    }
}

/// Without --interface, the physical ones that are up now. They are kept by name: at boot, when the
/// policy is applied, none may be up yet.
fn name_interfaces(configuration: &mut Configuration) -> Result<()> {
    if configuration.backend.has_programs() && configuration.interfaces.is_empty() {
        let targets = Targets::find(&[])?;
        configuration.interfaces = targets.names().map(str::to_owned).collect();
    }
    Ok(())
}

fn dry_run(differing: &[String]) -> Outcome {
    if differing.is_empty() {
        report::remark("the kernel enforces this policy already; nothing would change");
        return Outcome::Done;
    }
    report::remark("the kernel differs from this policy; install would change:");
    report::differences(differing);
    Outcome::False
}

fn is_installed(configuration: &Configuration) -> bool {
    installed().ok().flatten().is_some_and(|(installed, _)| installed == *configuration)
}

/// What takes back a step that was taken.
enum Undo {
    Restore(PathBuf, Option<String>),
    Table(Option<Live>),
    Programs(Box<Change>),
}

/// The steps of an installation, which are taken back if a later one fails.
struct Steps {
    nftables: Nftables,
    undo: Vec<Undo>,
}

impl Steps {
    fn all(
        &mut self,
        configuration: &Configuration,
        lists: &Lists,
        compiled: &Compiled,
        live: Option<Live>,
        unit: bool,
    ) -> anyhow::Result<()> {
        for (path, text) in lists.kept() {
            self.write(path, text)?;
        }
        // The kernel before the file: a policy that the kernel refuses is never the one to boot.
        // The table before the programs, which may count on it.
        if configuration.backend.has_table() {
            self.replace_table(&compiled.ruleset.clone().into_image(), live)?;
        }
        if configuration.backend.has_programs() {
            self.attach_programs(configuration, compiled)?;
        }
        self.write_policy(configuration)?;
        if unit { boot::enable() } else { Ok(()) }
    }

    fn attach_programs(
        &mut self,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> anyhow::Result<()> {
        let Configuration { backend, interfaces, xdp_mode, .. } = configuration;
        let targets = Targets::find(interfaces)?;
        let change = xdp::attach(&compiled.lowered, backend.has_table(), targets, *xdp_mode)?;
        self.undo.push(Undo::Programs(Box::new(change)));
        Ok(())
    }

    /// Lets go of what the policy of before had and this one has not: nothing can fail any more
    /// for which that would be needed.
    fn finish(mut self, backend: Backend) -> anyhow::Result<()> {
        let not_removed = "installed, but what was there before could not be removed";
        for step in std::mem::take(&mut self.undo) {
            if let Undo::Programs(change) = step {
                change.settle().context(not_removed)?;
            }
        }
        if !backend.has_programs() {
            xdp::remove().context(not_removed)?;
        }
        if backend.has_table() { Ok(()) } else { self.nftables.delete().context(not_removed) }
    }

    fn replace_table(&mut self, image: &Image, live: Option<Live>) -> anyhow::Result<()> {
        self.nftables.replace(image)?;
        self.undo.push(Undo::Table(live));
        let found = differences(image, self.nftables.read()?.as_ref());
        match found.as_slice() {
            [] => Ok(()),
            [first, ..] => Err(anyhow!("{first}"))
                .context("the kernel's table is not what was sent; something else changed it"),
        }
    }

    fn write_policy(&mut self, configuration: &Configuration) -> anyhow::Result<()> {
        let path = Path::new(host::POLICY);
        if let Some(edited) = file::read(path)?.filter(|text| is_edited(text)) {
            self.write(Path::new(host::REPLACED_POLICY), &edited)?;
            let kept = host::REPLACED_POLICY;
            report::remark(&format!("your edited policy.toml is kept as {kept}"));
        }
        self.write(path, &configuration.to_toml())
    }

    fn write(&mut self, path: &Path, text: &str) -> anyhow::Result<()> {
        let before = file::read(path)?;
        file::write(path, text)?;
        self.undo.push(Undo::Restore(path.to_owned(), before));
        Ok(())
    }

    /// Takes the steps back, the last first, and tells how that went along with `error`.
    fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        let mut failed = Vec::new();
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            let result = match step {
                Undo::Restore(path, Some(text)) => file::write(&path, &text),
                Undo::Restore(path, None) => file::remove(&path),
                Undo::Table(Some(live)) => self.nftables.replace(&live.image).map_err(Into::into),
                Undo::Table(None) => self.nftables.delete().map_err(Into::into),
                Undo::Programs(change) => change.undo().map_err(Into::into),
            };
            failed.extend(result.err().map(|error| format!("{error:#}")));
        }
        if failed.is_empty() {
            return error.context("not installed; the policy of before is in force");
        }
        let failed = failed.join("\n");
        error.context(format!("not installed, and not all of it could be undone:\n{failed}"))
    }
}

/// Removes kept lists that the installed policy does not name. What fails here harms nothing.
fn remove_stale_lists(configuration: &Configuration) {
    let Ok(entries) = std::fs::read_dir(host::LISTS) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if !configuration.names_list(&path) {
            drop(file::remove(&path));
        }
    }
    // Succeeds only if nothing is left in it.
    drop(std::fs::remove_dir(host::LISTS));
}
