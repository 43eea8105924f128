//! The network namespace that this process is in.

use anyhow::Context as _;
use std::os::unix::fs::MetadataExt as _;

/// The number by which the kernel tells it from others, until it ends.
pub(crate) fn current() -> anyhow::Result<u64> {
    // Not /proc/self: a thread may have gone to another one.
    let link = std::fs::metadata("/proc/thread-self/ns/net");
    link.map(|namespace| namespace.ino()).context("cannot tell the network namespace (/proc)")
}
