//! The package for Red Hat's family, by `rpmbuild`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::tree::{PROGRAM, Tree};
use super::{Release, pack_with};
use crate::architecture::Architecture;
use crate::process::workspace;

/// Packs what is in `tree` into `place`.
pub(super) fn build(
    tree: &Path,
    architecture: Architecture,
    release: &Release,
    place: &Path,
) -> Result<()> {
    let tree = Tree::copy(tree, place.join("rpm"))?;
    tree.copy_licenses("usr/share/licenses/agent-fw")?;
    tree.settle(release.epoch, &[PROGRAM.to_owned()])?;

    let (architecture, version) = (architecture.name(), &release.version);
    let work = place.join("rpmbuild");
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--target", architecture]);
    let (topdir, staged) = (work.display().to_string(), tree.root().display().to_string());
    let name = format!("agent-fw-{version}-1.{architecture}.rpm");
    for (key, value) in [
        ("_topdir", topdir.as_str()),
        ("_rpmdir", &place.display().to_string()),
        ("_rpmfilename", &name),
        ("version", version),
        ("staged", &staged),
        ("_buildhost", "agent-fw"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        ("_build_id_links", "none"),
        // The tree is as it is to be: stripped and compressed.
        ("__os_install_post", "%{nil}"),
        ("debug_package", "%{nil}"),
    ] {
        rpmbuild.arg("--define").arg(format!("{key} {value}"));
    }
    let spec = workspace().join("agent-fw/data/package/agent-fw.spec");
    pack_with(rpmbuild.arg(spec), release)?;
    fs::remove_dir_all(work)?;
    Ok(fs::remove_dir_all(tree.root())?)
}
