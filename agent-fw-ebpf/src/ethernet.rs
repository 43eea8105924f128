//! Ethernet, with up to 16 VLAN tags (802.1Q, 802.1ad) before the network's header.

use crate::config::forgotten;
use crate::{Packet, PassReason};

/// The type of a frame that carries IPv4.
pub const IPV4: u16 = 0x0800;
/// The type of a frame that carries IPv6.
pub const IPV6: u16 = 0x86dd;

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100; // 802.1Q
pub(crate) const SERVICE_VLAN: u16 = 0x88a8; // 802.1ad
/// The stack strips every priority tag that it finds, as many as the frame has room for. Nobody
/// honest sends more than two or three.
const MAX_TAGS: usize = 16;
/// As many as frames have of whom nobody need be wary.
const HONEST_TAGS: usize = 2;

/// Where a frame's type stands.
pub(crate) const TYPE_AT: usize = 12;
const TAG_LEN: usize = 4;
/// The farthest that the type behind the tags can stand.
const MOST_AT: usize = TYPE_AT + MAX_TAGS * TAG_LEN;
/// The bits of a tag that number a virtual network; zero in a priority tag.
const VLAN_ID: u16 = 0xfff;

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
    fn load<P: Packet + ?Sized>(packet: &P, at: usize) -> Result<Self, PassReason> {
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
pub fn destination<P: Packet + ?Sized>(packet: &P) -> Result<Mac, PassReason> {
    Mac::load(packet, 0)
}

/// The MAC address that the frame says it comes from.
#[inline(always)]
pub fn source<P: Packet + ?Sized>(packet: &P) -> Result<Mac, PassReason> {
    Mac::load(packet, 6)
}

/// What a frame carries, behind its tags.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    /// Its type.
    pub(crate) kind: u16,
    /// Where it starts.
    pub(crate) at: usize,
    /// Whether a tag names a virtual network, so that another interface may receive it.
    pub(crate) is_virtual: bool,
}

/// What the frame carries.
#[inline(always)]
pub(crate) fn payload<P: Packet + ?Sized>(packet: &P) -> Result<Payload, PassReason> {
    let mut tags = Tags { at: TYPE_AT, kind: u16::from_be(packet.load(TYPE_AT)?), vlans: 0 };
    for _ in 0..HONEST_TAGS {
        if !is_tag(tags.kind) {
            return Ok(tags.payload(packet));
        }
        tags.strip(packet.load(tags.at + 2)?);
    }
    if !is_tag(tags.kind) {
        return Ok(tags.payload(packet));
    }
    for _ in HONEST_TAGS..MAX_TAGS {
        tags.strip(packet.load_far(tags.at + 2)?);
        if !is_tag(tags.kind) {
            // The verifier is not to follow what comes next for each number of tags.
            tags.at = forgotten(tags.at);
            return if tags.at <= MOST_AT {
                Ok(tags.payload(packet))
            } else {
                Err(PassReason::TooManyTags)
            };
        }
    }
    Err(PassReason::TooManyTags)
}

/// The tags up to some place in a frame.
struct Tags {
    /// Where the next type stands.
    at: usize,
    kind: u16,
    /// All bits of the numbers of virtual networks.
    vlans: u16,
}

impl Tags {
    /// Goes on behind a tag: its number, and the next type.
    #[inline(always)]
    fn strip(&mut self, tag: u32) {
        let tag = u32::from_be(tag);
        self.vlans |= (tag >> 16) as u16;
        self.kind = tag as u16;
        self.at += TAG_LEN;
    }

    #[inline(always)]
    fn payload<P: Packet + ?Sized>(&self, packet: &P) -> Payload {
        let vlans = (self.vlans | packet.stripped_tag()) & VLAN_ID;
        Payload { kind: self.kind, at: self.at + 2, is_virtual: vlans != 0 }
    }
}

const fn is_tag(kind: u16) -> bool {
    matches!(kind, VLAN | SERVICE_VLAN)
}
