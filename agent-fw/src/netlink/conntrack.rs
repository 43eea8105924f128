//! A tracked connection that stands for one of the agent's, so that what is sent on it, and errors
//! about it, are to the host's rules what they would be in earnest.
//!
//! It is taken back when it is dropped; if this process is killed before, it expires.

use crate::model::Port;
use crate::model::firewall::TCP;
use crate::netlink::message::attribute;
use crate::netlink::nfnetlink::{Connection, nested, numbered};
use nix::errno::Errno;
use std::net::IpAddr;

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE`.
pub(crate) const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
/// Seconds until it expires: it is needed for milliseconds.
const EXPIRY: u32 = 3;
/// Attributes of linux/netfilter/nfnetlink_conntrack.h.
pub(crate) const TUPLE_ORIGINAL: u16 = 1;
pub(crate) const TUPLE_REPLY: u16 = 2;
pub(crate) const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
pub(crate) const TIMEOUT: u16 = 7;
/// `IPS_CONFIRMED`, which every entry is and has to be called; with `IPS_SEEN_REPLY` and
/// `IPS_ASSURED`, what a connection is that stands; `IPS_FIXED_TIMEOUT`: no packet prolongs it.
const CONFIRMED: u32 = 1 << 3;
pub(crate) const ESTABLISHED: u32 = CONFIRMED | 1 << 1 | 1 << 2;
const FIXED_TIMEOUT: u32 = 1 << 10;

/// How far the connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The other side has asked for it.
    Asked,
    /// It stands.
    Established,
}

/// The entry, as long as it is held.
pub(crate) struct Tracked {
    netfilter: Connection,
    family: u8,
    tuple: Vec<u8>,
}

impl Tracked {
    /// Enters a TCP connection that another host has opened, to `asked`, which NAT has made `own`.
    /// Fails with EEXIST where there is such a one.
    pub(crate) fn enter(
        remote: (IpAddr, Port),
        asked: (IpAddr, Port),
        own: (IpAddr, Port),
        state: State,
    ) -> nix::Result<Self> {
        const ALWAYS: u32 = CONFIRMED | FIXED_TIMEOUT;
        let mut netfilter = Connection::open().map_err(|_| Errno::EPROTONOSUPPORT)?;
        // AF_INET, AF_INET6
        let family = if own.0.is_ipv4() { 2 } else { 10 };
        let tuple = tuple(TUPLE_ORIGINAL, TCP, remote, asked);
        let status = match state {
            State::Asked => ALWAYS,
            State::Established => ALWAYS | ESTABLISHED,
        };
        let nat = if asked == own { Vec::new() } else { destination_nat(own) };
        let entry = [
            tuple.clone(),
            // NAT changes it.
            self::tuple(TUPLE_REPLY, TCP, asked, remote),
            nat,
            numbered(STATUS, status),
            numbered(TIMEOUT, EXPIRY),
            tcp_state(state),
        ];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        netfilter.order(NEW, flags, family, &entry.concat())?;
        Ok(Self { netfilter, family, tuple })
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Should that fail, it expires.
        let _ = self.netfilter.order(DELETE, 0, self.family, &self.tuple);
    }
}

/// How far a TCP connection has come, of which no window is known.
pub(crate) fn tcp_state(state: State) -> Vec<u8> {
    /// `IP_CT_TCP_FLAG_BE_LIBERAL` and its mask.
    const LIBERAL: [u8; 2] = [8, 8];
    let state: u8 = match state {
        State::Asked => 1,       // TCP_CONNTRACK_SYN_SENT
        State::Established => 3, // TCP_CONNTRACK_ESTABLISHED
    };
    let tcp = [attribute(1, &[state]), attribute(4, &LIBERAL), attribute(5, &LIBERAL)];
    nested(PROTOCOL_INFO, &[nested(1, &tcp)])
}

/// From where to where.
pub(crate) fn tuple(
    kind: u16,
    protocol: u8,
    (source, source_port): (IpAddr, Port),
    (to, port): (IpAddr, Port),
) -> Vec<u8> {
    let addresses = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            [attribute(1, &source.octets()), attribute(2, &to.octets())]
        }
        (source, to) => [attribute(3, &v6(source)), attribute(4, &v6(to))],
    };
    let ports = [
        attribute(1, &[protocol]),
        attribute(2, &source_port.0.to_be_bytes()),
        attribute(3, &port.0.to_be_bytes()),
    ];
    nested(kind, &[nested(1, &addresses), nested(2, &ports)])
}

/// What NAT has made of the destination.
fn destination_nat((address, port): (IpAddr, Port)) -> Vec<u8> {
    /// `CTA_NAT_DST`; the first and the last address of each version, and ports.
    const NAT: u16 = 13;
    const PORTS: u16 = 3;
    let addresses = match address {
        IpAddr::V4(v4) => [attribute(1, &v4.octets()), attribute(2, &v4.octets())],
        IpAddr::V6(v6) => [attribute(4, &v6.octets()), attribute(5, &v6.octets())],
    };
    let port = port.0.to_be_bytes();
    let ports = nested(PORTS, &[attribute(1, &port), attribute(2, &port)]);
    nested(NAT, &[addresses.concat(), ports])
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
