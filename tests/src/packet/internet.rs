//! IPv4, IPv6 and IPv6's extension headers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Layer, checksum, length_field};

/// The hop limit that Linux sends with.
const HOPS: u8 = 64;

/// An IPv4 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Who sends.
    pub source: Ipv4Addr,
    /// Who is to receive.
    pub destination: Ipv4Addr,
    /// The time to live, in hops.
    pub ttl: u8,
    /// What fragments of one datagram have in common.
    pub identification: u16,
    /// The flag that forbids routers to fragment.
    pub dont_fragment: bool,
    /// The flag of every fragment but the last.
    pub more_fragments: bool,
    /// Where in the datagram this fragment starts, in bytes; a multiple of 8.
    pub fragment_offset: u16,
    /// Options, at most 40 bytes; padded with "end of options" to a multiple of 4.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// A plain header from `source` to `destination`.
    #[must_use]
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            ttl: HOPS,
            identification: 0x4118,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
        }
    }

    pub(super) fn encode(&self, protocol: u8, inside: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len().next_multiple_of(4);
        let words = u8::try_from(header / 4).ok().filter(|words| *words <= 15);
        let words = words.expect("IPv4 options have at most 40 bytes");
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(length_field(header + inside.len()).to_be_bytes());
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend((flags | (self.fragment_offset / 8)).to_be_bytes());
        bytes.extend([self.ttl, protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        bytes.resize(header, 0);
        let sum = checksum(&bytes).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend(inside);
        bytes
    }
}

/// An IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Who sends.
    pub source: Ipv6Addr,
    /// Who is to receive.
    pub destination: Ipv6Addr,
    /// The time to live, in hops.
    pub hop_limit: u8,
}

impl Ipv6 {
    /// A plain header from `source` to `destination`.
    #[must_use]
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, hop_limit: HOPS }
    }

    pub(super) fn encode(self, next: u8, inside: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length_field(inside.len()).to_be_bytes());
        bytes.extend([next, self.hop_limit]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(inside);
        bytes
    }
}

/// An IPv6 extension header with options; the fragment header is [`Fragment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    kind: Kind,
    /// How many bytes of options: 6, or 8 more, and so on.
    options: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    HopByHop,
    Routing,
    DestinationOptions,
}

impl Extension {
    /// Hop-by-hop options, of padding alone.
    #[must_use]
    pub fn hop_by_hop() -> Self {
        Self { kind: Kind::HopByHop, options: 6 }
    }

    /// A routing header of a type for experiments (RFC 4727) with no segments left, which a
    /// host must pass over (RFC 8200, 4.4).
    #[must_use]
    pub fn routing() -> Self {
        Self { kind: Kind::Routing, options: 6 }
    }

    /// Destination options, of padding alone.
    #[must_use]
    pub fn destination_options() -> Self {
        Self { kind: Kind::DestinationOptions, options: 6 }
    }

    /// The same header, longer by `units` of 8 bytes; at most 31, so that one option of
    /// padding fills it.
    #[must_use]
    pub fn longer_by(self, units: u8) -> Self {
        Self { options: self.options + 8 * units.min(31), ..self }
    }

    pub(super) fn protocol(self) -> u8 {
        match self.kind {
            Kind::HopByHop => 0,
            Kind::Routing => 43,
            Kind::DestinationOptions => 60,
        }
    }

    /// Whether every router on the way sees it, so that fragments carry it in front of their
    /// own header.
    pub(super) fn is_per_fragment(self) -> bool {
        matches!(self.kind, Kind::HopByHop | Kind::Routing)
    }

    pub(super) fn encode(self, next: u8, inside: &[u8]) -> Vec<u8> {
        let mut bytes = vec![next, self.options / 8];
        match self.kind {
            // Type 253, no segments left.
            Kind::Routing => bytes.extend([253, 0]),
            // PadN: its number and how many zeros follow.
            Kind::HopByHop | Kind::DestinationOptions => bytes.extend([1, self.options - 2]),
        }
        bytes.resize(2 + usize::from(self.options), 0);
        bytes.extend(inside);
        bytes
    }
}

/// The IPv6 fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where in the datagram this fragment starts, in bytes; a multiple of 8.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
    /// What fragments of one datagram have in common.
    pub identification: u32,
}

impl Fragment {
    pub(super) fn encode(self, next: u8, inside: &[u8]) -> Vec<u8> {
        let mut bytes = vec![next, 0];
        bytes.extend((self.offset & !7 | u16::from(self.more)).to_be_bytes());
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend(inside);
        bytes
    }
}

/// The addresses of an IP header, as the pseudo header has them.
pub(super) fn addresses(layer: &Layer) -> Option<Vec<u8>> {
    match layer {
        Layer::Ipv4(ip) => Some([ip.source.octets(), ip.destination.octets()].concat()),
        Layer::Ipv6(ip) => Some([ip.source.octets(), ip.destination.octets()].concat()),
        _ => None,
    }
}
