//! The packages under test.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Names the directory of the packages, in the environment. There are `older` and `newer`, of the
/// same program, and `again`, the newer ones built a second time.
pub const PACKAGES: &str = "AGENT_FW_PACKAGES";

/// A package of `older`, `newer` or `again`, by how its name ends.
pub fn package(of: &str, ending: &str) -> Result<PathBuf> {
    let directory = std::env::var_os(PACKAGES).map(PathBuf::from).context("no packages")?.join(of);
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("there is no *{ending} in {}", directory.display()))
}
