//! `cargo xtask dist`: packages for Debian's family and Red Hat's, and a tarball for the others.
//!
//! The same sources give the same bytes, wherever they lie: nothing in a package depends on the
//! directory, the time or the user of its build. `--check` proves it by a second build elsewhere.

mod deb;
mod rpm;
mod tarball;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{find, output, run, workspace};
use crate::setup::{self, Group};
use crate::{ebpf, product};
use product::Built;
use tree::Tree;

/// What `cargo xtask dist` is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build all of it again in another directory, and fail unless every byte is the same
    #[arg(long)]
    check: bool,
}

/// Which release a package says it is.
#[derive(Clone, Debug)]
struct Release {
    /// The version, as Debian and Red Hat compare it.
    version: String,
    /// The time of everything in it, in seconds since 1970.
    epoch: u64,
}

impl Release {
    /// The one that these sources are.
    fn current() -> Result<Self> {
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), epoch: source_date_epoch()? })
    }
}

/// Builds the packages into `target/dist`, and says where they are.
pub(crate) fn dist(options: &Options) -> Result<()> {
    let place = make()?;
    if options.check {
        check(&place)?;
    }
    print!("{}", fs::read_to_string(place.join(CHECKSUMS))?);
    println!("xtask: the packages are in {}", place.display());
    Ok(())
}

/// The checksums of the packages, beside them.
const CHECKSUMS: &str = "SHA256SUMS";

/// Builds this release. Returns the directory of its packages.
fn make() -> Result<PathBuf> {
    setup::ensure(&[Group::Build, Group::Dist])?;
    make_from(workspace())
}

/// Why this machine cannot test packages; `None` if it can.
pub(crate) fn untestable() -> Option<&'static str> {
    find("apt-get").is_none().then_some("packages are tested on Debian, and there is no apt-get")
}

/// Packs a program that is built already, for the tests of packages: under an older version, under
/// this one, and once again. Returns the directory of all three.
pub(crate) fn for_tests(built: &Built) -> Result<PathBuf> {
    setup::ensure(&[Group::Dist, Group::Debian])?;
    let place = workspace().join("target/test-packages");
    let release = Release::current()?;
    let older = Release { version: "0.0.1".to_owned(), ..release.clone() };
    for (name, release) in [("older", &older), ("newer", &release), ("again", &release)] {
        let tree = place.join("tree");
        Tree::new(tree.clone()).fill(workspace(), built)?;
        pack(&tree, release, &place.join(name))?;
    }
    Ok(place)
}

fn make_from(sources: &Path) -> Result<PathBuf> {
    ebpf::build(sources)?;
    let dist = sources.join("target/dist");
    let built = product::build_for_shipping(sources, &dist)?;
    Tree::new(dist.join("tree")).fill(sources, &built)?;
    pack(&dist.join("tree"), &Release::current()?, &dist.join("packages"))
}

/// Makes the packages of what is staged in `tree`.
fn pack(tree: &Path, release: &Release, place: &Path) -> Result<PathBuf> {
    // Of an earlier version, nothing may be left.
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::create_dir_all(place)?;
    let packages = [
        deb::build(tree, release, place)?,
        rpm::build(tree, release, place)?,
        tarball::build(tree, release, place)?,
    ];
    let names = packages.iter().filter_map(|path| path.file_name());
    let mut sha256sum = Command::new("sha256sum");
    let sums = output(sha256sum.args(names).current_dir(place))?;
    fs::write(place.join(CHECKSUMS), sums)?;
    Ok(place.to_owned())
}

/// Builds from a copy of the sources in another directory, and compares.
fn check(first: &Path) -> Result<()> {
    let elsewhere = workspace().join("target/dist-again/copy");
    tree::copy_sources(workspace(), &elsewhere)?;
    eprintln!("xtask: building the packages once more, in {}", elsewhere.display());
    let second = make_from(&elsewhere)?;
    for entry in fs::read_dir(first)? {
        let (this, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        let other = second.join(name);
        ensure!(
            fs::read(&this)? == fs::read(&other)?,
            "not reproducible: {} and {} differ",
            this.display(),
            other.display()
        );
    }
    println!("xtask: a second build elsewhere gave the same bytes");
    Ok(())
}

/// The time that everything in a package has: that of the last commit, or what the environment
/// says, as <https://reproducible-builds.org/specs/source-date-epoch/> has it.
fn source_date_epoch() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace()))
                .context("no commit tells the time of the sources: set SOURCE_DATE_EPOCH")?
        }
    };
    text.trim().parse().with_context(|| format!("`{}` is no time in seconds", text.trim()))
}

/// Runs a packer, which sees the release's time and nothing of this user's settings.
fn pack_with(command: &mut Command, release: &Release) -> Result<()> {
    let quiet = command.env("SOURCE_DATE_EPOCH", release.epoch.to_string()).env("LC_ALL", "C");
    run(quiet.env_remove("DPKG_DEB_COMPRESSOR_TYPE"))
}
