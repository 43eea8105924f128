//! What this process may do.

use anyhow::{Context as _, bail};

/// `CAP_NET_ADMIN` of linux/capability.h: the right to change the network's configuration.
const NET_ADMIN: u32 = 12;

/// `CAP_SYS_ADMIN`: among much else, the right to list all BPF programs.
const SYS_ADMIN: u32 = 21;

/// Fails, in one line, unless the process may change nf_tables.
pub fn require_net_admin(command: &str) -> anyhow::Result<()> {
    if !has(NET_ADMIN)? {
        bail!("`agent-fw {command}` needs the capability CAP_NET_ADMIN: run it as root");
    }
    Ok(())
}

/// Whether the process may ask the kernel for all BPF programs, whoever has loaded them.
pub fn may_list_programs() -> bool {
    has(SYS_ADMIN).unwrap_or_default()
}

fn has(capability: u32) -> anyhow::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let capabilities = capabilities.context("no capabilities in /proc/self/status")?;
    Ok(capabilities & (1 << capability) != 0)
}
