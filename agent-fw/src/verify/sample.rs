//! One packet of many, as plain as there is one.

use crate::model::firewall::{self, Datagram, Firewall, ICMP, ICMPV6, Payload, TCP, UDP};
use crate::model::packet_set::{
    Connection, Cube, ELSEWHERE, ETHERNET, FORWARDED, Field, LOCAL, LOOPBACK, NO, OUTGOING, State,
    only,
};
use crate::model::rule::Direction;
use crate::model::{
    AddressSet, MacAddr, Ordinal as _, Packet, Policy, Port, Range, RangeSet, Transport, Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's flag of the packet that opens a connection.
const SYN: u8 = 0x02;
/// The MAC address of one whose address does not matter.
const SOME_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// A packet. What is `None` may be anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Which way it goes.
    pub way: Way,
    /// The index of the interface that it comes in by, or goes out by; `None` where any other than
    /// loopback will do.
    pub interface: Option<u32>,
    /// The addresses that it goes from and to; `None` for ARP.
    pub addresses: Option<Addresses>,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The source port, or type and code of ICMP.
    pub source_port: Option<u16>,
    /// The destination port.
    pub port: Port,
    /// The TCP flags.
    pub flags: Option<u8>,
    /// What connection tracking knows of it.
    pub connection: Option<Connection>,
    /// The MAC address that it comes from, where that matters.
    pub mac: Option<MacAddr>,
    /// The MAC address that it is sent to, where that matters.
    pub mac_to: Option<MacAddr>,
    /// Whether it comes in by an interface without MAC addresses.
    pub is_without_mac: bool,
    /// Whether it comes in by a VRF's own device.
    pub is_by_vrf: bool,
    /// The type that its source has for routing, if that is none of a router's next hop's.
    pub source_type: Option<u8>,
    /// The type that its destination has for routing, if it is to this host, but not to it alone.
    pub destination_type: Option<u8>,
    /// Whether this host sends it to itself over loopback.
    pub is_loopback: bool,
    /// Who has sent it.
    pub sender: Sender,
}

/// Where a packet goes from and to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// The source.
    pub source: IpAddr,
    /// Whether any source of this version of IP will do.
    pub is_any_source: bool,
    /// The destination.
    pub destination: IpAddr,
    /// Whether any destination of this version of IP will do.
    pub is_any_destination: bool,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To this host.
    Incoming,
    /// From this host.
    Outgoing,
    /// Through this host.
    Forwarded,
}

/// Who has sent a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Somebody else.
    Other,
    /// Somebody else, right after this host has sent from the same port or address.
    OtherAfterOwn,
    /// This host itself.
    Own,
}

impl Sample {
    /// A packet of this cube. Where this host is an end, it is one of these addresses if it can be.
    pub(super) fn of(cube: &Cube, own: &AddressSet) -> Option<Self> {
        let way = match number(&cube.values(Field::Direction))? {
            FORWARDED => Way::Forwarded,
            OUTGOING => Way::Outgoing,
            _ => Way::Incoming,
        };
        let through =
            if way == Way::Outgoing { Field::OutputInterface } else { Field::InputInterface };
        let others = Field::InputInterface.all_but(NO).difference(&only(LOOPBACK));
        let others = others.intersection(&cube.values(through));
        let is_free = others.ranges().last().is_some_and(|range| range.last() == u32::MAX.into());
        let interface = number(&others).unwrap_or(LOOPBACK);
        let protocol = protocol(cube)?;
        let addresses = addresses(cube, way, protocol, own);
        if addresses.is_none() && !cube.has_arp() {
            return None;
        }
        let (connection, flags) = connection_and_flags(cube, protocol);
        let message = message(protocol, connection);
        let source_port = bound(cube, Field::SourcePort, &[message.unwrap_or(40_000), 1024]);
        let is_ethernet = cube.values(Field::Hardware).contains(ETHERNET);
        let mac_of = |field| {
            let is_bound = is_ethernet && !cube.is_free(field);
            is_bound.then(|| mac(&cube.values(field))).flatten()
        };
        let is_own = !cube.values(Field::SourceType).contains(ELSEWHERE)
            || addresses.is_some_and(|ends| is_link_local(ends.source));
        let is_loopback =
            !is_free && interface == LOOPBACK && (way == Way::Outgoing || cube.has_arp() || is_own);
        Some(Self {
            way,
            interface: (!is_free).then_some(interface).and_then(|index| index.try_into().ok()),
            addresses,
            protocol,
            source_port,
            port: Port(preferred(cube, Field::DestinationPort, &[])?),
            flags,
            connection,
            mac: mac_of(Field::SourceMac),
            mac_to: mac_of(Field::DestinationMac),
            is_without_mac: !is_ethernet,
            is_by_vrf: !cube.values(Field::Vrf).contains(NO),
            source_type: other_than(cube, Field::SourceType, ELSEWHERE),
            destination_type: if way == Way::Incoming {
                other_than(cube, Field::DestinationType, LOCAL)
            } else {
                None
            },
            is_loopback,
            sender: Sender::of(cube, interface),
        })
    }

    /// By how much it is not what everybody can send.
    pub(super) fn oddity(&self) -> usize {
        let is_odd = self.addresses.is_some_and(|ends| {
            [ends.source, ends.destination].iter().any(|address| match address {
                IpAddr::V4(v4) => !is_plain_v4(*v4),
                IpAddr::V6(v6) => !is_plain_v6(*v6),
            })
        });
        let is_later = self.connection.is_some_and(|connection| connection != Connection::OPENS);
        let oddities = [
            (is_odd, 64),
            (self.interface == Some(1), 64),
            (self.is_by_vrf, 64),
            (self.source_type.is_some(), 64),
            (self.destination_type.is_some(), 32),
            (self.sender != Sender::Other, 32),
            (self.way == Way::Forwarded, 16),
            (self.is_without_mac && self.is_local(), 8),
            (!matches!(self.protocol, TCP | UDP), 8),
            (is_later, 4),
            (self.mac.is_some() || self.mac_to.is_some(), 2),
            (self.source_port.is_some(), 1),
            (self.flags.is_some_and(|flags| flags != SYN), 1),
        ];
        oddities.iter().filter(|(is_so, _)| *is_so).map(|(_, weight)| weight).sum()
    }

