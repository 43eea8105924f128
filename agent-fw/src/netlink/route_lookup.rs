//! What the routing tables and neighbours of this host say of a packet.

use crate::model::firewall::TCP;
use crate::model::{MacAddr, Port};
use crate::netlink::message::{attribute, attributes, number};
use crate::netlink::{link, message};
use nix::errno::Errno;
use std::net::IpAddr;

/// What routing goes by, of a TCP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    /// Where it comes from; of a packet that this host sends, routing chooses it where it is open.
    pub(crate) from: Option<IpAddr>,
    /// Where it goes.
    pub(crate) to: IpAddr,
    /// From which port to which; none, of a packet of which routing knows no ports.
    pub(crate) ports: Option<(Port, Port)>,
    /// Its mark.
    pub(crate) mark: u32,
    /// The interface that it comes in by, or that it has to go out by.
    pub(crate) interface: Option<u32>,
}

impl Flow {
    /// Any packet to this address.
    pub(crate) fn to(to: IpAddr) -> Self {
        Self { from: None, to, ports: None, mark: 0, interface: None }
    }

    /// The same, by this interface.
    pub(crate) fn by(self, interface: u32) -> Self {
        Self { interface: Some(interface), ..self }
    }

    /// `struct rtmsg` of this family, with the lengths of destination and source, and what they are.
    fn request(&self, direction: u16) -> Vec<u8> {
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut bytes = vec![0; ROUTE_BYTES];
        bytes[..3].copy_from_slice(&[family(self.to), bits(self.to), self.from.map_or(0, bits)]);
        let mut add = |kind, value: &[u8]| bytes.extend(attribute(kind, value));
        add(RTA_DST, &octets(self.to));
        if let Some(from) = self.from {
            add(RTA_SRC, &octets(from));
        }
        if let Some(interface) = self.interface {
            add(direction, &interface.to_ne_bytes());
        }
        if self.mark != 0 {
            add(RTA_MARK, &self.mark.to_ne_bytes());
        }
        if let Some((from, to)) = self.ports {
            add(RTA_IP_PROTO, &[TCP]);
            add(RTA_SPORT, &from.0.to_be_bytes());
            add(RTA_DPORT, &to.0.to_be_bytes());
        }
        bytes
    }
}

/// The way by which a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RouteLookup {
    /// The interface's index.
    pub(crate) interface: u32,
    /// This host's address by which it leaves.
    pub(crate) own: Option<IpAddr>,
    /// The neighbour that it goes through.
    pub(crate) neighbour: IpAddr,
}

/// Attributes of linux/rtnetlink.h; the last three since 4.18, before which rules cannot ask for
/// them.
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
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

/// The way by which this host sends a packet.
pub(crate) fn of_leaving(flow: &Flow) -> nix::Result<RouteLookup> {
    let found = message::get(libc::RTM_GETROUTE, &flow.request(RTA_OIF))?;
    let body = found.first().and_then(|body| body.get(ROUTE_BYTES..)).ok_or(Errno::ENETUNREACH)?;
    let find = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    // A gateway of the other version of IP: two bytes of family, then the address.
    let gateway = || find(RTA_GATEWAY).or_else(|| find(RTA_VIA)?.get(2..));
    Ok(RouteLookup {
        interface: find(RTA_OIF).and_then(number).ok_or(Errno::ENETUNREACH)?,
        own: find(RTA_PREFSRC).and_then(address),
        neighbour: gateway().and_then(address).unwrap_or(flow.to),
    })
}

/// What routing says of a packet that comes in.
pub(crate) fn of_incoming(flow: &Flow) -> nix::Result<()> {
    message::get(libc::RTM_GETROUTE, &flow.request(RTA_IIF)).map(drop)
}

/// The MAC addresses of what comes in from an address by Ethernet: the neighbour's, and that of this
/// host's interface.
pub fn macs_towards(source: IpAddr) -> Option<(MacAddr, MacAddr)> {
    let way = of_leaving(&Flow::to(source)).ok()?;
    let all = link::list().ok()?;
    let own = all.iter().find(|interface| interface.index == way.interface)?.mac?;
    Some((mac_of(way.neighbour, way.interface)?, MacAddr(own)))
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
