//! Interfaces that are given an XDP program when they come: an empty file for each, which the rule
//! of udev looks for.

use super::file;
use anyhow::Context as _;
use std::fs;
use std::path::Path;

/// Where the files are. They are written anew at each boot.
pub const DIRECTORY: &str = "/run/agent-fw/interfaces";

/// Awaits these interfaces, and no others.
pub fn set(interfaces: &[String]) -> anyhow::Result<()> {
    let directory = Path::new(DIRECTORY);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_awaited = interfaces.iter().any(|name| entry.file_name() == name.as_str());
        if !is_awaited {
            file::remove(&entry.path())?;
        }
    }
    if interfaces.is_empty() {
        // There may be none.
        drop(fs::remove_dir(directory));
        return Ok(());
    }
    let not_made = || format!("cannot make {DIRECTORY}");
    file::make_directory(directory).with_context(not_made)?;
    for name in interfaces {
        fs::File::create(directory.join(name)).with_context(not_made)?;
    }
    Ok(())
}
