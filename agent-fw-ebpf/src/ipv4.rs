//! IPv4, with options.

use crate::address::V4;
use crate::datagram::{Datagram, Payload, UNBOUNDED};
use crate::packet::Wire;
use crate::{Packet, Undecided, tcp};

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
    source: u32,
    destination: u32,
}

const _: () = assert!(size_of::<Header>() == 20);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: integers, any bits; the size asserted above leaves no padding.
unsafe impl Wire for Header {}

#[inline(always)]
pub(crate) fn parse<P: Packet + ?Sized>(packet: &P, at: usize) -> Result<Datagram<V4>, Undecided> {
    let header: Header = packet.load(at)?;
    let words = header.version_and_words & 0xf;
    if header.version_and_words >> 4 != 4 || words < MIN_WORDS {
        return Err(Undecided::MalformedIp);
    }
    if header.protocol != tcp::PROTOCOL {
        return Err(Undecided::NotTcp);
    }
    let fragment = u16::from_be(header.fragment);
    if fragment & FRAGMENT_OFFSET != 0 {
        return Err(Undecided::LaterFragment);
    }
    // Zero: larger than the field can say, as the kernel's own receive offload makes them.
    let total_len = usize::from(u16::from_be(header.total_len));
    let payload = Payload {
        at: at + usize::from(words) * 4,
        end: if total_len == 0 { UNBOUNDED } else { at + total_len },
        first_fragment: fragment & MORE_FRAGMENTS != 0,
    };
    Ok(Datagram {
        source: V4(u32::from_be(header.source)),
        destination: V4(u32::from_be(header.destination)),
        port: payload.port(|at| packet.load(at)),
    })
}
