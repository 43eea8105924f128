//! TCP, UDP and payload.

use std::ops::BitOr;

use super::length_field;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A TCP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The port that sends.
    pub source: u16,
    /// The port that is to receive.
    pub destination: u16,
    /// The number of the first byte.
    pub sequence: u32,
    /// The number of the byte that is expected next.
    pub acknowledgement: u32,
    /// The flags.
    pub flags: TcpFlags,
    /// How many bytes may come back unacknowledged.
    pub window: u16,
    /// Options, at most 40 bytes; padded with "end of options" to a multiple of 4.
    pub options: Vec<u8>,
}

impl Tcp {
    /// The first segment of a connection.
    #[must_use]
    pub fn syn(source: u16, destination: u16) -> Self {
        Self {
            source,
            destination,
            sequence: 0x4118_0000,
            acknowledgement: 0,
            flags: TcpFlags::SYN,
            window: 64_240,
            options: Vec::new(),
        }
    }

    pub(super) fn encode(&self, inside: &[u8], checksum: impl FnOnce(&[u8]) -> u16) -> Vec<u8> {
        let header = 20 + self.options.len().next_multiple_of(4);
        let words = u8::try_from(header / 4).ok().filter(|words| *words <= 15);
        let words = words.expect("TCP options have at most 40 bytes");
        let mut bytes = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([words << 4, self.flags.0]);
        bytes.extend(self.window.to_be_bytes());
        // Checksum and urgent pointer
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.resize(header, 0);
        bytes.extend(inside);
        let sum = checksum(&bytes).to_be_bytes();
        bytes[16..18].copy_from_slice(&sum);
        bytes
    }
}

/// The flags of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more bytes will come.
    pub const FIN: Self = Self(0x01);
    /// A connection is to begin.
    pub const SYN: Self = Self(0x02);
    /// The connection is refused or broken.
    pub const RST: Self = Self(0x04);
    /// The receiver should not wait for more.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement counts.
    pub const ACK: Self = Self(0x10);

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The port that sends.
    pub source: u16,
    /// The port that is to receive.
    pub destination: u16,
}

impl Udp {
    /// A header from port to port.
    #[must_use]
    pub fn new(source: u16, destination: u16) -> Self {
        Self { source, destination }
    }

    pub(super) fn encode(self, inside: &[u8], checksum: impl FnOnce(&[u8]) -> u16) -> Vec<u8> {
        let mut bytes = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        bytes.extend(length_field(8 + inside.len()).to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(inside);
        // A sum of 0 would say that there is none.
        let sum = match checksum(&bytes) {
            0 => 0xffff,
            sum => sum,
        };
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// Bytes after the last header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The IP protocol that they are announced as, where they follow an IP header.
    pub protocol: u8,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Raw {
    /// Payload of TCP or UDP; after an IP header, of a protocol for experiments.
    #[must_use]
    pub fn data(bytes: &[u8]) -> Self {
        Self { protocol: 253, bytes: bytes.to_vec() }
    }
}
