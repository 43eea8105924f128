//! What a glance at a frame tells: a few loads and comparisons, nothing that takes a stack or a
//! call. Most of a host's frames do not concern the agent, and cost no more than this.

use crate::config::Config;
use crate::packet::Wire;
use crate::{Packet, Undecided, ethernet, ipv6, tcp};

/// What a glance tells.
#[derive(Clone, Copy)]
pub(crate) enum Glance {
    /// The frame is not decided on.
    Undecided(Undecided),
    /// It carries TCP over IPv4 as nearly all such frames do: untagged, without options, in one
    /// piece. It is for a port between the agent's lowest and highest.
    V4,
    /// It does so over IPv6, without extension headers.
    V6,
    /// It takes a closer look.
    Unclear,
}

/// Glances at a frame.
#[inline(always)]
pub(crate) fn glance(packet: &(impl Packet + ?Sized), config: &Config) -> Glance {
    let Some(frame) = packet.view::<FrameV4>(ethernet::TYPE_AT) else {
        return Glance::Unclear;
    };
    if frame.is_v4() {
        return frame.glance(config);
    }
    if frame.is_v6() {
        return match packet.view::<FrameV6>(ethernet::TYPE_AT) {
            Some(frame) => frame.glance(config),
            None => Glance::Unclear,
        };
    }
    // Options, or what only calls itself IP, or tags.
    let unclear = [ethernet::IPV4, ethernet::IPV6, ethernet::VLAN, ethernet::SERVICE_VLAN];
    if unclear.iter().any(|kind| frame.is(*kind)) {
        Glance::Unclear
    } else {
        Glance::Undecided(Undecided::NotIp)
    }
}

/// A frame from its type to TCP's ports, where it has neither tags nor options. Fields that are
/// compared at once are one: the type with the version, and the length of the header behind it.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct FrameV4 {
    kind_version: u32,
    total_len_identification: u32,
    fragment_ttl_protocol: u32,
    checksum: u16,
    addresses: [u32; 2],
    ports: tcp::Ports,
}

/// The same over IPv6, where it has no extension headers.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct FrameV6 {
    kind: u16,
    version_class_flow: u32,
    payload_len: u16,
    next_hop_limit: u16,
    addresses: [u64; 4],
    ports: tcp::Ports,
}

const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;
/// The length of a datagram of IPv4 that has TCP's ports.
const SHORTEST_V4: u32 = (HEADER_V4 + size_of::<tcp::Ports>()) as u32;
const _: () = {
    assert!(size_of::<FrameV4>() == 2 + HEADER_V4 + size_of::<tcp::Ports>());
    assert!(size_of::<FrameV6>() == 2 + HEADER_V6 + size_of::<tcp::Ports>());
};

macro_rules! wire {
    ($($type:ty),*) => {$(
        #[expect(unsafe_code, reason = "the promise of `Wire`")]
        // SAFETY: integers, any bits, packed.
        unsafe impl Wire for $type {}
    )*};
}
wire!(FrameV4, FrameV6);

impl FrameV4 {
    /// Whether the type is this one.
    #[inline(always)]
    fn is(&self, kind: u16) -> bool {
        self.kind_version & 0xffff_0000_u32.to_be() == (u32::from(kind) << 16).to_be()
    }

    /// Whether the type and the first byte behind it say IPv4 without options.
    #[inline(always)]
    fn is_v4(&self) -> bool {
        self.kind_version & 0xffff_ff00_u32.to_be() == 0x0800_4500_u32.to_be()
    }

    /// Whether they say IPv6.
    #[inline(always)]
    fn is_v6(&self) -> bool {
        self.kind_version & 0xffff_f000_u32.to_be() == 0x86dd_6000_u32.to_be()
    }

    #[inline(always)]
    fn glance(&self, config: &Config) -> Glance {
        // TCP, and no fragment.
        if self.fragment_ttl_protocol & 0x3fff_00ff_u32.to_be() != u32::from(tcp::PROTOCOL).to_be()
        {
            let is_tcp =
                self.fragment_ttl_protocol & 0xff_u32.to_be() == u32::from(tcp::PROTOCOL).to_be();
            return if is_tcp { Glance::Unclear } else { Glance::Undecided(Undecided::NotTcp) };
        }
        // A length of zero is more than the field can say: a case for a closer look.
        if u32::from_be(self.total_len_identification) < SHORTEST_V4 << 16 {
            return Glance::Unclear;
        }
        let ports = self.ports;
        if config.spans(ports.destination()) {
            Glance::V4
        } else {
            Glance::Undecided(Undecided::OtherPort)
        }
    }
}

impl FrameV6 {
    #[inline(always)]
    fn glance(&self, config: &Config) -> Glance {
        let tcp = (u16::from(tcp::PROTOCOL) << 8).to_be();
        if self.next_hop_limit & 0xff00_u16.to_be() != tcp {
            let [next, _] = self.next_hop_limit.to_ne_bytes();
            let is_last = !ipv6::is_extension(next);
            return if is_last { Glance::Undecided(Undecided::NotTcp) } else { Glance::Unclear };
        }
        // A length of zero is a jumbogram's: a case for a closer look.
        if usize::from(u16::from_be(self.payload_len)) < size_of::<tcp::Ports>() {
            return Glance::Unclear;
        }
        let ports = self.ports;
        if config.spans(ports.destination()) {
            Glance::V6
        } else {
            Glance::Undecided(Undecided::OtherPort)
        }
    }
}
