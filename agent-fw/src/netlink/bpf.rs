//! `bpf(2)`, for what aya does not wrap: programs and links by their numbers, what stands at a tc
//! hook, a program's instructions, running one on a frame, and taking a link's program off at once.
#![allow(unsafe_code, reason = "bpf(2) takes the addresses of its arguments")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands of `enum bpf_cmd`, linux/bpf.h.
#[derive(Clone, Copy)]
enum Command {
    Pin = 6,
    OpenPin = 7,
    TestRun = 10,
    NextProgram = 11,
    OpenProgram = 13,
    OpenMap = 14,
    Info = 15,
    Query = 16,
    OpenLink = 30,
    NextLink = 31,
    Detach = 34,
}

/// `BPF_LINK_TYPE_XDP` and `BPF_LINK_TYPE_TCX` of linux/bpf.h.
const LINK_OF_XDP: u32 = 6;
const LINK_OF_TCX: u32 = 11;
/// `BPF_TCX_INGRESS` of linux/bpf.h.
const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`; `BPF_CGROUP_INET_INGRESS`, `BPF_CGROUP_INET_EGRESS`.
const TCX_EGRESS: u32 = 47;
const CGROUP_IN: u32 = 0;
const CGROUP_OUT: u32 = 1;
/// `BPF_F_QUERY_EFFECTIVE`: those of the cgroups above it, too.
const EFFECTIVE: u32 = 1;
/// Programs at one place of an interface; the kernel has at most as many.
const MOST_PROGRAMS: usize = 64;
/// Maps of one program; the kernel has at most as many (`MAX_USED_MAPS`).
const MOST_MAPS: usize = 64;

/// The part of `union bpf_attr` for pins.
#[repr(C)]
struct PinAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part for what has a number, and for the number that comes next.
#[repr(C)]
struct NumberAttributes {
    number: u32,
    next: u32,
    flags: u32,
}

/// The part for [`Command::TestRun`].
#[repr(C)]
struct TestRunAttributes {
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

/// The part for [`Command::Info`].
#[repr(C)]
struct InfoAttributes {
    descriptor: i32,
    length: u32,
    info: u64,
}

/// The part for [`Command::Query`].
#[repr(C)]
struct QueryAttributes {
    target: u32,
    place: u32,
    flags: u32,
    attached_flags: u32,
    numbers: u64,
    count: u32,
    padding: u32,
    rest: [u64; 4],
}

/// The part for [`Command::Detach`].
#[repr(C)]
struct DetachAttributes {
    link: i32,
}

/// `struct bpf_prog_info`, to the field `name`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    number: u32,
    tag: [u8; 8],
    machine_bytes: u32,
    translated_bytes: u32,
    machine: u64,
    translated: u64,
    loaded: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// `struct bpf_map_info`, to the field `name`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    before: [u32; 6],
    name: [u8; 16],
}

/// `struct bpf_link_info`, as far as links at an interface have it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    number: u32,
    program: u32,
    padding: u32,
    interface: u32,
    place: u32,
    rest: [u64; 4],
}

/// Where a link has its program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// At an interface's XDP.
    Xdp,
    /// At an interface's tc hook for what comes in, with TCX.
    Tcx,
    /// Elsewhere.
    Other,
}

/// A link, open.
#[derive(Debug)]
pub struct Link {
    descriptor: OwnedFd,
    /// The kernel's number of it.
    pub number: u32,
    /// Where it has its program.
    pub kind: LinkKind,
    /// The kernel's number of its program.
    pub program: u32,
    /// The number of its interface; zero for one that has gone.
    pub interface: u32,
}

impl Link {
    /// The one that is pinned at `path`.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        Self::of(open_pin(path)?)
    }

    fn of(descriptor: OwnedFd) -> io::Result<Self> {
        let mut info = LinkInfo::default();
        read_info(&descriptor, &mut info)?;
        let LinkInfo { kind, number, program, interface, place, .. } = info;
        let kind = match kind {
            LINK_OF_XDP => LinkKind::Xdp,
            LINK_OF_TCX if place == TCX_INGRESS => LinkKind::Tcx,
            _ => LinkKind::Other,
        };
        Ok(Self { descriptor, number, kind, program, interface })
    }

    /// Takes its program off its interface at once. The link stays, with nothing to do; so it is
    /// with that of an interface that has gone.
    ///
    /// Removing a link's last pin does so too, but only some milliseconds later, when the kernel's
    /// workers come to it; and nothing else can be attached until then.
    pub fn detach(&self) -> io::Result<()> {
        let mut attributes = DetachAttributes { link: self.descriptor.as_raw_fd() };
        bpf(Command::Detach, &mut attributes).map(drop)
    }

    /// Pins it.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.descriptor, path)
    }
}

/// All links there are, of whatever network namespace. Needs CAP_SYS_ADMIN.
pub fn links() -> io::Result<Vec<Link>> {
    let open = |number| open(Command::OpenLink, number).and_then(Link::of);
    // Some go while they are listed.
    Ok(numbers(Command::NextLink)?.into_iter().filter_map(|number| open(number).ok()).collect())
}

/// A program, open.
#[derive(Debug)]
pub struct Program {
    descriptor: OwnedFd,
    /// The kernel's number of it.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The kernel's numbers of its maps.
    maps: Vec<u32>,
}

impl Program {
    /// The one of this number. Needs CAP_SYS_ADMIN.
    pub fn of(number: u32) -> io::Result<Self> {
        Self::open(open(Command::OpenProgram, number)?)
    }

    /// The one that is pinned at `path`.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        Self::open(open_pin(path)?)
    }

    fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let mut maps = [0_u32; MOST_MAPS];
        let count = u32::try_from(MOST_MAPS).map_err(io::Error::other)?;
        let mut info = ProgramInfo {
            map_count: count,
            maps: maps.as_mut_ptr() as u64,
            ..ProgramInfo::default()
        };
        read_info(&descriptor, &mut info)?;
        let maps = maps.into_iter().take(info.map_count as usize).collect();
        Ok(Self { descriptor, number: info.number, name: text(info.name), maps })
    }

    /// Whether the map of this number is one of its maps.
    pub fn has_map(&self, number: u32) -> bool {
        self.maps.contains(&number)
    }

    /// The names of its maps.
    pub fn map_names(&self) -> io::Result<Vec<String>> {
        self.maps.iter().map(|number| map_name(*number)).collect()
    }

    /// Pins it.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.descriptor, path)
    }

    /// What it returns when it is run on the frame with this context.
    fn run<C>(&self, frame: &[u8], context: &C) -> io::Result<u32> {
        let mut run = TestRunAttributes {
            program: self.descriptor.as_raw_fd(),
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
        bpf(Command::TestRun, &mut run)?;
        Ok(run.result)
    }

    /// What it returns, as an XDP program, for a frame that comes in by this interface.
    pub fn run_xdp(&self, frame: &[u8], interface: u32) -> io::Result<u32> {
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
        let data_end = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let context = Context { data: 0, data_end, data_meta: 0, interface, queue: 0, egress: 0 };
        self.run(frame, &context)
    }

    /// What it returns, as a tc program or one of a cgroup, for a frame that comes in by this
    /// interface, or goes out.
    pub fn run_tc(&self, frame: &[u8], interface: u32) -> io::Result<u32> {
        /// `struct __sk_buff`, to the field `ifindex`; the rest is zero.
        #[repr(C)]
        struct SocketBuffer {
            before: [u32; 10],
            interface: u32,
        }
        self.run(frame, &SocketBuffer { before: [0; 10], interface })
    }
}

/// The numbers of all programs there are. Needs CAP_SYS_ADMIN.
pub fn programs() -> io::Result<Vec<u32>> {
    numbers(Command::NextProgram)
}

/// The numbers of the programs at an interface's tc hook for what comes in, with TCX, in their
/// order. Fails where the kernel has no TCX (before Linux 6.6).
pub fn tcx(interface: u32) -> io::Result<Vec<u32>> {
    programs_at(interface, TCX_INGRESS, 0)
}

/// The same for what goes out.
pub fn tcx_of_egress(interface: u32) -> io::Result<Vec<u32>> {
    programs_at(interface, TCX_EGRESS, 0)
}

/// The numbers of the programs that judge what comes to the sockets of this cgroup, by its directory.
pub fn cgroup_incoming(directory: impl AsFd) -> io::Result<Vec<u32>> {
    let directory = u32::try_from(directory.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    programs_at(directory, CGROUP_IN, EFFECTIVE)
}

/// The same for what its sockets send.
pub fn cgroup_outgoing(directory: impl AsFd) -> io::Result<Vec<u32>> {
    let directory = u32::try_from(directory.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    programs_at(directory, CGROUP_OUT, EFFECTIVE)
}

/// `target` is an interface or an open directory.
fn programs_at(target: u32, place: u32, flags: u32) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; MOST_PROGRAMS];
    let mut query = QueryAttributes {
        target,
        place,
        flags,
        attached_flags: 0,
        numbers: numbers.as_mut_ptr() as u64,
        count: u32::try_from(MOST_PROGRAMS).map_err(io::Error::other)?,
        padding: 0,
        rest: [0; 4],
    };
    bpf(Command::Query, &mut query)?;
    Ok(numbers.iter().copied().take(query.count as usize).collect())
}

/// The instructions of a loaded program, after the verifier: eight bytes each, with the numbers of
/// maps in those that name one.
pub fn instructions(program: impl AsFd) -> io::Result<Vec<[u8; 8]>> {
    let mut info = ProgramInfo::default();
    read_info(&program, &mut info)?;
    let translated_bytes = info.translated_bytes;
    let mut code = vec![[0_u8; 8]; translated_bytes as usize / 8];
    let translated = code.as_mut_ptr() as u64;
    info = ProgramInfo { translated_bytes, translated, ..ProgramInfo::default() };
    read_info(&program, &mut info)?;
    Ok(code)
}

fn map_name(number: u32) -> io::Result<String> {
    let mut info = MapInfo::default();
    read_info(&open(Command::OpenMap, number)?, &mut info)?;
    Ok(text(info.name))
}

/// A name, as far as the kernel keeps it.
fn text(name: [u8; 16]) -> String {
    let name: Vec<u8> = name.into_iter().take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

/// The numbers of all that a command lists.
fn numbers(next: Command) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut attributes = NumberAttributes { number: 0, next: 0, flags: 0 };
    loop {
        match bpf(next, &mut attributes) {
            Ok(_) => numbers.push(attributes.next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
            Err(error) => return Err(error),
        }
        attributes.number = attributes.next;
    }
}

fn open(command: Command, number: u32) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, &mut NumberAttributes { number, next: 0, flags: 0 })?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes { path: name.as_ptr() as u64, descriptor: 0, flags: 0 };
    let descriptor = bpf(Command::OpenPin, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let descriptor = u32::try_from(object.as_raw_fd()).map_err(io::Error::other)?;
    let mut attributes = PinAttributes { path: name.as_ptr() as u64, descriptor, flags: 0 };
    bpf(Command::Pin, &mut attributes).map(drop)
}

/// Has the kernel write what it knows of an object to `info`, which is one of the structures above.
/// Whatever these point to has as much room as they say.
fn read_info<T>(object: &impl AsFd, info: &mut T) -> io::Result<()> {
    let mut attributes = InfoAttributes {
        descriptor: object.as_fd().as_raw_fd(),
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    bpf(Command::Info, &mut attributes).map(drop)
}

/// `bpf(2)`. `T` is the part of `union bpf_attr` that the command reads and writes.
fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than the length that it is given, and, where
    // `attributes` has addresses, no more than the lengths beside them; what they point to outlives
    // the call, since the callers above own it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}
