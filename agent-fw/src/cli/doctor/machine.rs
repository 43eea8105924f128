//! What this machine has: kernel, IPv6, a resolver.

use super::check::{Check, Health};
use crate::configuration::Compiled;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::path::Path;

/// What the kernel has of what agent-fw can use.
pub(super) fn kernel() -> Check {
    let why = "what is missing here narrows what agent-fw can do: bpffs and BTF for XDP, \
               /dev/net/tun for explain";
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let bpffs = statfs("/sys/fs/bpf").is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    let features = [
        ("nf_tables", true),
        ("bpffs", bpffs),
        ("BTF", Path::new("/sys/kernel/btf/vmlinux").exists()),
        ("/dev/net/tun", Path::new("/dev/net/tun").exists()),
    ];
    let missing: Vec<&str> =
        features.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Check::new("the kernel", why, Health::Good, format!("Linux {release}, all there"));
    }
    let seen = format!("Linux {release}, without {}", missing.join(", "));
    Check::new("the kernel", why, Health::Note, seen)
}

/// IPv6, and what the policy says of it.
pub(super) fn versions(compiled: &Compiled) -> Check {
    let why = "a manager that comes by IPv6 needs a source of IPv6 in the policy";
    let has_v6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let is_reachable = has_v6 && addresses.lines().any(|line| !line.ends_with(" lo"));
    let admits = compiled.lowered.policy.admissions().iter().any(|a| !a.addresses.v6.is_empty());
    let seen = match (is_reachable, admits) {
        (true, true) => "this host has IPv6, and the policy admits sources of it",
        (true, false) => "this host has IPv6; the policy admits no source of it",
        (false, _) => "this host has no IPv6 but on loopback",
    };
    Check::new("IPv6", why, Health::Good, seen)
}
