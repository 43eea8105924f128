//! The texts that a policy is compiled from: `policy.toml`, this host's regions, and the lists and
//! rule files that it names.

use crate::configuration::{Compiled, Configuration};
use crate::input::{Catalogue, ListFile, Lists, OVERRIDES};
use crate::system;
use crate::system::file;
use crate::system::file::Trust;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The subcommand that prints them, for a process that must not wait for a file system.
pub const COMMAND: &str = "read-sources";

/// What a policy is compiled from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceTexts {
    /// The text of `policy.toml`.
    pub policy: String,
    /// The text of `regions.toml`, if there is one.
    regions: Option<String>,
    /// The texts of the lists.
    lists: BTreeMap<PathBuf, String>,
}

impl SourceTexts {
    /// Reads what this configuration is compiled from.
    pub fn read_for(configuration: &Configuration) -> anyhow::Result<Self> {
        Self::with_policy(configuration, configuration.to_toml())
    }

    /// Reads what the installed policy is compiled from; `None` if there is none.
    pub fn read_installed() -> anyhow::Result<Option<Self>> {
        let policy = file::read_trusted(Path::new(system::POLICY), Trust::Owned)?;
        let Some(policy) = policy else { return Ok(None) };
        let configuration = Configuration::parse(system::POLICY, &policy)?;
        Self::with_policy(&configuration, policy).map(Some)
    }

    /// The same, read by another process: where a file system does not answer, it is not waited for
    /// longer than `deadline`. What is wrong with a file is told as by [`Self::read_installed`].
    pub fn read_installed_within(deadline: Duration) -> anyhow::Result<Option<Self>> {
        let mut reader = Command::new("/proc/self/exe");
        let reader = reader.arg(COMMAND).stdin(Stdio::null());
        let reader = reader.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = reader.spawn().context("cannot start what reads the policy")?;
        let (mut output, mut errors) = (child.stdout.take(), child.stderr.take());
        let (said, heard) = mpsc::channel();
        // A thread that waits for a pipe ends with the process; one that waits for a file might not.
        std::thread::spawn(move || {
            let mut read = || -> std::io::Result<(String, String)> {
                let (mut text, mut error) = (String::new(), String::new());
                if let Some(output) = &mut output {
                    output.read_to_string(&mut text)?;
                }
                if let Some(errors) = &mut errors {
                    errors.read_to_string(&mut error)?;
                }
                Ok((text, error))
            };
            drop(said.send(read()));
        });
        let Ok(read) = heard.recv_timeout(deadline) else {
            drop(child.kill());
            bail!(
                "a file that the policy names could not be read within {} s; is it on a file \
                 system that does not answer?",
                deadline.as_secs()
            );
        };
        let (text, error) = read.context("cannot hear what reads the policy")?;
        if !child.wait()?.success() {
            bail!("{}", error.trim_end());
        }
        serde_json::from_str(&text).context("what reads the policy has said something else")
    }

    fn with_policy(configuration: &Configuration, policy: String) -> anyhow::Result<Self> {
        let mut lists = BTreeMap::new();
        for list in configuration.lists() {
            if let ListFile::Path(path) = list {
                lists.insert(path.clone(), list.read(configuration.trust())?);
            }
        }
        let regions = file::read_trusted(Path::new(OVERRIDES), configuration.trust())?;
        Ok(Self { policy, regions, lists })
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
        let compiled = configuration.compile(&catalogue, &lists)?;
        Ok((configuration, compiled))
    }
}
