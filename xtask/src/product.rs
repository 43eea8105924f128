//! `cargo xtask build`: the release binary, from nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::ebpf;
use crate::process::{cargo, run, workspace};
use crate::setup::{self, Group};
use crate::static_libraries::StaticLibraries;

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

/// Writes the manual pages and completions of a program that is built. Returns the directory, as a
/// package has it.
pub(crate) fn manual(agent_fw: &Path) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--package", "agent-fw", "--example", "package_files"]);
    run(&mut cargo)?;
    let written = agent_fw.with_file_name("manual");
    if written.exists() {
        std::fs::remove_dir_all(&written)?;
    }
    let writer = agent_fw.with_file_name("examples").join("package_files");
    run(Command::new(writer).arg(&written))?;
    Ok(written)
}

/// What writes the manual and the like of a program that is built, built as the tests are.
pub(crate) fn package_files_beside(agent_fw: &Path, features: &str) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--workspace", "--features", features]);
    run(cargo.args(["--example", "package_files"]))?;
    Ok(agent_fw.with_file_name("examples").join("package_files"))
}

/// Builds the program for shipping, below the directory `target`: static, so that it runs whatever
/// libraries a host has; neither the directory of the sources nor that of the crates shows in it.
/// The BPF object is there already.
pub(crate) fn build_for_shipping(
    sources: &Path,
    target: &Path,
    libraries: &StaticLibraries,
) -> Result<PathBuf> {
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
    // GNU's `strip` is one architecture's; the linker's own is not.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    cargo.args(["build", "--release", "--locked", "--package", "agent-fw", "--bin", "agent-fw"]);
    libraries.apply(&mut cargo);
    run(cargo.arg("--target-dir").arg(target))?;
    Ok(target.join(libraries.architecture().target()).join("release/agent-fw"))
}

/// Builds what writes the program's manual and the like, for this machine.
pub(crate) fn package_files(sources: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.current_dir(sources).args(["build", "--release", "--locked", "--package", "agent-fw"]);
    run(cargo.args(["--example", "package_files", "--target-dir"]).arg(target))?;
    Ok(target.join("release/examples/package_files"))
}
