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
//! All arrays come in pages of about 4096 bytes, each an element of a BPF array: one bounds check finds
//! a page, the verifier sees a mask keep to it, and user space fills it with one system call.
//! A run never crosses a page unless it is longer than one.

use crate::Undecided;
use crate::address::{V4, V6};
use crate::label::Label;

#[cfg(not(target_arch = "bpf"))]
mod build;
#[cfg(not(target_arch = "bpf"))]
mod read;
#[cfg(not(target_arch = "bpf"))]
pub use build::{MissorderedRange, Range, TableV4, TableV6};
#[cfg(not(target_arch = "bpf"))]
pub(crate) use read::{Listed, Pages, listed_v4, listed_v6};

/// The least and the most bits that index a root. An answer must fit in the least.
pub const ROOT_BITS: core::ops::RangeInclusive<u32> = 12..=18;

#[cfg(not(target_arch = "bpf"))]
const FILTER_PAGE_BITS: u32 = 512 * 64;

const ANSWER: u32 = (1 << *ROOT_BITS.start()) - 1;
/// The answer of addresses that are on no list.
#[cfg(not(target_arch = "bpf"))]
const ABSENT: u32 = ANSWER;
/// The answer of a /64 whose addresses differ.
const DEEPER: u32 = ANSWER - 1;

const _: () = assert!(Label::MAX as u32 == DEEPER);

/// A page of the filter: 32768 bits.
pub type FilterPage = [u64; 512];
/// A page of nodes.
pub type NodePage = [Node; 512];
/// A page of IPv4's segments.
pub type V4Page = [u32; 1024];
/// A page of IPv6's segments.
pub type V6Page = [u64; 512];
/// A page of ranges of lower halves.
pub type LowPage = [Low; 128];

const _: () = {
    assert!(size_of::<NodePage>() == 4096 && align_of::<NodePage>() == 8);
    assert!(size_of::<FilterPage>() == 4096);
    assert!(size_of::<V4Page>() == 4096);
    assert!(size_of::<V6Page>() == 4096);
    assert!(size_of::<LowPage>() == 3072);
};

/// One bucket of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Node {
    /// The answer, the index of the run's first word, or the index of the array's first node.
    first: u32,
    /// Zero for an answer; the length of a run; or [`Node::ARRAY`] with the bits that index it.
    shape: u32,
}

impl Node {
    const ARRAY: u32 = 1 << 31;
    /// The most words in a run, less one: two for each of a million ranges, and room.
    const LEN: u32 = (1 << 22) - 1;
}

/// A range of the lower halves of addresses in one /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Low {
    first: u64,
    last: u64,
    label: u64,
}

/// By how many bits tables are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The root.
    pub root_bits: u32,
    /// The filter; zero where there is none.
    pub filter_bits: u32,
    /// The length of the prefixes that IPv6's filter has a bit for: 16 to 64.
    pub filter_len: u32,
}

/// Where the tables are: BPF maps, or memory.
pub trait Tables {
    /// A page of IPv4's filter.
    fn v4_filter(&self, page: u32) -> Option<&FilterPage>;
    /// A page of IPv4's nodes.
    fn v4_nodes(&self, page: u32) -> Option<&NodePage>;
    /// A page of IPv4's segments.
    fn v4_words(&self, page: u32) -> Option<&V4Page>;
    /// A page of IPv6's filter.
    fn v6_filter(&self, page: u32) -> Option<&FilterPage>;
    /// A page of IPv6's nodes.
    fn v6_nodes(&self, page: u32) -> Option<&NodePage>;
    /// A page of IPv6's segments.
    fn v6_words(&self, page: u32) -> Option<&V6Page>;
    /// A page of runs of lower halves: each at the place that its segment has in `v6_words`.
    fn v6_deep(&self, page: u32) -> Option<&NodePage>;
    /// A page of ranges of lower halves.
    fn v6_lows(&self, page: u32) -> Option<&LowPage>;
    /// The set of MAC addresses that a label asks for; zero for any address.
    fn mac_set(&self, label: Label) -> Option<u32>;
    /// Whether the map of MAC addresses has this key, made by [`crate::mac_key`].
    fn has_mac(&self, key: u64) -> bool;
    /// 64 ports: those whose number divided by 64 is `index`.
    fn ports(&self, index: u32) -> Option<u64>;

    /// The label of an IPv4 address, in tables of this shape.
    #[inline(always)]
    fn find_v4(&self, shape: Shape, address: V4) -> Result<Option<Label>, Undecided> {
        if shape.filter_bits != 0 {
            let bits = bits_v4(address.0, shape.filter_bits);
            if !word_at(|page| self.v4_filter(page), bits[0] / 64)?.has(bits) {
                return Ok(None);
            }
        }
        let nodes = |page| self.v4_nodes(page);
        let words = |page| self.v4_words(page);
        let found = search(nodes, words, shape.root_bits, address.0)?;
        Ok(label(found.answer))
    }

