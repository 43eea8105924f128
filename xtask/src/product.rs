//! `cargo xtask build`: the release binary, from nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::ebpf;
use crate::process::{cargo, run, workspace};
use crate::setup::{self, Group};

/// Builds the BPF objects, then agent-fw with the product's in it. Returns the path of its
/// binary.
pub(crate) fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Build])?;
    let object = ebpf::build(workspace())?;
    let (product, bench) = (object.path.display(), object.bench.display());
    eprintln!("xtask: {product} and {bench}: built with {}", object.road);
    run(cargo().args(["build", "--release", "--package", "agent-fw"]))?;
    Ok(agent_fw_lab::built_agent_fw_path())
}

/// What a package is made from.
pub(crate) struct Built {
    /// The program.
    pub(crate) agent_fw: PathBuf,
    /// What writes its manual and the like.
    pub(crate) package_files: PathBuf,
}

/// What goes with a program that is built: the other half, built as the tests are.
pub(crate) fn beside(agent_fw: &Path, features: &str) -> Result<Built> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--workspace", "--features", features]);
    run(cargo.args(["--example", "package_files"]))?;
    let package_files = agent_fw.with_file_name("examples").join("package_files");
    Ok(Built { agent_fw: agent_fw.to_owned(), package_files })
}

/// Builds both for shipping, below the directory `target`: neither the directory of the sources nor
/// that of the crates shows in them. The BPF object is there already.
pub(crate) fn build_for_shipping(sources: &Path, target: &Path) -> Result<Built> {
    let remap = |path: &Path, name: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push(name);
        flag
    };
    let flags = [remap(&ebpf::cargo_home()?, "=cargo"), remap(sources, "=agent-fw")];
    let mut cargo = cargo();
    cargo.current_dir(sources).env_remove("RUSTFLAGS");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")));
    cargo.args(["build", "--release", "--locked", "--package", "agent-fw"]);
    cargo.args(["--bin", "agent-fw", "--example", "package_files", "--target-dir"]);
    run(cargo.arg(target))?;
    Ok(Built {
        agent_fw: target.join("release/agent-fw"),
        package_files: target.join("release/examples/package_files"),
    })
}
