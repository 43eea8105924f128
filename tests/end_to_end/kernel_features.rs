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
    /// IPsec's encryption.
    Esp,
    /// Packets in UDP that the kernel unpacks.
    Fou,
    /// Filters of interfaces that change packets.
    Pedit,
    /// Flowtables, which forward connections past the chains.
    Flowtables,
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
            Self::Esp => in_namespace(
                "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode transport \
                 auth 'hmac(sha256)' 0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff \
                 enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff",
            ),
            Self::Fou => {
                succeeds(&["modprobe", "--quiet", "fou"]);
                in_namespace("ip fou add port 5555 ipproto 6")
            }
            Self::Flowtables => in_namespace(
                "ip link set lo up && nft 'table ip f { flowtable f { hook ingress priority 0; \
                 devices = { lo }; }; chain c { type filter hook forward priority 0; \
                 meta l4proto tcp flow add @f; }; }'",
            ),
            Self::Pedit => in_namespace(
                "tc qdisc add dev lo clsact && tc filter add dev lo ingress protocol ip flower \
                 ip_proto tcp action pedit ex munge tcp dport set 1 pipe action csum tcp",
            ),
        }
    }
}

/// What these words make goes with its namespace.
fn in_namespace(words: &str) -> bool {
    succeeds(&["unshare", "--net", "sh", "-c", words])
}

fn succeeds(argv: &[&str]) -> bool {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
