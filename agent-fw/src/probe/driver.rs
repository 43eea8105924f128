//! What an XDP program does with a frame: the kernel runs it once, on the frame alone.
#![allow(unsafe_code, reason = "bpf(2) takes the addresses of its arguments")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `BPF_PROG_TEST_RUN` and `BPF_PROG_GET_FD_BY_ID` of linux/bpf.h.
const TEST_RUN: i32 = 10;
const GET_BY_NUMBER: i32 = 13;

/// What a program can do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It drops it, or fails.
    Drops,
    /// It lets it pass.
    Passes,
    /// It sends it out again, or elsewhere.
    SendsAway,
}

/// The part of `union bpf_attr` for [`GET_BY_NUMBER`].
#[repr(C)]
struct GetByNumber {
    number: u32,
    next: u32,
    flags: u32,
}

/// The part for [`TEST_RUN`].
#[repr(C)]
struct TestRun {
    program: i32,
    result: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
}

/// `struct xdp_md`.
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    interface: u32,
    queue: u32,
    egress: u32,
}

/// What the program of this number does with a frame that comes in by this interface.
pub(super) fn ask(program: u32, frame: &[u8], interface: u32) -> io::Result<Action> {
    let mut get = GetByNumber { number: program, next: 0, flags: 0 };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(bpf(GET_BY_NUMBER, &mut get)?) };
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let context =
        Context { data: 0, data_end: length, data_meta: 0, interface, queue: 0, egress: 0 };
    let mut run = TestRun {
        program: program.as_raw_fd(),
        result: 0,
        data_in_bytes: length,
        data_out_bytes: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
        context_in_bytes: u32::try_from(size_of::<Context>()).map_err(io::Error::other)?,
        context_out_bytes: 0,
        context_in: std::ptr::from_ref(&context) as u64,
        context_out: 0,
    };
    bpf(TEST_RUN, &mut run)?;
    Ok(match run.result {
        2 => Action::Passes,
        3 | 4 => Action::SendsAway,
        _ => Action::Drops,
    })
}

/// `bpf(2)`. `T` is the part of `union bpf_attr` that the command reads and writes.
fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than the length that it is given, and what
    // `attributes` points to outlives the call, since the caller owns it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
