//! Asks the running kernel whether this host's own rules let a packet out. It is caught behind the
//! last of them; nothing is sent.

use crate::model::Port;
use crate::netlink::nfnetlink::Connection;
use crate::netlink::route_lookup::{self, Flow};
use crate::trace::events::Event;
use crate::trace::follow::{Pinned, Token, follow};
use crate::trace::path::PacketTrace;
use crate::trace::probe_rule::Protocol;
use crate::trace::stateful::refuse_to_be_remembered;
use crate::trace::stateful::{Packet, Watched};
use crate::trace::syn::{Syn, datagram};
use crate::trace::trace_table::TraceTable;
use crate::trace::{base_chains, iptables_legacy, path};
use anyhow::{Context as _, anyhow, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto,
    setsockopt, socket, sockopt,
};
use std::ffi::OsString;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// An address for documentation (RFC 5737), which stands for any outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Questions about packets that this host sends. They fail with [`NotAsked`](super::NotAsked) where
/// rules would remember the packet.
pub struct Outbound;

impl Outbound {
    /// Whether a TCP connection to this port of an address outside can begin.
    pub fn tcp(port: Port) -> anyhow::Result<PacketTrace> {
        ask(Protocol::Tcp, |source, source_port, number| {
            let (source, destination) = (IpAddr::V4(source), IpAddr::V4(OUTSIDE));
            Syn { source, source_port, destination, port, sequence: number }.packet()
        })
    }

    /// Whether a UDP datagram to this port of an address outside gets out.
    pub fn udp(port: Port) -> anyhow::Result<PacketTrace> {
        ask(Protocol::Udp, |source, source_port, number| {
            Some(datagram((source, source_port), (OUTSIDE, port), number))
        })
    }
}

/// `packet` makes a packet from this address and port, with this number.
fn ask(
    protocol: Protocol,
    packet: impl Fn(Ipv4Addr, Port, u32) -> Option<Vec<u8>>,
) -> anyhow::Result<PacketTrace> {
    let way = route_lookup::of_leaving(&Flow::to(OUTSIDE.into()))
        .map_err(|errno| anyhow!("this host has no route to outside ({errno})"))?;
    let Some(IpAddr::V4(source)) = way.own else {
        bail!("this host has no IPv4 address towards outside");
    };
    let [a, b, c, d, e, f, ..] = RandomState::new().hash_one(source).to_ne_bytes();
    let source_port = Port(u16::from_ne_bytes([a, b]) | 0x8000);
    let number = u32::from_ne_bytes([c, d, e, f]);
    let made = |number| packet(source, source_port, number).context("two versions of IP");
    let leaves = Packet::made_by_the_kernel(&made(number)?);
    refuse_to_be_remembered(Watched::open()?.outgoing(leaves)?)?;
    let mut listener = Connection::to_hear_traces()?;
    let _snare = TraceTable::set_outbound(protocol, number)?;
    let token = Token { protocol, first: source_port.0.to_be_bytes(), number };
    let departure =
        Departure { from: source.into(), to: OUTSIDE.into(), scope: 0, mark: 0, by: None };
    let mut send = || depart(&mut listener, token, &departure, made);
    let mut connection = Connection::open()?;
    let bases = base_chains::list(&mut connection)?;
    let mut road = PacketTrace::of(path::Observed::leaving(send()?), &bases, &mut connection);
    iptables_legacy::name(&mut road, true, || send().map(drop))?;
    Ok(road)
}

/// How a packet is sent.
pub(super) struct Departure {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// The interface whose addresses of its link alone are meant.
    pub(super) scope: u32,
    /// The mark of the socket.
    pub(super) mark: u32,
    /// The interface that the socket is bound to.
    pub(super) by: Option<String>,
}

impl Departure {
    /// An address as sockets have it.
    fn end(&self, address: IpAddr) -> SockaddrStorage {
        match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {
                SockaddrStorage::from(SocketAddrV6::new(v6, 0, 0, self.scope))
            }
            address => SockaddrStorage::from(SocketAddr::new(address, 0)),
        }
    }
}

/// Sends the packet with the token's number and the one with the next as a program of this host
/// would, with headers of our own, and tells what the first one met.
pub(super) fn depart(
    listener: &mut Connection,
    token: Token,
    departure: &Departure,
    packet: impl Fn(u32) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<Event>> {
    let socket = raw_socket(departure)?;
    let to = departure.end(departure.to);
    let _here = Pinned::to_this_cpu();
    let mut sent = Ok(());
    for number in [token.number, token.number.wrapping_add(1)] {
        let made = packet(number)?;
        sent = sent.and(sendto(socket.as_raw_fd(), &made, &to, MsgFlags::empty()).map(drop));
    }
    let events = follow(listener, token)?;
    // EPERM is what a rule's drop looks like from here, and the trace then tells which.
    match sent {
        Err(errno) if events.is_empty() => Err(anyhow!("it could not be sent ({errno})")),
        _ => Ok(events),
    }
}

/// A socket whose packets bring their headers along. Bound, since routing may go by the source.
fn raw_socket(departure: &Departure) -> anyhow::Result<OwnedFd> {
    let Departure { from, mark, by, .. } = departure;
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .context("cannot open a raw socket")?;
    if *mark != 0 {
        setsockopt(&socket, sockopt::Mark, mark).context("cannot set a packet's mark")?;
    }
    if let Some(name) = by {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(name))
            .with_context(|| format!("cannot send by {name}"))?;
    }
    bind(socket.as_raw_fd(), &departure.end(*from))
        .with_context(|| format!("{from} is no address of this host"))?;
    Ok(socket)
}
