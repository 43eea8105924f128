//! Ranges of ordered values (ports, addresses, MAC addresses), and canonical sets of them.
//!
//! A [`RangeSet`] keeps its ranges sorted, disjoint and merged, so that two sets which contain
//! the same values are equal as Rust values.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A value that has a neighbour on either side: what a range can be made of.
pub trait Ordinal: Copy + Ord + fmt::Debug {
    /// The integer by which values are compared; sorting by it is faster than by bytes.
    type Bits: Ord;
    /// The smallest value.
    const MIN: Self;
    /// The largest value.
    const MAX: Self;
    /// The value as an integer, in the same order.
    fn bits(self) -> Self::Bits;
    /// The value that follows, or `None` after [`Ordinal::MAX`].
    fn next(self) -> Option<Self>;
    /// The value before, or `None` before [`Ordinal::MIN`].
    fn previous(self) -> Option<Self>;
}

impl Ordinal for Ipv4Addr {
    type Bits = u32;
    const MIN: Self = Self::UNSPECIFIED;
    const MAX: Self = Self::BROADCAST;
    fn bits(self) -> u32 {
        u32::from(self)
    }
    fn next(self) -> Option<Self> {
        u32::from(self).checked_add(1).map(Self::from)
    }
    fn previous(self) -> Option<Self> {
        u32::from(self).checked_sub(1).map(Self::from)
    }
}

impl Ordinal for Ipv6Addr {
    type Bits = u128;
    const MIN: Self = Self::UNSPECIFIED;
    const MAX: Self = Self::from_bits(u128::MAX);
    fn bits(self) -> u128 {
        u128::from(self)
    }
    fn next(self) -> Option<Self> {
        u128::from(self).checked_add(1).map(Self::from)
    }
    fn previous(self) -> Option<Self> {
        u128::from(self).checked_sub(1).map(Self::from)
    }
}

/// What is in a field of any width, as a number.
impl Ordinal for u128 {
    type Bits = Self;
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;
    fn bits(self) -> Self {
        self
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// All values from `first` to `last`, both included; never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Range<T> {
    first: T,
    last: T,
}

impl<T: Ordinal> Range<T> {
    /// Every value that there is.
    pub const ALL: Self = Self { first: T::MIN, last: T::MAX };

    /// The range from `first` to `last`, or `None` when `first` comes after `last`.
    pub fn new(first: T, last: T) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The range that holds one value.
    pub const fn single(value: T) -> Self {
        Self { first: value, last: value }
    }

    /// The smallest value in the range.
    pub const fn first(&self) -> T {
        self.first
    }

    /// The largest value in the range.
    pub const fn last(&self) -> T {
        self.last
    }

    /// Whether `value` lies in the range.
    pub fn contains(&self, value: T) -> bool {
        self.first <= value && value <= self.last
    }

    /// The values that both ranges hold.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A set of values as sorted, disjoint ranges, of which no two touch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeSet<T> {
    ranges: Vec<Range<T>>,
}

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        Self { ranges: Vec::new() }
    }
}

impl<T: Ordinal> RangeSet<T> {
    /// The set of every value.
    pub fn all() -> Self {
        Self { ranges: vec![Range::ALL] }
    }

    /// The ranges, in ascending order.
    pub fn ranges(&self) -> &[Range<T>] {
        &self.ranges
    }

    /// Whether the set holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the set holds every value.
    pub fn is_all(&self) -> bool {
        self.ranges == [Range::ALL]
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: T) -> bool {
        let after = self.ranges.partition_point(|range| range.first <= value);
        after > 0 && self.ranges[after - 1].contains(value)
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        self.ranges.iter().chain(&other.ranges).copied().collect()
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut left, mut right) = (0, 0);
        let mut ranges = Vec::new();
        while let (Some(a), Some(b)) = (self.ranges.get(left), other.ranges.get(right)) {
            ranges.extend(a.intersection(b));
            if a.last < b.last {
                left += 1;
            } else {
                right += 1;
            }
        }
        Self { ranges }
    }

    /// Whether some value is in both sets.
    pub fn intersects(&self, other: &Self) -> bool {
        let (few, many) = if self.ranges.len() < other.ranges.len() {
            (&self.ranges, &other.ranges)
        } else {
            (&other.ranges, &self.ranges)
        };
        few.iter().any(|range| {
            let next = many.partition_point(|other| other.last < range.first);
            many.get(next).is_some_and(|other| other.first <= range.last)
        })
    }

    /// Everything that is not in the set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        let mut start = Some(T::MIN);
        for range in &self.ranges {
            if let (Some(first), Some(last)) = (start, range.first.previous()) {
                ranges.extend(Range::new(first, last));
            }
            start = range.last.next();
        }
        if let Some(first) = start {
            ranges.extend(Range::new(first, T::MAX));
        }
        Self { ranges }
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return self.clone();
        }
        self.intersection(&other.complement())
    }
}

