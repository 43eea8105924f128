//! What a firewall policy looks at in a packet.

use crate::model::rule::Direction;
use crate::model::{MacAddr, Port};
use std::net::IpAddr;

/// A packet on its way in, behind the routing, or on its way out, before it is cut up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Which way it goes.
    pub direction: Direction,
    /// Whether it goes over the loopback interface, and comes from an address of this host.
    pub loopback: bool,
    /// The MAC addresses of a frame that came in by Ethernet: its source, its destination. What
    /// goes out has none yet.
    pub macs: Option<(MacAddr, MacAddr)>,
    /// What it carries.
    pub payload: Payload,
}

/// What a frame carries, of what is examined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// ARP.
    Arp,
    /// IPv4 or IPv6.
    Ip(Datagram),
}

/// An IP packet, reassembled. Both addresses are of one version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// What is above IP.
    pub transport: Transport,
    /// What it is to its connection.
    pub flow: Flow,
}

impl Datagram {
    /// Whether it is `ICMPv6`, of which neighbour discovery is a part.
    pub fn is_icmpv6(&self) -> bool {
        self.source.is_ipv6() && self.transport.protocol() == ICMPV6
    }
}

/// What is above IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP: both ports, and the header's flags.
    Tcp(Port, Port, u8),
    /// UDP: both ports.
    Udp(Port, Port),
    /// ICMP or `ICMPv6`, by its number, with type and code.
    Icmp(u8, u8, u8),
    /// Another protocol, by its number.
    Other(u8),
}

/// The protocols' numbers.
/// <https://www.iana.org/assignments/protocol-numbers>
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

impl Transport {
    /// The protocol's number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp(..) => TCP,
            Self::Udp(..) => UDP,
            Self::Icmp(number, ..) | Self::Other(number) => number,
        }
    }
}

/// What a packet is to its connection, as connection tracking sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flow {
    /// It goes the way that its connection was opened, opens one, or is not tracked.
    Forth,
    /// It goes back: an answer, or an ICMP error about the connection.
    Back {
        /// Whether Bypass let the packet through that opened the connection.
        opened_by_bypass: bool,
    },
    /// It fits no connection and opens none.
    Invalid,
}
