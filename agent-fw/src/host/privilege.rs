//! What this process may do.

use anyhow::{Context as _, bail};

/// `CAP_NET_ADMIN` of linux/capability.h: the right to change the network's configuration.
const NET_ADMIN: u32 = 12;

/// Fails, in one line, unless the process may change nf_tables.
pub fn require_net_admin(command: &str) -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let capabilities = capabilities.context("no capabilities in /proc/self/status")?;
    if capabilities & (1 << NET_ADMIN) == 0 {
        bail!("`agent-fw {command}` needs the capability CAP_NET_ADMIN: run it as root");
    }
    Ok(())
}
