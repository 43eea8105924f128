//! A frame in the kernel, at each of the two hooks.

use core::hint::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, bpf_hdr_start_off as Start, xdp_md};
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_xdp_load_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::PassReason;
use crate::config::constant;
use crate::packet::{Packet, Wire, assert_unaligned};

/// What a program is given: a frame, and the interface that it came in by.
pub trait Context: Copy {
    /// The frame, as this hook shows it.
    type Frame: Packet;

    /// The frame.
    fn frame(&self) -> Self::Frame;
    /// The interface.
    fn ifindex(&self) -> u32;
    /// The kernel's own pointer.
    fn as_ptr(&self) -> *mut core::ffi::c_void;
}

/// What the driver hands over.
#[derive(Clone, Copy)]
pub struct AtDriver(*mut xdp_md);

impl From<XdpContext> for AtDriver {
    #[inline(always)]
    fn from(context: XdpContext) -> Self {
        Self(context.ctx)
    }
}

impl Context for AtDriver {
    type Frame = XdpFrame;

    #[inline(always)]
    fn frame(&self) -> XdpFrame {
        XdpFrame::new(self.0)
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields")]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context that the kernel gave.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.cast()
    }
}

/// A frame at XDP: its linear part directly, the rest by a helper.
pub struct XdpFrame {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields")]
    fn new(context: *mut xdp_md) -> Self {
        // Where the frame lies is read anew each time. Kept from the glance to the closer look, it
        // would be put aside for every frame.
        // SAFETY: the context that the kernel gave.
        let [start, end] = unsafe { [constant(&(*context).data), constant(&(*context).data_end)] };
        Self { context, start: start as usize, end: end as usize }
    }
}

impl Packet for XdpFrame {
    #[inline(always)]
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        const { assert_unaligned::<T>() };
        let from = self.start + at;
        if from + size_of::<T>() > self.end {
            cold_path();
            return None;
        }
        // SAFETY: the frame's bytes reach to `end`, as the verifier checks once more, and hold any
        // bits; a `T` lies anywhere.
        Some(unsafe { &*(from as *const T) })
    }

    #[inline(always)]
    fn load<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        match self.load_near(at) {
            Some(loaded) => Ok(loaded),
            None => self.load_far(at),
        }
    }

    /// Headers may lie beyond the linear part: some drivers leave it empty when a program takes
    /// frames in parts.
    #[inline(always)]
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn load_far<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        let mut copied = Aligned(MaybeUninit::<T>::uninit());
        let to = copied.0.as_mut_ptr().cast();
        // SAFETY: the helper writes as many bytes as there is room for, or fails.
        match unsafe { bpf_xdp_load_bytes(self.context, at as u32, to, size_of::<T>() as u32) } {
            // SAFETY: the helper wrote it all.
            0 => Ok(unsafe { copied.0.assume_init() }),
            _ => Err(PassReason::Truncated),
        }
    }
}

/// What the stack hands over.
#[derive(Clone, Copy)]
pub struct AtStack(*mut __sk_buff);

impl From<TcContext> for AtStack {
    #[inline(always)]
    fn from(context: TcContext) -> Self {
        Self(context.skb.skb)
    }
}

impl Context for AtStack {
    type Frame = TcFrame;

    #[inline(always)]
    fn frame(&self) -> TcFrame {
        TcFrame::new(self.0)
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields")]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context that the kernel gave.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.cast()
    }
}

/// A frame in the stack.
pub struct TcFrame {
    skb: *mut __sk_buff,
    start: usize,
    end: usize,
    /// How many bytes of the frame's beginning are not there: none, or Ethernet's header.
    missing: usize,
}

/// Where a frame's type is, and what it carries.
const TYPE_AT: usize = 12;
const NETWORK_AT: usize = 14;

