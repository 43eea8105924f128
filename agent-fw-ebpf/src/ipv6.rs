//! IPv6, with up to eight extension headers.

use core::mem::offset_of;

use crate::address::V6;
use crate::datagram::{Datagram, Payload, Port, UNBOUNDED};
use crate::decision::Plain;
use crate::packet::Wire;
use crate::{Packet, PassReason, ethernet, tcp};

const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const MORE_FRAGMENTS: u16 = 1;
const FRAGMENT_OFFSET: u16 = 0xfff8;

#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    version_class_flow: u32,
    payload_len: u16,
    next: u8,
    hop_limit: u8,
    addresses: Addresses,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Addresses {
    source: [u64; 2],
    destination: [u64; 2],
}

const _: () = assert!(size_of::<Header>() == 40 && offset_of!(Header, addresses) == 8);
const _: () = assert!(size_of::<Addresses>() == 32);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: integers, any bits; the size asserted above leaves no padding.
unsafe impl Wire for Header {}
#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: as before.
unsafe impl Wire for Addresses {}

impl Addresses {
    #[inline(always)]
    fn in_order(self) -> [V6; 2] {
        let address =
            |[high, low]: [u64; 2]| V6 { high: u64::from_be(high), low: u64::from_be(low) };
        [address(self.source), address(self.destination)]
    }
}

impl Plain for V6 {
    const PAYLOAD_AT: usize = ethernet::UNTAGGED_AT + size_of::<Header>();

    #[inline(always)]
    fn addresses(packet: &(impl Packet + ?Sized)) -> Option<[Self; 2]> {
        let at = ethernet::UNTAGGED_AT + offset_of!(Header, addresses);
        packet.load_near(at).map(Addresses::in_order)
    }
}

#[inline(always)]
pub(crate) fn parse<P: Packet + ?Sized>(packet: &P, at: usize) -> Result<Datagram<V6>, PassReason> {
    let header: Header = packet.load(at)?;
    if u32::from_be(header.version_class_flow) >> 28 != 6 {
        return Err(PassReason::MalformedIp);
    }
    let [source, destination] = header.addresses.in_order();
    let start = at + size_of::<Header>();
    // Zero: a jumbogram, whose length stands in a hop-by-hop option.
    let payload_len = usize::from(u16::from_be(header.payload_len));
    let payload = Payload {
        at: start,
        end: if payload_len == 0 { UNBOUNDED } else { start + payload_len },
        first_fragment: false,
    };
    Ok(Datagram {
        source,
        destination,
        port: if header.next == tcp::PROTOCOL {
            payload.port(|at| packet.load(at))
        } else {
            port_behind_extensions(packet, header.next, payload)
        },
    })
}

/// The first eight bytes of an extension header; none is shorter.
#[derive(Clone, Copy)]
#[repr(C)]
struct Extension {
    next: u8,
    units: u8,
    fragment: u16,
    rest: u32,
}

const _: () = assert!(size_of::<Extension>() == 8);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: integers, any bits; the size asserted above leaves no padding.
unsafe impl Wire for Extension {}

#[inline(always)]
fn port_behind_extensions<P: Packet + ?Sized>(
    packet: &P,
    mut kind: u8,
    mut payload: Payload,
) -> Result<Port, PassReason> {
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(kind) {
            break;
        }
        let extension: Extension = payload.header(|at| packet.load_far(at))?;
        if kind == FRAGMENT {
            let fragment = u16::from_be(extension.fragment);
            if fragment & FRAGMENT_OFFSET != 0 {
                return Err(PassReason::LaterFragment);
            }
            payload.first_fragment |= fragment & MORE_FRAGMENTS != 0;
        }
        payload.at += extension.len(kind);
        kind = extension.next;
    }
    match kind {
        tcp::PROTOCOL => payload.port(|at| packet.load_far(at)),
        kind if is_extension(kind) => Err(PassReason::TooManyExtensions),
        _ => Err(PassReason::NotTcp),
    }
}

pub(crate) const fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

impl Extension {
    #[inline(always)]
    fn len(self, kind: u8) -> usize {
        let units = usize::from(self.units);
        match kind {
            FRAGMENT => size_of::<Self>(),
            AUTHENTICATION => (units + 2) * 4, // RFC 4302: in units of four bytes, less two
            _ => (units + 1) * 8,              // RFC 8200: in units of eight bytes, less one
        }
    }
}
