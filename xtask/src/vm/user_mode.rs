//! A kernel in user mode (ARCH=um): an ordinary program that is a Linux of its own, at the
//! processor's own speed and without KVM. Built from Debian's sources, with the network devices and
//! the netfilter modules that this machine's kernel may lack. Its root file system is this
//! machine's own tree, which it cannot change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent_fw_lab::vm::{Console, UserMode};
use anyhow::{Context, Result, ensure};

use super::{directory, logs};
use crate::apt::{Suite, file_in};
use crate::cache::cached;
use crate::process::run;
use crate::setup::{self, Group};

/// The suite of Debian whose kernel it is: the newest that is not a draft.
const SUITE: &str = "forky";
/// The package that depends on the sources of the suite's present kernel.
const PACKAGE: &str = "linux-source";
const OPTIONS: &str = include_str!("user_mode.config");
/// A boot takes less than a second; a machine that is busy, longer.
const BOOT: Duration = Duration::from_mins(1);

/// The kernel in user mode, ready to be started.
pub(crate) struct Kernel(PathBuf);

impl Kernel {
    /// Builds it where it is not there yet: eight minutes with a cold cache, nothing with a warm
    /// one.
    pub(crate) fn ensure() -> Result<Self> {
        setup::ensure(&[Group::UserMode])?;
        fs::create_dir_all(directory()).context("cannot make the directory for machines")?;
        let built = cached(directory(), "user-mode", &(SUITE, PACKAGE, OPTIONS), |place| {
            eprintln!("xtask: building a Linux in user mode from Debian {SUITE}'s sources;");
            eprintln!("xtask: this takes some minutes, once");
            let (suite, work) = (Suite::at(place.join("apt"), SUITE)?, place.join("source"));
            unpack(&suite, &work)?;
            build(&work)?;
            run(Command::new("strip").arg("-o").arg(place.join("linux")).arg(work.join("linux")))?;
            fs::remove_dir_all(&work)?;
            suite.remove()
        })?;
        Ok(Self(built.join("linux")))
    }

    /// Starts it with `guest`, a program that takes the part of init.
    pub(crate) fn start(&self, name: &str, guest: &Path, arguments: &[&str]) -> Result<Console> {
        let machine = UserMode { kernel: &self.0, logs: logs(), name };
        let mut console = machine.start(guest, arguments)?;
        console.wait_for("guest: start", BOOT)?;
        Ok(console)
    }
}

/// Unpacks the sources of the suite's present kernel.
fn unpack(suite: &Suite, work: &Path) -> Result<()> {
    // `linux-source-7.2`.
    let package = suite.dependency_of(PACKAGE)?;
    suite.unpack(&package)?;
    let archive = file_in(&suite.root().join("usr/src"), "xz")?;
    fs::create_dir_all(work)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(work);
    run(tar.arg("--strip-components=1"))
}

fn build(work: &Path) -> Result<()> {
    let make = || {
        let mut make = Command::new("make");
        make.current_dir(work).args(["ARCH=um", "--quiet"]);
        make
    };
    fs::write(work.join("agent-fw.config"), OPTIONS)?;
    run(make().arg("allnoconfig"))?;
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    merge.current_dir(work).env("ARCH", "um").args(["-m", ".config", "agent-fw.config"]);
    let merged = merge.output().context("cannot start merge_config.sh")?;
    ensure!(merged.status.success(), "the kernel's options cannot be merged: {merged:?}");
    run(make().arg("olddefconfig"))?;
    let configured = fs::read_to_string(work.join(".config"))?;
    let missing: Vec<&str> = lost(&configured).collect();
    ensure!(missing.is_empty(), "Debian {SUITE}'s kernel does not take: {}", missing.join(", "));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    run(make().arg(format!("--jobs={processors}")).arg("linux"))
}

/// Options that are asked for and not in the kernel's configuration: they have another name now, or
/// need a further one.
fn lost(configured: &str) -> impl Iterator<Item = &'static str> {
    let is_there = |option: &&str| configured.lines().any(|line| line == *option);
    OPTIONS.lines().filter(|line| line.ends_with("=y")).filter(move |option| !is_there(option))
}

#[cfg(test)]
mod tests {
    use super::{OPTIONS, lost};

    #[test]
    fn an_option_that_the_kernel_did_not_take_is_named() {
        assert_eq!(lost(OPTIONS).next(), None);
        let without = OPTIONS.replace("CONFIG_IP_VS=y\n", "");
        assert_eq!(lost(&without).collect::<Vec<_>>(), ["CONFIG_IP_VS=y"]);
    }
}
