//! `cargo xtask setup`: finds what is missing on this machine and installs it.

mod need;

pub(crate) use need::Group;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{as_root, find, run, succeeds};
use need::{NEEDS, Need};

/// Makes sure that everything in these groups is there. Says nothing if it is; otherwise
/// installs what is missing where apt-get does that, and elsewhere names the packages and
/// fails.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("xtask: missing: {}, which {}", need.probe.describe(), need.why);
    }
    if find("apt-get").is_none() {
        bail!(advice(&missing));
    }
    install_with_apt(&missing)?;
    let still: Vec<_> = self::missing(groups).iter().map(|need| need.probe.describe()).collect();
    if !still.is_empty() {
        bail!("still missing after the installation: {}", still.join(", "));
    }
    Ok(())
}

fn missing(groups: &[Group]) -> Vec<&'static Need> {
    let wanted = NEEDS.iter().filter(|need| groups.contains(&need.group));
    wanted.filter(|need| !need.probe.holds()).collect()
}

/// The packages in a stable order, each once.
fn packages(needs: &[&Need], of: impl Fn(&Need) -> &'static [&'static str]) -> Vec<&'static str> {
    let all: BTreeSet<_> = needs.iter().flat_map(|need| of(need)).copied().collect();
    all.into_iter().collect()
}

fn install_with_apt(missing: &[&Need]) -> Result<()> {
    let packages = packages(missing, |need| need.apt);
    eprintln!("xtask: installing with apt-get: {}", packages.join(" "));
    for (package, unit) in
        [("firewalld", "firewalld.service"), ("prometheus", "prometheus.service")]
    {
        if packages.contains(&package) {
            keep_from_starting(unit)?;
        }
    }
    // A fresh machine or container image has no package lists; one with old lists asks for
    // versions that the server no longer has.
    let mut updated = false;
    if !packages.iter().all(|package| succeeds(Command::new("apt-cache").args(["show", package]))) {
        update_package_lists()?;
        updated = true;
    }
    let install = || -> Result<()> {
        run(apt_get()?.args(["install", "--yes", "--no-install-recommends"]).args(&packages))
    };
    match install() {
        Err(error) if !updated => {
            eprintln!("xtask: {error:#}; trying once more with fresh package lists");
            update_package_lists()?;
            install()
        }
        done => done,
    }
}

/// Masks a unit before its package comes, which would start it now and at every boot: this machine
/// keeps the firewall that it has. The tests start such programs themselves.
fn keep_from_starting(unit: &str) -> Result<()> {
    let mask = Path::new("/etc/systemd/system").join(unit);
    if mask.symlink_metadata().is_ok() {
        return Ok(());
    }
    eprintln!("xtask: {unit} is masked, so that it does not start (systemctl unmask undoes it)");
    run(as_root("mkdir", "masking a unit")?.args(["-p", "/etc/systemd/system"]))?;
    run(as_root("ln", "masking a unit")?.args(["-s", "/dev/null"]).arg(mask))
}

/// Fetches the lists of packages anew.
pub(crate) fn update_package_lists() -> Result<()> {
    run(apt_get()?.arg("update"))
}

fn apt_get() -> Result<Command> {
    let mut command = as_root("env", "apt-get")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    // A fresh machine may be upgrading itself.
    command.args(["-o", "DPkg::Lock::Timeout=600"]);
    Ok(command)
}

/// What to type where xtask does not install by itself.
fn advice(missing: &[&Need]) -> String {
    let dnf = format!("dnf install {}", packages(missing, |need| need.dnf).join(" "));
    let pacman = format!("pacman -S {}", packages(missing, |need| need.pacman).join(" "));
    let apk = format!("apk add {}", packages(missing, |need| need.apk).join(" "));
    for (manager, command) in [("dnf", &dnf), ("pacman", &pacman), ("apk", &apk)] {
        if find(manager).is_some() {
            return format!("install the missing packages as root, then try again:\n  {command}");
        }
    }
    format!(
        "no package manager that xtask knows is here. Elsewhere the missing packages come with\
         \n  {dnf}\n  {pacman}\n  {apk}"
    )
}

#[cfg(test)]
mod tests {
    use super::{Group, NEEDS, advice, packages};

    #[test]
    fn packages_are_listed_once_in_order() {
        let build: Vec<_> = NEEDS.iter().filter(|need| need.group == Group::Build).collect();
        let twice: Vec<_> = build.iter().chain(&build).copied().collect();
        assert_eq!(
            packages(&twice, |need| need.apt),
            ["gcc", "libc6-dev", "libmnl-dev", "libnftnl-dev", "pkg-config"]
        );
    }

    #[test]
    fn advice_names_the_packages() {
        let all: Vec<_> = NEEDS.iter().collect();
        assert!(advice(&all).contains("libnftnl"));
    }
}
