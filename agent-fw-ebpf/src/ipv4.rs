//! IPv4, with options.

use core::mem::offset_of;

use crate::address::V4;
use crate::datagram::{Datagram, Payload, UNBOUNDED};
use crate::decision::Plain;
use crate::packet::Wire;
use crate::{Packet, PassReason, ethernet, tcp};

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const MIN_WORDS: u8 = 5;

#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    version_and_words: u8,
    service: u8,
    total_len: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    addresses: Addresses,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Addresses {
    source: u32,
    destination: u32,
}

const _: () = assert!(size_of::<Header>() == 20 && offset_of!(Header, addresses) == 12);
const _: () = assert!(size_of::<Addresses>() == 8);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: integers, any bits; the size asserted above leaves no padding.
unsafe impl Wire for Header {}
#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: as before.
unsafe impl Wire for Addresses {}

impl Addresses {
    #[inline(always)]
    fn in_order(self) -> [V4; 2] {
        [V4(u32::from_be(self.source)), V4(u32::from_be(self.destination))]
    }
}

impl Plain for V4 {
    const PAYLOAD_AT: usize = ethernet::UNTAGGED_AT + size_of::<Header>();

    #[inline(always)]
    fn addresses(packet: &(impl Packet + ?Sized)) -> Option<[Self; 2]> {
        let at = ethernet::UNTAGGED_AT + offset_of!(Header, addresses);
        packet.load_near(at).map(Addresses::in_order)
    }
}

#[inline(always)]
pub(crate) fn parse<P: Packet + ?Sized>(packet: &P, at: usize) -> Result<Datagram<V4>, PassReason> {
    let header: Header = packet.load(at)?;
    let words = header.version_and_words & 0xf;
    if header.version_and_words >> 4 != 4 || words < MIN_WORDS {
        return Err(PassReason::MalformedIp);
    }
    if header.protocol != tcp::PROTOCOL {
        return Err(PassReason::NotTcp);
    }
    let fragment = u16::from_be(header.fragment);
    if fragment & FRAGMENT_OFFSET != 0 {
        return Err(PassReason::LaterFragment);
    }
    // Zero: larger than the field can say, as the kernel's own receive offload makes them.
    let total_len = usize::from(u16::from_be(header.total_len));
    let payload = Payload {
        at: at + usize::from(words) * 4,
        end: if total_len == 0 { UNBOUNDED } else { at + total_len },
        first_fragment: fragment & MORE_FRAGMENTS != 0,
    };
    let [source, destination] = header.addresses.in_order();
    Ok(Datagram { source, destination, port: payload.port(|at| packet.load(at)) })
}
