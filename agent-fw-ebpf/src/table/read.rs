//! From tables back to ranges, whatever is in them: what the kernel has is read, not what should
//! have been put there.
//!
//! A look-up is a chain of comparisons of the address with constants of the tables. Between two
//! neighbouring constants its answer is the same, so that asking it once for each stretch, by the
//! program's own code, tells its answer for every address, also where tables are damaged.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Block, DEEPER, Low, Node, Range, Shape, Tables, Word};
use super::{bits_v4, find_low, has, hash, label, low, search};
use crate::PassReason;
use crate::address::V4;
use crate::label::Label;

/// Prefixes that are looked up in a filter, at most: twice what any list of ours has.
const MOST_FILTERED: u128 = 1 << 24;

/// Ranges that tables list, and what is wrong with the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed<A> {
    /// The addresses that a look-up finds, with their labels: sorted, disjoint.
    pub(crate) ranges: Vec<Range<A>>,
    /// Where a look-up fails, so that the packet passes: first and last addresses.
    pub(crate) undecided: Vec<(A, A)>,
    /// Where it may fail: the filter has too many prefixes there to look at each.
    pub(crate) unsure: Vec<(A, A)>,
    /// What no table of ours has, in words.
    pub(crate) faults: BTreeSet<String>,
}

/// The IPv4 addresses that tables of this shape, with so many words, list.
pub(crate) fn listed_v4(tables: &impl Tables, shape: Shape, words: usize) -> Listed<u32> {
    let mut faults = BTreeSet::new();
    let nodes = |index| tables.v4_node(index);
    let word = |index| tables.v4_word(index);
    let Starts { starts, unanswered } =
        starts::<u32>(shape.root_bits, words, nodes, word, &mut faults);
    let unfiltered = Shape { filter_bits: 0, ..shape };
    let (mut ranges, mut undecided) = (Vec::new(), Vec::new());
    for (index, &first) in starts.iter().enumerate() {
        let last = starts.get(index + 1).map_or(u32::MAX, |next| next - 1);
        let is_answered = !unanswered.contains(&first);
        let found = || tables.find_v4(unfiltered, V4(first));
        match is_answered.then(found).unwrap_or(Err(PassReason::TableFault)) {
            Ok(found) => extend(&mut ranges, first, last, found, |last| last.checked_add(1)),
            Err(reason) => {
                faults.insert(format!("{reason} at IPv4 {first:#010x}"));
                undecided.push((first, last));
            }
        }
    }
    let mut unsure = Vec::new();
    if shape.filter_bits != 0 {
        let has_bit = |prefix: u32| {
            let bits = bits_v4(prefix << 8, shape.filter_bits);
            tables.v4_filter(bits[0] / 64).is_some_and(|word| has(word, bits))
        };
        let filter = Filter { shift: 8, has_bit };
        ranges = filter.kept(&ranges, &mut unsure);
        let more;
        (undecided, more) = filter.failing(&undecided);
        unsure.extend(more);
    }
    Listed { ranges, undecided, unsure, faults }
}

