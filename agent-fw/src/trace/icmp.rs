//! The word of a router that a packet of the agent's was too large for the next link (RFC 1191,
//! RFC 8201).

use crate::trace::syn::{Syn, checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// What the next link can carry, in bytes.
const MTU: u16 = 1400;

/// By what the message is known: the first two bytes, type and code, and a number in its first
/// twenty, which is all that the kernel's trace shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooBig {
    pub(super) first: [u8; 2],
    pub(super) number: u32,
}

impl TooBig {
    /// Draws a number from these bits.
    pub(super) fn known_by(is_v4: bool, random: u16) -> Self {
        // The next number must be one in the same field.
        let random = u32::from(random & !1);
        if is_v4 {
            // The quoted header's length of 40 bytes, and its identification.
            Self { first: [3, 4], number: 40 << 16 | random }
        } else {
            // The quoted header's version, class and flow label.
            Self { first: [2, 0], number: 6 << 28 | random }
        }
    }

    /// The packet by which a router says so to whoever has sent `sent`.
    pub(super) fn packet(self, router: IpAddr, sent: &Syn, number: u32) -> Option<Vec<u8>> {
        let quoted = sent.quoted()?;
        match (router, sent.source) {
            (IpAddr::V4(router), IpAddr::V4(to)) => Some(self.v4(router, to, quoted, number)),
            (IpAddr::V6(router), IpAddr::V6(to)) => Some(self.v6(router, to, quoted, number)),
            _ => None,
        }
    }

    fn v4(self, router: Ipv4Addr, to: Ipv4Addr, mut quoted: Vec<u8>, number: u32) -> Vec<u8> {
        quoted[2..6].copy_from_slice(&number.to_be_bytes());
        quoted[10..12].fill(0);
        let sum = checksum(&quoted[..20]);
        quoted[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut message = [&self.first[..], &[0; 4], &MTU.to_be_bytes(), &quoted].concat();
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(20 + message.len()).unwrap_or_default();
        let mut packet = vec![0x45, 0, 0, 0, 0x41, 0x19, 0, 0, 64, ICMP, 0, 0];
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet.extend(router.octets());
        packet.extend(to.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(message);
        packet
    }

    fn v6(self, router: Ipv6Addr, to: Ipv6Addr, mut quoted: Vec<u8>, number: u32) -> Vec<u8> {
        quoted[..4].copy_from_slice(&number.to_be_bytes());
        let mtu = u32::from(MTU).to_be_bytes();
        let mut message = [&self.first[..], &[0; 2], &mtu, &quoted].concat();
        let length = u16::try_from(message.len()).unwrap_or_default().to_be_bytes();
        let pseudo =
            [&router.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, ICMP_V6]].concat();
        let sum = checksum(&[pseudo, message.clone()].concat());
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, ICMP_V6, 64];
        packet[4..6].copy_from_slice(&length);
        packet.extend(router.octets());
        packet.extend(to.octets());
        packet.extend(message);
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;

    #[test]
    fn the_number_is_where_a_trace_shows_it_and_checksums_are_right() {
        for (own, remote, router, place) in [
            ("10.0.0.1", "34.205.5.1", "10.0.0.2", 10),
            ("2001:db8::1", "2001:db8:1::1", "2001:db8::2", 8),
        ] {
            let [source, destination, router] =
                [own, remote, router].map(|text| text.parse().expect("an address"));
            let (source_port, port) = (Port(4118), Port(50_000));
            let sent = Syn { source, source_port, destination, port, sequence: 1 };
            let known = TooBig::known_by(source.is_ipv4(), 0xffff);
            let packet = known.packet(router, &sent, known.number).expect("one family");
            let header = if source.is_ipv4() { 20 } else { 40 };
            let message = &packet[header..];
            assert_eq!(message[..2], known.first);
            assert_eq!(message[place..place + 4], known.number.to_be_bytes());
            assert_eq!(known.number & 1, 0);
            let pseudo: Vec<u8> = if source.is_ipv4() {
                Vec::new()
            } else {
                [&packet[8..40], &[0, 0, 0, 68, 0, 0, 0, ICMP_V6]].concat()
            };
            assert_eq!(checksum(&[&pseudo, message].concat()), 0, "{own}");
        }
    }
}
