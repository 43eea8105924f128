//! The vendor's firewall rule, in the vendor's words: the only place that speaks this language.
//!
//! Fields and their values are those of the vendor's API. A rule here has its lists already looked
//! up: what it names is what it means.

mod engine;
mod hidden;
mod lower;
mod meaning;

pub use engine::engine_rules;
pub use hidden::{Mismatch, closing_rule, hidden_rule, near_misses};
pub use lower::{AgentPolicy, LowerError, Unsupported, closed, is_limited, lower};
pub use meaning::HiddenRuleMatch;

use crate::model::{AddressSet, MacAddr, Origin, Port, RangeSet};
use serde::Deserialize;
use std::fmt;

/// A firewall rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What a person calls it.
    pub name: String,
    /// What it does with a packet that it matches.
    pub action: Action,
    /// When it is evaluated: the highest first.
    pub priority: Priority,
    /// Which way the packet goes.
    pub direction: Direction,
    /// The frames it matches.
    pub frame_type: Match<FrameType>,
    /// The protocols it matches.
    pub protocol: Match<Protocol>,
    /// Where the packet comes from.
    pub source: Endpoint,
    /// Where the packet goes.
    pub destination: Endpoint,
    /// The TCP flags it looks at, if it looks at any.
    pub tcp_flags: Option<TcpFlags>,
    /// The ICMP type and code it looks at, if it looks at any.
    pub icmp: Option<Icmp>,
    /// The schedule during which it holds, by its number.
    pub schedule: Option<u32>,
    /// The context in which it holds, by its number.
    pub context: Option<u32>,
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Lets the packet through, without state, before everything else.
    Bypass,
    /// Records the packet and goes on.
    LogOnly,
    /// Lets the packet through, before any Deny of the same priority.
    ForceAllow,
    /// Drops the packet.
    Deny,
    /// Lets the packet through, and makes its direction restrictive.
    Allow,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bypass => "Bypass",
            Self::LogOnly => "Log Only",
            Self::ForceAllow => "Force Allow",
            Self::Deny => "Deny",
            Self::Allow => "Allow",
        })
    }
}

/// A priority, from 0 to 4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Priority(u8);

impl Priority {
    /// The highest.
    pub const HIGHEST: Self = Self(4);

    /// The priority of this number, or `None` above 4.
    pub fn new(number: u8) -> Option<Self> {
        (number <= Self::HIGHEST.0).then_some(Self(number))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To this host.
    Incoming,
    /// From this host.
    Outgoing,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Incoming => Self::Outgoing,
            Self::Outgoing => Self::Incoming,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
        })
    }
}

/// What a field must be: anything, one thing, or anything but one thing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Match<T> {
    /// Anything.
    Any,
    /// This.
    Is(T),
    /// Anything but this.
    Not(T),
}

impl<T: fmt::Display> fmt::Display for Match<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Is(value) => value.fmt(f),
            Self::Not(value) => write!(f, "not {value}"),
        }
    }
}

/// A type of frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameType {
    /// IPv4 and IPv6.
    Ip,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// ARP.
    Arp,
    /// Reverse ARP.
    RevArp,
    /// Another `EtherType`.
    Other(u16),
}

impl FrameType {
    /// The `EtherType` of IPv4.
    /// <https://www.iana.org/assignments/ieee-802-numbers>
    pub const IPV4: u16 = 0x0800;
    /// The `EtherType` of IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// The `EtherType` of ARP.
    pub const ARP: u16 = 0x0806;
}

impl Match<FrameType> {
    /// Whether such a frame can carry IP, and with it a protocol.
    pub fn may_be_ip(&self) -> bool {
        match self {
            Self::Is(FrameType::Other(number)) => {
                [FrameType::IPV4, FrameType::IPV6].contains(number)
            }
            Self::Is(FrameType::Arp | FrameType::RevArp) => false,
            Self::Any | Self::Is(_) | Self::Not(_) => true,
        }
    }
}

impl fmt::Display for FrameType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("IP"),
            Self::Ipv4 => f.write_str("IPv4"),
            Self::Ipv6 => f.write_str("IPv6"),
            Self::Arp => f.write_str("ARP"),
            Self::RevArp => f.write_str("REVARP"),
            Self::Other(number) => write!(f, "{number:#06x}"),
        }
    }
}

/// A protocol above IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP and UDP.
    TcpUdp,
    /// ICMP for IPv4.
    Icmp,
    /// ICMP for IPv6.
    Icmpv6,
    /// Another, by its number.
    Other(u8),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::TcpUdp => f.write_str("TCP+UDP"),
            Self::Icmp => f.write_str("ICMP"),
            Self::Icmpv6 => f.write_str("ICMPv6"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// One end of a packet's way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The IP addresses.
    pub addresses: Match<Addresses>,
    /// The MAC addresses.
    pub macs: Match<RangeSet<MacAddr>>,
    /// The ports.
    pub ports: Match<RangeSet<Port>>,
}

impl Endpoint {
    /// Anywhere.
    pub const ANY: Self = Self { addresses: Match::Any, macs: Match::Any, ports: Match::Any };
}

/// Addresses, with the words that named them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses(pub Vec<(Origin, AddressSet)>);

impl Addresses {
    /// All of them as one set.
    pub fn all(&self) -> AddressSet {
        match self.0.as_slice() {
            [(_, only)] => only.clone(),
            parts => parts.iter().fold(AddressSet::default(), |all, (_, part)| all.union(part)),
        }
    }
}

/// TCP flags that a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TcpFlags {
    /// The flags looked at, as bits of the header's flag byte.
    pub mask: u8,
    /// Their values.
    pub value: u8,
    /// Whether every other combination is meant.
    pub not: bool,
}

/// The ICMP message that a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Icmp {
    /// The type.
    pub kind: u8,
    /// The code, if it matters.
    pub code: Option<u8>,
    /// Whether every other message is meant.
    pub not: bool,
}
