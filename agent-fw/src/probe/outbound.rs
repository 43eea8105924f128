//! Asks the running kernel whether this host's own rules let a connection to the outside begin. The
//! packet is caught behind the last of them; nothing is sent.

use super::frame::Syn;
use super::netfilter::Connection;
use super::road::{self, Road};
use super::snare::Snare;
use super::{Pinned, base, follow, way};
use crate::policy::Port;
use anyhow::Context as _;
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
    pub fn ask(port: Port) -> anyhow::Result<Road> {
        let way = way::back_to(OUTSIDE.into())
            .map_err(|errno| anyhow::anyhow!("this host has no route to outside ({errno})"))?;
        let source = way.own.context("this host has no address towards outside")?;
        let [a, b, c, d, e, f, ..] = RandomState::new().hash_one(port.0).to_ne_bytes();
        let syn = Syn {
            source,
            source_port: Port(u16::from_ne_bytes([a, b]) | 0x8000),
            destination: IpAddr::V4(OUTSIDE),
            port,
            sequence: u32::from_ne_bytes([c, d, e, f]),
        };
        let after = Syn { sequence: syn.sequence.wrapping_add(1), ..syn };
        let mut listener = Connection::to_hear_traces()?;
        let _snare = Snare::set_outbound(syn.sequence)?;
        let events = {
            let _here = Pinned::to_this_cpu();
            send(&syn)?;
            send(&after)?;
            follow(&mut listener, &syn)?
        };
        let mut connection = Connection::open()?;
        let bases = base::list(&mut connection)?;
        let observed =
            road::Observed { events, driver: None, routing: Ok(()), sees_entrance: true };
        Ok(Road::of(observed, &bases, &mut connection))
    }
}

/// Sends the packet as a program of this host would, with headers of our own. That a rule stops it
/// is told by its trace, not by this call.
fn send(syn: &Syn) -> anyhow::Result<()> {
    let packet = syn.packet().context("addresses of two versions of IP")?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        .context("cannot open a raw socket")?;
    let [a, b, c, d] = OUTSIDE.octets();
    // EPERM is what a rule's drop looks like from here.
    let _ = sendto(socket.as_raw_fd(), &packet, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty());
    Ok(())
}
