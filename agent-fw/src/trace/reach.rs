//! From which hooks packets come to a chain: its own, or those of base chains that lead to it.

use super::base_chains::Base;
use super::events::ChainRef;
use std::collections::BTreeMap;

/// For each chain, the places of the base chains that lead there, itself included.
#[derive(Default)]
pub(super) struct Reach(BTreeMap<ChainRef, Vec<Base>>);

impl Reach {
    /// By these jumps, each from a chain to another of its table.
    pub(super) fn of<'a>(
        bases: &BTreeMap<ChainRef, Base>,
        jumps: &(impl Iterator<Item = (&'a ChainRef, &'a str)> + Clone),
    ) -> Self {
        let mut reach = Self::default();
        let mut due: Vec<(ChainRef, Base)> =
            bases.iter().map(|(place, base)| (place.clone(), base.clone())).collect();
        while let Some((place, base)) = due.pop() {
            let known = reach.0.entry(place.clone()).or_default();
            if known.contains(&base) {
                continue;
            }
            known.push(base.clone());
            let from_here = jumps.clone().filter(|(from, _)| **from == place);
            due.extend(from_here.map(|(_, chain)| {
                (ChainRef { chain: chain.to_owned(), ..place.clone() }, base.clone())
            }));
        }
        reach
    }

    /// Those that lead to this chain.
    pub(super) fn bases(&self, place: &ChainRef) -> &[Base] {
        self.0.get(place).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_reached_by_way_of_others_and_circles_end() {
        let at = |chain: &str| ChainRef { family: 2, table: "nat".into(), chain: chain.into() };
        let base = Base { hook: "prerouting", priority: -100 };
        let bases = BTreeMap::from([(at("PREROUTING"), base.clone())]);
        let jumps = [(at("PREROUTING"), "A"), (at("A"), "B"), (at("B"), "A"), (at("X"), "C")];
        let reach = Reach::of(&bases, &jumps.iter().map(|(from, to)| (from, *to)));
        assert_eq!(reach.bases(&at("B")), [base]);
        assert!(reach.bases(&at("C")).is_empty());
    }
}
