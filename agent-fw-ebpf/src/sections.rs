//! The object with a policy's tables in it.
//!
//! Each table is a section of the object's. The kernel gets a section as a map of one value, whose
//! address the program has: an element is an index and a load away, where a map of many elements
//! takes a look-up. The sections are as long as the policy's tables, and an object is compiled once;
//! so the tables are put behind its end, and its section headers say where.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::{array, fmt};

use object::elf::{FileHeader64, SectionHeader64};
use object::read::elf::FileHeader as _;
use object::{LittleEndian, pod};

use crate::config::{Config, Lengths};
use crate::contents::Contents;

/// A table, as the bytes of a section.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// The section's name, and the map's.
    pub name: &'static str,
    /// The table's bytes, in this machine's order.
    pub bytes: &'a [u8],
}

/// Why an object cannot take tables: it is not one that this version was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionError {
    /// It is no ELF file of 64 bits, or a damaged one.
    Elf(object::Error),
    /// It lacks a section.
    Missing(&'static str),
}

impl fmt::Display for SectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(_) => f.write_str("it is no ELF file, or a damaged one"),
            Self::Missing(name) => write!(f, "it has no section {name}"),
        }
    }
}

impl core::error::Error for SectionError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Elf(error) => Some(error),
            Self::Missing(_) => None,
        }
    }
}

/// The names of the sections, in the order of [`Contents::sections`]. The kernel keeps 15 letters of
/// them as its maps' names.
pub const SECTIONS: [&str; 11] = [
    ".rodata.v4filt",
    ".rodata.v4nodes",
    ".rodata.v4words",
    ".rodata.v6filt",
    ".rodata.v6nodes",
    ".rodata.v6words",
    ".rodata.v6deep",
    ".rodata.v6lows",
    ".rodata.macsets",
    ".rodata.ports",
    ".rodata.slots",
];

impl Contents {
    /// The tables, as sections.
    #[must_use]
    pub fn sections(&self) -> [Section<'_>; 11] {
        let tables = [
            pod::bytes_of_slice(&self.v4_filter),
            pod::bytes_of_slice(&self.v4_nodes),
            pod::bytes_of_slice(&self.v4_words),
            pod::bytes_of_slice(&self.v6_filter),
            pod::bytes_of_slice(&self.v6_nodes),
            pod::bytes_of_slice(&self.v6_words),
            pod::bytes_of_slice(&self.v6_deep),
            pod::bytes_of_slice(&self.v6_lows),
            pod::bytes_of_slice(&self.mac_sets),
            pod::bytes_of_slice(&self.ports),
            pod::bytes_of_slice(&self.slots),
        ];
        array::from_fn(|index| Section { name: SECTIONS[index], bytes: tables[index] })
    }

    /// The contents that the kernel has: `table` gives the bytes of the section of that name. What is
    /// longer than the constants say is cut off, as the program does not come there.
    pub fn from_tables(
        config: Config,
        macs: BTreeSet<u64>,
        mut table: impl FnMut(&str) -> Option<Vec<u8>>,
    ) -> Self {
        let mut tables = SECTIONS.map(|name| table(name).unwrap_or_default()).into_iter();
        let mut next = || tables.next().unwrap_or_default();
        let lengths = &config.lengths;
        Self {
            config,
            v4_filter: longs(&next(), lengths.v4_filter),
            v4_nodes: longs(&next(), lengths.v4_nodes),
            v4_words: words(&next(), lengths.v4_words),
            v6_filter: longs(&next(), lengths.v6_filter),
            v6_nodes: longs(&next(), lengths.v6_nodes),
            v6_words: longs(&next(), lengths.v6_words),
            v6_deep: longs(&next(), lengths.v6_deep),
            v6_lows: longs(&next(), lengths.v6_lows),
            mac_sets: words(&next(), lengths.mac_sets),
            ports: longs(&next(), lengths.ports),
            slots: words(&next(), lengths.slots),
            macs,
        }
    }

    /// How many elements the tables have.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        Lengths {
            v4_filter: self.v4_filter.len() as u64,
            v4_nodes: self.v4_nodes.len() as u64,
            v4_words: self.v4_words.len() as u64,
            v6_filter: self.v6_filter.len() as u64,
            v6_nodes: self.v6_nodes.len() as u64,
            v6_words: self.v6_words.len() as u64,
            v6_deep: self.v6_deep.len() as u64,
            v6_lows: self.v6_lows.len() as u64,
            mac_sets: self.mac_sets.len() as u64,
            ports: self.ports.len() as u64,
            slots: self.slots.len() as u64,
        }
    }
}

fn longs(bytes: &[u8], most: u64) -> Vec<u64> {
    let (longs, _) = bytes.as_chunks::<8>();
    longs.iter().take(most as usize).map(|long| u64::from_ne_bytes(*long)).collect()
}

fn words(bytes: &[u8], most: u64) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().take(most as usize).map(|word| u32::from_ne_bytes(*word)).collect()
}

/// The object with these sections in the place of its own. An empty one leaves the object's.
///
/// # Errors
///
/// The object is damaged, or lacks a section.
pub fn with_sections(object: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, SectionError> {
    const ENDIAN: LittleEndian = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(object).map_err(SectionError::Elf)?;
    let known = header.sections(ENDIAN, object).map_err(SectionError::Elf)?;
    let bytes = sections.iter().map(|section| section.bytes.len() + ALIGNMENT).sum::<usize>();
    let mut whole = Vec::with_capacity(object.len() + bytes);
    whole.extend_from_slice(object);
    for Section { name, bytes } in sections.iter().filter(|section| !section.bytes.is_empty()) {
        let found = known.section_by_name(ENDIAN, name.as_bytes());
        let (index, _) = found.ok_or(SectionError::Missing(name))?;
        whole.resize(whole.len().next_multiple_of(ALIGNMENT), 0);
        let at = whole.len() as u64;
        whole.extend_from_slice(bytes);
        let header_at = header.e_shoff.get(ENDIAN) as usize
            + index.0 * size_of::<SectionHeader64<LittleEndian>>();
        let (section, _) =
            pod::from_bytes_mut::<SectionHeader64<LittleEndian>>(&mut whole[header_at..])
                .map_err(|()| SectionError::Missing(name))?;
        section.sh_offset.set(ENDIAN, at);
        section.sh_size.set(ENDIAN, bytes.len() as u64);
    }
    Ok(whole)
}

/// Of a table in the object's file, in bytes.
const ALIGNMENT: usize = 8;
