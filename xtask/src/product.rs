//! `cargo xtask build`: the release binary, from nothing.

use std::path::PathBuf;

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
