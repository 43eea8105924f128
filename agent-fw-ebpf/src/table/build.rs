//! Tables from sorted ranges, in one pass over them and with no memory but the tables' own: a
//! million ranges are a matter of page faults.

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use super::filter::{Blocks, filter_v4, filter_v6};
use super::{ABSENT, DEEPER, Low, Node, ROOT_BITS};
use crate::label::Label;

/// Addresses from `first` to `last`, which count under `label`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<A> {
    /// The lowest address.
    pub first: A,
    /// The highest address.
    pub last: A,
    /// The label of them all.
    pub label: Label,
}

/// A range that starts before its predecessor's end, or ends before its own start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissorderedRange {
    /// Its place among the ranges.
    pub index: usize,
}

/// The table of IPv4 sources; without nodes, the table of none.
#[derive(Clone, Debug, Default)]
pub struct TableV4 {
    /// By how many bits the root is indexed.
    pub root_bits: u8,
    /// By how many bits the filter is indexed, or the blocks; zero for neither.
    pub filter_bits: u8,
    /// Where there are blocks: the label of those that are listed as a whole.
    pub foremost: Option<Label>,
    /// The filter, or the blocks; empty where there is neither.
    pub filter: Vec<u64>,
    /// The nodes, the root's first.
    pub nodes: Vec<u64>,
    /// The segments.
    pub words: Vec<u32>,
}

/// The table of IPv6 sources; likewise.
#[derive(Clone, Debug, Default)]
pub struct TableV6 {
    /// By how many bits the root is indexed.
    pub root_bits: u8,
    /// The nodes, the root's first.
    pub nodes: Vec<u64>,
    /// The segments.
    pub words: Vec<u64>,
    /// By how many bits the filter is indexed; zero for no filter.
    pub filter_bits: u8,
    /// The length of the prefixes that the filter has a bit for.
    pub filter_len: u8,
    /// The filter; empty where there is none.
    pub filter: Vec<u64>,
    /// The runs of lower halves; empty where every /64 has one answer.
    pub deep: Vec<u64>,
    /// The ranges of lower halves; empty likewise.
    pub lows: Vec<u64>,
}

impl TableV4 {
    /// The table of these ranges, which must be sorted and disjoint.
    pub fn build(ranges: &[Range<u32>]) -> Result<Self, MissorderedRange> {
        check_order(ranges)?;
        // Two to four segments to a bucket of the root, at two segments to a range.
        let root_bits = log2(ranges.len()).clamp(*ROOT_BITS.start(), *ROOT_BITS.end());
        let mut segments = Segments::<u32>::new(root_bits);
        for range in ranges {
            let (first, last) = (u64::from(range.first), u64::from(range.last));
            segments.cover(first, last, u32::from(range.label.index()));
        }
        let layout = segments.finish();
        let (mut filter_bits, mut filter) = filter_v4(ranges);
        let mut foremost = None;
        if filter.is_empty()
            && let Some(blocks) = Blocks::of(ranges)
        {
            (filter_bits, filter, foremost) = (blocks.bits, blocks.words, Some(blocks.foremost));
        }
        Ok(Self {
            root_bits: root_bits as u8,
            filter_bits: filter_bits as u8,
            foremost,
            filter,
            nodes: layout.nodes,
            words: layout.words,
        })
    }
}

impl TableV6 {
    /// The table of these ranges, which must be sorted and disjoint.
    pub fn build(ranges: &[Range<u128>]) -> Result<Self, MissorderedRange> {
        check_order(ranges)?;
        // Allocated addresses begin with the same three bits, so that most buckets stay empty and
        // a wider root gains little: crowded buckets are split.
        let root_bits = (log2(ranges.len()) + 1).clamp(*ROOT_BITS.start(), 16);
        let mut halves = Halves { segments: Segments::new(root_bits), lows: Lows::default() };
        for range in ranges {
            halves.cover(range);
        }
        let layout = halves.segments.finish();
        let deep = halves.lows.runs(&layout);
        let (filter_bits, filter_len, filter) = filter_v6(ranges);
        Ok(Self {
            filter_bits: filter_bits as u8,
            filter_len: filter_len as u8,
            filter,
            root_bits: root_bits as u8,
            nodes: layout.nodes,
            words: layout.words,
            deep,
            lows: halves.lows.ranges,
        })
    }
}

