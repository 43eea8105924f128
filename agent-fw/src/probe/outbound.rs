//! Asks the running kernel whether this host's own rules let a connection to the outside begin. The
//! packet is caught behind the last of them; nothing is sent.

use super::frame::{Syn, datagram};
use super::netfilter::Connection;
use super::road::{self, Road};
use super::snare::{Protocol, Snare};
use super::{Pinned, Token, base, follow, way};
use crate::policy::Port;
use anyhow::{Context as _, anyhow, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;

/// An address for documentation (RFC 5737), which stands for any outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Questions about packets that this host sends.
pub struct Outbound;

impl Outbound {
    /// Whether a TCP connection to this port of an address outside can begin.
    pub fn tcp(port: Port) -> anyhow::Result<Road> {
        ask(Protocol::Tcp, |source, source_port, number| {
            let (source, destination) = (IpAddr::V4(source), IpAddr::V4(OUTSIDE));
            Syn { source, source_port, destination, port, sequence: number }.packet()
        })
    }

    /// Whether a UDP datagram to this port of an address outside gets out.
    pub fn udp(port: Port) -> anyhow::Result<Road> {
        ask(Protocol::Udp, |source, source_port, number| {
            Some(datagram((source, source_port), (OUTSIDE, port), number))
        })
    }
}

/// `packet` makes a packet from this address and port, with this number.
fn ask(
    protocol: Protocol,
    packet: impl Fn(Ipv4Addr, Port, u32) -> Option<Vec<u8>>,
) -> anyhow::Result<Road> {
    let way = way::back_to(OUTSIDE.into(), None)
        .map_err(|errno| anyhow!("this host has no route to outside ({errno})"))?;
    let Some(IpAddr::V4(source)) = way.own else {
        bail!("this host has no IPv4 address towards outside");
    };
    let [a, b, c, d, e, f, ..] = RandomState::new().hash_one(source).to_ne_bytes();
    let source_port = Port(u16::from_ne_bytes([a, b]) | 0x8000);
    let token = Token { protocol, source_port, number: u32::from_ne_bytes([c, d, e, f]) };
    let mut listener = Connection::to_hear_traces()?;
    let _snare = Snare::set_outbound(protocol, token.number)?;
    let events = {
        let _here = Pinned::to_this_cpu();
        for number in [token.number, token.number.wrapping_add(1)] {
            send(&packet(source, source_port, number).context("two versions of IP")?)?;
        }
        follow(&mut listener, token)?
    };
    let mut connection = Connection::open()?;
    let bases = base::list(&mut connection)?;
    let observed = road::Observed { events, driver: None, routing: Ok(()), sees_entrance: true };
    Ok(Road::of(observed, &bases, &mut connection))
}

/// Sends the packet as a program of this host would, with headers of our own. That a rule stops it
/// is told by its trace, not by this call.
fn send(packet: &[u8]) -> anyhow::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        .context("cannot open a raw socket")?;
    let [a, b, c, d] = OUTSIDE.octets();
    // EPERM is what a rule's drop looks like from here.
    let _ = sendto(socket.as_raw_fd(), packet, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty());
    Ok(())
}
