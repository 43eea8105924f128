//! A program's instructions, as the kernel has them.
#![allow(unsafe_code, reason = "bpf(2) takes the addresses of its arguments")]

use aya_obj::generated::bpf_prog_info;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `BPF_OBJ_GET_INFO_BY_FD` of linux/bpf.h.
const GET_INFO: i32 = 15;

/// The part of `union bpf_attr` for it.
#[repr(C)]
struct GetInfo {
    descriptor: i32,
    length: u32,
    info: u64,
}

/// The instructions of a loaded program, after the verifier: eight bytes each, with the numbers of
/// maps in those that name one.
pub(super) fn instructions(program: impl AsFd) -> io::Result<Vec<[u8; 8]>> {
    let mut info = nothing();
    ask(&program, &mut info)?;
    let mut code = vec![[0_u8; 8]; info.xlated_prog_len as usize / 8];
    let length = info.xlated_prog_len;
    info = nothing();
    info.xlated_prog_len = length;
    info.xlated_prog_insns = code.as_mut_ptr() as u64;
    ask(&program, &mut info)?;
    Ok(code)
}

/// No information.
fn nothing() -> bpf_prog_info {
    // SAFETY: integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn ask(program: &impl AsFd, info: &mut bpf_prog_info) -> io::Result<()> {
    let attributes = GetInfo {
        descriptor: program.as_fd().as_raw_fd(),
        length: u32::try_from(size_of::<bpf_prog_info>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel reads `attributes` and writes to `info`, no more than the lengths that it
    // is given, and to the instructions, for which the caller has made as much room as `info`
    // says; all of them outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            GET_INFO,
            std::ptr::from_ref(&attributes),
            size_of::<GetInfo>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