fn check_order<A: Copy + Ord>(ranges: &[Range<A>]) -> Result<(), MissorderedRange> {
    let mut end = None;
    for (index, range) in ranges.iter().enumerate() {
        if range.last < range.first || end.is_some_and(|end| range.first <= end) {
            return Err(MissorderedRange { index });
        }
        end = Some(range.last);
    }
    Ok(())
}

pub(super) fn log2(count: usize) -> u32 {
    count.checked_ilog2().unwrap_or(0)
}

/// A stretch of addresses with one answer, up to the next one's start.
#[derive(Clone, Copy)]
struct Segment {
    start: u64,
    answer: u32,
}

/// Segments in order, which together cover all addresses. Equal neighbours become one.
struct Segments<W> {
    /// The last one. Its answer is not final yet.
    open: Segment,
    layout: Layout<W>,
}

impl<W: Pack> Segments<W> {
    fn new(root_bits: u32) -> Self {
        Self { open: Segment { start: 0, answer: ABSENT }, layout: Layout::new(root_bits) }
    }

    /// Gives the addresses from `first` to `last`, which come after all others so far, an answer.
    fn cover(&mut self, first: u64, last: u64, answer: u32) {
        self.begin(first, answer);
        // Past IPv4's highest address, the segment lies outside of every bucket.
        if let Some(next) = last.checked_add(1) {
            self.begin(next, ABSENT);
        }
    }

    fn begin(&mut self, start: u64, answer: u32) {
        if self.open.start == start {
            self.open.answer = answer;
        } else {
            let done = mem::replace(&mut self.open, Segment { start, answer });
            self.layout.push(done);
        }
    }

    fn finish(mut self) -> Layout<W> {
        self.layout.push(self.open);
        self.layout.finish()
    }
}

/// IPv6 addresses by halves: segments of upper ones, and ranges of lower ones.
struct Halves {
    segments: Segments<u64>,
    lows: Lows,
}

/// Ranges of lower halves, in runs of one upper half each.
#[derive(Default)]
struct Lows {
    ranges: Vec<u64>,
    run_lens: Vec<u32>,
    high: Option<u64>,
}

impl Halves {
    fn cover(&mut self, range: &Range<u128>) {
        let label = range.label.index();
        let (high, low) = halves(range.first);
        let (high_last, low_last) = halves(range.last);
        if high == high_last && (low, low_last) != (0, u64::MAX) {
            return self.cover_low(high, low, low_last, label);
        }
        if low != 0 {
            self.cover_low(high, low, u64::MAX, label);
        }
        // Between the parts of a /64 at either end. No wrap: they are parts of different ones.
        let whole_first = high + u64::from(low != 0);
        let whole_end = u128::from(high_last) + u128::from(low_last == u64::MAX);
        if u128::from(whole_first) < whole_end {
            self.segments.cover(whole_first, (whole_end - 1) as u64, u32::from(label));
        }
        if low_last != u64::MAX {
            self.cover_low(high_last, 0, low_last, label);
        }
    }

    fn cover_low(&mut self, high: u64, first: u64, last: u64, label: u16) {
        if self.lows.high.replace(high) != Some(high) {
            self.segments.cover(high, high, DEEPER);
            self.lows.run_lens.push(0);
        }
        if let Some(len) = self.lows.run_lens.last_mut() {
            *len += 1;
        }
        let range = Low { first, last, label: u64::from(label) };
        self.lows.ranges.extend(range.numbers());
    }
}

impl Lows {
    /// For every word that says `DEEPER`, in its place, the run of its /64.
    fn runs(&self, layout: &Layout<u64>) -> Vec<u64> {
        if self.run_lens.is_empty() {
            return Vec::new();
        }
        let mut runs = vec![Node::answer(ABSENT).bits(); layout.words.len()];
        let mut first = 0;
        for (at, len) in layout.deeper.iter().zip(&self.run_lens) {
            runs[*at] = Node { first, shape: *len }.bits();
            first += len;
        }
        runs
    }
}

fn halves(address: u128) -> (u64, u64) {
    ((address >> 64) as u64, address as u64)
}

/// Nodes and words, made bucket by bucket as segments come.
struct Layout<W> {
    root_bits: u32,
    nodes: Vec<u64>,
    words: Vec<W>,
    /// Where the words are that say `DEEPER`, in order.
    deeper: Vec<usize>,
    /// The bucket of the root that is being filled.
    bucket: usize,
    /// The segments that reach into it. The last one ends where the next to come starts.
    inside: Vec<Segment>,
}

