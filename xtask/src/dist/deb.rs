//! The package for Debian and its family, by `dpkg-deb`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::tree::{PROGRAM, Tree};
use super::{Release, pack_with};
use crate::architecture::Architecture;
use crate::process::{output, workspace};

/// The scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
const MAINTAINER: &str = "The agent-fw authors <agent-fw@example.org>";
const DESCRIPTION: &str = "restricts a security agent's listening port to its manager
 Trend Micro's agent listens on TCP 4118 and opens that port to every source by
 a hidden rule. agent-fw compiles that rule with a source restriction into an
 nftables ruleset or an XDP program, and tells what the kernel enforces.
 .
 Without a policy, the package changes nothing.";
/// What Debian's checker is told.
const OVERRIDES: &str = "\
# The program is static and position-independent: to lintian, a library that needs no other.
agent-fw: shared-library-lacks-prerequisites [usr/bin/agent-fw]
";
const DOCUMENTS: &str = "usr/share/doc/agent-fw";

/// Packs what is in `tree` into `place`.
pub(super) fn build(
    tree: &Path,
    architecture: Architecture,
    release: &Release,
    place: &Path,
) -> Result<()> {
    let tree = Tree::copy(tree, place.join("deb"))?;
    // Where Debian's zsh looks.
    tree.rename("usr/share/zsh/site-functions", "usr/share/zsh/vendor-completions")?;
    let data = workspace().join("agent-fw/data/package");
    tree.copy_in(&data.join("copyright"), &format!("{DOCUMENTS}/copyright"))?;
    tree.write("usr/share/lintian/overrides/agent-fw", OVERRIDES)?;
    tree.write(&format!("{DOCUMENTS}/changelog"), &changelog(release)?)?;
    let changelog = tree.root().join(DOCUMENTS).join("changelog");
    output(Command::new("gzip").args(["--best", "--no-name"]).arg(changelog))?;

    let (architecture, size, sums) = (architecture.debian(), tree.size()?, md5sums(&tree)?);
    let Release { version, epoch } = release;
    tree.write(
        "DEBIAN/control",
        &format!(
            "Package: agent-fw\nVersion: {version}\nArchitecture: {architecture}\n\
             Maintainer: {MAINTAINER}\nInstalled-Size: {}\n\
             Section: admin\nPriority: optional\nDescription: {DESCRIPTION}\n",
            size.div_ceil(1024)
        ),
    )?;
    tree.write("DEBIAN/md5sums", &sums)?;
    let mut programs = vec![PROGRAM.to_owned()];
    for script in SCRIPTS {
        let inside = format!("DEBIAN/{script}");
        tree.copy_in(&data.join(script), &inside)?;
        programs.push(inside);
    }
    tree.settle(*epoch, &programs)?;

    let package = place.join(format!("agent-fw_{version}_{architecture}.deb"));
    let mut dpkg_deb = Command::new("dpkg-deb");
    // The number of threads shows in what xz writes.
    dpkg_deb.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"]);
    pack_with(dpkg_deb.arg(tree.root()).arg(&package), release)?;
    Ok(fs::remove_dir_all(tree.root())?)
}

fn changelog(Release { version, epoch }: &Release) -> Result<String> {
    let date = output(Command::new("date").args(["--utc", "--rfc-email", &format!("-d@{epoch}")]))?;
    Ok(format!(
        "agent-fw ({version}) unstable; urgency=medium\n\n  * Version {version}.\n\n \
         -- {MAINTAINER}  {date}"
    ))
}

/// For `dpkg --verify`.
fn md5sums(tree: &Tree) -> Result<String> {
    let mut md5sum = Command::new("md5sum");
    for path in tree.entries()?.iter().filter(|path| path.is_file()) {
        md5sum.arg(path.strip_prefix(tree.root())?);
    }
    output(md5sum.current_dir(tree.root()))
}
