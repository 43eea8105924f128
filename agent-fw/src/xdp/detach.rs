//! Taking a link's program off its interface at once.
//!
//! Removing a link's last pin does so too, but only some milliseconds later, when the kernel's
//! workers come to it; and nothing else can be attached until then. aya does not know the command.
#![allow(unsafe_code, reason = "bpf(2) takes the address of its arguments")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `BPF_OBJ_GET` and `BPF_LINK_DETACH` of linux/bpf.h.
const OBJ_GET: i32 = 7;
const LINK_DETACH: i32 = 34;

/// The part of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link: i32,
}

/// Takes the program of the link that is pinned at `path` off its interface. The link stays, with
/// nothing to do; so it is with that of an interface that has gone.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjGet { path: name.as_ptr() as u64, descriptor: 0, flags: 0 };
    let descriptor = bpf(OBJ_GET, &get)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    bpf(LINK_DETACH, &LinkDetach { link: link.as_raw_fd() }).map(drop)
}

/// `bpf(2)`. `T` is the part of `union bpf_attr` that the command reads.
fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads no more than the length that it is given, these commands write
    // nothing back, and what `attributes` points to outlives the call, since the callers own it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
