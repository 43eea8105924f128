//! `agent-fw install`: from words to an enforced policy, all of it or nothing.

use super::outcome::{Failure, Outcome, Result};
use super::words::{Words, compile, installed};
use super::{Patience, report};
use crate::configuration::{Compiled, Configuration, is_edited};
use crate::host::{self, boot, file, lock, privilege};
use crate::nft::{Image, Live, Nftables, differences};
use crate::source::Lists;
use anyhow::{Context as _, anyhow};
use std::path::{Path, PathBuf};

/// Enforces a policy now and keeps it for the next boot
///
/// Writes /etc/agent-fw/policy.toml and replaces the table inet agent_fw in one transaction. If a
/// step fails, those before it are undone, and the policy of before stays in force.
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
        let Compiled { lowered, ruleset, .. } = compile(&configuration, &lists)?;
        let image = ruleset.into_image();
        let mut nftables = Nftables::open()?;
        if self.dry_run {
            return Ok(dry_run(&image, nftables.read()?.as_ref()));
        }
        let _lock = lock::acquire("install", self.patience.duration())?;
        let live = nftables.read()?;
        let differing = differences(&image, live.as_ref());
        let unit = !self.no_boot && boot::has_unit();
        if differing.is_empty() && is_installed(&configuration) {
            if unit {
                boot::enable()?;
            }
            report::remark("no change: the kernel and policy.toml are as they should be");
            report::promises(&lowered);
            return Ok(Outcome::Done);
        }
        let mut steps = Steps { nftables, undo: Vec::new() };
        steps.all(&configuration, &lists, &image, live, unit).map_err(|error| steps.undo(error))?;
        remove_stale_lists(&configuration);
        report::promises(&lowered);
        Ok(Outcome::Done)
    }
}

fn dry_run(image: &Image, live: Option<&Live>) -> Outcome {
    let differing = differences(image, live);
    if differing.is_empty() {
        report::remark("the kernel enforces this policy already; nothing would change");
        return Outcome::Done;
    }
    report::remark("the kernel's table differs from this policy; install would change:");
    report::differences(&differing);
    Outcome::False
}

fn is_installed(configuration: &Configuration) -> bool {
    installed().ok().flatten().is_some_and(|(installed, _)| installed == *configuration)
}

/// What takes back a step that was taken.
enum Undo {
    Restore(PathBuf, Option<String>),
    Table(Option<Live>),
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
        image: &Image,
        live: Option<Live>,
        unit: bool,
    ) -> anyhow::Result<()> {
        for (path, text) in lists.kept() {
            self.write(path, text)?;
        }
        // The kernel before the file: a policy that the kernel refuses is never the one to boot.
        self.replace_table(image, live)?;
        self.write_policy(configuration)?;
        if unit { boot::enable() } else { Ok(()) }
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
