//! The last policy that was in force, with all that it was compiled from: what is enforced at boot
//! when `policy.toml`, a list or `regions.toml` no longer can be read.

use super::sources::SourceTexts;
use crate::configuration::{Compiled, Configuration};
use crate::system::file;
use anyhow::Context as _;
use std::path::Path;

/// Where it is kept. Root's alone: lists may be.
const FILE: &str = "/var/lib/agent-fw/last-good.json";

/// Keeps what the enforced policy was compiled from. A list that had been changed when it was read is
/// not what is in force: then the older one stays.
pub fn keep(kept: &SourceTexts, compiled: &Compiled) -> anyhow::Result<()> {
    let again = kept.compile(FILE)?.1;
    if again.lowered.policy.hash() != compiled.lowered.policy.hash()
        || again.firewall_tables != compiled.firewall_tables
    {
        return Ok(());
    }
    let (path, text) = (Path::new(FILE), serde_json::to_string(kept)?);
    if file::is_private(path) && file::read_large(path).is_ok_and(|b| b.as_ref() == Some(&text)) {
        return Ok(());
    }
    file::write_private(path, &text)
}

/// Whether something is kept, readable or not.
pub fn is_kept() -> bool {
    Path::new(FILE).symlink_metadata().is_ok()
}

/// What is kept, if something is.
pub fn read() -> anyhow::Result<Option<SourceTexts>> {
    let Some(text) = file::read_large(Path::new(FILE))? else { return Ok(None) };
    let kept = serde_json::from_str(&text).with_context(|| format!("{FILE} is damaged"));
    kept.map(Some)
}

/// What is kept, compiled, if something is.
pub fn compiled() -> anyhow::Result<Option<(Configuration, Compiled)>> {
    read()?.map(|kept| kept.compile(FILE)).transpose()
}

/// Forgets it.
pub fn remove() -> anyhow::Result<()> {
    let path = Path::new(FILE);
    file::remove(path)?;
    if let Some(directory) = path.parent() {
        // Stays when something else is in it.
        drop(std::fs::remove_dir(directory));
    }
    Ok(())
}
