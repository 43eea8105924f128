//! In which form addresses are looked up: what each form costs a packet, and the cheapest.

use crate::model::Family;
use std::fmt;

/// Nanoseconds that a packet takes which is in none of the sets, on the machine that measured them;
/// what counts is how they stand to each other. `cargo xtask bench gate` measures the forms.
mod ns {
    /// One prefix compared with.
    pub(super) const PREFIX: u64 = 40;
    /// One hash, of which the nearest cache holds the buckets.
    pub(super) const HASH: u64 = 70;
    /// What it takes longer where the bits to be hashed are not 32 but 128.
    pub(super) const HASH_V6: u64 = 30;
    /// Each time that a hash is twice as large as [`super::CACHED`].
    pub(super) const HASH_DOUBLED: u64 = 18;
    /// A set of intervals with one.
    pub(super) const INTERVALS: u64 = 130;
    /// Each time that it has twice as many.
    pub(super) const INTERVALS_DOUBLED: u64 = 32;
    /// One comparison on the way through the tree of chains that finds the right one of many parts.
    pub(super) const COMPARED: u64 = 100;
}

/// Ranges in one set of intervals. The kernel reads a set out from its beginning for every 32 KiB of
/// answer, so that a set of a million ranges takes minutes to read back; in parts of this size it
/// takes seconds, and they are faster to search and to load.
const INTERVALS_IN_A_SET: usize = 1024;
/// Values in one hash, about, for the same reason; hashes are fast to search at any size.
const VALUES_IN_A_HASH: usize = 1 << 17;
/// Comparisons in one chain of the tree.
pub(crate) const FAN: usize = 16;

/// Elements of a hash that find room in the nearest caches.
const CACHED: usize = 1024;

/// A prefix may become several longer ones, so that fewer lengths are to be looked up: as many as the
/// bounds of intervals would be, or, where there are few, so many times as many.
const BOUNDS_OF_AN_INTERVAL: usize = 2;
const FEW: usize = 65_536;
const TIMES: usize = 16;
/// Lookups one after another.
const MOST_HASHES: usize = 8;

/// How the addresses of one version are looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Form {
    /// Each prefix is compared with.
    Prefixes,
    /// The first bits of the address are looked up among prefixes of one length, for each of these
    /// lengths, which ascend.
    Hashes(Vec<u8>),
    /// The address is looked up in sets of intervals.
    Intervals,
}

/// A form, and what it costs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The form.
    pub form: Form,
    /// How many parts the addresses are divided into, each with sets of its own.
    pub parts: usize,
    /// Nanoseconds that a packet takes which is not listed, on the machine that measured them.
    pub cost: u64,
    /// What the kernel holds for it: prefixes, hashed values, or bounds of intervals.
    pub elements: usize,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, parts, cost, elements } = self;
        match form {
            Form::Prefixes => write!(f, "{elements} comparisons")?,
            Form::Hashes(lengths) => {
                let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                write!(f, "hashes of {} bits with {elements} values", lengths.join(", "))?;
            }
            Form::Intervals => write!(f, "intervals with {elements} bounds")?,
        }
        if *parts > 1 {
            write!(f, " in {parts} parts")?;
        }
        write!(f, ", about {cost} ns")
    }
}

/// The forms that are possible for as many prefixes of each length (the lengths ascend), which are so
/// many ranges: the cheapest first.
pub(crate) fn choices(family: Family, by_length: &[(u8, usize)], ranges: usize) -> Vec<Choice> {
    let prefixes: usize = by_length.iter().map(|(_, count)| count).sum();
    let comparing = Choice {
        form: Form::Prefixes,
        parts: 1,
        cost: ns::PREFIX * prefixes as u64,
        elements: prefixes,
    };
    let parts = ranges.div_ceil(INTERVALS_IN_A_SET).max(1);
    let intervals = Choice {
        form: Form::Intervals,
        parts,
        cost: ns::INTERVALS
            + ns::INTERVALS_DOUBLED * doublings(ranges.min(INTERVALS_IN_A_SET), 1)
            + tree(parts),
        elements: BOUNDS_OF_AN_INTERVAL * ranges,
    };
    let most = (BOUNDS_OF_AN_INTERVAL * ranges).max((TIMES * prefixes).min(FEW));
    let hashes = hashes(by_length).into_iter().filter_map(|sizes| {
        let elements = sizes.iter().fold(0_usize, |sum, (_, size)| sum.saturating_add(*size));
        let largest = sizes.iter().map(|(_, size)| *size).max()?;
        let parts = largest.div_ceil(VALUES_IN_A_HASH);
        let of_hashes: u64 = sizes.iter().map(|(_, size)| hash(family, *size)).sum();
        let form = Form::Hashes(sizes.into_iter().map(|(length, _)| length).collect());
        let choice = Choice { form, parts, cost: of_hashes + tree(parts), elements };
        (elements <= most).then_some(choice)
    });
    // Of no bits at all there is nothing to compare.
    let is_whole = by_length.iter().any(|(length, _)| *length == 0);
    let hashes = hashes.min_by_key(|choice| choice.cost);
    let mut choices: Vec<Choice> = if is_whole {
        vec![intervals]
    } else {
        hashes.into_iter().chain([comparing, intervals]).collect()
    };
    choices.sort_by_key(|choice| choice.cost);
    choices
}

