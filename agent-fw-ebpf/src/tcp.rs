//! TCP: only its ports matter here.

use crate::packet::Wire;

/// IP's number for TCP.
pub(crate) const PROTOCOL: u8 = 6;

/// The first four bytes of a TCP header.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ports {
    source: u16,
    destination: u16,
}

const _: () = assert!(size_of::<Ports>() == 4);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: integers, any bits; the size asserted above leaves no padding.
unsafe impl Wire for Ports {}

impl Ports {
    #[inline(always)]
    pub(crate) fn destination(self) -> u16 {
        u16::from_be(self.destination)
    }
}
