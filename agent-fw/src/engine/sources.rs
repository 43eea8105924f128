//! The texts that a policy is compiled from: `policy.toml`, this host's regions, and the lists and
//! rule files that it names.

use crate::configuration::{Compiled, Configuration};
use crate::input::{Catalogue, ListFile, Lists, OVERRIDES};
use crate::system;
use crate::system::file;
use crate::system::file::Trust;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a policy is compiled from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceTexts {
    /// The text of `policy.toml`.
    pub policy: String,
    /// The text of `regions.toml`, if there is one.
    regions: Option<String>,
    /// The texts of the lists.
    lists: BTreeMap<PathBuf, String>,
    /// Those that others than root can change, where that is asked.
    #[serde(skip)]
    others: BTreeSet<PathBuf>,
}

impl SourceTexts {
    /// Reads what this configuration is compiled from.
    pub fn read_for(configuration: &Configuration, lists: &Lists) -> anyhow::Result<Self> {
        Self::with_policy(configuration, configuration.to_toml(), lists)
    }

    /// Reads what the installed policy is compiled from; `None` if there is none.
    pub fn read_installed() -> anyhow::Result<Option<Self>> {
        let policy = file::read_trusted(Path::new(system::POLICY), Trust::Owned)?;
        let Some(policy) = policy else { return Ok(None) };
        let configuration = Configuration::parse(system::POLICY, &policy)?;
        let lists = Lists::trusting(configuration.trust());
        Self::with_policy(&configuration, policy, &lists).map(Some)
    }

    fn with_policy(
        configuration: &Configuration,
        policy: String,
        on_disk: &Lists,
    ) -> anyhow::Result<Self> {
        let (mut lists, mut others) = (BTreeMap::new(), BTreeSet::new());
        for list in configuration.lists() {
            if let ListFile::Path(path) = list {
                lists.insert(path.clone(), on_disk.read(list)?.into_owned());
                if configuration.asks_who_can_change_lists() && on_disk.is_others(list) {
                    others.insert(path.clone());
                }
            }
        }
        let regions = file::read_trusted(Path::new(OVERRIDES), configuration.trust())?;
        Ok(Self { policy, regions, lists, others })
    }

    /// The files that it is compiled from besides `policy.toml`.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &str)> {
        let regions = self.regions.iter().map(|text| (Path::new(OVERRIDES), text.as_str()));
        self.lists.iter().map(|(path, text)| (path.as_path(), text.as_str())).chain(regions)
    }

    /// The text of a list, or file of rules, that it is compiled from.
    pub fn list(&self, path: &Path) -> Option<&str> {
        self.lists.get(path).map(String::as_str)
    }

    /// The policy. `file` is the name of its text, for errors.
    pub fn compile(&self, file: &str) -> anyhow::Result<(Configuration, Compiled)> {
        let configuration = Configuration::parse(file, &self.policy)?;
        let mut catalogue = Catalogue::published()?;
        if let Some(regions) = &self.regions {
            catalogue.override_with(OVERRIDES, regions)?;
        }
        let mut lists = Lists::default();
        for (path, text) in &self.lists {
            lists.keep(path.clone(), text.clone());
        }
        self.others.iter().cloned().for_each(|path| lists.call_others(path));
        let compiled = configuration.compile(&catalogue, &lists)?;
        Ok((configuration, compiled))
    }
}
