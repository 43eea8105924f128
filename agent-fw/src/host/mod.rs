//! This host, apart from its packets: files, locks, privileges, the boot unit.

pub mod boot;
pub mod file;
pub mod interface;
pub mod lock;
pub mod privilege;

/// What the user wants, on disk.
pub const POLICY: &str = "/etc/agent-fw/policy.toml";
/// A policy that was edited by hand and then replaced.
pub const REPLACED_POLICY: &str = "/etc/agent-fw/policy.toml.replaced";
/// Lists that came from standard input or a pipe, kept for the next boot.
pub const LISTS: &str = "/etc/agent-fw/lists";
/// The directory of all of these.
pub const DIRECTORY: &str = "/etc/agent-fw";
