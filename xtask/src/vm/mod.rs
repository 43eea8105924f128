//! Virtual machines with stock Debian kernels, and a kernel in user mode: what they are made of, and
//! the tests in them.

mod debian;
mod qemu;
mod suite;
mod user_mode;

pub(crate) use suite::{Suite, UserModeSuite};
use user_mode::Kernel as UserMode;

use std::fs;
use std::path::{Path, PathBuf};

use agent_fw_lab::vm;
use anyhow::{Context, Result};

use crate::process::{find, is_root};
use crate::setup::{self, Group};

/// Why this machine cannot run them; `None` if it can.
pub(crate) fn missing() -> Option<&'static str> {
    if !cfg!(target_arch = "x86_64") {
        Some("virtual machines are made for x86-64 alone")
    } else if find("apt-get").is_none() {
        Some("virtual machines are made from Debian's packages, and there is no apt-get")
    } else if !is_root() {
        Some("making a virtual machine's disk needs root")
    } else {
        None
    }
}

/// What virtual machines are made of, for the tests that start some.
pub(crate) struct Workshop {
    qemu: PathBuf,
    debian: PathBuf,
}

impl Workshop {
    /// Makes what is missing: a minute with a cold cache, nothing with a warm one.
    pub(crate) fn ensure() -> Result<Self> {
        setup::ensure(&[Group::Vm])?;
        fs::create_dir_all(directory()).context("cannot make the directory for images")?;
        Ok(Self { qemu: qemu::ensure()?, debian: debian::ensure()? })
    }

    /// The environment by which tests find it.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 3] {
        [(vm::QEMU, &self.qemu), (vm::DEBIAN, &self.debian), (vm::LOGS, logs())]
    }
}

/// Where images, their parts and console logs are kept.
fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/vm"))
}

fn logs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/vm/logs"))
}

#[cfg(test)]
mod tests {
    use super::directory;
    use crate::process::workspace;

    #[test]
    fn images_are_kept_in_the_target_directory() {
        assert!(directory().parent().is_some_and(|target| target.ends_with("target")));
        assert!(workspace().join("target").parent().is_some());
    }
}
