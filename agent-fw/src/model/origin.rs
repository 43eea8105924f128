//! The ledger: by which words of the user an address is admitted, for counting and for review.
//!
//! It never decides anything: a policy is the same whatever the labels of its addresses.

use super::{AddressSet, Ordinal, Range, RangeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// What admitted an address: the unit of counting.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// A region's published subnets.
    Region(String),
    /// A list in a file.
    File(PathBuf),
    /// An address, prefix or range given by itself.
    Address,
    /// Any address: last, so that whatever names an address more closely comes before it.
    Any,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(name) => write!(f, "region {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Address => f.write_str("listed addresses"),
            Self::Any => f.write_str("any address"),
        }
    }
}

/// Sorted, disjoint ranges, each with a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeMap<T, V> {
    entries: Vec<(Range<T>, V)>,
}

impl<T, V> Default for RangeMap<T, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: Ordinal, V: Copy + PartialEq> RangeMap<T, V> {
    /// The ranges and their values, in ascending order.
    pub fn entries(&self) -> &[(Range<T>, V)] {
        &self.entries
    }

    /// The ranges and their values, in ascending order.
    pub fn into_entries(self) -> Vec<(Range<T>, V)> {
        self.entries
    }

    /// The value at `key`.
    pub fn get(&self, key: T) -> Option<V> {
        let after = self.entries.partition_point(|(range, _)| range.first() <= key);
        let (range, value) = self.entries.get(after.checked_sub(1)?)?;
        range.contains(key).then_some(*value)
    }

    /// Gives `value` to the keys of `set` that have none yet.
    pub fn fill(&mut self, set: &RangeSet<T>, value: V) {
        if self.entries.is_empty() {
            self.entries = set.ranges().iter().map(|&range| (range, value)).collect();
            return;
        }
        let taken: RangeSet<T> = self.entries.iter().map(|&(range, _)| range).collect();
        let free = set.difference(&taken);
        self.entries.extend(free.ranges().iter().map(|&range| (range, value)));
        self.entries.sort_unstable_by_key(|(range, _)| range.first().bits());
    }

    /// The part of the map whose keys are in `set`.
    #[must_use]
    pub fn restrict(&self, set: &RangeSet<T>) -> Self {
        let (mut left, mut right) = (0, 0);
        let mut entries = Vec::with_capacity(self.entries.len());
        while let (Some((range, value)), Some(wanted)) =
            (self.entries.get(left), set.ranges().get(right))
        {
            entries.extend(range.intersection(wanted).map(|both| (both, *value)));
            if range.last() < wanted.last() {
                left += 1;
            } else {
                right += 1;
            }
        }
        Self { entries }
    }
}

/// Which label admitted which address. An address that several labels name belongs to the first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OriginMap {
    labels: Vec<Origin>,
    v4: RangeMap<Ipv4Addr, LabelIndex>,
    v6: RangeMap<Ipv6Addr, LabelIndex>,
}

/// A label's place in [`OriginMap::labels`].
pub type LabelIndex = u16;

impl OriginMap {
    /// By which label an address is admitted, if it is.
    pub fn label_of(&self, address: IpAddr) -> Option<&Origin> {
        let index = match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        };
        self.labels.get(usize::from(index?))
    }

    /// Makes the ledger of these sources. The order in which they were named does not matter.
    pub fn new(sources: impl IntoIterator<Item = (Origin, AddressSet)>) -> Self {
        let mut sources: Vec<_> = sources.into_iter().collect();
        sources.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut ledger = Self::default();
        for (label, addresses) in sources {
            if ledger.labels.last() != Some(&label) {
                ledger.labels.push(label);
            }
            let index = LabelIndex::try_from(ledger.labels.len() - 1).unwrap_or(LabelIndex::MAX);
            ledger.v4.fill(&addresses.v4, index);
            ledger.v6.fill(&addresses.v6, index);
        }
        ledger
    }

    /// What it says of these addresses alone.
    #[must_use]
    pub fn restrict(&self, addresses: &AddressSet) -> Self {
        let (v4, v6) = (self.v4.restrict(&addresses.v4), self.v6.restrict(&addresses.v6));
        Self { labels: self.labels.clone(), v4, v6 }
    }

    /// The labels, sorted.
    pub fn labels(&self) -> &[Origin] {
        &self.labels
    }

    /// The labels of IPv4 addresses, as indices of [`OriginMap::labels`].
    pub fn v4(&self) -> &RangeMap<Ipv4Addr, LabelIndex> {
        &self.v4
    }

    /// The labels of IPv6 addresses, as indices of [`OriginMap::labels`].
    pub fn v6(&self) -> &RangeMap<Ipv6Addr, LabelIndex> {
        &self.v6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn port_set(pairs: &[(u16, u16)]) -> RangeSet<Port> {
        pairs.iter().filter_map(|&(a, b)| Range::new(Port(a.min(b)), Port(a.max(b)))).collect()
    }

    proptest! {
        #[test]
        fn filling_and_restricting_agree_with_a_map_of_single_values(
            fills in prop::collection::vec(prop::collection::vec((0..40_u16, 0..40_u16), 0..4), 0..4),
            wanted in prop::collection::vec((0..40_u16, 0..40_u16), 0..4),
        ) {
            let mut map = RangeMap::default();
            let mut naive = BTreeMap::new();
            for (index, fill) in fills.iter().enumerate() {
                let set = port_set(fill);
                map.fill(&set, index);
                for port in (0..40).filter(|&port| set.contains(Port(port))) {
                    naive.entry(port).or_insert(index);
                }
            }
            let wanted = port_set(&wanted);
            let restricted = map.restrict(&wanted);
            for port in 0..40 {
                prop_assert_eq!(map.get(Port(port)), naive.get(&port).copied());
                let expected = naive.get(&port).copied().filter(|_| wanted.contains(Port(port)));
                prop_assert_eq!(restricted.get(Port(port)), expected);
            }
        }
    }
}
