//! The tables of listed addresses: membership in few cache misses, whatever their number.
//!
//! The address space is cut into segments of one answer each: a label, or none. The upper bits of
//! an address index a root of nodes. A node is the answer itself where its whole bucket has one;
//! or a run of sorted segments, searched by halves; or, where segments crowd, a second array of
//! nodes, indexed by the next bits. The root is as wide as the number of segments asks for, so that
//! a run is a few words long: an address costs one node and one word, each often a cache miss, and
//! nothing else does.
//!
//! A segment is one word: its start, shifted left by the root's bits (they are the same for the
//! whole run), with the answer in the bits that this frees. IPv4's word has 32 bits. IPv6's has
//! 64, for the upper half of the address; where a list tells addresses inside one /64 apart, the
//! answer is to look in a third array, of ranges of lower halves.
//!
//! In front of the root stands a filter, where a list is sparse enough for one: a bit for every
//! stretch of addresses, set where one of them is listed. It is small, and most sources that are
//! not listed go no further: one look, and a branch that is foreseen. IPv4's is indexed by an
//! address's upper bits; a second bit of the same word, by the last six bits of its /24, tells
//! the blocks of one stretch apart. IPv6's is indexed by a hash of an address's upper bits.
//!
//! Where a list is dense, a filter would spare little. If it is IPv4's, blocks stand in the filter's
//! place: two bits for every stretch of addresses, which say that none is listed, that all are under
//! the policy's foremost label, or that the root knows.
//!
//! Each array is one read-only piece of the kernel's memory, as long as the policy needs it. Its
//! length is a constant of the policy's, so that the verifier sees every index checked against it.

use crate::PassReason;
use crate::address::{V4, V6};
use crate::label::Label;

#[cfg(not(target_arch = "bpf"))]
mod build;
#[cfg(not(target_arch = "bpf"))]
mod filter;
#[cfg(not(target_arch = "bpf"))]
mod read;
#[cfg(not(target_arch = "bpf"))]
pub use build::{MissorderedRange, Range, TableV4, TableV6};
#[cfg(not(target_arch = "bpf"))]
pub(crate) use read::{Listed, listed_by_blocks, listed_v4, listed_v6};

/// The least and the most bits that index a root. An answer must fit in the least.
pub const ROOT_BITS: core::ops::RangeInclusive<u32> = 12..=18;

const ANSWER: u32 = (1 << *ROOT_BITS.start()) - 1;
/// The answer of addresses that are on no list.
#[cfg(not(target_arch = "bpf"))]
const ABSENT: u32 = ANSWER;
/// The answer of a /64 whose addresses differ.
const DEEPER: u32 = ANSWER - 1;

const _: () = assert!(Label::MAX as u32 == DEEPER);

/// One bucket of addresses. In the table it is a number of 64 bits.
#[derive(Clone, Copy)]
struct Node {
    /// The answer, the index of the run's first word, or the index of the array's first node: the
    /// number's lower half.
    first: u32,
    /// Zero for an answer; the length of a run; or [`Node::ARRAY`] with the bits that index it.
    shape: u32,
}

impl Node {
    const ARRAY: u32 = 1 << 31;
    /// The most words in a run, less one: two for each of a million ranges, and room.
    const LEN: u32 = (1 << 22) - 1;

    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        Self { first: bits as u32, shape: (bits >> 32) as u32 }
    }
}

/// A range of the lower halves of addresses in one /64. In the table it is three numbers.
struct Low {
    first: u64,
    last: u64,
    label: u64,
}

impl Low {
    const NUMBERS: u32 = 3;
}

/// By how many bits tables are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The root.
    pub root_bits: u32,
    /// The filter, or the blocks in its place; zero where there is neither.
    pub filter_bits: u32,
    /// The length of the prefixes that IPv6's filter has a bit for: 16 to 64.
    pub filter_len: u32,
}

