//! What rpm makes of its package.

use crate::{package, tests};
use agent_fw_lab::{Lab, output, run};
use anyhow::{Result, ensure};
use std::fs;
use std::path::Path;

tests![rpm_finds_its_package_whole, rpm_installs_upgrades_and_removes_it_in_a_root_of_its_own,];

fn rpm_finds_its_package_whole() -> Result<()> {
    let package = package("newer", ".rpm")?;
    let said = run([Path::new("rpm"), Path::new("--checksig"), &package])?;
    ensure!(said.contains("digests OK"), "{said}");
    let wanted = run([Path::new("rpm"), Path::new("-qp"), Path::new("--requires"), &package])?;
    for library in ["libnftnl.so.11()(64bit)", "libmnl.so.0()(64bit)"] {
        ensure!(wanted.contains(library), "{library} is not asked for: {wanted}");
    }
    Ok(())
}

/// The root has no libraries and no shell: dependencies and scripts are another matter.
fn rpm(words: &[&str], package: &Path) -> Result<String> {
    let root = ["rpm", "--root", "/run/root", "--nodeps", "--noscripts"];
    run(root.iter().chain(words).map(Path::new).chain([package]))
}

fn rpm_installs_upgrades_and_removes_it_in_a_root_of_its_own() -> Result<()> {
    Lab::run(|_| {
        fs::create_dir_all("/run/root")?;
        let program = Path::new("/run/root/usr/bin/agent-fw");
        rpm(&["--install"], &package("older", ".rpm")?)?;
        ensure!(program.is_file());
        rpm(&["--upgrade"], &package("newer", ".rpm")?)?;
        let known = run(["rpm", "--root", "/run/root", "--query", "--all"])?;
        ensure!(known.trim().lines().count() == 1 && !known.contains("0.0."), "{known}");
        let verified = output(["rpm", "--root", "/run/root", "--verify", "--nodeps", "agent-fw"])?;
        ensure!(verified.code == Some(0), "{verified}");
        rpm(&["--erase"], Path::new("agent-fw"))?;
        let left = run(["find", "/run/root/usr", "-name", "*agent-fw*"])?;
        ensure!(left.is_empty(), "left: {left}");
        Ok(())
    })
}
