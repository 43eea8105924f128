//! What a glance at a frame tells: a few loads and comparisons, nothing that takes a stack or a
//! call. Most of a host's frames do not concern the agent, and cost no more than this.

use crate::config::Config;
use crate::packet::{Unaligned, Wire, prefix};
use crate::{Packet, PassReason, ethernet, ipv6, tcp};

/// What a glance tells. What it takes to say more of a frame comes after all glances, so that those
/// at packets to other ports, most of a host's, are one straight piece of code.
#[derive(Clone, Copy)]
pub(crate) enum Glance<'a> {
    /// It carries TCP over IPv4 or IPv6 as nearly all such frames do: untagged, without options or
    /// extension headers, in one piece. It is for another port than the agent's.
    OtherPort,
    /// It carries TCP over IPv4 so, and is for a port between the agent's lowest and highest.
    V4,
    /// The same over IPv6.
    V6,
    /// It carries IPv4 without options, but no TCP in one piece.
    OtherV4(&'a FrameV4),
    /// It carries IPv6, but no TCP right behind its header.
    OtherV6(&'a FrameV6),
    /// It carries neither.
    Other(&'a FrameV4),
    /// It takes a closer look.
    Unclear,
}

/// Glances at a frame.
#[inline(always)]
pub(crate) fn glance<'a>(packet: &'a (impl Packet + ?Sized), config: &Config) -> Glance<'a> {
    match glance_long(packet, config) {
        Some(glance) => glance,
        None => glance_short(packet, config),
    }
}

/// Glances at a frame that is long enough for TCP over IPv6, as every one is that comes off a wire:
/// one comparison with its end does for all.
#[inline(always)]
fn glance_long<'a>(packet: &'a (impl Packet + ?Sized), config: &Config) -> Option<Glance<'a>> {
    let frame = packet.view::<FrameV6>(ethernet::TYPE_AT)?;
    let front: &FrameV4 = prefix(frame);
    if front.is_not_v4() {
        if front.is_not_v6() {
            return Some(Glance::Other(front));
        }
        return Some(frame.glance(config));
    }
    Some(front.glance(config))
}

/// Glances at a shorter one.
#[inline(always)]
fn glance_short<'a>(packet: &'a (impl Packet + ?Sized), config: &Config) -> Glance<'a> {
    let Some(frame) = packet.view::<FrameV4>(ethernet::TYPE_AT) else {
        return Glance::Unclear;
    };
    if frame.is_not_v4() {
        return Glance::Other(frame);
    }
    frame.glance(config)
}

impl Glance<'_> {
    /// Why the frame is not decided on; nothing, where that takes a closer look.
    #[inline(always)]
    pub(crate) fn reason(self) -> Option<PassReason> {
        match self {
            Self::OtherPort => Some(PassReason::OtherPort),
            Self::OtherV4(frame) => frame.is_not_tcp().then_some(PassReason::NotTcp),
            Self::OtherV6(frame) => frame.is_not_tcp().then_some(PassReason::NotTcp),
            Self::Other(frame) => frame.is_not_ip().then_some(PassReason::NotIp),
            Self::V4 | Self::V6 | Self::Unclear => None,
        }
    }
}

/// A frame from its type to TCP's ports, where it has neither tags nor options. Fields that are
/// compared at once are one: the type with the version, and the length of the header behind it.
///
/// A field is read anew for every comparison. Kept for a second one, it would be copied for every
/// frame.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FrameV4 {
    kind_version: Unaligned<u32>,
    total_len: Unaligned<u16>,
    identification: Unaligned<u16>,
    fragment_ttl_protocol: Unaligned<u32>,
    checksum_addresses: [Unaligned<u16>; 5],
    ports: [Unaligned<u16>; 2],
}

/// The same over IPv6, where it has no extension headers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FrameV6 {
    kind_version: Unaligned<u32>,
    flow: Unaligned<u16>,
    payload_len: Unaligned<u16>,
    next: Unaligned<u8>,
    hop_limit: Unaligned<u8>,
    addresses: [Unaligned<u64>; 4],
    ports: [Unaligned<u16>; 2],
}

const PORTS: usize = size_of::<[Unaligned<u16>; 2]>();
const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;
/// The length of a datagram of IPv4 that has TCP's ports.
const SHORTEST_V4: u16 = (HEADER_V4 + PORTS) as u16;
const _: () = {
    assert!(size_of::<FrameV4>() == 2 + HEADER_V4 + PORTS);
    assert!(size_of::<FrameV6>() == 2 + HEADER_V6 + PORTS);
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
    /// Whether the type and the first byte behind it say something else than IPv4 without options.
    #[inline(always)]
    fn is_not_v4(&self) -> bool {
        self.kind_version.get() & 0xffff_ff00_u32.to_be() != 0x0800_4500_u32.to_be()
    }

    /// Whether the type and the four bits behind it say something else than IPv6.
    #[inline(always)]
    fn is_not_v6(&self) -> bool {
        self.kind_version.get() & 0xffff_f000_u32.to_be() != 0x86dd_6000_u32.to_be()
    }

    #[inline(always)]
    fn glance(&self, config: &Config) -> Glance<'_> {
        // TCP, and no fragment.
        let tcp = u32::from(tcp::PROTOCOL).to_be();
        if self.fragment_ttl_protocol.get() & 0x3fff_00ff_u32.to_be() != tcp {
            return Glance::OtherV4(self);
        }
        let [_, destination] = &self.ports;
        if config.span().has_be(destination.get()) {
            let len = u16::from_be(self.total_len.get());
            // Zero is more than the field can say: a case for a closer look.
            return if len < SHORTEST_V4 { Glance::Unclear } else { Glance::V4 };
        }
        Glance::OtherPort
    }

    /// Whether IPv4's protocol is another.
    #[inline(always)]
    fn is_not_tcp(&self) -> bool {
        self.fragment_ttl_protocol.get() & 0xff_u32.to_be() != u32::from(tcp::PROTOCOL).to_be()
    }

    /// Whether the type is neither IP's nor a tag's.
    #[inline(always)]
    fn is_not_ip(&self) -> bool {
        // The one that there is most of is looked for first.
        let arp = [ethernet::ARP];
        let others = [ethernet::IPV4, ethernet::IPV6, ethernet::VLAN, ethernet::SERVICE_VLAN];
        self.is_among(arp) || !self.is_among(others)
    }

    /// Whether the type is one of these.
    #[inline(always)]
    fn is_among<const N: usize>(&self, kinds: [u16; N]) -> bool {
        let mine = self.kind_version.get() & 0xffff_0000_u32.to_be();
        kinds.into_iter().any(|kind| mine == (u32::from(kind) << 16).to_be())
    }
}

impl FrameV6 {
    #[inline(always)]
    fn glance(&self, config: &Config) -> Glance<'_> {
        if self.next.get() != tcp::PROTOCOL {
            return Glance::OtherV6(self);
        }
        let [_, destination] = &self.ports;
        if config.span().has_be(destination.get()) {
            let len = u16::from_be(self.payload_len.get());
            // Zero is a jumbogram's: a case for a closer look.
            return if usize::from(len) < PORTS { Glance::Unclear } else { Glance::V6 };
        }
        Glance::OtherPort
    }

    /// Whether what comes behind IPv6's header is neither TCP nor an extension.
    #[inline(always)]
    fn is_not_tcp(&self) -> bool {
        let next = self.next.get();
        next != tcp::PROTOCOL && !ipv6::is_extension(next)
    }
}
