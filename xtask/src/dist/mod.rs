//! `cargo xtask dist`: packages for Debian's family and Red Hat's, and a tarball for the others, for
//! each architecture. The program in them is static: it asks nothing of a host but its kernel.
//!
//! The same sources give the same bytes, wherever they lie: nothing in a package depends on the
//! directory, the time or the user of its build. `--check` proves it by a second build elsewhere.

mod deb;
mod rpm;
mod tarball;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::process::{find, output, run, workspace};
use crate::setup::{self, Group};
use crate::static_libraries::StaticLibraries;
use crate::{ebpf, product};
use tree::Tree;

/// What `cargo xtask dist` is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build all of it again in another directory, and fail unless every byte is the same
    #[arg(long)]
    check: bool,
    /// An architecture to build for; repeatable. Without it, this machine's
    #[arg(long, value_name = "NAME")]
    architecture: Vec<Architecture>,
}

/// What a package is made from.
#[derive(Debug)]
struct Built<'a> {
    architecture: Architecture,
    /// The program, static and stripped.
    agent_fw: &'a Path,
    /// What writes its manual and the like.
    package_files: &'a Path,
    /// The libraries in it, a line each: Debian's package and version.
    libraries: String,
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
    setup::ensure(&[Group::Build, Group::Dist])?;
    let mut architectures = options.architecture.clone();
    if architectures.is_empty() {
        let this = Architecture::of_this_machine();
        architectures.push(this.context("packages are not made for this machine's architecture")?);
    }
    let place = make_from(workspace(), &architectures)?;
    if options.check {
        check(&place, &architectures)?;
    }
    print!("{}", fs::read_to_string(place.join(CHECKSUMS))?);
    println!("xtask: the packages are in {}", place.display());
    Ok(())
}

/// The checksums of the packages, beside them.
const CHECKSUMS: &str = "SHA256SUMS";

/// Why this machine cannot test packages; `None` if it can.
pub(crate) fn untestable() -> Option<&'static str> {
    if find("apt-get").is_none() {
        Some("packages are tested on Debian, and there is no apt-get")
    } else if Architecture::of_this_machine().is_none() {
        Some("packages are not made for this machine's architecture")
    } else {
        None
    }
}

/// Packs the program as it is shipped, for the tests of packages: under an older version, under this
/// one, and once again. Returns the directory of all three.
pub(crate) fn for_tests(package_files: &Path) -> Result<PathBuf> {
    setup::ensure(&[Group::Dist, Group::Debian])?;
    let architecture = Architecture::of_this_machine().context("no packages are made for it")?;
    let libraries = StaticLibraries::ensure(architecture)?;
    let target = workspace().join("target/dist");
    let agent_fw = product::build_for_shipping(workspace(), &target, &libraries)?;
    let (agent_fw, libraries) = (agent_fw.as_path(), libraries.versions()?);
    let built = Built { architecture, agent_fw, package_files, libraries };
    let place = workspace().join("target/test-packages");
    let release = Release::current()?;
    let older = Release { version: "0.0.1".to_owned(), ..release.clone() };
    for (name, release) in [("older", &older), ("newer", &release), ("again", &release)] {
        let place = place.join(name);
        renew(&place)?;
        pack(workspace(), &built, release, &place)?;
        write_checksums(&place)?;
    }
    Ok(place)
}

fn make_from(sources: &Path, architectures: &[Architecture]) -> Result<PathBuf> {
    ebpf::build(sources)?;
    let dist = sources.join("target/dist");
    let package_files = product::package_files(sources, &dist)?;
    let place = dist.join("packages");
    renew(&place)?;
    for &architecture in architectures {
        let libraries = StaticLibraries::ensure(architecture)?;
        let agent_fw = product::build_for_shipping(sources, &dist, &libraries)?;
        let libraries = libraries.versions()?;
        let (agent_fw, package_files) = (agent_fw.as_path(), package_files.as_path());
        let built = Built { architecture, agent_fw, package_files, libraries };
        pack(sources, &built, &Release::current()?, &place)?;
    }
    write_checksums(&place)?;
    Ok(place)
}

/// Of an earlier version, nothing may be left.
fn renew(place: &Path) -> Result<()> {
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    Ok(fs::create_dir_all(place)?)
}

/// Makes the packages of what is built, into `place`.
fn pack(sources: &Path, built: &Built<'_>, release: &Release, place: &Path) -> Result<()> {
    let tree = place.join("tree");
    Tree::new(tree.clone()).fill(sources, built)?;
    deb::build(&tree, built.architecture, release, place)?;
    rpm::build(&tree, built.architecture, release, place)?;
    tarball::build(&tree, built.architecture, release, place)?;
    Ok(fs::remove_dir_all(tree)?)
}

fn write_checksums(place: &Path) -> Result<()> {
    let names = fs::read_dir(place)?.flatten().map(|entry| entry.file_name());
    let names: BTreeSet<_> = names.collect();
    let sums = output(Command::new("sha256sum").args(names).current_dir(place))?;
    Ok(fs::write(place.join(CHECKSUMS), sums)?)
}

/// Builds from a copy of the sources in another directory, and compares.
fn check(first: &Path, architectures: &[Architecture]) -> Result<()> {
    let elsewhere = workspace().join("target/dist-again/copy");
    tree::copy_sources(workspace(), &elsewhere)?;
    eprintln!("xtask: building the packages once more, in {}", elsewhere.display());
    let second = make_from(&elsewhere, architectures)?;
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
