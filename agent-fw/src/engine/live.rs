//! What this host's sockets are doing now: the services that listen, the sessions that stand.

use crate::model::firewall::{TCP, UDP};
use crate::model::{AddressSet, MacAddr};
use crate::netlink::address;
use crate::system::sockets;
use crate::system::sockets::{Protocol, Socket};
use crate::trace;
use crate::trace::{Entry, Memory, Opener, Tracking};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// How long a UDP socket has to be there that may be a client's, to be taken for a service.
const LASTING: Duration = Duration::from_secs(2);

/// A session with another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its protocol.
    pub protocol: Protocol,
    /// This host's end.
    pub local: SocketAddr,
    /// The other end, as rules see it.
    pub remote: SocketAddr,
    /// Who may have opened it: one of the two, where that is known.
    pub openers: Vec<Opener>,
    /// What connection tracking knows of it, if anything.
    pub entry: Option<Entry>,
}

/// All that there is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveSessions {
    /// Sockets that take packets from anywhere, but for loopback's.
    pub services: Vec<Socket>,
    /// Sessions with other hosts.
    pub sessions: Vec<Session>,
    /// This host's addresses.
    pub own: AddressSet,
    /// Whether connection tracking takes up a TCP session in its middle.
    pub is_picked_up: bool,
}

impl Protocol {
    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl LiveSessions {
    /// Looks.
    pub fn read() -> anyhow::Result<Self> {
        let own = address::outward()?;
        let ephemeral = sockets::ephemeral_ports()?;
        let mut tracking = Tracking::open()?;
        let all = sockets::list()?;
        let is_local = |address: IpAddr| address.is_loopback() || own.contains(address);
        let mut services = all.clone();
        services.retain(|socket| socket.remote.is_none() && !socket.local.ip().is_loopback());
        let mut sessions = Vec::new();
        for socket in &all {
            let Some(remote) = socket.remote.filter(|remote| !is_local(remote.ip())) else {
                continue;
            };
            let Socket { protocol, local, .. } = *socket;
            let entry = tracking.entry(protocol.number(), local, remote)?;
            let openers = match entry {
                Some(entry) => vec![entry.opener],
                None => openers(socket, &all, &ephemeral),
            };
            let remote = entry.map_or(remote, |entry| entry.remote);
            sessions.push(Session { protocol, local, remote, openers, entry });
        }
        Ok(Self { services, sessions, own, is_picked_up: is_picked_up() })
    }

    /// Makes sessions known to connection tracking that it has not seen: rules that let answers pass
    /// would otherwise take the next packet for the first, whoever sends it.
    pub fn keep(&self) -> anyhow::Result<()> {
        let new: Vec<(&Session, Opener)> = self
            .sessions
            .iter()
            .filter_map(|session| Some((session, session.to_keep()?)))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut memory = Memory::open()?;
        for (Session { protocol, local, remote, .. }, opener) in new {
            memory.keep(protocol.number(), opener, *local, *remote).with_context(|| {
                format!("connection tracking does not take up {protocol} from {remote} to {local}")
            })?;
        }
        Ok(())
    }

    /// Takes away UDP sockets that may be a client's, and are gone after a while: without a
    /// connection, and at a port that sockets get which are not given one. Some servers are there,
    /// too (WireGuard, mosh), and stay.
    pub fn forget_passing_clients(&mut self) -> anyhow::Result<()> {
        let ephemeral = sockets::ephemeral_ports()?;
        let may_pass = |socket: &Socket| {
            socket.protocol == Protocol::Udp && ephemeral.contains(&socket.port().0)
        };
        if self.services.iter().any(may_pass) {
            std::thread::sleep(LASTING);
            let there: BTreeSet<Socket> = sockets::list()?.into_iter().collect();
            self.services.retain(|socket| !may_pass(socket) || there.contains(socket));
        }
        Ok(())
    }
}

/// Who may have opened a session that connection tracking does not know. Where something listens on
/// its port here, the other end has. A port that sockets get which are not given one is a client's.
/// Any other port may be that of a server that no longer listens (`sshd` that is being restarted), or
/// of a client that has chosen it (NFS).
fn openers(session: &Socket, all: &[Socket], ephemeral: &RangeInclusive<u16>) -> Vec<Opener> {
    let is_its_server = |socket: &&Socket| {
        let is_there =
            socket.local.ip().is_unspecified() || socket.local.ip() == session.local.ip();
        socket.remote.is_none()
            && (socket.protocol, socket.port()) == (session.protocol, session.port())
            && is_there
    };
    if all.iter().any(|socket| is_its_server(&socket)) {
        vec![Opener::There]
    } else if ephemeral.contains(&session.port().0) {
        vec![Opener::Here]
    } else {
        vec![Opener::Here, Opener::There]
    }
}

fn is_picked_up() -> bool {
    let loose = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_loose");
    // Without the file, nothing is tracked yet; then it will be as by default.
    loose.map_or(true, |value| value.trim() != "0")
}

impl Session {
    /// Who has opened it, where connection tracking can be told.
    pub fn to_keep(&self) -> Option<Opener> {
        match self.openers.as_slice() {
            [opener] if self.entry.is_none() => Some(*opener),
            _ => None,
        }
    }

    /// The MAC addresses that its incoming packets have.
    pub fn macs(&self) -> Option<(MacAddr, MacAddr)> {
        trace::macs_towards(self.remote.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opened_a_session_is_told_by_its_port_here() {
        let socket = |local: &str, remote: Option<&str>| Socket {
            protocol: Protocol::Tcp,
            local: local.parse().expect("an address"),
            remote: remote.map(|remote| remote.parse().expect("an address")),
            inode: 1,
        };
        let all = [socket("[::]:22", None), socket("192.0.2.1:40000", None)];
        let of = |local: &str| {
            openers(&socket(local, Some("198.51.100.7:443")), &all, &(32_768..=60_999))
        };
        assert_eq!(of("192.0.2.1:22"), [Opener::There]);
        assert_eq!(of("192.0.2.1:40000"), [Opener::There]);
        assert_eq!(of("192.0.2.2:40000"), [Opener::Here]);
        assert_eq!(of("192.0.2.1:800"), [Opener::Here, Opener::There]);
    }
}