fn hash(family: Family, size: usize) -> u64 {
    let longer = if family == Family::V6 { ns::HASH_V6 } else { 0 };
    ns::HASH + longer + ns::HASH_DOUBLED * doublings(size, CACHED)
}

/// What it costs to find one of so many parts: half of the comparisons of each level.
fn tree(parts: usize) -> u64 {
    let mut comparisons = 0;
    let mut branches = parts;
    while branches > 1 {
        comparisons += branches.min(FAN) as u64;
        branches = branches.div_ceil(FAN);
    }
    ns::COMPARED * comparisons / 2
}

/// How often `from` is to be doubled until it is `to`.
fn doublings(to: usize, from: usize) -> u64 {
    (to / from.max(1)).max(1).ilog2().into()
}

/// Lengths, and how many prefixes each has.
type Sizes = Vec<(u8, usize)>;

/// For each number of hashes, the lengths with which they have the fewest elements, and how many each
/// of them has.
fn hashes(by_length: &[(u8, usize)]) -> Vec<Sizes> {
    // `best[j]`: the fewest elements of hashes of which the last is of length `j`, and their sizes.
    let mut best: Vec<Option<(usize, Sizes)>> = Vec::new();
    let mut all = Vec::new();
    for count in 1..=MOST_HASHES.min(by_length.len()) {
        let mut next = vec![None; by_length.len()];
        for (last, slot) in next.iter_mut().enumerate() {
            let (length, _) = by_length[last];
            let mut size = 0_usize;
            // The hash of this length takes those of the lengths from `first` on.
            for first in (0..=last).rev() {
                let (shorter, prefixes) = by_length[first];
                let each = 1_usize.checked_shl((length - shorter).into()).unwrap_or(usize::MAX);
                size = size.saturating_add(prefixes.saturating_mul(each));
                let before = match (count, first) {
                    (1, 0) => Some((0, Vec::new())),
                    (1, _) | (_, 0) => None,
                    _ => best[first - 1].clone(),
                };
                let Some((elements, mut sizes)) = before else { continue };
                let elements = size.saturating_add(elements);
                if slot.as_ref().is_none_or(|(fewest, _)| elements < *fewest) {
                    sizes.push((length, size));
                    *slot = Some((elements, sizes));
                }
            }
        }
        all.extend(next.last().cloned().flatten().map(|(_, sizes)| sizes));
        best = next;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(family: Family, by_length: &[(u8, usize)], ranges: usize) -> Choice {
        choices(family, by_length, ranges).swap_remove(0)
    }

    fn form(by_length: &[(u8, usize)]) -> Form {
        let prefixes = by_length.iter().map(|(_, count)| count).sum();
        choose(Family::V4, by_length, prefixes).form
    }

    #[test]
    fn one_prefix_is_compared_with_and_a_region_is_one_hash() {
        assert_eq!(form(&[(27, 1)]), Form::Prefixes);
        assert_eq!(form(&[(27, 2)]), Form::Hashes(vec![27]));
    }

    #[test]
    fn lengths_that_lie_close_become_one_where_prefixes_are_few() {
        assert_eq!(form(&[(24, 5), (26, 5)]), Form::Hashes(vec![26]));
        // A prefix of 8 bits would be 16 million of 32.
        assert_eq!(form(&[(8, 10), (32, 10)]), Form::Hashes(vec![8, 32]));
    }

    #[test]
    fn what_the_kernel_holds_is_bounded() {
        let mixed: Vec<(u8, usize)> = (24..=32).map(|length| (length, 111_111)).collect();
        let choice = choose(Family::V4, &mixed, 1_000_000);
        assert!(matches!(choice.form, Form::Hashes(_)), "{choice:?}");
        assert!(choice.elements <= 2_000_000, "{choice:?}");
        assert!(choice.parts > 1, "{choice:?}");
    }

    #[test]
    fn many_lengths_that_cannot_be_joined_are_intervals() {
        let lengths: Vec<(u8, usize)> = (1..=16).map(|n| (8 * n, 1000)).collect();
        assert_eq!(choose(Family::V6, &lengths, 16_000).form, Form::Intervals);
    }
}
