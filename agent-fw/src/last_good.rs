//! The last policy that was in force, with all that it was compiled from: what is enforced at boot
//! when `policy.toml`, a list or `regions.toml` no longer can be read.

use crate::configuration::{Compiled, Configuration};
use crate::host::file;
use crate::source::{Catalogue, Lists, OVERRIDES};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where it is kept.
const FILE: &str = "/var/lib/agent-fw/last-good.json";

/// What a policy was compiled from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastGood {
    /// The text of `policy.toml`.
    policy: String,
    /// The text of `regions.toml`, if there was one.
    regions: Option<String>,
    /// The texts of the lists.
    lists: BTreeMap<PathBuf, String>,
}

impl LastGood {
    /// Keeps what the enforced policy was compiled from. A list that has been changed since is not
    /// what is in force: then the older one stays.
    pub fn keep(configuration: &Configuration, compiled: &Compiled) -> anyhow::Result<()> {
        let mut lists = BTreeMap::new();
        for list in configuration.lists() {
            if let crate::source::ListFile::Path(path) = list {
                lists.insert(path.clone(), list.read()?);
            }
        }
        let regions = std::fs::read_to_string(OVERRIDES).ok();
        let kept = Self { policy: configuration.to_toml(), regions, lists };
        let again = kept.compile()?.1;
        if again.lowered.policy.hash() != compiled.lowered.policy.hash()
            || again.firewall_tables != compiled.firewall_tables
        {
            return Ok(());
        }
        let text = serde_json::to_string(&kept)?;
        if std::fs::read_to_string(FILE).is_ok_and(|before| before == text) {
            return Ok(());
        }
        file::write(Path::new(FILE), &text)
    }

    /// What is kept, if something is.
    pub fn read() -> anyhow::Result<Option<Self>> {
        match std::fs::read_to_string(FILE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => {
                let text = text.with_context(|| format!("cannot read {FILE}"))?;
                let kept =
                    serde_json::from_str(&text).with_context(|| format!("{FILE} is damaged"));
                kept.map(Some)
            }
        }
    }

    /// The policy.
    pub fn compile(&self) -> anyhow::Result<(Configuration, Compiled)> {
        let configuration = Configuration::parse(FILE, &self.policy)?;
        let mut catalogue = Catalogue::published()?;
        if let Some(regions) = &self.regions {
            catalogue.override_with(FILE, regions)?;
        }
        let mut lists = Lists::default();
        for (path, text) in &self.lists {
            lists.keep(path.clone(), text.clone());
        }
        let compiled = configuration.compile(&catalogue, &lists)?;
        Ok((configuration, compiled))
    }

    /// Forgets it.
    pub fn remove() -> anyhow::Result<()> {
        let path = Path::new(FILE);
        file::remove(path)?;
        // Stays when something else is in it.
        path.parent().map_or(Ok(()), |directory| {
            drop(std::fs::remove_dir(directory));
            Ok(())
        })
    }
}
