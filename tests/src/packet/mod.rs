//! Packets, header by header, as they go over the wire.
//!
//! A packet is written from the outside in, with `/` between its headers. What follows a
//! header (ether type, protocol, next header), lengths and checksums are filled in:
//!
//! ```
//! use agent_fw_lab::MacAddr;
//! use agent_fw_lab::packet::{Ethernet, Ipv4, Tcp, Vlan};
//!
//! let ethernet = Ethernet::new(MacAddr([2, 0, 0, 0, 1, 2]), MacAddr([2, 0, 0, 0, 1, 1]));
//! let ip = Ipv4::new([198, 51, 100, 7].into(), [10, 118, 1, 1].into());
//! let frame = ethernet / Vlan::priority() / ip / Tcp::syn(40_000, 4118);
//! assert_eq!(frame.bytes().len(), 14 + 4 + 20 + 20);
//! ```

mod fragment;
mod internet;
mod link;
mod segment;
mod transport;

use std::ops::Div;

pub use internet::{Extension, Fragment, Ipv4, Ipv6};
pub use link::{Ethernet, Vlan};
pub use segment::Segment;
pub use transport::{Raw, Tcp, TcpFlags, Udp};

/// One header, or the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet II.
    Ethernet(Ethernet),
    /// IEEE 802.1Q or 802.1ad.
    Vlan(Vlan),
    /// IPv4, with options.
    Ipv4(Ipv4),
    /// IPv6, without extension headers.
    Ipv6(Ipv6),
    /// An IPv6 extension header.
    Extension(Extension),
    /// The IPv6 fragment header.
    Fragment(Fragment),
    /// TCP, with options.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// Bytes.
    Raw(Raw),
}

/// Headers, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet(Vec<Layer>);

impl Packet {
    /// The packet as it goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_from(0)
    }

    /// The layers from `first` on, with what is before them known to the checksums.
    fn bytes_from(&self, first: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (depth, layer) in self.0.iter().enumerate().skip(first).rev() {
            let inside = self.0.get(depth + 1);
            bytes = match layer {
                Layer::Ethernet(header) => header.encode(ether_type(inside), &bytes),
                Layer::Vlan(header) => header.encode(ether_type(inside), &bytes),
                Layer::Ipv4(header) => header.encode(protocol(inside), &bytes),
                Layer::Ipv6(header) => header.encode(protocol(inside), &bytes),
                Layer::Extension(header) => header.encode(protocol(inside), &bytes),
                Layer::Fragment(header) => header.encode(protocol(inside), &bytes),
                Layer::Tcp(header) => header.encode(&bytes, |segment| {
                    self.transport_checksum(depth, transport::TCP, segment)
                }),
                Layer::Udp(header) => header.encode(&bytes, |datagram| {
                    self.transport_checksum(depth, transport::UDP, datagram)
                }),
                Layer::Raw(payload) => payload.bytes.clone(),
            };
        }
        bytes
    }

    /// The checksum of a transport segment at `depth`, over the pseudo header of the nearest
    /// IP header around it too.
    fn transport_checksum(&self, depth: usize, protocol: u8, segment: &[u8]) -> u16 {
        // Outside IP there is nothing to cover but the segment.
        let addresses = self.0[..depth].iter().rev().find_map(internet::addresses);
        let mut covered = addresses.unwrap_or_default();
        // The lengths of the IPv4 and IPv6 pseudo headers differ by zeros, which add nothing.
        covered.extend(length_field(segment.len()).to_be_bytes());
        covered.extend([0, protocol]);
        // The addresses and these fields have even lengths, so that the words stay aligned.
        covered.extend(segment);
        checksum(&covered)
    }
}

/// The Internet checksum (RFC 1071) of some bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carried) = sum.overflowing_add(word);
        // A sum that has just overflowed has room for its carry.
        sum + u16::from(carried)
    })
}

/// A length as a header holds it.
fn length_field(length: usize) -> u16 {
    u16::try_from(length).expect("a datagram has at most 65,535 bytes")
}

