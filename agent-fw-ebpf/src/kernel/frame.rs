//! A frame in the kernel: its linear part directly, the rest by a helper.

use core::hint::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_load_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::Undecided;
use crate::packet::{Packet, Wire};

/// What a program is given: a frame, and the interface that it came in by.
pub trait Context {
    /// Where the frame's linear part starts.
    fn start(&self) -> usize;
    /// Where it ends.
    fn end(&self) -> usize;
    /// The interface.
    fn ifindex(&self) -> u32;
    /// The kernel's own pointer.
    fn as_ptr(&self) -> *mut core::ffi::c_void;
    /// Copies bytes of the frame, wherever they lie. False where there are none.
    fn copy<T: Wire>(&self, at: usize, to: &mut MaybeUninit<T>) -> bool;
}

#[expect(unsafe_code, reason = "the context's fields and helpers")]
impl Context for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn copy<T: Wire>(&self, at: usize, to: &mut MaybeUninit<T>) -> bool {
        // SAFETY: the helper writes as many bytes as `to` has, or fails.
        let status = unsafe {
            bpf_xdp_load_bytes(self.ctx, at as u32, to.as_mut_ptr().cast(), size_of::<T>() as u32)
        };
        status == 0
    }
}

#[expect(unsafe_code, reason = "the context's fields and helpers")]
impl Context for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context that the kernel gave.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        aya_ebpf::EbpfContext::as_ptr(self)
    }

    #[inline(always)]
    fn copy<T: Wire>(&self, at: usize, to: &mut MaybeUninit<T>) -> bool {
        // SAFETY: the helper writes as many bytes as `to` has, or fails.
        let status = unsafe {
            bpf_skb_load_bytes(
                self.skb.skb.cast(),
                at as u32,
                to.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        status == 0
    }
}

/// A frame.
pub struct Frame<'a, C> {
    context: &'a C,
    start: usize,
    end: usize,
}

impl<'a, C: Context> Frame<'a, C> {
    /// The context's frame.
    #[inline(always)]
    pub fn new(context: &'a C) -> Self {
        Self { context, start: context.start(), end: context.end() }
    }
}

impl<C: Context> Packet for Frame<'_, C> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn load<T: Wire>(&self, at: usize) -> Result<T, Undecided> {
        let from = self.start + at;
        if from + size_of::<T>() > self.end {
            cold_path();
            return self.load_far(at);
        }
        // SAFETY: the frame's bytes reach to `end`, as the verifier checks once more.
        Ok(unsafe { (from as *const T).read_unaligned() })
    }

    /// Headers may lie beyond the linear part: some drivers leave it empty when a program takes
    /// frames in parts, and the stack's own buffers begin with what the driver copied.
    #[inline(always)]
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn load_far<T: Wire>(&self, at: usize) -> Result<T, Undecided> {
        let mut copied = Aligned(MaybeUninit::<T>::uninit());
        if self.context.copy(at, &mut copied.0) {
            // SAFETY: the helper wrote it all.
            Ok(unsafe { copied.0.assume_init() })
        } else {
            Err(Undecided::Truncated)
        }
    }
}

/// Bytes of a frame may be read unaligned, as the architecture can; bytes of the stack not, since
/// the verifier follows them.
#[repr(align(8))]
struct Aligned<T>(MaybeUninit<T>);
