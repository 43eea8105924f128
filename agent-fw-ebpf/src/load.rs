//! An image into the kernel: constants, sizes of maps, contents of maps.

use core::fmt;

use aya::maps::{Array, HashMap, MapError};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};

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
    loader.override_global("CONFIG", image.config.as_bytes(), true);
    let sizes = sizes(image);
    for (name, size) in sizes {
        loader.map_max_entries(name, size.max(1));
    }
    let mut ebpf = loader.load(object).map_err(LoadError::Object)?;
    fill(&mut ebpf, image)?;
    Ok(ebpf)
}

fn sizes(image: &Image) -> [(&'static str, u32); 13] {
    let (v4, v6) = (image.v4.as_ref(), image.v6.as_ref());
    [
        ("V4_FILTER", v4.map_or(0, |table| table.filter.len())),
        ("V4_NODES", v4.map_or(0, |table| table.nodes.len())),
        ("V4_WORDS", v4.map_or(0, |table| table.words.len())),
        ("V6_FILTER", v6.map_or(0, |table| table.filter.len())),
        ("V6_NODES", v6.map_or(0, |table| table.nodes.len())),
        ("V6_WORDS", v6.map_or(0, |table| table.words.len())),
        ("V6_DEEP", v6.map_or(0, |table| table.deep.len())),
        ("V6_LOWS", v6.map_or(0, |table| table.lows.len())),
        ("SLOTS", image.slots.len()),
        // Room, so that the next policy can go on with these counters.
        ("TALLY", image.places.next_power_of_two().max(64) as usize),
        ("MAC_SETS", image.mac_sets.len()),
        ("MACS", image.macs.len()),
        // Likewise.
        ("LABELS", image.mac_sets.len().next_power_of_two().max(256)),
    ]
    .map(|(name, size)| (name, size as u32))
}

fn fill(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
    if let Some(table) = &image.v4 {
        fill_array(ebpf, "V4_FILTER", &table.filter)?;
        fill_array(ebpf, "V4_NODES", &table.nodes)?;
        fill_array(ebpf, "V4_WORDS", &table.words)?;
    }
    if let Some(table) = &image.v6 {
        fill_array(ebpf, "V6_FILTER", &table.filter)?;
        fill_array(ebpf, "V6_NODES", &table.nodes)?;
        fill_array(ebpf, "V6_WORDS", &table.words)?;
        fill_array(ebpf, "V6_DEEP", &table.deep)?;
        fill_array(ebpf, "V6_LOWS", &table.lows)?;
    }
    fill_array(ebpf, "SLOTS", &image.slots)?;
    if image.config.macs != 0 {
        fill_array(ebpf, "MAC_SETS", &image.mac_sets)?;
        fill_macs(ebpf, image)?;
    }
    if image.config.port_map != 0 {
        fill_array(ebpf, "PORTS", &image.ports[..])?;
    }
    Ok(())
}

fn fill_array<T: Pod>(ebpf: &mut Ebpf, name: &'static str, items: &[T]) -> Result<(), LoadError> {
    let map = ebpf.map_mut(name).ok_or(LoadError::NoMap(name))?;
    let mut array = Array::<_, T>::try_from(map).map_err(|e| LoadError::Map(name, e))?;
    for (index, item) in (0..).zip(items) {
        array.set(index, item, 0).map_err(|e| LoadError::Map(name, e))?;
    }
    Ok(())
}

fn fill_macs(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
    let map = ebpf.map_mut("MACS").ok_or(LoadError::NoMap("MACS"))?;
    let mut macs = HashMap::<_, u64, u8>::try_from(map).map_err(|e| LoadError::Map("MACS", e))?;
    for key in &image.macs {
        macs.insert(key, 1, 0).map_err(|e| LoadError::Map("MACS", e))?;
    }
    Ok(())
}
