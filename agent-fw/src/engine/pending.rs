//! A policy that is in force on trial: it is taken back when its time is up, unless somebody confirms
//! it. `policy.toml` and the last good policy stay the old ones until then, and so a reboot gives the
//! old policy.

use super::history::Made;
use super::last_seen::Moment;
use super::sources::SourceTexts;
use crate::system::file;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where it is kept, until the machine is switched off.
const FILE: &str = "/run/agent-fw/pending.json";

/// A policy on trial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// When its time is up.
    until: Moment,
    /// What it is compiled from.
    pub texts: SourceTexts,
    /// What is written besides when it is confirmed: lists, units, the edited policy that it replaces.
    pub files: Vec<(PathBuf, String)>,
    /// Whether the boot unit is enabled then.
    pub enable_boot_unit: bool,
    /// The change, for the record.
    pub made: Made,
}

impl Pending {
    /// A policy that is on trial for so long from now on.
    pub fn new(texts: SourceTexts, trial: Duration, made: Made) -> anyhow::Result<Self> {
        let until = Moment::now()?.after(trial);
        Ok(Self { until, texts, files: Vec::new(), enable_boot_unit: false, made })
    }

    /// How long it still has.
    pub fn left(&self) -> Duration {
        Moment::now().map_or(Duration::ZERO, |now| now.before(self.until))
    }

    /// Writes it down: from now on it is what is wanted.
    pub fn keep(&self) -> anyhow::Result<()> {
        file::write_private(Path::new(FILE), &serde_json::to_string(self)?)
    }
}

/// What is written down, whether its time is up or not.
pub fn read() -> anyhow::Result<Option<Pending>> {
    let path = Path::new(FILE);
    // Whoever can write it decides who reaches the port.
    if path.symlink_metadata().is_err() || !file::is_private(path) {
        return Ok(None);
    }
    let Some(text) = file::read_large(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{FILE} is damaged"))
}

/// The policy that is on trial now. One that cannot be read is none.
pub fn current() -> Option<Pending> {
    read().ok().flatten().filter(|pending| !pending.left().is_zero())
}

/// Forgets it.
pub fn remove() -> anyhow::Result<()> {
    file::remove(Path::new(FILE))
}