/// More words than this in a run are split over an array of nodes.
const LONG_RUN: usize = 16;

impl<W: Pack> Layout<W> {
    fn new(root_bits: u32) -> Self {
        Self {
            root_bits,
            nodes: vec![Node::answer(ABSENT).bits(); 1 << root_bits],
            words: Vec::new(),
            deeper: Vec::new(),
            bucket: 0,
            inside: Vec::new(),
        }
    }

    fn push(&mut self, segment: Segment) {
        if let Some(last) = self.inside.last()
            && last.answer == segment.answer
            && segment.answer != DEEPER
        {
            return;
        }
        let bucket = (segment.start >> (W::BITS - self.root_bits)) as usize;
        self.flush_to(bucket.min(1 << self.root_bits));
        if segment.start == self.bucket_start() {
            self.inside.clear();
        }
        self.inside.push(segment);
    }

    fn finish(mut self) -> Self {
        self.flush_to(1 << self.root_bits);
        self
    }

    /// Makes the nodes of all buckets before this one.
    fn flush_to(&mut self, bucket: usize) {
        while self.bucket < bucket {
            let inside = mem::take(&mut self.inside);
            let node =
                if inside.len() > LONG_RUN { self.array(&inside) } else { self.run(&inside) };
            self.nodes[self.bucket] = node.bits();
            self.bucket += 1;
            self.inside = inside;
            let carried_over = self.inside.len().saturating_sub(1);
            self.inside.drain(..carried_over);
        }
    }

    fn bucket_start(&self) -> u64 {
        // Past the last bucket of IPv6 it wraps to a start that no later segment has.
        (self.bucket as u64).wrapping_shl(W::BITS - self.root_bits)
    }

    /// An array of nodes for one bucket's segments, two or so of them to a node.
    fn array(&mut self, segments: &[Segment]) -> Node {
        let bucket_bits = W::BITS - self.root_bits;
        let bits = (log2(segments.len()) - 1).min(bucket_bits - 1).min(16);
        let shift = bucket_bits - bits;
        let start = self.bucket_start();
        let first = self.nodes.len();
        let mut rest = segments;
        for index in 0..1_usize << bits {
            let slot_start = start | (index as u64) << shift;
            let inside = slot(&mut rest, slot_start, slot_start | ((1 << shift) - 1));
            let node = self.run(inside);
            self.nodes.push(node.bits());
        }
        Node { first: first as u32, shape: Node::ARRAY | bits }
    }

    fn run(&mut self, segments: &[Segment]) -> Node {
        if let [only] = segments
            && only.answer != DEEPER
        {
            return Node::answer(only.answer);
        }
        let first = self.words.len() as u32;
        for segment in segments {
            if segment.answer == DEEPER {
                self.deeper.push(self.words.len());
            }
            self.words.push(W::pack(segment.start << self.root_bits, segment.answer));
        }
        Node { first, shape: segments.len() as u32 }
    }
}

/// The segments that reach into the addresses from `start` to `last`. Leaves those from the last
/// of them on, for the slot that comes next.
fn slot<'a>(rest: &mut &'a [Segment], start: u64, last: u64) -> &'a [Segment] {
    let before = rest.iter().take_while(|s| s.start <= start).count();
    let from = &rest[before.saturating_sub(1)..];
    let inside = from.iter().take_while(|s| s.start <= last).count();
    *rest = &from[inside.saturating_sub(1)..];
    &from[..inside]
}

impl Node {
    const fn answer(answer: u32) -> Self {
        Self { first: answer, shape: 0 }
    }

    const fn bits(self) -> u64 {
        (self.shape as u64) << 32 | self.first as u64
    }
}

impl Low {
    const fn numbers(self) -> [u64; Self::NUMBERS as usize] {
        [self.first, self.last, self.label]
    }
}

/// How a segment becomes a word.
trait Pack: Copy {
    const BITS: u32;
    fn pack(shifted_start: u64, answer: u32) -> Self;
}

impl Pack for u32 {
    const BITS: u32 = u32::BITS;

    fn pack(shifted_start: u64, answer: u32) -> Self {
        shifted_start as u32 | answer
    }
}

impl Pack for u64 {
    const BITS: u32 = u64::BITS;

    fn pack(shifted_start: u64, answer: u32) -> Self {
        shifted_start | u64::from(answer)
    }
}
