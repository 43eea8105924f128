//! What an XDP or tc program does with a frame: the kernel runs it once, on the frame alone.
#![allow(unsafe_code, reason = "bpf(2) takes the addresses of its arguments")]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `BPF_PROG_TEST_RUN` and so on of linux/bpf.h.
const TEST_RUN: i32 = 10;
const GET_BY_NUMBER: i32 = 13;
const GET_INFO: i32 = 15;
const QUERY: i32 = 16;

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

/// What a tc program can do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TcAction {
    /// It drops it, or takes it away.
    Ends,
    /// It leaves it to what comes next.
    Passes,
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

/// `struct __sk_buff`, to the field `ifindex`; the rest is zero.
#[repr(C)]
struct SocketBuffer {
    before: [u32; 10],
    interface: u32,
}

/// The part for [`GET_INFO`].
#[repr(C)]
struct GetInfo {
    program: i32,
    length: u32,
    info: u64,
}

/// `struct bpf_prog_info`, to the field `name`.
#[repr(C)]
struct Info {
    before: [u64; 8],
    name: [u8; 16],
}

/// The part for [`QUERY`].
#[repr(C)]
struct Query {
    interface: u32,
    place: u32,
    flags: u32,
    attached_flags: u32,
    numbers: u64,
    count: u32,
    padding: u32,
    rest: [u64; 4],
}

/// Programs at one place of an interface; the kernel has at most as many.
const MOST_PROGRAMS: usize = 64;

/// What the XDP program of this number does with a frame that comes in by this interface.
pub(super) fn ask(program: u32, frame: &[u8], interface: u32) -> io::Result<Action> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let context =
        Context { data: 0, data_end: length, data_meta: 0, interface, queue: 0, egress: 0 };
    Ok(match test_run(program, frame, &context)? {
        2 => Action::Passes,
        3 | 4 => Action::SendsAway,
        _ => Action::Drops,
    })
}

/// What the tc program of this number does with a frame that comes in by this interface.
pub(super) fn ask_classifier(program: u32, frame: &[u8], interface: u32) -> io::Result<TcAction> {
    let context = SocketBuffer { before: [0; 10], interface };
    // `TC_ACT_SHOT`, `TC_ACT_STOLEN`, `TC_ACT_QUEUED`, `TC_ACT_REDIRECT`, `TC_ACT_TRAP`.
    Ok(match test_run(program, frame, &context)? {
        2 | 4 | 5 | 7 | 8 => TcAction::Ends,
        _ => TcAction::Passes,
    })
}

/// The numbers of the programs at an interface's TCX hook, in their order.
pub(super) fn tcx(interface: u32) -> io::Result<Vec<u32>> {
    /// `BPF_TCX_INGRESS`.
    const INGRESS: u32 = 46;
    let mut numbers = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        interface,
        place: INGRESS,
        flags: 0,
        attached_flags: 0,
        numbers: numbers.as_mut_ptr() as u64,
        count: u32::try_from(MOST_PROGRAMS).map_err(io::Error::other)?,
        padding: 0,
        rest: [0; 4],
    };
    bpf(QUERY, &mut query)?;
    let count = usize::try_from(query.count).map_err(io::Error::other)?;
    Ok(numbers.iter().copied().take(count).collect())
}

/// The name of the program of this number.
pub(super) fn name_of(program: u32) -> io::Result<String> {
    let program = open(program)?;
    let mut info = Info { before: [0; 8], name: [0; 16] };
    let mut get = GetInfo {
        program: program.as_raw_fd(),
        length: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(GET_INFO, &mut get)?;
    let name: Vec<u8> = info.name.iter().copied().take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

fn open(program: u32) -> io::Result<OwnedFd> {
    let mut get = GetByNumber { number: program, next: 0, flags: 0 };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(bpf(GET_BY_NUMBER, &mut get)?) })
}

/// What the program returns when it is run on the frame with this context.
fn test_run<C>(program: u32, frame: &[u8], context: &C) -> io::Result<u32> {
    let program = open(program)?;
    let mut run = TestRun {
        program: program.as_raw_fd(),
        result: 0,
        data_in_bytes: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_out_bytes: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
        context_in_bytes: u32::try_from(size_of::<C>()).map_err(io::Error::other)?,
        context_out_bytes: 0,
        context_in: std::ptr::from_ref(context) as u64,
        context_out: 0,
    };
    bpf(TEST_RUN, &mut run)?;
    Ok(run.result)
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
