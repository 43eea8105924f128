//! The tarball, for hosts of any other kind: what a package holds, to be unpacked at `/`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::tree::{PROGRAM, Tree};
use super::{Release, pack_with};
use crate::architecture::Architecture;

/// Packs what is in `tree` into `place`.
pub(super) fn build(
    tree: &Path,
    architecture: Architecture,
    release: &Release,
    place: &Path,
) -> Result<()> {
    let name = format!("agent-fw-{}-{architecture}", release.version);
    let tree = Tree::copy(tree, place.join(&name))?;
    tree.copy_licenses("usr/share/doc/agent-fw")?;
    tree.settle(release.epoch, &[PROGRAM.to_owned()])?;
    let tarball = place.join(format!("{name}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=root:0", "--group=root:0"]);
    // The number of threads shows in what xz writes.
    tar.arg("--use-compress-program=xz -9 --threads=1");
    tar.arg("--file").arg(&tarball).arg("--directory").arg(place).arg(&name);
    pack_with(&mut tar, release)?;
    Ok(fs::remove_dir_all(tree.root())?)
}
