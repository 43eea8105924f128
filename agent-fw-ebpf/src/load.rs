//! An image into the kernel: constants, sizes of maps, contents of maps.

use core::fmt;

use aya::maps::{Array, HashMap, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

use crate::contents::Contents;
use crate::image::Image;
use crate::table::{Low, Node};
use crate::tally::{LabelTally, Sample, Tally};

#[expect(unsafe_code, reason = "promises about layout, for aya")]
mod pod {
    use super::{LabelTally, Low, Node, Pod, Sample, Tally};

    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Node {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Low {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Tally {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for LabelTally {}
    // SAFETY: `repr(C)` integers; its size is asserted to leave no padding.
    unsafe impl Pod for Sample {}
}

/// Why an image could not be loaded.
#[derive(Debug)]
pub enum LoadError {
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
            Self::Object(_) => f.write_str("the BPF object could not be loaded"),
            Self::Map(name, _) => write!(f, "the BPF map {name} could not be filled"),
            Self::NoMap(name) => write!(f, "the BPF object has no map {name}"),
        }
    }
}

impl core::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Object(error) => Some(error),
            Self::Map(_, error) => Some(error),
            Self::NoMap(_) => None,
        }
    }
}

/// Loads the object's maps and fills them; its programs are left to the caller to load.
///
/// `loader` may have been told where `TALLY` and `LABELS` are pinned, so that their counters go on;
/// a pinned one must have an entry for each interface, or label. No other map is to be shared between
/// policies.
pub fn load<'a>(
    image: &'a Image,
    object: &[u8],
    mut loader: EbpfLoader<'a>,
) -> Result<Ebpf, LoadError> {
    loader.override_global("CONFIG", image.contents.config.as_bytes(), true);
    let sizes = sizes(image);
    for (name, size) in sizes {
        loader.map_max_entries(name, size.max(1));
    }
    let mut ebpf = loader.load(object).map_err(LoadError::Object)?;
    fill(&mut ebpf, image)?;
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

fn sizes(image: &Image) -> [(&'static str, u32); 13] {
    let contents = &image.contents;
    [
        ("V4_FILTER", contents.v4_filter.len()),
        ("V4_NODES", contents.v4_nodes.len()),
        ("V4_WORDS", contents.v4_words.len()),
        ("V6_FILTER", contents.v6_filter.len()),
        ("V6_NODES", contents.v6_nodes.len()),
        ("V6_WORDS", contents.v6_words.len()),
        ("V6_DEEP", contents.v6_deep.len()),
        ("V6_LOWS", contents.v6_lows.len()),
        ("SLOTS", image.slots.len()),
        // Room, so that the next policy can go on with these counters.
        ("TALLY", image.places.next_power_of_two().max(64) as usize),
        ("MAC_SETS", contents.mac_sets.len()),
        ("MACS", contents.macs.len()),
        // Likewise.
        ("LABELS", contents.mac_sets.len().next_power_of_two().max(256)),
    ]
    .map(|(name, size)| (name, size as u32))
}

fn fill(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
    let contents = &image.contents;
    fill_array(ebpf, "V4_FILTER", &contents.v4_filter)?;
    fill_array(ebpf, "V4_NODES", &contents.v4_nodes)?;
    fill_array(ebpf, "V4_WORDS", &contents.v4_words)?;
    fill_array(ebpf, "V6_FILTER", &contents.v6_filter)?;
    fill_array(ebpf, "V6_NODES", &contents.v6_nodes)?;
    fill_array(ebpf, "V6_WORDS", &contents.v6_words)?;
    fill_array(ebpf, "V6_DEEP", &contents.v6_deep)?;
    fill_array(ebpf, "V6_LOWS", &contents.v6_lows)?;
    fill_array(ebpf, "SLOTS", &image.slots)?;
    if contents.config.macs != 0 {
        fill_array(ebpf, "MAC_SETS", &contents.mac_sets)?;
        fill_macs(ebpf, contents)?;
    }
    if contents.config.port_map != 0 {
        fill_array(ebpf, "PORTS", &contents.ports)?;
    }
    Ok(())
}

fn fill_array<T: Pod>(ebpf: &mut Ebpf, name: &'static str, items: &[T]) -> Result<(), LoadError> {
    // What a policy does not use may be no part of the object.
    if items.is_empty() {
        return Ok(());
    }
    let map = ebpf.map_mut(name).ok_or(LoadError::NoMap(name))?;
    let mut array = Array::<_, T>::try_from(map).map_err(|e| LoadError::Map(name, e))?;
    for (index, item) in (0..).zip(items) {
        array.set(index, item, 0).map_err(|e| LoadError::Map(name, e))?;
    }
    Ok(())
}

fn fill_macs(ebpf: &mut Ebpf, contents: &Contents) -> Result<(), LoadError> {
    let map = ebpf.map_mut("MACS").ok_or(LoadError::NoMap("MACS"))?;
    let mut macs = HashMap::<_, u64, u8>::try_from(map).map_err(|e| LoadError::Map("MACS", e))?;
    for key in &contents.macs {
        macs.insert(key, 1, 0).map_err(|e| LoadError::Map("MACS", e))?;
    }
    Ok(())
}
