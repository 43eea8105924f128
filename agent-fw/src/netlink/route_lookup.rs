//! What the routing tables and neighbours of this host say of a source.

use crate::model::MacAddr;
use crate::netlink::message::{attribute, attributes, number};
use crate::netlink::{link, message};
use nix::errno::Errno;
use std::net::IpAddr;

/// The way back to a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    /// The interface's index.
    pub(crate) interface: u32,
    /// This host's address by which it answers.
    pub(crate) own: Option<IpAddr>,
    /// The neighbour that packets go through.
    pub(crate) neighbour: IpAddr,
}

/// Attributes of linux/rtnetlink.h.
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
/// `struct rtmsg`, `struct ndmsg`.
const ROUTE_BYTES: usize = 12;
const NEIGHBOUR_BYTES: usize = 12;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    // AF_INET, AF_INET6
    if address.is_ipv4() { 2 } else { 10 }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?));
    v4().or_else(v6)
}

/// `struct rtmsg` of this family, with the lengths of destination and source.
fn request(to: IpAddr, from: Option<IpAddr>) -> Vec<u8> {
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut bytes = vec![0; ROUTE_BYTES];
    bytes[..3].copy_from_slice(&[family(to), bits(to), from.map_or(0, bits)]);
    bytes.extend(attribute(RTA_DST, &octets(to)));
    bytes.extend(from.map(|from| attribute(RTA_SRC, &octets(from))).unwrap_or_default());
    bytes
}

/// The way by which this host would answer a source; by this interface, where one is named.
pub(crate) fn back_to(source: IpAddr, by: Option<u32>) -> nix::Result<Way> {
    let mut request = request(source, None);
    request.extend(by.into_iter().flat_map(|index| attribute(RTA_OIF, &index.to_ne_bytes())));
    let found = message::get(libc::RTM_GETROUTE, &request)?;
    let body = found.first().and_then(|body| body.get(ROUTE_BYTES..)).ok_or(Errno::ENETUNREACH)?;
    let find = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    Ok(Way {
        interface: find(RTA_OIF).and_then(number).ok_or(Errno::ENETUNREACH)?,
        own: find(RTA_PREFSRC).and_then(address),
        neighbour: find(RTA_GATEWAY).and_then(address).unwrap_or(source),
    })
}

/// The MAC addresses of what comes in from an address by Ethernet: the neighbour's, and that of this
/// host's interface.
pub fn macs_towards(source: IpAddr) -> Option<(MacAddr, MacAddr)> {
    let way = back_to(source, None).ok()?;
    let all = link::list().ok()?;
    let own = all.iter().find(|interface| interface.index == way.interface)?.mac?;
    Some((mac_of(way.neighbour, way.interface)?, MacAddr(own)))
}

/// What routing says of a packet that comes in.
pub(crate) fn of_incoming(source: IpAddr, to: IpAddr, interface: u32) -> nix::Result<()> {
    let mut request = request(to, Some(source));
    request.extend(attribute(RTA_IIF, &interface.to_ne_bytes()));
    message::get(libc::RTM_GETROUTE, &request).map(drop)
}

/// The MAC address of a neighbour, where this host knows it.
pub(crate) fn mac_of(neighbour: IpAddr, interface: u32) -> Option<MacAddr> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let mut request = vec![0; NEIGHBOUR_BYTES];
    request[0] = family(neighbour);
    let all = message::dump(libc::RTM_GETNEIGH, &request).ok()?;
    all.iter().find_map(|body| {
        let is_there = number(body.get(4..)?)? == interface;
        let body = body.get(NEIGHBOUR_BYTES..)?;
        let find = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
        let is_it = address(find(NDA_DST)?)? == neighbour;
        let mac = find(NDA_LLADDR)?.try_into().ok()?;
        (is_there && is_it).then_some(MacAddr(mac))
    })
}
