//! Ethernet and its tags.

use crate::mac::MacAddr;

/// An Ethernet II header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Who sends.
    pub source: MacAddr,
    /// Who is to receive.
    pub destination: MacAddr,
}

impl Ethernet {
    /// A header from `source` to `destination`.
    #[must_use]
    pub fn new(source: MacAddr, destination: MacAddr) -> Self {
        Self { source, destination }
    }

    pub(super) fn encode(self, ether_type: u16, inside: &[u8]) -> Vec<u8> {
        let mut bytes = [self.destination.0, self.source.0].concat();
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(inside);
        bytes
    }
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Whether it is a service tag (802.1ad), the outer one of two.
    pub service: bool,
    /// The priority, 0 to 7.
    pub priority: u8,
    /// The VLAN, 0 to 4095; 0 means none.
    pub id: u16,
}

impl Vlan {
    /// A tag that gives a priority and no VLAN: a host takes such a frame as if untagged.
    #[must_use]
    pub fn priority() -> Self {
        Self { service: false, priority: 5, id: 0 }
    }

    /// A tag of VLAN `id`.
    #[must_use]
    pub fn id(id: u16) -> Self {
        Self { service: false, priority: 0, id }
    }

    /// A service tag of VLAN `id`, to be followed by another tag.
    #[must_use]
    pub fn service(id: u16) -> Self {
        Self { service: true, priority: 0, id }
    }

    pub(super) fn tag_type(self) -> u16 {
        if self.service { 0x88a8 } else { 0x8100 }
    }

    pub(super) fn encode(self, ether_type: u16, inside: &[u8]) -> Vec<u8> {
        let control = u16::from(self.priority & 7) << 13 | self.id & 0x0fff;
        let mut bytes = [control.to_be_bytes(), ether_type.to_be_bytes()].concat();
        bytes.extend(inside);
        bytes
    }
}
