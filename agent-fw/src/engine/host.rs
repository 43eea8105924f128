//! The parts of a host that enforcement changes. This host's are behind [`ThisHost`]; the tests of
//! plans and of undo have some in memory.

use super::policy;
use crate::input::options::XdpMode;
use crate::model::TableName;
use crate::model::rule::AgentPolicy;
use crate::netlink::link::Interface;
use crate::nft::{Image, LiveTable, NetlinkError, Nftables, differences};
use crate::system;
use crate::system::{file, systemd};
use crate::xdp::{self, Targets};
use anyhow::{Context as _, anyhow};
use std::path::{Path, PathBuf};

/// The programs that a policy asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct ProgramSpec<'a> {
    /// What they decide.
    pub lowered: &'a AgentPolicy,
    /// Whether a table stands behind them.
    pub gate: bool,
    /// The interfaces that get one.
    pub interfaces: Vec<Interface>,
    /// How they are attached.
    pub mode: XdpMode,
}

/// What can be changed on a host, and looked at.
pub trait Host {
    /// A text on disk that is not in its place yet. Dropping it removes it.
    type Staged;
    /// Programs in the kernel that are on no interface yet.
    type Prepared;
    /// Programs on their interfaces. What was there before can still be put back.
    type Attached;

    /// The tables of agent-fw's that are there, as [`Self::replace_tables`] would make them again.
    fn tables(&mut self) -> anyhow::Result<Vec<Image>>;

    /// Puts these tables in the place of those that are there, all at one instant; without any,
    /// removes those. An error means that nothing has changed, or that the outcome is not known.
    fn replace_tables(&mut self, tables: &[Image]) -> anyhow::Result<()>;

    /// How the tables that are there differ from these.
    fn table_differences(&mut self, tables: &[Image]) -> anyhow::Result<Vec<String>>;

    /// Loads the programs. No interface is touched.
    fn prepare(&mut self, programs: &ProgramSpec<'_>) -> anyhow::Result<Self::Prepared>;

    /// Whether attaching them leaves an interface without a program for a moment.
    fn leaves_a_gap(&self, prepared: &Self::Prepared) -> bool;

    /// Lets go of programs that are not needed.
    fn abandon(&mut self, prepared: Self::Prepared) -> anyhow::Result<()>;

    /// Puts the programs on their interfaces. After an error, all is as it was.
    fn attach(&mut self, prepared: Self::Prepared) -> anyhow::Result<Self::Attached>;

    /// Puts back what was there before.
    fn take_back(&mut self, attached: Self::Attached) -> anyhow::Result<()>;

    /// Lets go of what was there before, also on interfaces that are not to have a program.
    fn settle(&mut self, attached: Self::Attached) -> anyhow::Result<()>;

    /// Takes all programs off.
    fn detach(&mut self) -> anyhow::Result<()>;

    /// The text of a file; `None` where there is none.
    fn read_file(&mut self, path: &Path) -> anyhow::Result<Option<String>>;

    /// Writes a file, whole or not at all; removes it for `None`.
    fn write_file(&mut self, path: &Path, text: Option<&str>) -> anyhow::Result<()>;

    /// Writes the text of `policy.toml` to disk, beside it.
    fn stage_policy(&mut self, text: &str) -> anyhow::Result<Self::Staged>;

    /// Puts it in its place.
    fn commit_policy(&mut self, staged: Self::Staged) -> anyhow::Result<()>;

    /// Has the policy applied at the next boot.
    fn enable_boot_unit(&mut self) -> anyhow::Result<()>;
}

/// This host.
pub struct ThisHost {
    nftables: Nftables,
}

impl ThisHost {
    /// Opens the kernel's doors.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self { nftables: Nftables::open()? })
    }

    /// What the previous policy compiles to: for a table that somebody altered, which cannot be made
    /// again as it was read.
    fn previous_tables() -> anyhow::Result<Vec<Image>> {
        let compiled = policy::compiled().map_err(|failure| anyhow!("{:#}", failure.error()))?;
        let (_, compiled) = compiled.context("the previous table had been altered")?;
        Ok(compiled.images())
    }
}

