//! The numbers under which the kernel counts admitted packets, kept from one policy to the next.

use crate::model::{MacMatch, Origin};
use agent_fw_ebpf::Label as Number;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a number stands for, in words: a list or region, and the MAC addresses that its
/// admission asks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Words {
    /// The list or region.
    pub label: String,
    /// A digest of the MAC addresses; none for any.
    macs: Option<String>,
}

impl Words {
    pub(super) fn new(label: &Origin, macs: &MacMatch) -> Self {
        let macs = match macs {
            MacMatch::Any => None,
            MacMatch::Only(set) => {
                let text: Vec<String> = set.ranges().iter().map(ToString::to_string).collect();
                Some(crate::model::digest(&text.join(" ")))
            }
        };
        Self { label: label.to_string(), macs }
    }
}

/// Which number stands for what: by place. What has numbers are lists and regions, and, each for
/// itself, interfaces.
///
/// A number whose words are gone is free again only after the policy that had it: until the new
/// program is in its place, the old one counts under it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Numbering<W = Words> {
    places: Vec<Option<W>>,
    #[serde(skip)]
    used: BTreeSet<u16>,
    #[serde(skip)]
    fresh: BTreeSet<u16>,
}

impl<W> Default for Numbering<W> {
    fn default() -> Self {
        Self { places: Vec::new(), used: BTreeSet::new(), fresh: BTreeSet::new() }
    }
}

impl<W: Clone + PartialEq> Numbering<W> {
    /// The number that stands for these words, theirs of before or one that is free; `None` when
    /// all are taken.
    pub(super) fn number(&mut self, words: &W) -> Option<Number> {
        let known = self.places.iter().position(|place| place.as_ref() == Some(words));
        let place = known.unwrap_or_else(|| self.free());
        let number = Number::new(u16::try_from(place).ok()?)?;
        if known.is_none() {
            self.places[place] = Some(words.clone());
            self.fresh.insert(number.index());
        }
        self.used.insert(number.index());
        Some(number)
    }

    fn free(&mut self) -> usize {
        self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        })
    }

    /// The numbering once the policy is in force: without what it does not name.
    #[must_use]
    pub fn settled(self) -> Self {
        let Self { places, used, .. } = self;
        let keep = |(place, words): (u16, Option<W>)| words.filter(|_| used.contains(&place));
        let places = (0..).zip(places).map(keep).collect();
        Self { places, used: BTreeSet::new(), fresh: BTreeSet::new() }
    }

    /// Numbers that stand for something else than before: their counts begin anew.
    pub fn fresh(&self) -> impl Iterator<Item = u16> {
        self.fresh.iter().copied()
    }

    /// How many numbers there are, free ones included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing has a number.
    pub fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// Every number with its words, in ascending order.
    pub fn entries(&self) -> impl Iterator<Item = (u16, &W)> {
        (0..).zip(&self.places).filter_map(|(place, words)| Some((place, words.as_ref()?)))
    }
}

/// The numbers under which the kernel counts, as they are kept on disk.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(super) struct Numberings {
    /// Of what admits.
    #[serde(flatten)]
    pub(super) labels: Numbering,
    /// Of interfaces, by name.
    #[serde(default)]
    pub(super) interfaces: Numbering<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(region: &str) -> Words {
        Words::new(&Origin::Region(region.to_owned()), &MacMatch::Any)
    }

    fn numbers(numbering: &mut Numbering, regions: &[&str]) -> Vec<u16> {
        let number = |region: &&str| numbering.number(&words(region)).expect("free").index();
        regions.iter().map(number).collect()
    }

    #[test]
    fn what_stays_keeps_its_number_and_a_freed_one_is_used_a_policy_later() {
        let mut first = Numbering::default();
        assert_eq!(numbers(&mut first, &["a", "b", "c"]), [0, 1, 2]);
        let mut second = first.settled();
        assert_eq!(numbers(&mut second, &["c", "d"]), [2, 3]);
        assert_eq!(second.fresh().collect::<Vec<_>>(), [3]);
        let mut third = second.settled();
        assert_eq!(numbers(&mut third, &["e", "d", "c"]), [0, 3, 2]);
        assert_eq!(third.fresh().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn there_are_no_more_numbers_than_labels() {
        let mut numbering = Numbering::default();
        for n in 0..Number::MAX {
            assert!(numbering.number(&words(&n.to_string())).is_some());
        }
        assert_eq!(numbering.number(&words("one more")), None);
    }
}
