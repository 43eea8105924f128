//! A frame as bytes that may end anywhere: on the host a slice, in the kernel `data..data_end`.

use crate::PassReason;
use crate::config::constant;

/// A type that any bytes off the wire are a valid value of.
///
/// # Safety
///
/// Every bit pattern must be a value, and there must be no padding.
#[expect(unsafe_code, reason = "a promise about layout that the compiler cannot check")]
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($type:ty),*) => {$(
        #[expect(unsafe_code, reason = "the promise of `Wire`")]
        // SAFETY: integers and arrays of them hold any bits and have no padding.
        unsafe impl Wire for $type {}
    )*};
}
wire!(u8, u16, u32, u64);

/// The same bytes, anywhere.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub(crate) struct Unaligned<T>(T);

#[expect(unsafe_code, reason = "the promise of `Wire`")]
// SAFETY: `T`'s, and no padding.
unsafe impl<T: Wire> Wire for Unaligned<T> {}

impl<T: Wire> Unaligned<T> {
    /// The value, read once for each call.
    #[inline(always)]
    pub(crate) fn get(&self) -> T {
        constant(self).0
    }
}

/// What these bytes begin with.
#[inline(always)]
#[expect(unsafe_code, reason = "bytes become a header")]
pub(crate) fn prefix<T: Wire, U: Wire>(bytes: &U) -> &T {
    const { assert!(size_of::<T>() <= size_of::<U>()) };
    const { assert_unaligned::<T>() };
    // SAFETY: the bytes are there, and `T` holds any of them and lies anywhere.
    unsafe { &*core::ptr::from_ref(bytes).cast() }
}

/// A frame from its Ethernet header on.
pub trait Packet {
    /// The bytes at `at`, or [`PassReason::Truncated`] where the frame ends before them.
    fn load<T: Wire>(&self, at: usize) -> Result<T, PassReason>;

    /// The bytes at `at` where they are, if they are at hand; nothing where it takes a call to get at
    /// them. What is not looked at is not read.
    fn view<T: Wire>(&self, at: usize) -> Option<&T>;

    /// The VLAN tag that was taken off the frame before it came here, where that is known; zero for
    /// none, or a priority tag.
    #[inline(always)]
    fn stripped_tag(&self) -> u16 {
        0
    }

    /// The same as `view`, copied.
    #[inline(always)]
    fn load_near<T: Wire>(&self, at: usize) -> Option<T> {
        self.view::<Unaligned<T>>(at).map(|bytes| bytes.0)
    }

    /// As `load`, where many paths lead to `at`. In the kernel this is slower, and the verifier,
    /// which need not know how far `at` can be, does not follow every path.
    fn load_far<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        self.load(at)
    }
}

/// A view needs bytes that may lie anywhere.
pub(crate) const fn assert_unaligned<T>() {
    assert!(align_of::<T>() == 1, "a view is of packed structs");
}

impl Packet for [u8] {
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        const { assert_unaligned::<T>() };
        let bytes = self.get(at..at.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` is as long as `T`, which holds any bits and lies anywhere.
        Some(unsafe { &*bytes.as_ptr().cast::<T>() })
    }

    #[expect(unsafe_code, reason = "bytes become a header")]
    fn load<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        let end = at.checked_add(size_of::<T>()).ok_or(PassReason::Truncated)?;
        let bytes = self.get(at..end).ok_or(PassReason::Truncated)?;
        // SAFETY: `bytes` is as long as `T`, which holds any bits and is read unaligned.
        Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}
