//! One packet of many, as plain as there is one.

use super::plain::{
    SYN, addresses, bound, connection_and_flags, is_link_local, is_plain, mac, message, number,
    other_than, preferred, protocol,
};
use crate::model::firewall::{self, Datagram, Firewall, ICMP, ICMPV6, Payload, TCP, UDP};
use crate::model::packet_set::{
    Connection, Cube, ELSEWHERE, ETHERNET, FORWARDED, Field, LOCAL, LOOPBACK, NO, OUTGOING, only,
};
use crate::model::rule::Direction;
use crate::model::{AddressSet, MacAddr, Packet, Policy, Port, Transport, Verdict};
use std::net::IpAddr;

/// The MAC address of one whose address does not matter.
const SOME_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// A packet. What is `None` may be anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Which way it goes.
    pub way: PacketDirection,
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
pub enum PacketDirection {
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
            FORWARDED => PacketDirection::Forwarded,
            OUTGOING => PacketDirection::Outgoing,
            _ => PacketDirection::Incoming,
        };
        let through = if way == PacketDirection::Outgoing {
            Field::OutputInterface
        } else {
            Field::InputInterface
        };
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
        let is_loopback = !is_free
            && interface == LOOPBACK
            && (way == PacketDirection::Outgoing || cube.has_arp() || is_own);
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
            destination_type: if way == PacketDirection::Incoming {
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
            [ends.source, ends.destination].into_iter().any(|address| !is_plain(address))
        });
        let is_later = self.connection.is_some_and(|connection| connection != Connection::OPENS);
        let oddities = [
            (is_odd, 64),
            (self.interface == Some(1), 64),
            (self.is_by_vrf, 64),
            (self.source_type.is_some(), 64),
            (self.destination_type.is_some(), 32),
            (self.sender != Sender::Other, 32),
            (self.way == PacketDirection::Forwarded, 16),
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
        self.way == PacketDirection::Incoming
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
            PacketDirection::Incoming => Direction::Incoming,
            PacketDirection::Outgoing => Direction::Outgoing,
            PacketDirection::Forwarded => return None,
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
            macs: (self.way == PacketDirection::Incoming && !self.is_without_mac).then_some(macs),
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
