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
const MARK: u16 = 8;
const ZONE: u16 = 18;
/// `CTA_TUPLE_ZONE`.
const ZONE_OF_TUPLE: u16 = 3;
pub(crate) const LABELS: u16 = 22;
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

/// The zone that rules have given a connection's packets: they are looked for among those of the same
/// zone alone.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Zones {
    /// That of packets in the direction of the first one.
    pub(crate) original: u16,
    /// That of the answers.
    pub(crate) reply: u16,
}

/// What rules have made the first packet's connection remember.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Imprint {
    /// Whether NAT has changed its destination.
    pub(crate) is_dnat: bool,
    /// The port that the first packet was to when it was first seen, and the one that it is answered
    /// from; none, where they are what they seem.
    pub(crate) ports: Option<(Port, Port)>,
    pub(crate) mark: u32,
    pub(crate) zones: Zones,
    /// As the kernel has them.
    pub(crate) labels: [u8; 16],
}

/// The entry, as long as it is held.
pub(crate) struct Tracked {
    netfilter: Connection,
    family: u8,
    /// What it is found by.
    key: Vec<u8>,
}

impl Tracked {
    /// Enters a TCP connection that another host has opened, to `asked`, and that has arrived at `own`.
    /// Fails with EEXIST where there is such a one.
    pub(crate) fn enter(
        remote: (IpAddr, Port),
        asked: (IpAddr, Port),
        own: (IpAddr, Port),
        state: State,
        imprint: &Imprint,
    ) -> nix::Result<Self> {
        const ALWAYS: u32 = CONFIRMED | FIXED_TIMEOUT;
        let Imprint { is_dnat, ports, mark, zones, labels } = imprint;
        let (asked_port, own_port) = ports.unwrap_or((asked.1, own.1));
        let (asked, own) = if *is_dnat {
            ((asked.0, asked_port), (own.0, own_port))
        } else {
            // Whatever has changed it, was no NAT: an answer is one from where it is said to be.
            ((own.0, asked_port), (own.0, asked_port))
        };
        let mut netfilter = Connection::open().map_err(|_| Errno::EPROTONOSUPPORT)?;
        // AF_INET, AF_INET6
        let family = if own.0.is_ipv4() { 2 } else { 10 };
        let is_one_zone = zones.original == zones.reply;
        let of_direction = |zone| if is_one_zone { 0 } else { zone };
        let of_both = zone(ZONE, if is_one_zone { zones.original } else { 0 });
        let original = tuple_in(TUPLE_ORIGINAL, of_direction(zones.original), TCP, remote, asked);
        let key = [original, of_both].concat();
        let status = match state {
            State::Asked => ALWAYS,
            State::Established => ALWAYS | ESTABLISHED,
        };
        let nat = if asked == own { Vec::new() } else { destination_nat(own) };
        let entry = [
            key.clone(),
            // NAT changes it.
            tuple_in(TUPLE_REPLY, of_direction(zones.reply), TCP, asked, remote),
            nat,
            // A kernel without marks, zones or labels knows none of their attributes.
            if *mark == 0 { Vec::new() } else { numbered(MARK, *mark) },
            if *labels == [0; 16] { Vec::new() } else { attribute(LABELS, labels) },
            numbered(STATUS, status),
            numbered(TIMEOUT, EXPIRY),
            tcp_state(state),
        ];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        netfilter.order(NEW, flags, family, &entry.concat())?;
        Ok(Self { netfilter, family, key })
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Should that fail, it expires.
        let _ = self.netfilter.order(DELETE, 0, self.family, &self.key);
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

/// A zone, where it is not the usual one.
fn zone(kind: u16, zone: u16) -> Vec<u8> {
    if zone == 0 { Vec::new() } else { attribute(kind, &zone.to_be_bytes()) }
}

/// From where to where.
pub(crate) fn tuple(kind: u16, protocol: u8, from: (IpAddr, Port), to: (IpAddr, Port)) -> Vec<u8> {
    tuple_in(kind, 0, protocol, from, to)
}

/// The same, in a zone of this direction alone.
fn tuple_in(
    kind: u16,
    zone: u16,
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
    nested(kind, &[nested(1, &addresses), nested(2, &ports), self::zone(ZONE_OF_TUPLE, zone)])
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
