//! The steps of an installation, each of which can be taken back.

use crate::command::apply::await_interfaces;
use crate::command::words::{catalogue, installed};
use crate::configuration::{Compiled, Configuration, is_edited};
use crate::host::{self, boot, file};
use crate::nft::{Image, Live, Nftables, differences};
use crate::source::Lists;
use crate::xdp::{self, Change, Targets};
use anyhow::{Context as _, anyhow};
use std::path::{Path, PathBuf};

/// What takes back a step that was taken.
enum Undo {
    Restore(PathBuf, Option<String>),
    Tables(Vec<Live>),
    Programs(Box<Change>),
}

/// The steps of an installation, which are taken back if a later one fails.
pub(super) struct Steps {
    nftables: Nftables,
    undo: Vec<Undo>,
    /// Where an edited policy.toml was kept.
    pub(super) kept_edit: Option<PathBuf>,
}

impl Steps {
    /// None taken yet.
    pub(super) const fn new(nftables: Nftables) -> Self {
        Self { nftables, undo: Vec::new(), kept_edit: None }
    }

    /// Takes them all; after an error, [`Self::undo`] takes back those that were taken.
    pub(super) fn all(
        &mut self,
        configuration: &Configuration,
        lists: &Lists,
        compiled: &Compiled,
        live: Vec<Live>,
        boot: Option<&[(PathBuf, String)]>,
    ) -> anyhow::Result<()> {
        for (path, text) in lists.kept() {
            self.write(path, text)?;
        }
        // What is most likely to fail comes before anything is changed.
        let policy = file::prepare(Path::new(host::POLICY), &configuration.to_toml())?;
        // The kernel before the file: a policy that the kernel refuses is never the one to boot.
        // The table before the programs, which may count on it.
        if configuration.backend.has_table() {
            self.replace_tables(&compiled.images(), live)?;
        }
        if configuration.backend.has_programs() {
            self.attach_programs(configuration, compiled)?;
        }
        self.write_policy(policy)?;
        let Some(files) = boot else { return Ok(()) };
        for (path, text) in files {
            self.write(path, text)?;
        }
        boot::enable()
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
    pub(super) fn finish(mut self, configuration: &Configuration) -> anyhow::Result<()> {
        let backend = configuration.backend;
        let not_removed = "installed, but what was there before could not be removed";
        for step in std::mem::take(&mut self.undo) {
            if let Undo::Programs(change) = step {
                change.settle().context(not_removed)?;
            }
        }
        await_interfaces(configuration);
        if !backend.has_programs() {
            xdp::remove().context(not_removed)?;
        }
        if backend.has_table() { Ok(()) } else { self.nftables.delete().context(not_removed) }
    }

    fn replace_tables(&mut self, images: &[Image], live: Vec<Live>) -> anyhow::Result<()> {
        self.nftables.replace(images)?;
        self.undo.push(Undo::Tables(live));
        let found = self.nftables.read_tables()?;
        for image in images {
            let live = found.iter().find(|live| live.image.name == image.name);
            if let [first, ..] = differences(image, live).as_slice() {
                let name = image.name;
                return Err(anyhow!("{first}")).with_context(|| {
                    format!("the table {name} is not what was sent; something else changed it")
                });
            }
        }
        Ok(())
    }

    fn write_policy(&mut self, policy: file::Prepared) -> anyhow::Result<()> {
        let path = Path::new(host::POLICY);
        let before = file::read(path)?;
        if let Some(edited) = before.as_ref().filter(|text| is_edited(text)) {
            let kept = host::free_name_for_replaced_policy();
            self.write(&kept, edited)?;
            self.kept_edit = Some(kept);
        }
        policy.commit()?;
        self.undo.push(Undo::Restore(path.to_owned(), before));
        Ok(())
    }

    fn write(&mut self, path: &Path, text: &str) -> anyhow::Result<()> {
        let before = file::read(path)?;
        file::write(path, text)?;
        self.undo.push(Undo::Restore(path.to_owned(), before));
        Ok(())
    }

    /// A table that somebody altered cannot be put back as it was read; what the policy of before
    /// compiles to can.
    fn restore_tables(&mut self, live: Vec<Live>) -> anyhow::Result<()> {
        if live.is_empty() {
            return Ok(self.nftables.delete()?);
        }
        if live.iter().all(|live| live.strays.is_empty()) {
            let images: Vec<Image> = live.into_iter().map(|live| live.image).collect();
            return Ok(self.nftables.replace(&images)?);
        }
        let before = installed().ok().flatten().context("the table of before had been altered")?;
        let catalogue = catalogue().map_err(|_| anyhow!("regions.toml is faulty"))?;
        let compiled = before.0.compile(&catalogue, &Lists::default())?;
        Ok(self.nftables.replace(&compiled.images())?)
    }

    /// Takes the steps back, the last first, and tells how that went along with `error`.
    pub(super) fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        let mut failed = Vec::new();
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            let result = match step {
                Undo::Restore(path, Some(text)) => file::write(&path, &text),
                Undo::Restore(path, None) => file::remove(&path),
                Undo::Tables(before) => self.restore_tables(before),
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