/// The IPv4 addresses that tables with blocks list. `label`: of blocks that are listed as a whole.
pub(crate) fn listed_by_blocks(
    tables: &impl Tables,
    shape: Shape,
    label: Option<Label>,
    words: usize,
) -> Listed<u32> {
    let beneath = listed_v4(tables, Shape { filter_bits: 0, ..shape }, words);
    let mut listed = Listed {
        ranges: Vec::with_capacity(beneath.ranges.len()),
        undecided: Vec::new(),
        unsure: beneath.unsure,
        faults: beneath.faults,
    };
    let after = |last: u32| last.checked_add(1);
    let (mut ranges, mut undecided) = (beneath.ranges.as_slice(), beneath.undecided.as_slice());
    for block in 0..1_u32 << shape.filter_bits {
        let shift = u32::BITS - shape.filter_bits;
        let (first, last) = (block << shift, block << shift | ((1 << shift) - 1));
        let Some(word) = tables.v4_filter(block / Block::PER_WORD) else {
            listed.faults.insert(format!("{} in the blocks of IPv4", PassReason::TableFault));
            listed.undecided.push((first, last));
            continue;
        };
        match Block::of(word, block) {
            Block::NONE => {}
            Block::ALL => extend(&mut listed.ranges, first, last, label, after),
            _ => {
                ranges = &ranges[ranges.partition_point(|range| range.last < first)..];
                for range in ranges.iter().take_while(|range| range.first <= last) {
                    let (from, to) = (range.first.max(first), range.last.min(last));
                    extend(&mut listed.ranges, from, to, Some(range.label), after);
                }
                undecided = &undecided[undecided.partition_point(|(_, end)| *end < first)..];
                for (start, end) in undecided.iter().take_while(|(start, _)| *start <= last) {
                    listed.undecided.push((first.max(*start), last.min(*end)));
                }
            }
        }
    }
    listed
}

/// The IPv6 addresses likewise, where there are so many numbers of ranges of lower halves.
pub(crate) fn listed_v6(
    tables: &impl Tables,
    shape: Shape,
    deep: bool,
    words: usize,
    lows: usize,
) -> Listed<u128> {
    let mut faults = BTreeSet::new();
    let nodes = |index| tables.v6_node(index);
    let word = |index| tables.v6_word(index);
    let Starts { starts, unanswered } =
        starts::<u64>(shape.root_bits, words, nodes, word, &mut faults);
    let (mut ranges, mut undecided, mut unsure) = (Vec::new(), Vec::new(), Vec::new());
    for (index, &first) in starts.iter().enumerate() {
        let last = starts.get(index + 1).map_or(u64::MAX, |next| next - 1);
        let (whole, end) = (u128::from(first) << 64, u128::from(last) << 64 | u128::from(u64::MAX));
        let is_answered = !unanswered.contains(&first);
        let found = || search(nodes, word, shape.root_bits, first);
        let found = match is_answered.then(found).unwrap_or(Err(PassReason::TableFault)) {
            Ok(found) => found,
            Err(reason) => {
                faults.insert(format!("{reason} at IPv6 {first:#018x}"));
                undecided.push((whole, end));
                continue;
            }
        };
        if !deep || found.answer != DEEPER {
            extend(&mut ranges, whole, end, label(found.answer), |last| last.checked_add(1));
            continue;
        }
        if first != last {
            faults.insert(format!("one answer for several /64 at IPv6 {first:#018x}"));
            unsure.push((whole, end));
            continue;
        }
        if let Some(run) = tables.v6_deep(found.at).map(Node::from_bits) {
            lower_halves(tables, run, lows, whole, &mut ranges, &mut faults);
        } else {
            faults.insert(format!("{} at IPv6 {first:#018x}", PassReason::TableFault));
            undecided.push((whole, end));
        }
    }
    if shape.filter_bits != 0 {
        let has_bit = |prefix: u128| {
            let bit = hash(prefix as u64, shape.filter_bits);
            tables.v6_filter(bit / 64).is_some_and(|word| has(word, [bit]))
        };
        let filter = Filter { shift: 128 - shape.filter_len, has_bit };
        ranges = filter.kept(&ranges, &mut unsure);
        let more;
        (undecided, more) = filter.failing(&undecided);
        unsure.extend(more);
    }
    Listed { ranges, undecided, unsure, faults }
}

