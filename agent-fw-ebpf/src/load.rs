//! An image into the kernel: constants, sizes of maps, contents of maps.

extern crate std;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{HashMap, Map, MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

use crate::contents::Contents;
use crate::image::Image;
use crate::sections::{SectionError, with_sections};
use crate::tally::{LabelTally, OwnFrames, Sample, Tally};

#[expect(unsafe_code, reason = "promises about layout, for aya")]
mod pod {
    use super::{LabelTally, OwnFrames, Pod, Sample, Tally};

    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Tally {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for LabelTally {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Sample {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for OwnFrames {}
}

/// Why an image could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The object cannot take the policy's tables: it is not this version's.
    Sections(SectionError),
    /// The object was refused, or a map could not be created.
    Object(EbpfError),
    /// A map could not be filled.
    Map(&'static str, MapError),
    /// The object lacks a map: it is not this version's.
    NoMap(&'static str),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sections(_) => f.write_str("the BPF object is not this version's"),
            Self::Object(_) => f.write_str("the BPF object could not be loaded"),
            Self::Map(name, _) => write!(f, "the BPF map {name} could not be filled"),
            Self::NoMap(name) => write!(f, "the BPF object has no map {name}"),
        }
    }
}

impl core::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Sections(error) => Some(error),
            Self::Object(error) => Some(error),
            Self::Map(_, error) => Some(error),
            Self::NoMap(_) => None,
        }
    }
}

/// Loads the object's maps, tables and constants; its programs are left to the caller to load.
///
/// `loader` may have been told where `TALLY` and `LABELS` are pinned, so that their counters go on;
/// a pinned one must have an entry for each interface, or label. No other map is to be shared between
/// policies.
///
/// # Errors
///
/// The object is not this version's, or the kernel refuses a map.
pub fn load<'a>(
    image: &'a Image,
    object: &[u8],
    mut loader: EbpfLoader<'a>,
) -> Result<Ebpf, LoadError> {
    let contents = image.contents();
    loader.override_global("CONFIG", contents.config.as_bytes(), true);
    let sizes = [
        // Room, so that the next policy can go on with these counters.
        ("TALLY", image.places.next_power_of_two().max(64)),
        // Likewise.
        ("LABELS", image.labels.next_power_of_two().max(256)),
        ("MACS", (contents.macs.len() as u32).max(1)),
    ];
    for (name, size) in sizes {
        loader.map_max_entries(name, size);
    }
    let object = with_sections(object, &contents.sections()).map_err(LoadError::Sections)?;
    let mut ebpf = loader.load(&object).map_err(LoadError::Object)?;
    fill_macs(&mut ebpf, contents)?;
    Ok(ebpf)
}

/// How often the kernel is asked again to take a program.
const MOST_INTERRUPTIONS: usize = 5; // as libbpf

/// Has the kernel verify a program for XDP or tc, and take it.
///
/// The verifier gives up with EAGAIN where a signal, of whatever kind, waits for this thread. It is
/// delivered when the call is over, so that another call comes further.
///
/// # Errors
///
/// What aya says: the program is refused, is of another kind, or was loaded before.
pub fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    const EAGAIN: i32 = 11; // asm-generic/errno-base.h
    let mut interruptions = 0;
    loop {
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        match loaded {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(EAGAIN)
                    && interruptions < MOST_INTERRUPTIONS =>
            {
                interruptions += 1;
            }
            loaded => return loaded,
        }
    }
}

fn fill_macs(ebpf: &mut Ebpf, contents: &Contents) -> Result<(), LoadError> {
    const NAME: &str = "MACS";
    let failed = |error| LoadError::Map(NAME, error);
    let map = match ebpf.map_mut(NAME) {
        // What a policy does not use may be no part of the object.
        None if contents.macs.is_empty() => return Ok(()),
        map => map.ok_or(LoadError::NoMap(NAME))?,
    };
    let mut macs = HashMap::<_, u64, u8>::try_from(&mut *map).map_err(failed)?;
    for key in &contents.macs {
        macs.insert(key, 1, 0).map_err(failed)?;
    }
    freeze(map).map_err(|error| failed(MapError::IoError(error)))
}

/// Has the kernel refuse every later change of a list, whoever wants to make it. Programs go on reading
/// it.
///
/// # Errors
///
/// The map is no hash map, or the kernel's.
#[expect(unsafe_code, reason = "a system call")]
pub fn freeze(map: &Map) -> Result<(), io::Error> {
    /// `BPF_MAP_FREEZE` and what it takes (linux/bpf.h).
    const FREEZE: libc::c_int = 22;
    #[repr(C)]
    struct Freeze {
        map: u32,
    }
    let Map::HashMap(data) = map else { return Err(io::ErrorKind::InvalidInput.into()) };
    let freeze = Freeze { map: data.fd().as_fd().as_raw_fd().cast_unsigned() };
    // SAFETY: the kernel reads no more than the length that it is given.
    match unsafe { libc::syscall(libc::SYS_bpf, FREEZE, &raw const freeze, size_of::<Freeze>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The bytes of a map of one value, as a table is in the kernel.
///
/// # Errors
///
/// The kernel's: the map has gone, or has no key zero.
#[expect(unsafe_code, reason = "a system call")]
pub fn read_table(map: &MapData) -> Result<Vec<u8>, io::Error> {
    /// `BPF_MAP_LOOKUP_ELEM` and what it takes (linux/bpf.h).
    const LOOK_UP: libc::c_int = 1;
    #[repr(C)]
    struct LookUp {
        map: u32,
        padding: u32,
        key: *const u32,
        value: *mut u8,
        flags: u64,
    }
    let size = map.info().map_err(io::Error::other)?.value_size() as usize;
    // The kernel writes values in steps of eight bytes.
    let mut value = vec![0; size.next_multiple_of(8)];
    let key = 0;
    let look_up = LookUp {
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        padding: 0,
        key: &raw const key,
        value: value.as_mut_ptr(),
        flags: 0,
    };
    // SAFETY: key and value are as large as the map's, and live through the call.
    match unsafe { libc::syscall(libc::SYS_bpf, LOOK_UP, &raw const look_up, size_of::<LookUp>()) }
    {
        0 => {
            value.truncate(size);
            Ok(value)
        }
        _ => Err(io::Error::last_os_error()),
    }
}
