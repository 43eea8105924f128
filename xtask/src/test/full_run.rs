//! When everything was last tried on every kernel: kept in the repository, since it takes hours and
//! no machine that tests a change does it each time.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::count::Count;
use crate::process::{output, workspace};

fn file() -> PathBuf {
    workspace().join("tests/last-full-run.json")
}

/// Keeps that this commit has passed everything. The file is to be committed.
pub(super) fn record(count: &Count) -> Result<()> {
    let mut git = Command::new("git");
    let commit = output(git.args(["rev-parse", "HEAD"]).current_dir(workspace()))?;
    let date = output(Command::new("date").args(["--utc", "+%F"]))?;
    let run = json!({
        "date": date.trim(),
        "commit": commit.trim(),
        "passed": count.passed,
        "skipped": count.skipped,
    });
    let text = format!("{run:#}\n");
    fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}

/// A sentence about the last one.
pub(super) fn last() -> String {
    let text = fs::read_to_string(file()).ok();
    let run = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let told = run.and_then(|run| {
        let (date, commit) = (run["date"].as_str()?, run["commit"].as_str()?);
        let (passed, skipped) = (run["passed"].as_u64()?, run["skipped"].as_u64()?);
        let commit = commit.get(..12)?;
        Some(format!("last passed on {date}, commit {commit}: {passed} passed, {skipped} skipped"))
    });
    format!(
        "everything (cargo xtask test --all): {}",
        told.as_deref().unwrap_or("no run of it is on record")
    )
}