/// The ranges of one /64, which starts at `whole`.
fn lower_halves(
    tables: &impl Tables,
    run: Node,
    lows: usize,
    whole: u128,
    ranges: &mut Vec<Range<u128>>,
    faults: &mut BTreeSet<String>,
) {
    let most = lows as u32 / Low::NUMBERS;
    let lows = |index| tables.v6_low(index);
    let len = (run.shape & Node::LEN).min(most);
    let mut starts = BTreeSet::from([0_u64]);
    for index in 0..len {
        let Ok(range) = low(lows, run.first.wrapping_add(index)) else { break };
        starts.insert(range.first);
        starts.extend(range.last.checked_add(1));
    }
    let starts: Vec<u64> = starts.into_iter().collect();
    for (index, &first) in starts.iter().enumerate() {
        let last = starts.get(index + 1).map_or(u64::MAX, |next| next - 1);
        match find_low(lows, run, first) {
            Ok(found) => {
                let (first, last) = (whole | u128::from(first), whole | u128::from(last));
                extend(ranges, first, last, found, |last| last.checked_add(1));
            }
            Err(reason) => drop(faults.insert(format!("{reason} at IPv6 {whole:#034x}"))),
        }
    }
}

/// Where the answer may change: the starts of buckets, of slots and of words.
fn starts<W: Constant>(
    root_bits: u32,
    most: usize,
    nodes: impl Fn(u32) -> Option<u64>,
    words: impl Fn(u32) -> Option<W>,
    faults: &mut BTreeSet<String>,
) -> Starts<W> {
    let bucket_bits = W::BITS - root_bits;
    let most = most as u64;
    let nodes = |index| nodes(index).map(Node::from_bits);
    let mut starts = Vec::new();
    let mut run = |start: u64, bits: u32, node: Node| {
        starts.push(W::from_bits(start));
        let len = u64::from(node.shape & Node::LEN);
        if node.shape != 0 && u64::from(node.first) + len > most {
            faults.insert(format!("a run beyond the table's end, at word {}", node.first));
        }
        // The bits that the run's words have in common are those of the bucket.
        let bucket = start >> bucket_bits << bucket_bits;
        let last = start | ((1 << bits) - 1);
        for index in 0..len.min(most) as u32 {
            let Some(word) = words(node.first.wrapping_add(index)) else { break };
            let at = bucket | word.start(root_bits);
            if start < at && at <= last {
                starts.push(W::from_bits(at));
            }
        }
    };
    let (mut damaged, mut unanswered) = (BTreeSet::new(), BTreeSet::new());
    for bucket in 0..1_u32 << root_bits {
        let start = u64::from(bucket) << bucket_bits;
        match nodes(bucket) {
            Some(node) if node.shape & Node::ARRAY != 0 => {
                let bits = (node.shape & 31).min(bucket_bits);
                if bits == 0 {
                    // The kernel's shift by all bits leads beyond the table; this one would stop.
                    unanswered.insert(W::from_bits(start));
                }
                if node.shape & 31 != bits || bits == 0 {
                    damaged.insert(format!("an array of no nodes or too many, bucket {bucket}"));
                }
                for slot in 0..1_u32 << bits {
                    let at = start | u64::from(slot) << (bucket_bits - bits);
                    let inner = nodes(node.first.wrapping_add(slot));
                    run(at, bucket_bits - bits, inner.unwrap_or(Node { first: 0, shape: 0 }));
                    if inner.is_none() {
                        damaged.insert(format!("an array beyond the table's end, bucket {bucket}"));
                        break;
                    }
                }
            }
            Some(node) => run(start, bucket_bits, node),
            None => drop(damaged.insert("nodes are missing".into())),
        }
    }
    faults.append(&mut damaged);
    starts.sort_unstable();
    starts.dedup();
    Starts { starts, unanswered }
}

/// The starts of stretches, and those of them that cannot be asked.
struct Starts<W> {
    starts: Vec<W>,
    unanswered: BTreeSet<W>,
}

/// A word as a constant that addresses are compared with.
trait Constant: Word + Ord {
    const BITS: u32;
    fn from_bits(bits: u64) -> Self;
    /// The lower bits of the first address of its segment.
    fn start(self, root_bits: u32) -> u64;
}

