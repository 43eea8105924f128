//! Ethernet, with up to two VLAN tags (802.1Q, 802.1ad) before the network's header.

use crate::{Packet, Undecided};

/// The type of a frame that carries IPv4.
pub const IPV4: u16 = 0x0800;
/// The type of a frame that carries IPv6.
pub const IPV6: u16 = 0x86dd;

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100; // 802.1Q
pub(crate) const SERVICE_VLAN: u16 = 0x88a8; // 802.1ad
const MAX_TAGS: usize = 2;

/// Where a frame's type stands.
pub(crate) const TYPE_AT: usize = 12;
const TAG_LEN: usize = 4;

/// Where the payload of a frame without tags starts.
pub(crate) const UNTAGGED_AT: usize = TYPE_AT + 2;

/// A MAC address as a number: the first byte sent is the most significant of 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(u64);

impl Mac {
    /// The address with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Self {
        Self(bytes.into_iter().fold(0, |bits, byte| bits << 8 | u64::from(byte)))
    }

    /// The address with these 48 bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 48 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether a frame to this address is meant for more than one host.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0 >> 40 & 1 == 1
    }

    #[inline(always)]
    fn load<P: Packet + ?Sized>(packet: &P, at: usize) -> Result<Self, Undecided> {
        // With the two bytes behind it, which the shortest frame has.
        Ok(Self(u64::from_be(packet.load(at)?) >> 16))
    }
}

#[cfg(not(target_arch = "bpf"))]
impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [_, _, first, rest @ ..] = self.0.to_be_bytes();
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// The MAC address that the frame is sent to.
#[inline(always)]
pub fn destination<P: Packet + ?Sized>(packet: &P) -> Result<Mac, Undecided> {
    Mac::load(packet, 0)
}

/// The MAC address that the frame says it comes from.
#[inline(always)]
pub fn source<P: Packet + ?Sized>(packet: &P) -> Result<Mac, Undecided> {
    Mac::load(packet, 6)
}

/// What the frame carries, and where that starts.
#[inline(always)]
pub(crate) fn payload<P: Packet + ?Sized>(packet: &P) -> Result<(u16, usize), Undecided> {
    let mut at = TYPE_AT;
    let mut kind = u16::from_be(packet.load(at)?);
    for _ in 0..MAX_TAGS {
        if !is_tag(kind) {
            break;
        }
        at += TAG_LEN;
        kind = u16::from_be(packet.load(at)?);
    }
    if is_tag(kind) { Err(Undecided::TooManyTags) } else { Ok((kind, at + 2)) }
}

const fn is_tag(kind: u16) -> bool {
    matches!(kind, VLAN | SERVICE_VLAN)
}
