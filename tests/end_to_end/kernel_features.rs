//! What a kernel may lack, asked of the one that runs.

use std::path::Path;
use std::process::{Command, Stdio};

/// A feature that is a module on many distributions and missing on others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feature {
    /// Virtual routing and forwarding: a routing table of its own for some interfaces.
    Vrf,
    /// Label switching.
    Mpls,
    /// The load balancer in the hook `input`.
    Ipvs,
}

impl Feature {
    /// Whether this kernel has it. Its module is loaded, where it is one.
    pub(crate) fn is_here(self) -> bool {
        match self {
            // The device goes with its namespace.
            Self::Vrf => succeeds(&[
                "unshare", "--net", "ip", "link", "add", "probe", "type", "vrf", "table", "10",
            ]),
            Self::Mpls => {
                succeeds(&["modprobe", "--quiet", "--all", "mpls_router", "mpls_iptunnel"]);
                Path::new("/proc/sys/net/mpls").exists()
            }
            Self::Ipvs => {
                succeeds(&["modprobe", "--quiet", "--all", "ip_vs", "ip_vs_rr"]);
                Path::new("/proc/net/ip_vs").exists() && succeeds(&["ipvsadm", "--version"])
            }
        }
    }
}

fn succeeds(argv: &[&str]) -> bool {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
