//! QEMU, from Debian's packages, unpacked beside the sources: this machine's own is left alone, and
//! so is a newer part of QEMU with which Debian's cannot be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::directory;
use crate::cache::cached;
use crate::process::run;
use crate::setup::update_package_lists;

const PACKAGE: &str = "qemu-system-x86";
/// Packages that are taken as not installed, since a version that stands in the way may be.
const OURS: [&str; 3] = ["qemu", "seabios", "ipxe"];

/// The directory with QEMU in it.
pub(super) fn ensure() -> Result<PathBuf> {
    cached(directory(), "qemu", &(PACKAGE, OURS), |place| {
        eprintln!("xtask: unpacking {PACKAGE} and what it needs, for virtual machines");
        let packages = place.join("packages");
        fs::create_dir_all(packages.join("partial"))?;
        let status = place.join("status");
        fs::write(&status, status_without_ours()?)?;
        download(&status, &packages).or_else(|_| {
            update_package_lists()?;
            download(&status, &packages)
        })?;
        for package in fs::read_dir(&packages)?.flatten() {
            if package.path().extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(place))?;
            }
        }
        fs::remove_dir_all(&packages)?;
        ensure!(
            place.join("usr/bin/qemu-system-x86_64").is_file(),
            "{PACKAGE} brings no qemu-system-x86_64"
        );
        Ok(())
    })
}

fn download(status: &Path, packages: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.arg("-o").arg(format!("Dir::State::status={}", status.display()));
    apt.arg("-o").arg(format!("Dir::Cache::archives={}/", packages.display()));
    // The directory is this user's, not that of apt's own user.
    apt.args(["-o", "APT::Sandbox::User=root"]);
    apt.args(["install", "--quiet", "--quiet", "--yes", "--download-only"]);
    run(apt.args(["--no-install-recommends", PACKAGE]))
}

/// dpkg's list of what is installed, without QEMU.
fn status_without_ours() -> Result<String> {
    let status = fs::read_to_string("/var/lib/dpkg/status").context("this is no Debian")?;
    let is_ours = |paragraph: &&str| {
        let name = paragraph.strip_prefix("Package: ").unwrap_or_default();
        OURS.iter().any(|ours| name.starts_with(ours))
    };
    let others: Vec<&str> = status.split("\n\n").filter(|part| !is_ours(part)).collect();
    Ok(others.join("\n\n"))
}