/// Where `policy.toml` is.
pub fn policy_path() -> PathBuf {
    PathBuf::from(system::POLICY)
}

impl Host for ThisHost {
    type Staged = file::Prepared;
    type Prepared = xdp::Prepared;
    type Attached = xdp::Change;

    fn tables(&mut self) -> anyhow::Result<Vec<Image>> {
        let live = self.nftables.read_tables()?;
        let known = |live: Vec<LiveTable>| live.into_iter().map(|live| live.image).collect();
        if live.iter().all(|live| live.strays.is_empty()) {
            return Ok(known(live));
        }
        Ok(Self::previous_tables().unwrap_or_else(|_| known(live)))
    }

    fn replace_tables(&mut self, tables: &[Image]) -> anyhow::Result<()> {
        let replaced =
            if tables.is_empty() { self.nftables.delete() } else { self.nftables.replace(tables) };
        match replaced {
            // The kernel may have done it, though its answer was lost: it is asked.
            Err(error) if error.is_uncertain() && self.has_exactly(tables) => Ok(()),
            replaced => Ok(replaced?),
        }
    }

    fn table_differences(&mut self, tables: &[Image]) -> anyhow::Result<Vec<String>> {
        Ok(found_differences(&mut self.nftables, tables)?)
    }

    fn prepare(&mut self, programs: &ProgramSpec<'_>) -> anyhow::Result<Self::Prepared> {
        let ProgramSpec { lowered, gate, interfaces, mode } = programs;
        let targets = Targets::of(interfaces.clone())?;
        Ok(xdp::prepare(lowered, *gate, targets, *mode)?)
    }

    fn leaves_a_gap(&self, prepared: &Self::Prepared) -> bool {
        prepared.leaves_a_gap()
    }

    fn abandon(&mut self, prepared: Self::Prepared) -> anyhow::Result<()> {
        Ok(prepared.abandon()?)
    }

    fn attach(&mut self, prepared: Self::Prepared) -> anyhow::Result<Self::Attached> {
        Ok(prepared.attach()?)
    }

    fn take_back(&mut self, attached: Self::Attached) -> anyhow::Result<()> {
        Ok(attached.undo()?)
    }

    fn settle(&mut self, attached: Self::Attached) -> anyhow::Result<()> {
        Ok(attached.settle()?)
    }

    fn detach(&mut self) -> anyhow::Result<()> {
        Ok(xdp::remove()?)
    }

    fn read_file(&mut self, path: &Path) -> anyhow::Result<Option<String>> {
        file::read(path)
    }

    fn write_file(&mut self, path: &Path, text: Option<&str>) -> anyhow::Result<()> {
        text.map_or_else(|| file::remove(path), |text| file::write(path, text))
    }

    fn stage_policy(&mut self, text: &str) -> anyhow::Result<Self::Staged> {
        file::prepare(&policy_path(), text)
    }

    fn commit_policy(&mut self, staged: Self::Staged) -> anyhow::Result<()> {
        staged.commit()
    }

    fn enable_boot_unit(&mut self) -> anyhow::Result<()> {
        systemd::enable()
    }
}

impl ThisHost {
    fn has_exactly(&mut self, tables: &[Image]) -> bool {
        found_differences(&mut self.nftables, tables).is_ok_and(|found| found.is_empty())
    }
}

/// How the kernel's tables differ from these.
pub(super) fn found_differences(
    nftables: &mut Nftables,
    tables: &[Image],
) -> Result<Vec<String>, NetlinkError> {
    let found = nftables.read_tables()?;
    let live = |name: TableName| found.iter().find(|live| live.image.name == name);
    let wanted = |name: TableName| tables.iter().any(|table| table.name == name);
    let differing = tables.iter().flat_map(|table| differences(table, live(table.name)));
    let unexpected = found.iter().map(|live| live.image.name).filter(|name| !wanted(*name));
    let differing = differing.map(|difference| difference.to_string());
    Ok(differing.chain(unexpected.map(|name| format!("unexpected table {name}"))).collect())
}
