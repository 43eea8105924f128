//! For how long connection tracking knows a connection.

use std::fs;

/// The seconds for which a request by UDP is known that nobody has answered; `None` where connection
/// tracking is not loaded, or they cannot be read.
pub fn udp_timeout() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").ok()?;
    text.trim().parse().ok()
}