fn ether_type(inside: Option<&Layer>) -> u16 {
    match inside {
        Some(Layer::Vlan(vlan)) => vlan.tag_type(),
        Some(Layer::Ipv4(_)) => 0x0800,
        Some(Layer::Ipv6(_)) => 0x86dd,
        // IEEE 802's number for local experiments: no stack looks into it.
        _ => 0x88b5,
    }
}

fn protocol(inside: Option<&Layer>) -> u8 {
    match inside {
        Some(Layer::Ipv4(_)) => 4,
        Some(Layer::Ipv6(_)) => 41,
        Some(Layer::Extension(extension)) => extension.protocol(),
        Some(Layer::Fragment(_)) => 44,
        Some(Layer::Tcp(_)) => transport::TCP,
        Some(Layer::Udp(_)) => transport::UDP,
        Some(Layer::Raw(raw)) => raw.protocol,
        // "No next header"
        Some(Layer::Ethernet(_) | Layer::Vlan(_)) | None => 59,
    }
}

impl<L: Into<Layer>> Div<L> for Packet {
    type Output = Self;

    fn div(mut self, inside: L) -> Self {
        self.0.push(inside.into());
        self
    }
}

/// Each header is a layer, and starts a packet when another follows it.
macro_rules! layers {
    ($($layer:ident),+) => {$(
        impl From<$layer> for Layer {
            fn from(header: $layer) -> Self {
                Self::$layer(header)
            }
        }

        impl From<$layer> for Packet {
            fn from(header: $layer) -> Self {
                Self(vec![header.into()])
            }
        }

        impl<L: Into<Layer>> Div<L> for $layer {
            type Output = Packet;

            fn div(self, inside: L) -> Packet {
                Packet::from(self) / inside
            }
        }
    )+};
}

