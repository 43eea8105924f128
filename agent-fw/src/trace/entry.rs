//! What connection tracking knows of the connections that sockets of this host have.

use crate::model::Port;
use crate::model::firewall::TCP;
use crate::netlink::conntrack::{
    ESTABLISHED, LABELS, NEW, STATUS, State, TIMEOUT, TUPLE_ORIGINAL, TUPLE_REPLY, tcp_state, tuple,
};
use crate::netlink::nfnetlink::{Connection, find, numbered};
use crate::nft::OPENED_BY_BYPASS;
use nix::errno::Errno;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// Who opened a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Opener {
    /// The other end: it came in.
    There,
    /// This host: it went out.
    Here,
}

/// What is known of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Who opened it.
    pub opener: Opener,
    /// The other end's address as rules at `input` and `output` see it: NAT may change the one that
    /// the socket has.
    pub remote: SocketAddr,
    /// Whether a Bypass of agent-fw's let its first packet through.
    pub opened_by_bypass: bool,
}

/// Connection tracking, where this network namespace has any.
pub struct Tracking(Option<Connection>);

/// `IPCTNL_MSG_CT_GET` of `NFNL_SUBSYS_CTNETLINK`.
pub(super) const GET: u16 = 1 << 8 | 1;

impl Tracking {
    /// Opens it. Where nothing is tracked, no module is loaded to ask about it.
    pub fn open() -> anyhow::Result<Self> {
        const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
        let count = fs::read_to_string(COUNT).unwrap_or_default();
        let tracks = count.trim().parse::<u64>().is_ok_and(|count| count > 0);
        tracks.then(Connection::open).transpose().map(Self)
    }

    /// What is known of a socket's connection.
    pub fn entry(
        &mut self,
        protocol: u8,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> anyhow::Result<Option<Entry>> {
        let Some(netfilter) = &mut self.0 else { return Ok(None) };
        let asked = tuple(TUPLE_ORIGINAL, protocol, end(local), end(remote));
        match netfilter.get(GET, family(local), &asked) {
            Ok(body) => Ok(parse(&body, local)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(anyhow::anyhow!("cannot ask connection tracking: {errno}")),
        }
    }
}

/// Makes sessions known to connection tracking that began before it looked, so that a packet is to
/// rules what it would have been from the beginning on, whoever sends the next one.
pub struct Memory(Connection);

impl Memory {
    /// Opens it.
    pub fn open() -> anyhow::Result<Self> {
        Connection::open().map(Self)
    }

    /// Makes a session known. It stays for as long as it would if it had been known before.
    pub fn keep(
        &mut self,
        protocol: u8,
        opener: Opener,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> nix::Result<()> {
        /// Seconds without a packet after which connections are forgotten, by default.
        const TCP_EXPIRY: u32 = 432_000;
        const UDP_EXPIRY: u32 = 120;
        let (from, to) = match opener {
            Opener::Here => (end(local), end(remote)),
            Opener::There => (end(remote), end(local)),
        };
        let is_tcp = protocol == TCP;
        let entry = [
            tuple(TUPLE_ORIGINAL, protocol, from, to),
            tuple(TUPLE_REPLY, protocol, to, from),
            numbered(STATUS, ESTABLISHED),
            numbered(TIMEOUT, if is_tcp { TCP_EXPIRY } else { UDP_EXPIRY }),
            if is_tcp { tcp_state(State::Established) } else { Vec::new() },
        ];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        match self.0.order(NEW, flags, family(local), &entry.concat()) {
            // A packet was faster.
            Err(Errno::EEXIST) => Ok(()),
            kept => kept,
        }
    }
}

fn end(at: SocketAddr) -> (IpAddr, Port) {
    (at.ip(), Port(at.port()))
}

fn family(at: SocketAddr) -> u8 {
    // AF_INET, AF_INET6
    if at.is_ipv4() { 2 } else { 10 }
}

fn parse(body: &[u8], local: SocketAddr) -> Option<Entry> {
    let (original, reply) = (find(body, TUPLE_ORIGINAL)?, find(body, TUPLE_REPLY)?);
    let (opened_from, answered_from) = (source_of(original)?, source_of(reply)?);
    // Where the other end's packets come from: what it is at `input` before NAT changes the source
    // there, and what a packet at `output` goes to once NAT has changed its destination.
    let (opener, remote) = if opened_from == local {
        (Opener::Here, answered_from)
    } else {
        (Opener::There, opened_from)
    };
    let (word, bit) = (OPENED_BY_BYPASS / 64, OPENED_BY_BYPASS % 64);
    let labels = find(body, LABELS).unwrap_or_default().chunks_exact(8);
    let labels: Vec<u64> =
        labels.filter_map(|word| Some(u64::from_ne_bytes(*word.first_chunk()?))).collect();
    let word = usize::try_from(word).ok().and_then(|word| labels.get(word));
    let opened_by_bypass = word.is_some_and(|word| word & (1 << bit) != 0);
    Some(Entry { opener, remote, opened_by_bypass })
}

/// Where the packets of one direction come from.
pub(super) fn source_of(tuple: &[u8]) -> Option<SocketAddr> {
    /// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`, the source's address of each version, its port.
    const IP: u16 = 1;
    const PROTOCOL: u16 = 2;
    const V4_SOURCE: u16 = 1;
    const V6_SOURCE: u16 = 3;
    const SOURCE_PORT: u16 = 2;
    let addresses = find(tuple, IP)?;
    let v4 = || Some(IpAddr::from(*find(addresses, V4_SOURCE)?.first_chunk::<4>()?));
    let v6 = || Some(IpAddr::from(*find(addresses, V6_SOURCE)?.first_chunk::<16>()?));
    let port = find(find(tuple, PROTOCOL)?, SOURCE_PORT)?.first_chunk()?;
    Some(SocketAddr::new(v4().or_else(v6)?, u16::from_be_bytes(*port)))
}
