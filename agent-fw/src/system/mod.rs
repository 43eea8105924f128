//! This host, apart from its packets: files, locks, privileges, the boot unit.

pub mod awaited_interfaces;
pub mod connection_tracking;
pub mod ds_agent;
pub mod file;
pub mod guard_socket;
pub mod lock;
pub(crate) mod namespace;
pub mod privilege;
pub(crate) mod program;
pub mod reader;
pub mod sockets;
pub mod systemd;
pub mod tls;
pub mod user;

use std::path::{Path, PathBuf};

/// What the user wants, on disk.
pub const POLICY: &str = "/etc/agent-fw/policy.toml";
/// A copy of it, while somebody edits it.
pub const EDITED_POLICY: &str = "/etc/agent-fw/policy.toml.edit";
/// A policy that was edited by hand and then replaced.
pub const REPLACED_POLICY: &str = "/etc/agent-fw/policy.toml.replaced";
/// Where an edited policy is kept that is being replaced: a name that is not taken yet.
pub fn free_name_for_replaced_policy() -> PathBuf {
    let numbered = (2..).map(|n: u32| PathBuf::from(format!("{REPLACED_POLICY}.{n}")));
    let mut names = std::iter::once(PathBuf::from(REPLACED_POLICY)).chain(numbered);
    names.find(|name| name.symlink_metadata().is_err()).unwrap_or_default()
}

/// Edited policies that were kept when they were replaced.
pub fn replaced_policies() -> Vec<PathBuf> {
    let ours = |path: &PathBuf| path.to_str().is_some_and(|name| name.starts_with(REPLACED_POLICY));
    entries(DIRECTORY).into_iter().filter(ours).collect()
}

/// The lists that agent-fw keeps, by their names: a digest of sixteen digits. Whatever else is
/// there is the user's.
pub fn kept_lists() -> Vec<PathBuf> {
    let digest = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(".new").unwrap_or(name);
        name.strip_suffix(".list").is_some_and(digest)
    };
    entries(LISTS).into_iter().filter(ours).collect()
}

/// What is in a directory; nothing in what is none, or is a link to one elsewhere.
fn entries(directory: &str) -> Vec<PathBuf> {
    let is_directory = Path::new(directory).symlink_metadata().is_ok_and(|m| m.is_dir());
    let entries = is_directory.then(|| std::fs::read_dir(directory).ok()).flatten();
    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Lists that came from standard input or a pipe, kept for the next boot.
pub const LISTS: &str = "/etc/agent-fw/lists";
/// The directory of all of these.
pub const DIRECTORY: &str = "/etc/agent-fw";
