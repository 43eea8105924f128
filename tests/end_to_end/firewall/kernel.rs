//! Packets through the running kernel, both ways, and which of them got through.

use agent_fw_lab::{Peer, Wire, feed, run};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrIn,
    SockaddrIn6, recv, sendto, setsockopt, socket, sockopt,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// Sees what comes to the end of each way, by the number that each packet has in its header, and
/// keeps the host itself from answering: its answers would change what connection tracking knows.
const OBSERVER: &str = "
table inet observer {
    set v4 { typeof ip id; flags dynamic; size 65535; }
    set v6 { typeof ip6 flowlabel; flags dynamic; size 65535; }
    counter arrived { }
    chain mute {
        type filter hook output priority -350; policy accept;
        oif lo accept
        meta mark != 0x118 drop
    }
    chain arrive {
        type filter hook prerouting priority -350; policy accept;
        ip saddr 192.0.2.0/24 counter name arrived
        ip6 saddr 2001:db8::/64 counter name arrived
    }
    chain come {
        type filter hook input priority 1000; policy accept;
        add @v4 { ip id }
        add @v6 { ip6 flowlabel }
    }
    chain go {
        type filter hook postrouting priority 1000; policy accept;
        meta mark 0x118 add @v4 { ip id }
        meta mark 0x118 add @v6 { ip6 flowlabel }
    }
}
table arp observer {
    set askers { type ipv4_addr; flags dynamic; size 65535; }
    chain come {
        type filter hook input priority 1000; policy accept;
        add @askers { arp saddr ip }
    }
}
";

/// The mark of the packets that the test sends.
const MARK: u32 = 0x118;
const PATIENCE: Duration = Duration::from_secs(10);

/// The two ends: the wire of the peer, and raw sockets of the host.
pub(super) struct Stage {
    wire: Wire,
    v4: OwnedFd,
    v6: OwnedFd,
    arrived: u64,
}

impl Stage {
    /// Sets the stage on the lab's host.
    pub(super) fn set(peer: &Peer) -> Result<Self> {
        feed(["nft", "-f", "-"], OBSERVER)?;
        let interface = peer.interface();
        run(["ip", "address", "add", "10.119.0.1/32", "dev", &interface])?;
        run(["ip", "address", "add", "10.119.0.2/32", "dev", &interface])?;
        run(["ip", "address", "add", "fd00:119::1/128", "dev", &interface, "nodad"])?;
        run(["ip", "address", "add", "fd00:119::2/128", "dev", &interface, "nodad"])?;
        run(["ip", "route", "add", "192.0.2.0/24", "via", &peer.v4().to_string()])?;
        let via = peer.v6().to_string();
        run(["ip", "route", "add", "2001:db8::/64", "via", &via, "dev", &interface])?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        let (v4, v6) = (raw(AddressFamily::Inet)?, raw(AddressFamily::Inet6)?);
        Ok(Self { wire, v4, v6, arrived: 0 })
    }

    /// Sends a frame to the host.
    pub(super) fn come(&mut self, frame: &[u8], is_ip: bool) -> Result<()> {
        self.arrived += u64::from(is_ip);
        self.wire.send(frame)
    }

    /// Sends an IP packet from the host.
    pub(super) fn go(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        let sent = match to {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
                sendto(self.v4.as_raw_fd(), packet, &to, MsgFlags::empty())
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
                sendto(self.v6.as_raw_fd(), packet, &to, MsgFlags::empty())
            }
        };
        match sent {
            // That a filter drops a packet, its sender is told.
            Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
            Err(errno) => Err(errno).context("cannot send a packet from the host"),
        }
    }

    /// Waits until all frames have come to the host.
    pub(super) fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counter = run(["nft", "-j", "list", "counter", "inet", "observer", "arrived"])?;
            let counter: Value = serde_json::from_str(&counter)?;
            let arrived = counter["nftables"][1]["counter"]["packets"].as_u64().unwrap_or(0);
            if arrived >= self.arrived {
                // The last one may still be on its way through the hooks that follow.
                std::thread::sleep(Duration::from_millis(1));
                ensure!(arrived == self.arrived, "{arrived} packets came, not {}", self.arrived);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{arrived} of {} packets came", self.arrived);
        }
    }
}

/// Forgets all packets and connections.
pub(super) fn clear() -> Result<()> {
    let forget = "flush set inet observer v4\nflush set inet observer v6\n\
                  flush set arp observer askers\n";
    feed(["nft", "-f", "-"], forget)?;
    flush_connections()
}

/// The numbers of the packets that came to the end of their way.
pub(super) fn seen() -> Result<Seen> {
    let (v4, v6) = (numbers("inet", "v4")?, numbers("inet", "v6")?);
    Ok(Seen { v4, v6, arp: strings("arp", "askers")? })
}

/// What came to the end of its way.
pub(super) struct Seen {
    pub(super) v4: BTreeSet<u64>,
    pub(super) v6: BTreeSet<u64>,
    /// By the addresses that ask.
    pub(super) arp: BTreeSet<String>,
}

fn elements(family: &str, set: &str) -> Result<Vec<Value>> {
    let listed = run(["nft", "-j", "list", "set", family, "observer", set])?;
    let listed: Value = serde_json::from_str(&listed)?;
    Ok(listed["nftables"][1]["set"]["elem"].as_array().cloned().unwrap_or_default())
}

fn numbers(family: &str, set: &str) -> Result<BTreeSet<u64>> {
    Ok(elements(family, set)?.iter().filter_map(Value::as_u64).collect())
}

fn strings(family: &str, set: &str) -> Result<BTreeSet<String>> {
    Ok(elements(family, set)?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// A socket that sends whole IP packets.
fn raw(family: AddressFamily) -> Result<OwnedFd> {
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .context("cannot make a raw socket")?;
    setsockopt(&raw, sockopt::Mark, &MARK).context("cannot mark packets")?;
    Ok(raw)
}

/// Makes connection tracking forget all connections of this namespace.
fn flush_connections() -> Result<()> {
    /// `IPCTNL_MSG_CT_DELETE` of the subsystem `NFNL_SUBSYS_CTNETLINK`, without attributes.
    const FLUSH: u16 = 1 << 8 | 2;
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    const FLAGS: u16 = 1 | 4;
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut message = 20_u32.to_ne_bytes().to_vec();
    message.extend(FLUSH.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 12]);
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 64];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    ensure!(length >= 20 && answer[16..20] == [0; 4], "connections are not forgotten");
    Ok(())
}
