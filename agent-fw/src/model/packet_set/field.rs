//! What a packet has besides its addresses.

use crate::model::{Range, RangeSet};

/// What a packet has besides its addresses, each as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Field {
    /// Which way it goes: [`INCOMING`], [`OUTGOING`] or [`FORWARDED`].
    Direction,
    /// The index of the interface that it came in through; [`NO`] if this host sends it.
    InputInterface,
    /// The index of the interface that it goes out through; [`NO`] if it is for this host.
    OutputInterface,
    /// The type of the hardware of the interface that it came in through.
    Hardware,
    /// Whether that interface is a VRF's own device.
    Vrf,
    /// The type of its source address, as routing knows it.
    SourceType,
    /// The type of its destination address.
    DestinationType,
    /// The MAC address that it came from; without meaning but for Ethernet.
    SourceMac,
    /// The MAC address that it was sent to; without meaning but for Ethernet.
    DestinationMac,
    /// The transport protocol.
    Protocol,
    /// The first two bytes of the transport header, whatever the protocol: TCP's and UDP's source
    /// port, ICMP's type and code.
    SourcePort,
    /// The next two bytes, whatever the protocol: TCP's and UDP's destination port.
    DestinationPort,
    /// The byte where TCP has its flags, whatever the protocol.
    TcpFlags,
    /// What connection tracking knows of it: the number of a
    /// [`Connection`](super::Connection).
    Connection,
    /// Whether its source port is one that this host has just sent to the agent's port from.
    OwnPort,
    /// Whether its source is an address that this host has just done so from.
    OwnSource,
}

/// Whether something is so, or there is such a thing.
pub const NO: u128 = 0;
/// It is so.
pub const YES: u128 = 1;
/// To this host.
pub const INCOMING: u128 = 0;
/// From this host.
pub const OUTGOING: u128 = 1;
/// Through this host.
pub const FORWARDED: u128 = 2;
/// The index of the loopback interface, in every network namespace.
pub const LOOPBACK: u128 = 1;
/// `ARPHRD_ETHER`: the hardware that has MAC addresses.
pub const ETHERNET: u128 = 1;
/// `RTN_UNICAST`: an address elsewhere, to which this host may forward.
pub const ELSEWHERE: u128 = 1;
/// `RTN_LOCAL`: an address of this host.
pub const LOCAL: u128 = 2;

impl Field {
    /// Every value that there is.
    pub fn all(self) -> RangeSet<u128> {
        let last: u128 = match self {
            Self::Direction => FORWARDED,
            Self::InputInterface | Self::OutputInterface => u32::MAX.into(),
            Self::Hardware | Self::SourcePort | Self::DestinationPort => u16::MAX.into(),
            Self::Vrf | Self::OwnPort | Self::OwnSource => YES,
            // `RTN_MAX`.
            Self::SourceType | Self::DestinationType => 11,
            Self::SourceMac | Self::DestinationMac => (1 << 48) - 1,
            Self::Protocol | Self::TcpFlags => u8::MAX.into(),
            Self::Connection => super::connection::LAST,
        };
        Range::new(0, last).into_iter().collect()
    }

    /// Every value but this one.
    pub fn all_but(self, value: u128) -> RangeSet<u128> {
        self.all().difference(&only(value))
    }
}

/// One value.
pub fn only(value: u128) -> RangeSet<u128> {
    Range::single(value).into()
}