    /// Whether it is to this host.
    pub fn is_local(&self) -> bool {
        self.way == Way::Incoming
    }

    /// Where it comes from; `None` for ARP.
    pub fn source(&self) -> Option<IpAddr> {
        self.addresses.map(|addresses| addresses.source)
    }

    /// What the policy of a port says of it.
    pub fn due_by(&self, policy: &Policy) -> Verdict {
        let Some(source) = self.source().filter(|_| self.is_local()) else {
            return Verdict::Untouched;
        };
        let transport = match self.protocol {
            TCP => Transport::Tcp(self.port),
            _ => Transport::Other,
        };
        let loopback = self.sender == Sender::Own;
        let mac = (!self.is_without_mac).then_some(self.mac.unwrap_or(SOME_MAC));
        policy.decide(&Packet { loopback, source, mac, transport })
    }

    /// What a firewall policy says of it; of what goes through this host, nothing.
    pub fn due_by_firewall(&self, firewall: &Firewall) -> Option<firewall::Verdict> {
        let direction = match self.way {
            Way::Incoming => Direction::Incoming,
            Way::Outgoing => Direction::Outgoing,
            Way::Forwarded => return None,
        };
        let source_port = self.source_port.unwrap_or(40_000);
        let [kind, code] = source_port.to_be_bytes();
        let transport = match self.protocol {
            TCP => {
                firewall::Transport::Tcp(Port(source_port), self.port, self.flags.unwrap_or(SYN))
            }
            UDP => firewall::Transport::Udp(Port(source_port), self.port),
            ICMP | ICMPV6 => firewall::Transport::Icmp(self.protocol, kind, code),
            other => firewall::Transport::Other(other),
        };
        let flow = self.connection.unwrap_or(Connection::OPENS).flow();
        let payload = self.addresses.map_or(Payload::Arp, |ends| {
            let Addresses { source, destination, .. } = ends;
            Payload::Ip(Datagram { source, destination, transport, flow })
        });
        let macs = (self.mac.unwrap_or(SOME_MAC), self.mac_to.unwrap_or(SOME_MAC));
        Some(firewall.decide(&firewall::Packet {
            direction,
            loopback: self.is_loopback,
            macs: (self.way == Way::Incoming && !self.is_without_mac).then_some(macs),
            payload,
        }))
    }
}

impl Sender {
    /// Of a packet that comes in there: this host only where no other can be it.
    fn of(cube: &Cube, interface: u128) -> Self {
        let is_sure = |field| !cube.values(field).contains(NO);
        let (port, source) = (is_sure(Field::OwnPort), is_sure(Field::OwnSource));
        if port && source && (interface == LOOPBACK || is_sure(Field::Vrf)) {
            Self::Own
        } else if port || source {
            Self::OtherAfterOwn
        } else {
            Self::Other
        }
    }
}

fn number<T: TryFrom<u128>>(set: &RangeSet<u128>) -> Option<T> {
    T::try_from(set.ranges().first()?.first()).ok()
}

/// The first of these that a field may have; else the least that it may have, but rather not 0.
fn preferred(cube: &Cube, field: Field, usual: &[u128]) -> Option<u16> {
    let values = cube.values(field);
    let found = usual.iter().find(|value| values.contains(**value));
    let least = || number(&values.difference(&only(0))).or_else(|| number(&values));
    found.map_or_else(least, |value| u16::try_from(*value).ok())
}

/// The same, where a field may not have every value.
fn bound(cube: &Cube, field: Field, usual: &[u128]) -> Option<u16> {
    if cube.is_free(field) { None } else { preferred(cube, field, usual) }
}

/// What a field has, if it cannot have the usual value.
fn other_than(cube: &Cube, field: Field, usual: u128) -> Option<u8> {
    let values = cube.values(field);
    if values.contains(usual) { None } else { number(&values) }
}

/// TCP if it may be that, or another that is met often.
fn protocol(cube: &Cube) -> Option<u8> {
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
fn connection_and_flags(cube: &Cube, protocol: u8) -> (Option<Connection>, Option<u8>) {
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
    match usual {
        Some((connection, usual)) => (Some(*connection), flags_of(usual)),
        None => {
            let first = Connection::all().find(|each| values.intersects(&each.number()));
            (first, flags_of(&[]))
        }
    }
}

/// The message of ICMP that such a packet mostly is: type and code in one number.
fn message(protocol: u8, connection: Option<Connection>) -> Option<u128> {
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

fn addresses(cube: &Cube, way: Way, protocol: u8, own: &AddressSet) -> Option<Addresses> {
    let (sources, destinations) = (cube.sources(), cube.destinations());
    let none = AddressSet::default();
    let [here, there] = match way {
        Way::Incoming => [&none, own],
        Way::Outgoing => [own, &none],
        Way::Forwarded => [&none, &none],
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

/// Whether a router would forward it.
fn is_plain_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first) && !address.is_loopback() && !address.is_link_local()
}

/// Whether it is of the addresses that are given out, or a site's own.
fn is_plain_v6(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000 || address.is_unique_local()
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A unicast address of a set, if there is one.
fn mac(set: &RangeSet<u128>) -> Option<MacAddr> {
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