impl Constant for u32 {
    const BITS: u32 = u32::BITS;

    fn from_bits(bits: u64) -> Self {
        bits as Self
    }

    fn start(self, root_bits: u32) -> u64 {
        u64::from(self >> root_bits)
    }
}

impl Constant for u64 {
    const BITS: u32 = u64::BITS;

    fn from_bits(bits: u64) -> Self {
        bits
    }

    fn start(self, root_bits: u32) -> u64 {
        self >> root_bits
    }
}

/// Adds a stretch, where it is listed; to the range before it where that touches it.
fn extend<A: Copy + PartialEq>(
    ranges: &mut Vec<Range<A>>,
    first: A,
    last: A,
    found: Option<Label>,
    after: impl Fn(A) -> Option<A>,
) {
    let Some(label) = found else { return };
    match ranges.last_mut() {
        Some(before) if before.label == label && after(before.last) == Some(first) => {
            before.last = last;
        }
        _ => ranges.push(Range { first, last, label }),
    }
}

/// First and last addresses of stretches.
type Stretches<A> = Vec<(A, A)>;

/// The filter in front of a table. A prefix is what is left of an address without its last
/// `shift` bits; those that have no bit are looked up no further.
struct Filter<F> {
    shift: u32,
    has_bit: F,
}

impl<F> Filter<F> {
    /// The parts of listed ranges that are found. What has too many prefixes is added to `unsure`.
    fn kept<A: Bits>(&self, ranges: &[Range<A>], unsure: &mut Vec<(A, A)>) -> Vec<Range<A>>
    where
        F: Fn(A) -> bool,
    {
        let mut left = MOST_FILTERED;
        let mut kept = Vec::with_capacity(ranges.len());
        for range in ranges {
            let count = self.count(range.first, range.last);
            if count > left {
                unsure.push((range.first, range.last));
                continue;
            }
            left -= count;
            let after = |last: A| last.wide().checked_add(1).map(A::narrow);
            for (first, last) in self.parts(range.first, range.last) {
                extend(&mut kept, first, last, Some(range.label), after);
            }
        }
        kept
    }

    /// The parts of a failing table that are looked up, and those of which that is not known.
    fn failing<A: Bits>(&self, undecided: &[(A, A)]) -> (Stretches<A>, Stretches<A>)
    where
        F: Fn(A) -> bool,
    {
        let (few, many): (Vec<_>, Vec<_>) =
            undecided.iter().partition(|(first, last)| self.count(*first, *last) <= MOST_FILTERED);
        (few.into_iter().flat_map(|(first, last)| self.parts(first, last)).collect(), many)
    }

    fn count<A: Bits>(&self, first: A, last: A) -> u128 {
        (last.wide() >> self.shift) - (first.wide() >> self.shift) + 1
    }

    /// The parts of a range whose prefixes have a bit.
    fn parts<A: Bits>(&self, first: A, last: A) -> impl Iterator<Item = (A, A)>
    where
        F: Fn(A) -> bool,
    {
        let (first, last) = (first.wide(), last.wide());
        let prefixes = (first >> self.shift)..=(last >> self.shift);
        prefixes.filter(|prefix| (self.has_bit)(A::narrow(*prefix))).map(move |prefix| {
            let start = first.max(prefix << self.shift);
            let end = last.min(prefix << self.shift | ((1 << self.shift) - 1));
            (A::narrow(start), A::narrow(end))
        })
    }
}

/// An address as a number.
trait Bits: Copy + PartialEq {
    fn wide(self) -> u128;
    fn narrow(bits: u128) -> Self;
}

impl Bits for u32 {
    fn wide(self) -> u128 {
        self.into()
    }

    fn narrow(bits: u128) -> Self {
        bits as Self
    }
}

impl Bits for u128 {
    fn wide(self) -> u128 {
        self
    }

    fn narrow(bits: u128) -> Self {
        bits
    }
}
