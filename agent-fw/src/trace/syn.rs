//! The packet that is sent on its way: the first segment of a TCP connection, in an Ethernet frame.

use crate::model::{MacAddr, Port};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A TCP SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn {
    /// Where it comes from.
    pub source: IpAddr,
    /// The port that it comes from.
    pub source_port: Port,
    /// Where it goes; of the same family.
    pub destination: IpAddr,
    /// The port that it goes to.
    pub port: Port,
    /// By this number it is known.
    pub sequence: u32,
}

const ETHERTYPE_V4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_V6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
/// Five words.
const DATA_OFFSET: u8 = 5 << 4;
/// Flags.
const SYN: u8 = 2;
const ACK: u8 = 16;

impl Syn {
    /// The frame from one MAC address to another; `None` where the addresses are of two families.
    pub fn frame(&self, from: MacAddr, to: MacAddr) -> Option<Vec<u8>> {
        let kind = if self.source.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
        Some([&to.0[..], &from.0, &kind, &self.packet()?].concat())
    }

    /// The packet, from its IP header on.
    pub fn packet(&self) -> Option<Vec<u8>> {
        self.segment(SYN)
    }

    /// The packet that answers it, with a number of its own.
    pub(super) fn answer(&self, sequence: u32) -> Option<Vec<u8>> {
        let Self { source, source_port, destination, port, .. } = *self;
        let (source, destination) = (destination, source);
        let (source_port, port) = (port, source_port);
        Self { source, source_port, destination, port, sequence }.segment(SYN | ACK)
    }

    fn segment(&self, flags: u8) -> Option<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(to)) => Some(self.v4(source, to, flags)),
            (IpAddr::V6(source), IpAddr::V6(to)) => Some(self.v6(source, to, flags)),
            _ => None,
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, flags: u8) -> Vec<u8> {
        // Version and length, service; total length; identification; do not fragment; hops, TCP.
        let mut header = vec![0x45, 0, 0, 40, 0x41, 0x18, 0x40, 0, 64, TCP, 0, 0];
        header.extend(source.octets());
        header.extend(destination.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let pseudo = [&source.octets()[..], &destination.octets(), &[0, TCP, 0, 20]].concat();
        header.extend(self.tcp(&pseudo, flags));
        header
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, flags: u8) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
        header.extend(source.octets());
        header.extend(destination.octets());
        let length = [0, 0, 0, 20, 0, 0, 0, TCP];
        let pseudo = [&source.octets()[..], &destination.octets(), &length].concat();
        header.extend(self.tcp(&pseudo, flags));
        header
    }

    fn tcp(&self, pseudo: &[u8], flags: u8) -> Vec<u8> {
        let mut header = [self.source_port.0, self.port.0].map(u16::to_be_bytes).concat();
        header.extend(self.sequence.to_be_bytes());
        header.extend([0; 4]);
        header.extend([DATA_OFFSET, flags]);
        // The window; then checksum and urgent pointer.
        header.extend(64_240_u16.to_be_bytes());
        header.extend([0; 4]);
        let sum = checksum(&[pseudo, &header].concat());
        header[16..18].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// A UDP datagram over IPv4, which carries a number and eight zeros.
pub(super) fn datagram(
    (source, source_port): (Ipv4Addr, Port),
    (destination, port): (Ipv4Addr, Port),
    number: u32,
) -> Vec<u8> {
    const UDP: u8 = 17;
    let mut packet = vec![0x45, 0, 0, 40, 0x41, 0x18, 0x40, 0, 64, UDP, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    // The length, and no checksum, which IPv4 allows.
    packet.extend([source_port.0, port.0, 20, 0].map(u16::to_be_bytes).concat());
    packet.extend(number.to_be_bytes());
    packet.extend([0; 8]);
    packet
}

/// The internet checksum (RFC 1071) of an even number of bytes.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(source: &str, destination: &str) -> Syn {
        let (source, destination) =
            (source.parse().expect("address"), destination.parse().expect("address"));
        let (source_port, port) = (Port(50_000), Port(4118));
        Syn { source, source_port, destination, port, sequence: 0xdead_beef }
    }

    #[test]
    fn checksums_are_right() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let v4 = syn("34.205.5.1", "10.0.0.1").frame(mac, mac).expect("one family");
        assert_eq!(v4.len(), 14 + 40);
        // A header with its checksum in place sums up to zero.
        assert_eq!(checksum(&v4[14..34]), 0);
        let pseudo = [&v4[26..34], &[0, TCP, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo, &v4[34..]].concat()), 0);
        let v6 = syn("2001:db8::1", "2001:db8::2").frame(mac, mac).expect("one family");
        let pseudo = [&v6[22..54], &[0, 0, 0, 20, 0, 0, 0, TCP]].concat();
        assert_eq!(checksum(&[&pseudo, &v6[54..]].concat()), 0);
        assert_eq!(syn("34.205.5.1", "2001:db8::2").frame(mac, mac), None);
    }
}
