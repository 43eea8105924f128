//! `cargo xtask build`: the release binary, from nothing.

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{cargo, run};
use crate::setup::{self, Group};

/// Builds agent-fw and returns the path of its binary.
pub(crate) fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Build])?;
    run(cargo().args(["build", "--release", "--package", "agent-fw"]))?;
    Ok(agent_fw_lab::built_agent_fw_path())
}
