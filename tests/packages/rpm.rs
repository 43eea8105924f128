//! What rpm makes of its package.

use crate::dpkg::{AGENT, AGENT_FW, UNLISTED, ensure_closed, ensure_open, host, install_policy};
use crate::tests;
use agent_fw_lab::{Lab, output, package, run, while_knocking};
use anyhow::{Result, ensure};
use std::fs;
use std::path::Path;

tests![
    rpm_finds_its_package_whole,
    rpm_installs_upgrades_and_removes_it_in_a_root_of_its_own,
    while_rpm_upgrades_on_debian_no_unlisted_source_is_answered_and_removed_it_lets_go,
];

fn rpm_finds_its_package_whole() -> Result<()> {
    let package = package("newer", ".rpm")?;
    let said = run([Path::new("rpm"), Path::new("--checksig"), &package])?;
    ensure!(said.contains("digests OK"), "{said}");
    Ok(())
}

/// The root has no libraries and no shell, so that no script can run.
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

/// rpm on a Debian, whose packages it does not know. Its own list would be below root's home, which
/// no lab has for its own.
const ON_DEBIAN: [&str; 4] = ["rpm", "--nodeps", "--dbpath", "/run/rpm"];

/// With its scripts. The libraries are there, but Debian's, of which rpm knows nothing.
fn while_rpm_upgrades_on_debian_no_unlisted_source_is_answered_and_removed_it_lets_go() -> Result<()>
{
    let rpm = |words: &[&str], of: &str| -> Result<String> {
        let package = package(of, ".rpm")?;
        run(ON_DEBIAN.iter().chain(words).map(Path::new).chain([package.as_path()]))
    };
    host(|_, peer| {
        rpm(&["--install"], "older")?;
        install_policy()?;
        ensure_closed(peer)?;
        let tried = while_knocking(peer, UNLISTED, AGENT, || {
            rpm(&["--upgrade"], "newer")?;
            rpm(&["--upgrade", "--oldpackage"], "older")?;
            rpm(&["--upgrade"], "newer").map(drop)
        })?;
        println!("{tried} SYNs of an unlisted source during three upgrades");
        ensure!(tried > 1000, "too few SYNs: {tried}");
        run([AGENT_FW, "verify"])?;
        ensure_closed(peer)?;
        run(ON_DEBIAN.iter().chain(&["--erase", "agent-fw"]))?;
        ensure_open(peer)?;
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        let policy = fs::read_to_string("/etc/agent-fw/policy.toml")?;
        ensure!(policy.contains("region:us-1"), "{policy}");
        rpm(&["--install"], "newer")?;
        run([AGENT_FW, "apply"])?;
        ensure_closed(peer)
    })
}