/// Where the tables are: in the kernel's memory, or in user space's. Beyond a table's end is nothing.
pub trait Tables {
    /// 64 bits of IPv4's filter, or of its blocks.
    fn v4_filter(&self, index: u32) -> Option<u64>;
    /// One of IPv4's nodes.
    fn v4_node(&self, index: u32) -> Option<u64>;
    /// One of IPv4's segments.
    fn v4_word(&self, index: u32) -> Option<u32>;
    /// 64 bits of IPv6's filter.
    fn v6_filter(&self, index: u32) -> Option<u64>;
    /// One of IPv6's nodes.
    fn v6_node(&self, index: u32) -> Option<u64>;
    /// One of IPv6's segments.
    fn v6_word(&self, index: u32) -> Option<u64>;
    /// A run of lower halves, as a node: at the place that its segment has among the words.
    fn v6_deep(&self, index: u32) -> Option<u64>;
    /// One of the three numbers of each range of lower halves.
    fn v6_low(&self, index: u32) -> Option<u64>;
    /// The set of MAC addresses that a label asks for; zero for any address.
    fn mac_set(&self, label: Label) -> Option<u32>;
    /// Whether the map of MAC addresses has this key, made by [`crate::mac_key`].
    fn has_mac(&self, key: u64) -> bool;
    /// 64 ports: those whose number divided by 64 is `index`.
    fn ports(&self, index: u32) -> Option<u64>;

    /// The label of an IPv4 address, in tables of this shape.
    #[inline(always)]
    fn find_v4(&self, shape: Shape, address: V4) -> Result<Option<Label>, PassReason> {
        if shape.filter_bits != 0 {
            let bits = bits_v4(address.0, shape.filter_bits);
            let word = self.v4_filter(bits[0] / 64).ok_or(PassReason::TableFault)?;
            if !has(word, bits) {
                return Ok(None);
            }
        }
        let nodes = |index| self.v4_node(index);
        let words = |index| self.v4_word(index);
        let found = search(nodes, words, shape.root_bits, address.0)?;
        Ok(label(found.answer))
    }

    /// The same, in tables with blocks. `label`: of the addresses in blocks that are listed as a whole.
    #[inline(always)]
    fn find_v4_by_block(
        &self,
        shape: Shape,
        label: Option<Label>,
        address: V4,
    ) -> Result<Option<Label>, PassReason> {
        let block = address.0.bits(0, shape.filter_bits);
        let word = self.v4_filter(block / Block::PER_WORD).ok_or(PassReason::TableFault)?;
        match Block::of(word, block) {
            Block::NONE => Ok(None),
            Block::ALL => Ok(label),
            _ => self.find_v4(Shape { filter_bits: 0, ..shape }, address),
        }
    }

    /// The label of an IPv6 address likewise. `deep`: some /64 has addresses that differ.
    #[inline(always)]
    fn find_v6(&self, shape: Shape, deep: bool, address: V6) -> Result<Option<Label>, PassReason> {
        if shape.filter_bits != 0 {
            let prefix = address.high >> (64 - shape.filter_len);
            let bit = hash(prefix, shape.filter_bits);
            let word = self.v6_filter(bit / 64).ok_or(PassReason::TableFault)?;
            if !has(word, [bit]) {
                return Ok(None);
            }
        }
        let nodes = |index| self.v6_node(index);
        let words = |index| self.v6_word(index);
        let found = search(nodes, words, shape.root_bits, address.high)?;
        if deep && found.answer == DEEPER {
            let run = self.v6_deep(found.at).ok_or(PassReason::TableFault)?;
            return find_low(|index| self.v6_low(index), Node::from_bits(run), address.low);
        }
        Ok(label(found.answer))
    }
}

/// What a block's two bits say of its addresses. Other values than these send to the root, too.
struct Block;

impl Block {
    /// None is listed.
    const NONE: u64 = 0;
    /// All are listed under the foremost label.
    const ALL: u64 = 1;
    /// The root knows.
    #[cfg(not(target_arch = "bpf"))]
    const MIXED: u64 = 2;
    const PER_WORD: u32 = 32;

    #[inline(always)]
    fn of(word: u64, block: u32) -> u64 {
        word >> (2 * (block % Self::PER_WORD)) & 3
    }
}

#[inline(always)]
fn label(answer: u32) -> Option<Label> {
    // Absent and deeper lie above the highest label.
    Label::new((answer & ANSWER) as u16)
}

/// Whether all of these bits are set, of which `word` is a filter's.
#[inline(always)]
fn has<const N: usize>(word: u64, bits: [u32; N]) -> bool {
    bits.into_iter().fold(1, |all, bit| all & word >> (bit % 64)) == 1
}

/// The two bits that stand for an address of IPv4, in one word.
#[inline(always)]
fn bits_v4(address: u32, filter_bits: u32) -> [u32; 2] {
    let stretch = address.bits(0, filter_bits);
    [stretch, stretch & !63 | address >> 8 & 63]
}