impl TcFrame {
    /// Behind generic XDP the kernel may have copied the frame and forgotten how long its link
    /// header is. `data` is then the network's header, and a program that takes it for Ethernet's
    /// lets everything pass. Nothing tells but how far it is from the network's header to the end
    /// of what lies in one piece.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields")]
    fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context that the kernel gave.
        let [start, end] = unsafe { [(*skb).data as usize, (*skb).data_end as usize] };
        let len = end - start;
        let mut byte = 0_u8;
        let is_missing = len < NETWORK_AT || {
            let past_end = (len - NETWORK_AT) as u32;
            relative(skb, past_end, &mut byte, Start::BPF_HDR_START_NET)
        };
        Self { skb, start, end, missing: if is_missing { NETWORK_AT } else { 0 } }
    }

    /// The header of Ethernet, wherever it lies.
    #[inline(always)]
    fn load_link<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        let mut copied = Aligned(MaybeUninit::<T>::uninit());
        if relative(self.skb, at as u32, &mut copied.0, Start::BPF_HDR_START_MAC) {
            #[expect(unsafe_code, reason = "bytes become a header")]
            // SAFETY: the helper wrote it all.
            Ok(unsafe { copied.0.assume_init() })
        } else {
            Err(PassReason::Truncated)
        }
    }
}

/// Copies bytes that lie in one piece with one of the stack's headers. False where there are none.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper")]
fn relative<T>(skb: *mut __sk_buff, at: u32, to: &mut T, start: u32) -> bool {
    let (to, len) = (core::ptr::from_mut(to).cast(), size_of::<T>() as u32);
    // SAFETY: the helper writes as many bytes as there is room for, in either case.
    unsafe { bpf_skb_load_bytes_relative(skb.cast(), at, to, len, start) == 0 }
}

impl Packet for TcFrame {
    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields, and bytes that become a header")]
    fn load<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        if at == TYPE_AT && size_of::<T>() == size_of::<u16>() {
            // The stack has taken the first VLAN tag off, and knows what is behind it.
            // SAFETY: the context that the kernel gave.
            let kind = unsafe { (*self.skb).protocol } as u16;
            // SAFETY: two bytes, of which any are a `T`.
            return Ok(unsafe { (&raw const kind).cast::<T>().read_unaligned() });
        }
        if at < NETWORK_AT {
            return self.load_link(at);
        }
        let from = self.start + (at - self.missing);
        if from + size_of::<T>() > self.end {
            cold_path();
            return self.load_far(at);
        }
        // SAFETY: the frame's bytes reach to `end`, as the verifier checks once more.
        Ok(unsafe { (from as *const T).read_unaligned() })
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the context's fields")]
    fn stripped_tag(&self) -> u16 {
        // SAFETY: the context that the kernel gave.
        let [present, tag] = unsafe { [(*self.skb).vlan_present, (*self.skb).vlan_tci] };
        if present == 0 { 0 } else { tag as u16 }
    }

    /// Nothing: where the frame begins takes a call to know.
    #[inline(always)]
    fn view<T: Wire>(&self, _at: usize) -> Option<&T> {
        None
    }

    /// Headers may lie beyond the linear part, where the stack has not looked at them yet.
    #[inline(always)]
    #[expect(unsafe_code, reason = "bytes become a header")]
    fn load_far<T: Wire>(&self, at: usize) -> Result<T, PassReason> {
        let mut copied = Aligned(MaybeUninit::<T>::uninit());
        let (to, at) = (copied.0.as_mut_ptr().cast(), (at - self.missing) as u32);
        // SAFETY: the helper writes as many bytes as there is room for, or fails.
        match unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, size_of::<T>() as u32) } {
            // SAFETY: the helper wrote it all.
            0 => Ok(unsafe { copied.0.assume_init() }),
            _ => Err(PassReason::Truncated),
        }
    }
}

/// Bytes of a frame may be read unaligned, as the architecture can; bytes of the stack not, since
/// the verifier follows them.
#[repr(align(8))]
struct Aligned<T>(MaybeUninit<T>);
