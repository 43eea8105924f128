//! What a policy looks at in a packet.

use super::address::MacAddr;
use super::range::Ordinal;
use std::fmt;
use std::net::IpAddr;

/// A TCP port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl Port {
    /// Where the agent listens unless it was told otherwise (SPEC: a default that can be set).
    pub const AGENT: Self = Self(4118);
    /// Where a relay listens for other agents.
    pub const RELAY: Self = Self(4122);
}

impl Ordinal for Port {
    type Bits = u16;
    const MIN: Self = Self(0);
    const MAX: Self = Self(u16::MAX);
    fn bits(self) -> u16 {
        self.0
    }
    fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
    fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP packet that has arrived for this host, whole (reassembled), as the hook `input` sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Whether this host itself has sent it: it came in through the loopback interface, or through a
    /// VRF's own device, and this host has just sent such a packet.
    pub loopback: bool,
    /// The sender's address.
    pub source: IpAddr,
    /// The sender's MAC address, where the interface has such.
    pub mac: Option<MacAddr>,
    /// The transport protocol.
    pub transport: Transport,
}

/// The transport protocol of a packet, as far as a policy cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP to this destination port.
    Tcp(Port),
    /// Anything else.
    Other,
}