/// The bit that stands for a prefix of IPv6. Prefixes crowd in few places; their products with the
/// golden ratio do not.
#[inline(always)]
fn hash(prefix: u64, filter_bits: u32) -> u32 {
    (prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - filter_bits)) as u32
}

struct Found {
    answer: u32,
    /// The index of the word that it was found in.
    at: u32,
}

#[inline(always)]
fn search<W: Word>(
    nodes: impl Fn(u32) -> Option<u64>,
    words: impl Fn(u32) -> Option<W>,
    root_bits: u32,
    address: W,
) -> Result<Found, PassReason> {
    let node = |index| nodes(index).map(Node::from_bits).ok_or(PassReason::TableFault);
    let word = |index| words(index).ok_or(PassReason::TableFault);
    let mut bucket = node(address.bits(0, root_bits))?;
    if bucket.shape & Node::ARRAY != 0 {
        let slot = address.bits(root_bits, bucket.shape & 31);
        bucket = node(bucket.first.wrapping_add(slot))?;
    }
    if bucket.shape == 0 {
        return Ok(Found { answer: bucket.first, at: 0 });
    }
    let key = address.key(root_bits);
    let mut at = bucket.first;
    let mut len = bucket.shape & Node::LEN;
    while len > 1 {
        let half = len >> 1;
        at = at.wrapping_add(half & word(at.wrapping_add(half))?.not_above(key));
        // Not `len - half`: the verifier sees that this one shrinks.
        len = (len + 1) >> 1;
    }
    Ok(Found { answer: word(at)?.answer(), at })
}

#[inline(always)]
fn find_low(
    numbers: impl Fn(u32) -> Option<u64>,
    run: Node,
    address: u64,
) -> Result<Option<Label>, PassReason> {
    let mut at = run.first;
    let mut len = run.shape & Node::LEN;
    while len > 1 {
        let half = len >> 1;
        let probe = at.wrapping_add(half);
        if low(&numbers, probe)?.first <= address {
            at = probe;
        }
        len = (len + 1) >> 1;
    }
    let range = low(&numbers, at)?;
    let inside = range.first <= address && address <= range.last;
    Ok(if inside { label(range.label as u32) } else { None })
}

#[inline(always)]
fn low(numbers: impl Fn(u32) -> Option<u64>, index: u32) -> Result<Low, PassReason> {
    let at = index.wrapping_mul(Low::NUMBERS);
    let number = |place| numbers(at.wrapping_add(place)).ok_or(PassReason::TableFault);
    Ok(Low { first: number(0)?, last: number(1)?, label: number(2)? })
}

/// A segment's word, and an address that is looked for among them.
trait Word: Copy {
    /// `count` bits of an address, after the first `skip`.
    fn bits(self, skip: u32, count: u32) -> u32;
    /// The highest word that a segment which holds this address can have.
    fn key(self, root_bits: u32) -> Self;
    /// All ones where this word's segment starts at or before the key's address, else zero.
    /// Without a branch: which way it goes is a coin's toss, and the verifier would follow both.
    fn not_above(self, key: Self) -> u32;
    fn answer(self) -> u32;
}

impl Word for u32 {
    #[inline(always)]
    fn bits(self, skip: u32, count: u32) -> u32 {
        (self << skip) >> (Self::BITS - count)
    }

    #[inline(always)]
    fn key(self, root_bits: u32) -> Self {
        (self << root_bits) | ((1 << root_bits) - 1)
    }

    #[inline(always)]
    fn not_above(self, key: Self) -> u32 {
        // The borrow of key - word, in all bits, turned round.
        !((u64::from(key).wrapping_sub(u64::from(self)) >> 32) as u32)
    }

    #[inline(always)]
    fn answer(self) -> u32 {
        self & ANSWER
    }
}

impl Word for u64 {
    #[inline(always)]
    fn bits(self, skip: u32, count: u32) -> u32 {
        ((self << skip) >> (Self::BITS - count)) as u32
    }

    #[inline(always)]
    fn key(self, root_bits: u32) -> Self {
        (self << root_bits) | ((1 << root_bits) - 1)
    }

    #[inline(always)]
    fn not_above(self, key: Self) -> u32 {
        // Halved, so that the borrow shows in the highest bit. The bit that is lost is one of the
        // answer's, and the key's are all ones.
        (((key >> 1).wrapping_sub(self >> 1) >> 63) as u32).wrapping_sub(1)
    }

    #[inline(always)]
    fn answer(self) -> u32 {
        (self & u64::from(ANSWER)) as u32
    }
}
