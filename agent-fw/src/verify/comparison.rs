//! Comparisons that rules make: which values pass them.

use crate::model::{Address, MacAddr, Port, Range, RangeSet};
use crate::nft::{Comparison, Key};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A comparison with what the register holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Test {
    Equal(Vec<u8>),
    AtMost(Vec<u8>),
    Compare(Comparison, Vec<u8>),
    Between(Vec<u8>, Vec<u8>),
    In(Members, bool),
}

/// What a set holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Members {
    V4(RangeSet<Ipv4Addr>),
    V6(RangeSet<Ipv6Addr>),
    Mac(RangeSet<MacAddr>),
    Port(RangeSet<Port>),
    /// What this host itself sends from, just now.
    Learned(Key),
}

impl Members {
    /// As numbers of so many bytes, if they are such.
    pub(super) fn numbers(&self, width: usize) -> Option<RangeSet<u128>> {
        match self {
            Self::Port(set) if width == 2 => Some(set.numbers()),
            Self::Mac(set) if width == 6 => Some(set.numbers()),
            _ => None,
        }
    }
}

impl Test {
    /// Whether these bytes pass, of which the mask keeps some.
    pub(super) fn holds(&self, mask: Option<&[u8]>, bytes: &[u8]) -> Option<bool> {
        let kept: Vec<u8> = match mask {
            Some(mask) if mask.len() != bytes.len() => return None,
            Some(mask) => bytes.iter().zip(mask).map(|(byte, mask)| byte & mask).collect(),
            None => bytes.to_vec(),
        };
        let fits = |data: &[u8]| data.len() == kept.len();
        match self {
            Self::Equal(data) if fits(data) => Some(kept == *data),
            Self::AtMost(data) if fits(data) => Some(kept <= *data),
            Self::Compare(comparison, data) if fits(data) => Some(match comparison {
                Comparison::Different => kept != *data,
                Comparison::Less => kept < *data,
                Comparison::More => kept > *data,
                Comparison::AtLeast => kept >= *data,
            }),
            Self::Between(from, to) if fits(from) && fits(to) => Some((from..=to).contains(&&kept)),
            _ => None,
        }
    }

    /// The values of `width` bytes, at most two, of which the first `length` pass: each is tried.
    pub(super) fn tried(
        &self,
        mask: Option<&[u8]>,
        length: usize,
        width: usize,
    ) -> Option<RangeSet<u128>> {
        if width > 2 {
            return None;
        }
        let all = 0..1_u32 << (8 * width);
        let bytes = |value: u32| value.to_be_bytes()[4 - width..][..length].to_vec();
        let passes = |value: u32| self.holds(mask, &bytes(value));
        all.filter_map(|value| match passes(value) {
            Some(true) => Some(Some(Range::single(value.into()))),
            Some(false) => None,
            None => Some(None),
        })
        .collect()
    }

    /// The values of `width` bytes, of which the first `length` pass; `None` where it is not the
    /// first bits of them that the mask keeps.
    pub(super) fn ranges(
        &self,
        mask: Option<&[u8]>,
        length: usize,
        width: usize,
    ) -> Option<RangeSet<u128>> {
        let rest = 8 * (width - length);
        let all = Range::new(0, ones(8 * width))?;
        let parse = |data: &[u8]| (data.len() == length).then(|| number(data));
        let value =
            |data: &[u8]| Some(parse(data)?.checked_shl(u32::try_from(rest).ok()?).unwrap_or(0));
        // A mask of leading ones leaves a prefix to compare.
        let dropped = match mask {
            None => 0,
            Some(mask) => {
                let mask = parse(mask)?;
                let zeros = usize::try_from(mask.trailing_zeros()).ok()?.min(8 * length);
                (mask == ones(8 * length) & !ones(zeros)).then_some(zeros)?
            }
        };
        let below = ones(rest + dropped);
        let range = |first: u128, last: u128| -> Option<RangeSet<u128>> {
            Some(Range::new(first, last).map_or_else(RangeSet::default, Into::into))
        };
        let of = |set: RangeSet<u128>| set.intersection(&all.into());
        let set = match self {
            // Bits that the mask has cleared cannot be equal to ones.
            Self::Equal(data) if value(data)? & ones(rest + dropped) != 0 => RangeSet::default(),
            Self::Equal(data) => range(value(data)?, value(data)? | below)?,
            Self::Compare(Comparison::Different, data) => {
                let equal = Self::Equal(data.clone()).ranges(mask, length, width)?;
                return Some(of(equal.complement()));
            }
            _ if dropped != 0 => return None,
            Self::AtMost(data) => range(0, value(data)? | below)?,
            Self::Compare(Comparison::More, data) => range(0, value(data)? | below)?.complement(),
            Self::Compare(Comparison::AtLeast, data) => range(value(data)?, u128::MAX)?,
            Self::Compare(Comparison::Less, data) => range(value(data)?, u128::MAX)?.complement(),
            Self::Between(from, to) => range(value(from)?, value(to)? | below)?,
            Self::In(..) => return None,
        };
        Some(of(set))
    }
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}