impl<T: Ordinal<Bits: Into<u128>>> RangeSet<T> {
    /// The values as numbers.
    #[must_use]
    pub fn numbers(&self) -> RangeSet<u128> {
        let number = |value: T| value.bits().into();
        let range =
            |range: &Range<T>| Range { first: number(range.first), last: number(range.last) };
        RangeSet { ranges: self.ranges.iter().map(range).collect() }
    }
}

impl<T: Ordinal> FromIterator<Range<T>> for RangeSet<T> {
    fn from_iter<I: IntoIterator<Item = Range<T>>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.first.bits());
        // `kept` is where the merged ranges end, in the same vector: a million need no second one.
        let mut kept = 0;
        for next in 0..ranges.len() {
            let range = ranges[next];
            let touches = kept > 0
                && ranges[kept - 1].last.next().is_none_or(|follower| range.first <= follower);
            if touches {
                ranges[kept - 1].last = ranges[kept - 1].last.max(range.last);
            } else {
                ranges[kept] = range;
                kept += 1;
            }
        }
        ranges.truncate(kept);
        ranges.shrink_to_fit();
        Self { ranges }
    }
}

impl<T: Ordinal> From<Range<T>> for RangeSet<T> {
    fn from(range: Range<T>) -> Self {
        Self { ranges: vec![range] }
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for RangeSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

impl<T: fmt::Display + PartialEq> fmt::Debug for RangeSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Ports near both ends and around one middle, so that ranges often touch, overlap and hit the edges.
    fn edge_port() -> impl Strategy<Value = u16> {
        prop_oneof![0..12_u16, 300..312_u16, 65_524..=65_535_u16]
    }

    fn ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
        prop::collection::vec((edge_port(), edge_port()), 0..8)
            .prop_map(|pairs| pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect())
    }

    fn set(pairs: &[(u16, u16)]) -> RangeSet<Port> {
        pairs.iter().filter_map(|&(a, b)| Range::new(Port(a), Port(b))).collect()
    }

    fn naive(pairs: &[(u16, u16)]) -> BTreeSet<u16> {
        pairs.iter().flat_map(|&(a, b)| a..=b).collect()
    }

    fn values(set: &RangeSet<Port>) -> BTreeSet<u16> {
        set.ranges().iter().flat_map(|range| range.first().0..=range.last().0).collect()
    }

    fn is_canonical(set: &RangeSet<Port>) -> bool {
        set.ranges()
            .windows(2)
            .all(|pair| pair[0].last().next().is_some_and(|follower| follower < pair[1].first()))
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_sets_of_single_values(a in ranges(), b in ranges()) {
            let (x, y) = (set(&a), set(&b));
            let (m, n) = (naive(&a), naive(&b));
            let all: BTreeSet<u16> = (0..=u16::MAX).collect();
            for (result, expected) in [
                (x.union(&y), &m | &n),
                (x.intersection(&y), &m & &n),
                (x.difference(&y), &m - &n),
                (x.complement(), &all - &m),
            ] {
                prop_assert!(is_canonical(&result), "{result:?}");
                prop_assert_eq!(values(&result), expected);
            }
        }

        #[test]
        fn membership_agrees_with_a_set_of_single_values(a in ranges(), port in edge_port()) {
            prop_assert_eq!(set(&a).contains(Port(port)), naive(&a).contains(&port));
        }

        #[test]
        fn sets_intersect_where_their_intersection_is_something(a in ranges(), b in ranges()) {
            let (a, b) = (set(&a), set(&b));
            prop_assert_eq!(a.intersects(&b), !a.intersection(&b).is_empty());
        }

        #[test]
        fn equal_sets_are_equal_values_whatever_the_order_they_were_named_in(
            a in ranges().prop_shuffle(), b in ranges()
        ) {
            prop_assert_eq!(set(&a) == set(&b), naive(&a) == naive(&b));
        }
    }
}
