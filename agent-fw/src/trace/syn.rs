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
/// Bytes of TCP's header without options.
const HEADER_BYTES: usize = 20;
/// Flags.
const SYN: u8 = 2;
const ACK: u8 = 16;

impl Syn {
    /// The frame from one MAC address to another; `None` where the addresses are of two families.
    pub fn frame(&self, from: MacAddr, to: MacAddr) -> Option<Vec<u8>> {
        Some([&to.0[..], &from.0, &self.ethertype(), &self.packet()?].concat())
    }

    /// The packet, from its IP header on.
    pub fn packet(&self) -> Option<Vec<u8>> {
        self.segment(SYN, &self.options(0))
    }

    /// The same without options, as what others quote.
    pub(super) fn quoted(&self) -> Option<Vec<u8>> {
        self.segment(SYN, &[])
    }

    /// The packet that answers it, with a number of its own.
    pub(super) fn answer(&self, sequence: u32) -> Option<Vec<u8>> {
        let Self { source, source_port, destination, port, .. } = *self;
        let (source, destination) = (destination, source);
        let (source_port, port) = (port, source_port);
        let answer = Self { source, source_port, destination, port, sequence };
        answer.segment(SYN | ACK, &answer.options(self.sequence))
    }

    /// The same in the frame from one MAC address to another.
    pub(super) fn answer_frame(
        &self,
        sequence: u32,
        from: MacAddr,
        to: MacAddr,
    ) -> Option<Vec<u8>> {
        Some([&to.0[..], &from.0, &self.ethertype(), &self.answer(sequence)?].concat())
    }

    fn ethertype(&self) -> [u8; 2] {
        if self.source.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 }
    }

    /// The options that Linux puts into the first packet of each side, in its order: rules may ask
    /// for them, and for the packet's length. `echo` is the other side's timestamp.
    fn options(&self, echo: u32) -> Vec<u8> {
        /// What Ethernet carries, less the headers of IP and TCP.
        const SEGMENT_V4: u16 = 1460;
        const SEGMENT_V6: u16 = 1440;
        let segment = if self.source.is_ipv4() { SEGMENT_V4 } else { SEGMENT_V6 };
        [
            // The largest segment; selective acknowledgement is understood.
            &[2, 4][..],
            &segment.to_be_bytes(),
            &[4, 2],
            // Timestamps: its own, any one, and the other side's.
            &[8, 10],
            &self.sequence.to_be_bytes(),
            &echo.to_be_bytes(),
            // Nothing; the window is counted in units of two to the seventh.
            &[1, 3, 3, 7],
        ]
        .concat()
    }

    fn segment(&self, flags: u8, options: &[u8]) -> Option<Vec<u8>> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(to)) => Some(self.v4(source, to, flags, options)),
            (IpAddr::V6(source), IpAddr::V6(to)) => Some(self.v6(source, to, flags, options)),
            _ => None,
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, flags: u8, options: &[u8]) -> Vec<u8> {
        let length = bytes_with(options);
        let [high, low] = (20 + length).to_be_bytes();
        // Version and length, service; total length; identification; do not fragment; hops, TCP.
        let mut header = vec![0x45, 0, high, low, 0x41, 0x18, 0x40, 0, 64, TCP, 0, 0];
        header.extend(source.octets());
        header.extend(destination.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let length = length.to_be_bytes();
        let pseudo = [&source.octets()[..], &destination.octets(), &[0, TCP], &length].concat();
        header.extend(self.tcp(&pseudo, flags, options));
        header
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, flags: u8, options: &[u8]) -> Vec<u8> {
        let [high, low] = bytes_with(options).to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, high, low, TCP, 64];
        header.extend(source.octets());
        header.extend(destination.octets());
        let length = [0, 0, high, low, 0, 0, 0, TCP];
        let pseudo = [&source.octets()[..], &destination.octets(), &length].concat();
        header.extend(self.tcp(&pseudo, flags, options));
        header
    }

    fn tcp(&self, pseudo: &[u8], flags: u8, options: &[u8]) -> Vec<u8> {
        let mut header = [self.source_port.0, self.port.0].map(u16::to_be_bytes).concat();
        header.extend(self.sequence.to_be_bytes());
        header.extend([0; 4]);
        // The header's length in words of four bytes.
        let [_, length] = (bytes_with(options) / 4).to_be_bytes();
        header.extend([length << 4, flags]);
        // The window; then checksum and urgent pointer.
        header.extend(64_240_u16.to_be_bytes());
        header.extend([0; 4]);
        header.extend(options);
        let sum = checksum(&[pseudo, &header].concat());
        header[16..18].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

/// Bytes of TCP's header with these options.
fn bytes_with(options: &[u8]) -> u16 {
    u16::try_from(HEADER_BYTES + options.len()).unwrap_or_default()
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
        assert_eq!(v4.len(), 14 + 60);
        // A header with its checksum in place sums up to zero.
        assert_eq!(checksum(&v4[14..34]), 0);
        let pseudo = [&v4[26..34], &[0, TCP, 0, 40]].concat();
        assert_eq!(checksum(&[&pseudo, &v4[34..]].concat()), 0);
        let v6 = syn("2001:db8::1", "2001:db8::2").frame(mac, mac).expect("one family");
        let pseudo = [&v6[22..54], &[0, 0, 0, 40, 0, 0, 0, TCP]].concat();
        assert_eq!(checksum(&[&pseudo, &v6[54..]].concat()), 0);
        assert_eq!(syn("34.205.5.1", "2001:db8::2").frame(mac, mac), None);
    }
}
