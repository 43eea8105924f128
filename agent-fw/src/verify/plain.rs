//! What of many values is met most, so that a packet is as plain as there is one.

use super::sample::{Addresses, PacketDirection};
use crate::model::firewall::{ICMP, ICMPV6, TCP, UDP};
use crate::model::packet_set::{Connection, Cube, Field, State, only};
use crate::model::{AddressSet, MacAddr, Ordinal as _, Range, RangeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's flag of the packet that opens a connection.
pub(super) const SYN: u8 = 0x02;

pub(super) fn number<T: TryFrom<u128>>(set: &RangeSet<u128>) -> Option<T> {
    T::try_from(set.ranges().first()?.first()).ok()
}

/// The first of these that a field may have; else the least that it may have, but rather not 0.
pub(super) fn preferred(cube: &Cube, field: Field, usual: &[u128]) -> Option<u16> {
    let values = cube.values(field);
    let found = usual.iter().find(|value| values.contains(**value));
    let least = || number(&values.difference(&only(0))).or_else(|| number(&values));
    found.map_or_else(least, |value| u16::try_from(*value).ok())
}

/// The same, where a field may not have every value.
pub(super) fn bound(cube: &Cube, field: Field, usual: &[u128]) -> Option<u16> {
    if cube.is_free(field) { None } else { preferred(cube, field, usual) }
}

/// What a field has, if it cannot have the usual value.
pub(super) fn other_than(cube: &Cube, field: Field, usual: u128) -> Option<u8> {
    let values = cube.values(field);
    if values.contains(usual) { None } else { number(&values) }
}

/// TCP if it may be that, or another that is met often.
pub(super) fn protocol(cube: &Cube) -> Option<u8> {
    let protocols = cube.values(Field::Protocol);
    let (sources, destinations) = (cube.sources(), cube.destinations());
    let has_v4 = !sources.v4.is_empty() && !destinations.v4.is_empty();
    let usual = [TCP, UDP, if has_v4 { ICMP } else { ICMPV6 }];
    let found = usual.into_iter().find(|usual| protocols.contains((*usual).into()));
    found.or_else(|| number(&protocols))
}

/// What connections there are in the first place, with the flags that their packets have in TCP.
const USUAL: [(Connection, &[u8]); 8] = {
    let established = Connection { state: State::Established, is_known: true, ..Connection::OPENS };
    [
        (Connection::OPENS, &[SYN, 0x10, 0x18]),
        (Connection { is_known: true, ..Connection::OPENS }, &[SYN]),
        (Connection::REPLY, &[0x12, 0x10, 0x18, 0x04]),
        (Connection { is_labelled: true, ..Connection::REPLY }, &[0x12, 0x10, 0x18, 0x04]),
        (established, &[0x10, 0x18, 0x11, 0x04]),
        (Connection { state: State::Related, ..Connection::REPLY }, &[]),
        (Connection { state: State::Invalid, ..Connection::OPENS }, &[0x12, 0x04, 0x00, 0x3f]),
        (Connection { state: State::Untracked, ..Connection::OPENS }, &[SYN, 0x10]),
    ]
};

/// What connection tracking knows of a packet, and the flags that go with it.
pub(super) fn connection_and_flags(cube: &Cube, protocol: u8) -> (Option<Connection>, Option<u8>) {
    let flags_of = |usual: &[u8]| -> Option<u8> {
        let usual: Vec<u128> = usual.iter().copied().map(u128::from).collect();
        bound(cube, Field::TcpFlags, &usual).and_then(|flags| flags.try_into().ok())
    };
    if cube.is_free(Field::Connection) {
        return (None, flags_of(USUAL[0].1));
    }
    let values = cube.values(Field::Connection);
    let is_there = |(connection, _): &&(Connection, &[u8])| values.intersects(&connection.number());
    let has_flags = |(_, usual): &&(Connection, &[u8])| {
        let flags = cube.values(Field::TcpFlags);
        protocol != TCP || usual.iter().any(|usual| flags.contains((*usual).into()))
    };
    let there = || USUAL.iter().filter(is_there);
    let usual = there().find(has_flags).or_else(|| there().next());
    if let Some((connection, usual)) = usual {
        return (Some(*connection), flags_of(usual));
    }
    let first = Connection::all().find(|each| values.intersects(&each.number()));
    (first, flags_of(&[]))
}

/// The message of ICMP that such a packet mostly is: type and code in one number.
pub(super) fn message(protocol: u8, connection: Option<Connection>) -> Option<u128> {
    let goes_back = connection.is_some_and(|c| c.is_reply || c.state == State::Invalid);
    let kind = match (protocol, goes_back) {
        (ICMP, false) => 8,
        (ICMP, true) => 0,
        (ICMPV6, false) => 128,
        (ICMPV6, true) => 129,
        _ => return None,
    };
    Some(kind << 8)
}

pub(super) fn addresses(
    cube: &Cube,
    way: PacketDirection,
    protocol: u8,
    own: &AddressSet,
) -> Option<Addresses> {
    let (sources, destinations) = (cube.sources(), cube.destinations());
    let none = AddressSet::default();
    let [here, there] = match way {
        PacketDirection::Incoming => [&none, own],
        PacketDirection::Outgoing => [own, &none],
        PacketDirection::Forwarded => [&none, &none],
    };
    let v4 = v4(&sources.v4, &here.v4).zip(v4(&destinations.v4, &there.v4)).map(|(from, to)| {
        let is_plain = is_plain_v4(from) && is_plain_v4(to);
        let ends = Addresses {
            source: from.into(),
            is_any_source: sources.v4.is_all(),
            destination: to.into(),
            is_any_destination: destinations.v4.is_all(),
        };
        (ends, is_plain && protocol != ICMPV6)
    });
    let v6 = v6(&sources.v6, &here.v6).zip(v6(&destinations.v6, &there.v6)).map(|(from, to)| {
        let is_plain = is_plain_v6(from) && is_plain_v6(to);
        let ends = Addresses {
            source: from.into(),
            is_any_source: sources.v6.is_all(),
            destination: to.into(),
            is_any_destination: destinations.v6.is_all(),
        };
        (ends, is_plain && protocol != ICMP)
    });
    let found = [v4, v6].into_iter().flatten();
    let plain = found.clone().find(|(_, is_plain)| *is_plain);
    plain.or_else(|| found.clone().next()).map(|(ends, _)| ends)
}

/// The least strange address of a set, if possible one of these.
fn v4(set: &RangeSet<Ipv4Addr>, own: &RangeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let usual = Ipv4Addr::new(198, 51, 100, 7);
    let ours = set.intersection(own);
    let ours = ours.ranges().iter().map(Range::first);
    let ends = set.ranges().iter().flat_map(|range| [range.first(), range.last()]);
    let all: Vec<Ipv4Addr> = ours.chain(set.contains(usual).then_some(usual)).chain(ends).collect();
    all.iter().copied().find(|address| is_plain_v4(*address)).or_else(|| all.first().copied())
}

fn v6(set: &RangeSet<Ipv6Addr>, own: &RangeSet<Ipv6Addr>) -> Option<Ipv6Addr> {
    let usual = Ipv6Addr::new(0x2001, 0xdb8, 0x5a, 0, 0, 0, 0, 7);
    let ours = set.intersection(own);
    let ours = ours.ranges().iter().map(Range::first);
    let ends = set.ranges().iter().flat_map(|range| [range.first(), range.last()]);
    let all: Vec<Ipv6Addr> = ours.chain(set.contains(usual).then_some(usual)).chain(ends).collect();
    all.iter().copied().find(|address| is_plain_v6(*address)).or_else(|| all.first().copied())
}

/// Whether it is an address as others have it.
pub(super) fn is_plain(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_plain_v4(v4),
        IpAddr::V6(v6) => is_plain_v6(v6),
    }
}

/// Whether a router would forward it.
fn is_plain_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first) && !address.is_loopback() && !address.is_link_local()
}

/// Whether it is of the addresses that are given out, or a site's own.
fn is_plain_v6(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000 || address.is_unique_local()
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A unicast address of a set, if there is one.
pub(super) fn mac(set: &RangeSet<u128>) -> Option<MacAddr> {
    let usual = MacAddr([2, 0, 0, 0, 0x5a, 7]);
    let of = |number: u128| MacAddr::from_bits(number.try_into().ok()?);
    let ends = set.ranges().iter().flat_map(|range| [range.last(), range.first()]);
    let all: Vec<MacAddr> = ends.filter_map(of).collect();
    let plain = |mac: &&MacAddr| mac.0[0] & 1 == 0 && mac.0 != [0; 6];
    if set.contains(usual.bits().into()) {
        return Some(usual);
    }
    all.iter().find(plain).or(all.first()).copied()
}
