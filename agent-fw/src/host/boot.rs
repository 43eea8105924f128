//! The systemd unit that applies the policy at boot.

use anyhow::{Context as _, bail};
use std::path::Path;
use std::process::Command;

/// The unit's name.
pub const UNIT: &str = "agent-fw.service";

/// Where systemd looks for units, in the order in which it prefers them.
const DIRECTORIES: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Whether this host has the unit.
pub fn has_unit() -> bool {
    DIRECTORIES.iter().any(|directory| Path::new(directory).join(UNIT).exists())
}

/// Lets the policy be applied at every boot.
pub fn enable() -> anyhow::Result<()> {
    systemctl("enable")
}

/// Undoes [`enable`].
pub fn disable() -> anyhow::Result<()> {
    systemctl("disable")
}

fn systemctl(verb: &str) -> anyhow::Result<()> {
    let output = Command::new("systemctl")
        .args([verb, "--quiet", UNIT])
        .output()
        .context("cannot run systemctl")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`systemctl {verb} {UNIT}` failed: {}", said.trim());
    }
    Ok(())
}