    /// The label of an IPv6 address likewise. `deep`: some /64 has addresses that differ.
    #[inline(always)]
    fn find_v6(&self, shape: Shape, deep: bool, address: V6) -> Result<Option<Label>, Undecided> {
        if shape.filter_bits != 0 {
            let prefix = address.high >> (64 - shape.filter_len);
            let bit = hash(prefix, shape.filter_bits);
            if !word_at(|page| self.v6_filter(page), bit / 64)?.has([bit]) {
                return Ok(None);
            }
        }
        let nodes = |page| self.v6_nodes(page);
        let words = |page| self.v6_words(page);
        let found = search(nodes, words, shape.root_bits, address.high)?;
        if deep && found.answer == DEEPER {
            let run = node(|page| self.v6_deep(page), found.at)?;
            return find_low(|page| self.v6_lows(page), run, address.low);
        }
        Ok(label(found.answer))
    }
}

#[inline(always)]
fn label(answer: u32) -> Option<Label> {
    // Absent and deeper lie above the highest label.
    Label::new((answer & ANSWER) as u16)
}

/// 64 bits of a filter.
#[derive(Clone, Copy)]
struct FilterWord(u64);

impl FilterWord {
    /// Whether all of these bits are set, of which the word is.
    #[inline(always)]
    fn has<const N: usize>(self, bits: [u32; N]) -> bool {
        bits.into_iter().fold(1, |all, bit| all & self.0 >> (bit % 64)) == 1
    }
}

/// A word of a filter.
#[inline(always)]
fn word_at<'a>(
    pages: impl Fn(u32) -> Option<&'a FilterPage>,
    index: u32,
) -> Result<FilterWord, Undecided> {
    let page = pages(index / 512).ok_or(Undecided::TableFault)?;
    Ok(FilterWord(page[(index % 512) as usize]))
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
fn search<'a, W: Word>(
    nodes: impl Fn(u32) -> Option<&'a NodePage>,
    words: impl Fn(u32) -> Option<&'a W::Page>,
    root_bits: u32,
    address: W,
) -> Result<Found, Undecided> {
    let mut bucket = node(&nodes, address.bits(0, root_bits))?;
    if bucket.shape & Node::ARRAY != 0 {
        let slot = address.bits(root_bits, bucket.shape & 31);
        bucket = node(&nodes, bucket.first.wrapping_add(slot))?;
    }
    if bucket.shape == 0 {
        return Ok(Found { answer: bucket.first, at: 0 });
    }
    let key = address.key(root_bits);
    let mut at = bucket.first;
    let mut len = bucket.shape & Node::LEN;
    if len > W::PER_PAGE {
        while len > 1 {
            let half = len >> 1;
            let probe = at.wrapping_add(half);
            let page = words(probe / W::PER_PAGE).ok_or(Undecided::TableFault)?;
            at = at.wrapping_add(half & W::at(page, probe).not_above(key));
            len = (len + 1) >> 1;
        }
    }
    let page = words(at / W::PER_PAGE).ok_or(Undecided::TableFault)?;
    while len > 1 {
        let half = len >> 1;
        at = at.wrapping_add(half & W::at(page, at.wrapping_add(half)).not_above(key));
        // Not `len - half`: the verifier sees that this one shrinks.
        len = (len + 1) >> 1;
    }
    Ok(Found { answer: W::at(page, at).answer(), at })
}

#[inline(always)]
fn find_low<'a>(
    lows: impl Fn(u32) -> Option<&'a LowPage>,
    run: Node,
    address: u64,
) -> Result<Option<Label>, Undecided> {
    let mut at = run.first;
    let mut len = run.shape & Node::LEN;
    while len > 1 {
        let half = len >> 1;
        let probe = at.wrapping_add(half);
        if low(&lows, probe)?.first <= address {
            at = probe;
        }
        len = (len + 1) >> 1;
    }
    let range = low(&lows, at)?;
    let inside = range.first <= address && address <= range.last;
    Ok(if inside { label(range.label as u32) } else { None })
}

#[inline(always)]
fn low<'a>(lows: impl Fn(u32) -> Option<&'a LowPage>, index: u32) -> Result<&'a Low, Undecided> {
    let page = lows(index / 128).ok_or(Undecided::TableFault)?;
    Ok(&page[(index % 128) as usize])
}

#[inline(always)]
fn node<'a>(nodes: impl Fn(u32) -> Option<&'a NodePage>, index: u32) -> Result<Node, Undecided> {
    let page = nodes(index / 512).ok_or(Undecided::TableFault)?;
    Ok(page[(index % 512) as usize])
}

/// A segment's word, and an address that is looked for among them.
trait Word: Copy {
    type Page: 'static;
    const PER_PAGE: u32;

    /// The word at this index, modulo a page.
    fn at(page: &Self::Page, index: u32) -> Self;
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
    type Page = V4Page;
    const PER_PAGE: u32 = 1024;

    #[inline(always)]
    fn at(page: &V4Page, index: u32) -> Self {
        page[(index % Self::PER_PAGE) as usize]
    }

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
    type Page = V6Page;
    const PER_PAGE: u32 = 512;

    #[inline(always)]
    fn at(page: &V6Page, index: u32) -> Self {
        page[(index % Self::PER_PAGE) as usize]
    }

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