layers!(Ethernet, Vlan, Ipv4, Ipv6, Extension, Fragment, Tcp, Udp, Raw);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::{
        Ethernet, Extension, Ipv4, Ipv6, Layer, Packet, Raw, Tcp, TcpFlags, Udp, Vlan, checksum,
    };
    use crate::mac::MacAddr;

    const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199)];

    fn v6() -> Ipv6 {
        Ipv6::new("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(u8::is_ascii_hexdigit)
            .map(|digit| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap())
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// What a receiver computes: the sum over a header with its checksum is 0.
    fn holds(covered: &[u8]) -> bool {
        checksum(covered) == 0
    }

    fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let mut covered = source.octets().to_vec();
        covered.extend(destination.octets());
        covered.extend(u32::try_from(segment.len()).unwrap().to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
        covered.extend(segment);
        covered
    }

    #[test]
    fn the_checksum_of_rfc_1071s_example_is_right() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0x01]), !0x0100);
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn an_ipv4_header_has_the_checksum_of_the_known_example() {
        // The header that textbooks use: 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
        let ip = Ipv4 { identification: 0, dont_fragment: true, ..Ipv4::new(V4[0], V4[1]) };
        let packet = ip / Raw { protocol: 17, bytes: vec![0; 0x73 - 20] };
        assert_eq!(packet.bytes()[..20], hex("45000073 00004000 4011b861 c0a80001 c0a800c7"));
    }

    #[test]
    fn a_captured_syn_is_rebuilt_byte_for_byte() {
        // A SYN of a Linux client (to 192.168.0.199, port 80), with its MSS option alone.
        let tcp = Tcp {
            sequence: 0x0102_0304,
            window: 0xfaf0,
            options: hex("020405b4"),
            ..Tcp::syn(0x9c40, 80)
        };
        let ethernet = Ethernet::new(MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let bytes = (ethernet / Ipv4::new(V4[0], V4[1]) / tcp).bytes();
        assert_eq!(bytes[..14], hex("020000000002 020000000001 0800"));
        assert_eq!(bytes[23], 6, "the protocol is TCP");
        let segment = &bytes[34..];
        assert_eq!(segment[..16], hex("9c40 0050 01020304 00000000 6002 faf0"));
        assert_eq!(segment[20..], hex("020405b4"));
        let mut covered = hex("c0a80001 c0a800c7 0006 0018");
        covered.extend(segment);
        assert!(holds(&covered));
        assert!(holds(&bytes[14..34]));
    }

    #[test]
    fn tcp_and_udp_over_ipv6_carry_right_checksums() {
        let ip = v6();
        let tcp = (ip / Tcp::syn(40_000, 4118) / Raw::data(b"odd")).bytes();
        assert_eq!((tcp[6], tcp[4], tcp[5]), (6, 0, 23));
        assert!(holds(&pseudo_v6(ip.source, ip.destination, 6, &tcp[40..])));
        let udp = (ip / Udp::new(40_000, 53) / Raw::data(b"query")).bytes();
        assert_eq!(udp[44..46], [0, 13], "the length of the datagram");
        assert!(holds(&pseudo_v6(ip.source, ip.destination, 17, &udp[40..])));
    }

    #[test]
    fn headers_announce_what_follows_them() {
        let ethernet = Ethernet::new(MacAddr([2; 6]), MacAddr([4; 6]));
        let packet = ethernet
            / Vlan::service(100)
            / Vlan::id(7)
            / v6()
            / Extension::hop_by_hop()
            / Extension::destination_options()
            / Tcp { flags: TcpFlags::ACK, ..Tcp::syn(1, 2) };
        let bytes = packet.bytes();
        assert_eq!(bytes[12..22], hex("88a8 0064 8100 0007 86dd"));
        let ip = &bytes[22..];
        assert_eq!(ip[6], 0, "hop-by-hop options follow IPv6");
        assert_eq!(ip[40..42], [60, 0], "destination options follow, 8 bytes long");
        assert_eq!(ip[48..50], [6, 0], "TCP follows, 8 bytes long");
        assert_eq!(ip[4..6], [0, 8 + 8 + 20], "the payload's length");
        assert_eq!(ip[56 + 13], 0x10, "the flags");
    }

    #[test]
    fn ipv4_options_are_padded_and_counted() {
        let ip = Ipv4 { options: vec![1; 5], ..Ipv4::new(V4[0], V4[1]) };
        let bytes = (ip / Tcp::syn(1, 2)).bytes();
        assert_eq!(bytes[0], 0x47);
        assert_eq!(bytes[20..28], [1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(bytes[2..4], [0, 48]);
        assert!(holds(&bytes[..28]));
    }

    #[test]
    fn ipv4_fragments_carry_the_datagram_once_each_byte() {
        let whole = Ipv4::new(V4[0], V4[1]) / Tcp::syn(40_000, 4118) / Raw::data(&[7; 40]);
        let expected = &whole.bytes()[20..];
        let pieces: Vec<Vec<u8>> = whole.fragments(24).iter().map(Packet::bytes).collect();
        assert_eq!(pieces.len(), 3);
        let mut joined: Vec<u8> = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            assert!(holds(&piece[..20]));
            assert_eq!(piece[9], 6);
            let field = u16::from_be_bytes([piece[6], piece[7]]);
            assert_eq!(field & 0x2000 != 0, index < 2, "more fragments");
            assert_eq!(usize::from(field & 0x1fff) * 8, joined.len());
            joined.extend(&piece[20..]);
        }
        assert_eq!(joined, expected);
    }

    #[test]
    fn ipv6_fragments_leave_hop_by_hop_options_in_front() {
        let whole = v6() / Extension::hop_by_hop() / Tcp::syn(40_000, 4118) / Raw::data(&[7; 40]);
        let expected = &whole.bytes()[48..];
        let mut joined: Vec<u8> = Vec::new();
        for piece in whole.fragments(8) {
            assert!(matches!(piece.0[2], Layer::Fragment(_)));
            let bytes = piece.bytes();
            assert_eq!((bytes[6], bytes[40], bytes[48]), (0, 44, 6));
            let field = u16::from_be_bytes([bytes[50], bytes[51]]);
            assert_eq!(usize::from(field & 0xfff8), joined.len());
            joined.extend(&bytes[56..]);
            assert_eq!(field & 1 != 0, joined.len() < expected.len(), "more fragments");
        }
        assert_eq!(joined, expected);
    }
}
