//! The routes of this host: by which interfaces a source can be expected.

use crate::model::{AddressRange, AddressSet};
use crate::netlink::message;
use crate::netlink::message::{attributes, number};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct rtmsg`, and attributes, of linux/rtnetlink.h.
const ROUTE_BYTES: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;
/// `AF_INET`, `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// Every route to other hosts, of every table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes(BTreeSet<(IpNet, u32)>);

impl Routes {
    /// Reads them.
    pub fn read() -> anyhow::Result<Self> {
        let mut routes = BTreeSet::new();
        for family in FAMILIES {
            let mut request = [0; ROUTE_BYTES];
            request[0] = family;
            // A kernel without IPv6 has none of its routes.
            let found = message::dump(libc::RTM_GETROUTE, &request).unwrap_or_default();
            routes.extend(found.iter().filter_map(|body| parse(body)).flatten());
        }
        Ok(Self(routes))
    }

    /// The indices of the interfaces by which some route leads to this address.
    pub fn towards(&self, address: IpAddr) -> BTreeSet<u32> {
        let leads = self.0.iter().filter(|(prefix, _)| prefix.contains(&address));
        leads.map(|(_, interface)| *interface).collect()
    }
}

/// The addresses at which this host takes packets itself, by its routing tables.
pub(crate) fn local_addresses() -> AddressSet {
    let of_family = |family| {
        let mut request = [0; ROUTE_BYTES];
        request[0] = family;
        message::dump(libc::RTM_GETROUTE, &request).unwrap_or_default()
    };
    let routes = FAMILIES.into_iter().flat_map(of_family);
    let prefixes = routes.filter_map(|body| prefix(&body, LOCAL));
    let range = |prefix| match prefix {
        IpNet::V4(prefix) => AddressRange::from(prefix),
        IpNet::V6(prefix) => AddressRange::from(prefix),
    };
    prefixes.map(range).collect()
}

/// The prefix that a route leads to, with each interface that it leads by.
fn parse(body: &[u8]) -> Option<Vec<(IpNet, u32)>> {
    let prefix = prefix(body, UNICAST)?;
    let find = |wanted| {
        let mut all = attributes(body.get(ROUTE_BYTES..).unwrap_or_default());
        all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let hops = find(RTA_MULTIPATH).map(next_hops).unwrap_or_default();
    let interfaces = find(RTA_OIF).and_then(number).into_iter().chain(hops);
    Some(interfaces.map(|interface| (prefix, interface)).collect())
}

/// The prefix that a route of this type leads to.
fn prefix(body: &[u8], wanted: u8) -> Option<IpNet> {
    let [family, length, ..] = *body else { return None };
    if *body.get(7)? != wanted {
        return None;
    }
    let mut all = attributes(body.get(ROUTE_BYTES..).unwrap_or_default());
    let octets = all.find(|(kind, _)| *kind == RTA_DST).map(|(_, value)| value).unwrap_or_default();
    let address = match family {
        2 => IpAddr::V4(octets.try_into().map_or(Ipv4Addr::UNSPECIFIED, <[u8; 4]>::into)),
        _ => IpAddr::V6(octets.try_into().map_or(Ipv6Addr::UNSPECIFIED, <[u8; 16]>::into)),
    };
    IpNet::new(address, length).ok()
}

/// The interfaces in a run of `struct rtnexthop`: each has its length, flags, hops, interface, and
/// attributes.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some([a, b, ..]) = bytes.first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        found.extend(bytes.get(4..).and_then(number));
        bytes = bytes.get(length.next_multiple_of(4).max(8)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::attribute;

    fn message(family: u8, length: u8, kind: u8, rest: &[Vec<u8>]) -> Vec<u8> {
        [vec![family, length, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0], rest.concat()].concat()
    }

    #[test]
    fn a_route_leads_by_its_interface_or_by_those_of_its_next_hops() {
        let plain = [attribute(RTA_DST, &[192, 0, 2, 0]), attribute(RTA_OIF, &7_u32.to_ne_bytes())];
        let hop = |index: u32| {
            let gateway = attribute(5, &[10, 0, 0, 1]);
            [&16_u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes(), &gateway].concat()
        };
        let hops = [hop(3), hop(4)].concat();
        let messages = [
            message(2, 24, UNICAST, &plain),
            message(10, 0, UNICAST, &[attribute(RTA_MULTIPATH, &hops)]),
            // A broadcast address.
            message(2, 24, 3, &plain),
        ];
        let routes = Routes(messages.iter().filter_map(|body| parse(body)).flatten().collect());
        let towards = |text: &str| routes.towards(text.parse().expect("an address"));
        assert_eq!(towards("192.0.2.9"), BTreeSet::from([7]));
        assert_eq!(towards("192.0.3.9"), BTreeSet::new());
        assert_eq!(towards("2001:db8::1"), BTreeSet::from([3, 4]));
        assert_eq!(parse(&[2, 24, 0]), None);
    }
}
