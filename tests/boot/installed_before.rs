//! A host on which version 0.1.0 was installed, with a policy to which newer versions want consent.
//!
//! The files are what that version itself wrote (commit e9a104b, built for this, in namespaces of its
//! own), with `/srv/lists/manager.list` in the hands of a user:
//!
//!     agent-fw install --no-boot --allow-from region:us-1 --allow-from 34.0.0.0/7 \
//!         --allow-from file:/srv/lists/manager.list
//!     agent-fw compile --format nft …   # the same

use crate::host::{Host, NEWER};
use crate::neighbour::Neighbour;
use agent_fw_lab::vm::Payload;
use anyhow::{Context, Result, ensure};

/// Where the files are, inside.
const FILES: &str = "/opt/agent-fw/version-0.1.0";
/// The keys of policy.toml by which somebody would consent to it.
const KEYS: [&str; 2] = ["allow_wide = true", "trust_file_modes = true"];

/// What the machine's disk has of it.
pub(crate) fn files(payload: Payload) -> Payload {
    payload
        .text(format!("{FILES}/policy.toml"), include_str!("version-0.1.0/policy.toml"))
        .text(format!("{FILES}/last-good.json"), include_str!("version-0.1.0/last-good.json"))
        .text(format!("{FILES}/table.nft"), include_str!("version-0.1.0/table.nft"))
        .text("/srv/lists/manager.list", "203.0.113.0/29\n")
}

/// Puts the host into the state in which that version left it, where an older package is installed,
/// and exchanges that for a newer one.
pub(crate) fn upgrade(host: &mut Host, neighbour: &Neighbour, unlisted: u64) -> Result<()> {
    host.script(&format!(
        "chown nobody /srv/lists/manager.list
         rm --recursive --force /etc/agent-fw /var/lib/agent-fw/*
         mkdir /etc/agent-fw
         cp {FILES}/policy.toml /etc/agent-fw
         cp {FILES}/last-good.json /var/lib/agent-fw
         chmod 644 /run/agent-fw/lock
         nft --file {FILES}/table.nft"
    ))?;
    host.is_closed(neighbour, unlisted).context("with the older version's own table")?;
    host.run(&["dpkg", "--install", NEWER])?;
    host.run(&["systemctl", "is-active", "agent-fw"])?;
    is_in_force_with_a_warning(host, neighbour, unlisted)
}

/// Demands that the policy of that version is in force, and that the keys are named.
pub(crate) fn is_in_force_with_a_warning(
    host: &mut Host,
    neighbour: &Neighbour,
    unlisted: u64,
) -> Result<()> {
    host.is_closed(neighbour, unlisted)?;
    host.run(&["agent-fw", "verify"])?;
    let status = host.run(&["agent-fw", "status"])?;
    // That no agent runs here is bad.
    let doctor = host.script("agent-fw doctor || test $? = 1")?;
    for (command, said) in [("status", status), ("doctor", doctor)] {
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for key in KEYS {
            ensure!(words.contains(key), "{command} does not name {key}: {said}");
        }
    }
    let policy = host.run(&["cat", "/etc/agent-fw/policy.toml"])?;
    ensure!(policy == include_str!("version-0.1.0/policy.toml"), "it was changed: {policy}");
    Ok(())
}