/// As many ones, from the lowest bit.
pub(super) fn ones(count: usize) -> u128 {
    let bit = u32::try_from(count).ok().and_then(|count| 1_u128.checked_shl(count));
    bit.map_or(u128::MAX, |bit| bit - 1)
}

/// The addresses of which those bits that the mask keeps are in the set, and the others are zeros
/// there; `None` where it is not the first bits that it keeps.
pub(super) fn begins_in<T: Address>(mask: Option<&[u8]>, set: &RangeSet<T>) -> Option<RangeSet<T>> {
    let Some(mask) = mask else { return Some(set.clone()) };
    let width = usize::from(T::FAMILY.bits());
    let kept = number(mask);
    let zeros = usize::try_from(kept.trailing_zeros()).ok()?.min(width);
    let dropped = ones(zeros);
    (mask.len() * 8 == width && kept == ones(width) & !dropped).then_some(())?;
    // Every value in the set without those bits stands for all that begin so: of a range, from
    // the first such value to the last.
    let begun = |range: &Range<T>| {
        let first = range.first().to_u128().checked_add(dropped)? & !dropped;
        let last = range.last().to_u128() & !dropped;
        (first <= last && first <= ones(width))
            .then(|| Range::new(T::of_bits(first), T::of_bits(last | dropped)))?
    };
    Some(set.ranges().iter().filter_map(begun).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Addresses near each other and at both ends.
    fn address() -> impl Strategy<Value = u32> {
        prop_oneof![0..70_u32, 1000..1070_u32, u32::MAX - 70..=u32::MAX]
    }

    proptest! {
        #[test]
        fn a_masked_address_is_in_a_set_as_the_kernel_finds_it(
            pairs in prop::collection::vec((address(), 0..20_u32), 0..8),
            length in 26..=32_u8,
            asked in address(),
        ) {
            let range = |(first, more): &(u32, u32)| {
                Range::new(first.to_owned().into(), first.saturating_add(*more).into())
            };
            let set: RangeSet<Ipv4Addr> = pairs.iter().filter_map(range).collect();
            let mask = u32::MAX << (32 - length);
            let found = begins_in(Some(&mask.to_be_bytes()), &set).expect("the first bits");
            prop_assert_eq!(found.contains(asked.into()), set.contains((asked & mask).into()));
        }

        #[test]
        fn values_are_found_in_ranges_as_each_of_them_is_tried(
            data in prop::collection::vec(any::<u8>(), 1..=2), ones in 0..=16_usize, which in 0..5_u8,
        ) {
            let (length, data) = (data.len(), data);
            let mask = (u16::MAX << ones.min(15)).to_be_bytes();
            let mask = (ones > 0 && length == 2).then_some(&mask[..]);
            let test = match which {
                0 => Test::Equal(data),
                1 => Test::AtMost(data),
                2 => Test::Compare(Comparison::Different, data),
                3 => Test::Compare(Comparison::More, data),
                _ => Test::Compare(Comparison::Less, data),
            };
            let tried = test.tried(mask, length, 2);
            prop_assert!(tried.is_some());
            if let Some(ranges) = test.ranges(mask, length, 2) {
                prop_assert_eq!(Some(ranges), tried);
            }
        }
    }
}
