//! What stands in front of a table's root, from sorted ranges: a filter where they are sparse, or
//! blocks where they are dense.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::build::{Range, log2};
use super::{Block, bits_v4, hash};
use crate::label::Label;

/// The least bits that index a filter: a page of the kernel's memory.
const FILTER_BITS: u32 = 15;

/// The bits that index a filter for so many ranges: two to this power of its bits for each, between
/// [`FILTER_BITS`] and `most`.
fn filter_bits(ranges: usize, each: u32, most: u32) -> u32 {
    (log2(ranges) + each).clamp(FILTER_BITS, most)
}

/// The filter of a list, and the bits that index it. None where a quarter of it would be set: then
/// it is a coin's toss whether it spares the look at the root.
pub(super) fn filter_v4(ranges: &[Range<u32>]) -> (u32, Vec<u64>) {
    let bits = filter_bits(ranges.len(), 4, 24); // at most one for each /24
    let shift = u32::BITS - bits;
    let covered = ranges.iter().map(|r| u64::from((r.last >> shift) - (r.first >> shift)) + 1);
    if covered.sum::<u64>() > 1 << (bits - 2) {
        return (0, Vec::new());
    }
    let mut filter = Filter::new(bits);
    for range in ranges {
        for block in range.first >> 8..=range.last >> 8 {
            for bit in bits_v4(block << 8, bits) {
                filter.set(bit);
            }
        }
    }
    (bits, filter.0)
}

/// The same for IPv6, with the length of the prefixes that have a bit: the longest that do not
/// set a quarter of the filter.
pub(super) fn filter_v6(ranges: &[Range<u128>]) -> (u32, u32, Vec<u64>) {
    let bits = filter_bits(ranges.len(), 5, 25); // up to 4 MiB
    let Some(len) = [64, 56, 48, 44, 40, 36, 32, 28, 24].into_iter().find(|len| {
        let covered = ranges.iter().try_fold(0_u128, |sum, range| {
            let sum = sum + (range.last >> (128 - len)) - (range.first >> (128 - len)) + 1;
            (sum <= 1 << (bits - 2)).then_some(sum)
        });
        covered.is_some()
    }) else {
        return (0, 0, Vec::new());
    };
    let mut filter = Filter::new(bits);
    for range in ranges {
        for prefix in range.first >> (128 - len)..=range.last >> (128 - len) {
            filter.set(hash(prefix as u64, bits));
        }
    }
    (bits, len, filter.0)
}

/// The address space in blocks of one size, of each of which two bits say what is listed in it.
pub(super) struct Blocks {
    pub(super) bits: u32,
    /// The label of blocks that are listed as a whole.
    pub(super) foremost: Label,
    pub(super) words: Vec<u64>,
}

/// The least bits that index blocks: a page of the kernel's memory.
const BLOCK_BITS: u32 = 14;

impl Blocks {
    /// The blocks of a list, four or more for each of its ranges. None where more than half of them
    /// would send to the root.
    pub(super) fn of(ranges: &[Range<u32>]) -> Option<Self> {
        let bits = (log2(ranges.len()) + 2).clamp(BLOCK_BITS, 24);
        let shift = u32::BITS - bits;
        let foremost = foremost(ranges, shift)?;
        let mut blocks =
            Self { bits, foremost, words: vec![0; 1 << (bits - Block::PER_WORD.ilog2())] };
        let mut mixed = 0;
        for range in ranges {
            for block in range.first >> shift..=range.last >> shift {
                let (first, last) = (block << shift, block << shift | ((1 << shift) - 1));
                let is_whole = range.first <= first && last <= range.last;
                if is_whole && range.label == foremost {
                    blocks.set(block, Block::ALL);
                } else {
                    mixed += 1;
                    blocks.set(block, Block::MIXED);
                }
            }
        }
        (mixed <= 1_u32 << (bits - 1)).then_some(blocks)
    }

    fn set(&mut self, block: u32, code: u64) {
        let word = &mut self.words[(block / Block::PER_WORD) as usize];
        *word |= code << (2 * (block % Block::PER_WORD));
    }
}

/// The label under which most blocks are listed as a whole.
fn foremost(ranges: &[Range<u32>], shift: u32) -> Option<Label> {
    let mut whole: BTreeMap<Label, u64> = BTreeMap::new();
    for range in ranges {
        let blocks = ((u64::from(range.last) + 1) >> shift)
            .saturating_sub(u64::from(range.first).div_ceil(1 << shift));
        *whole.entry(range.label).or_default() += blocks;
    }
    let (label, count) = whole.into_iter().max_by_key(|(_, count)| *count)?;
    (count > 0).then_some(label)
}

/// Bits, set one by one.
struct Filter(Vec<u64>);

impl Filter {
    fn new(bits: u32) -> Self {
        Self(vec![0; 1 << (bits - u64::BITS.ilog2())])
    }

    fn set(&mut self, bit: u32) {
        self.0[(bit / 64) as usize] |= 1 << (bit % 64);
    }
}
