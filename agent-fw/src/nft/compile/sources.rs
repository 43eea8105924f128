//! The sources of an admission: its sets, and the rules that admit from them.

use crate::model::{Admission, Family, MacMatch, Ordinal, OriginMap, Range, RangeMap, RangeSet};
use crate::nft::compile::address_lookup::{AddressLookup, Elemental};
use crate::nft::compile::lookup_cost::Choice;
use crate::nft::counters::LabelCounters;
use crate::nft::statement::{End, Rule, Statement};
use crate::nft::table::{Chain, Elements, Set};

/// How some sources are looked up, and what that costs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LookupCost {
    /// Their counter.
    pub counter: String,
    /// Their version of IP.
    pub family: Family,
    /// The forms that are possible, the one that they have first.
    pub choices: Vec<Choice>,
}

/// The sets that an admission is looked up in.
pub(crate) struct Sources {
    macs: Option<String>,
    lookups: Vec<Lookup>,
}

/// Sources that are counted together.
enum Lookup {
    /// Every address: there is nothing to look up.
    Everyone { counter: String },
    /// The addresses of one family.
    Listed { family: Family, counter: String, name: String, addresses: AddressLookup },
}

/// Where in a packet's way its source is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// At `input`: admitted packets are counted.
    Gate,
    /// At `prerouting`: they will be counted later.
    Early,
    /// At the end of `input`: they have been counted.
    Late,
}

impl Stage {
    /// The name of the chain of this stage.
    pub(crate) fn chain(self, name: &str) -> String {
        match self {
            Self::Gate => name.to_owned(),
            Self::Early => format!("early_{name}"),
            Self::Late => format!("late_{name}"),
        }
    }

    fn admit(self, counter: &str) -> Vec<Statement> {
        let count = (self == Self::Gate).then(|| Statement::Count(counter.to_owned()));
        count.into_iter().chain([Statement::Accept]).collect()
    }
}

impl Sources {
    /// Makes the sets of the admission at place `index`.
    pub(crate) fn new(
        index: usize,
        admission: &Admission,
        ledger: &OriginMap,
        labels: &LabelCounters,
        sets: &mut Vec<Set>,
    ) -> Self {
        // The first admission is usually the only one; it has the plain names.
        let suffix = if index == 0 { String::new() } else { format!("_{}", index + 1) };
        let macs = match &admission.macs {
            MacMatch::Any => None,
            MacMatch::Only(macs) => {
                let name = format!("source_macs{suffix}");
                let elements = Elements::Mac(macs.ranges().to_vec());
                sets.push(Set { name: name.clone(), elements });
                Some(name)
            }
        };
        if let Some(counter) = everyone(admission, ledger, labels) {
            return Self { macs, lookups: vec![Lookup::Everyone { counter }] };
        }
        let v4 = ledger.v4().restrict(&admission.addresses.v4);
        let v6 = ledger.v6().restrict(&admission.addresses.v6);
        let mut lookups = Vec::new();
        for (place, counter) in labels.counters.iter().enumerate() {
            let counter = counter.name.clone();
            let name = format!("{counter}_v4{suffix}");
            lookups.extend(listed(&counter, name, &counted(&v4, labels, place), sets));
            let name = format!("{counter}_v6{suffix}");
            lookups.extend(listed(&counter, name, &counted(&v6, labels, place), sets));
        }
        Self { macs, lookups }
    }

    /// How they are looked up, by their counters, and what that costs.
    pub(crate) fn costs(&self) -> Vec<LookupCost> {
        let cost = |lookup: &Lookup| match lookup {
            Lookup::Everyone { .. } => None,
            Lookup::Listed { family, counter, addresses, .. } => Some(LookupCost {
                counter: counter.clone(),
                family: *family,
                choices: addresses.choices().to_vec(),
            }),
        };
        self.lookups.iter().filter_map(cost).collect()
    }

    /// The rules that admit these sources. Chains that they lead to are added to `chains`.
    pub(crate) fn rules(&self, stage: Stage, chains: &mut Vec<Chain<Rule>>) -> Vec<Rule> {
        let macs = self.macs.iter().map(|set| Statement::MacIn(End::Source, set.clone()));
        let macs: Vec<Statement> = macs.collect();
        let mut rules = Vec::new();
        for lookup in &self.lookups {
            match lookup {
                Lookup::Everyone { counter } => {
                    rules.push(Rule::new(macs.iter().cloned().chain(stage.admit(counter))));
                }
                Lookup::Listed { family, counter, name, addresses } => {
                    let before = [&[Statement::Is(*family)], macs.as_slice()].concat();
                    let (name, admit) = (stage.chain(name), stage.admit(counter));
                    rules.extend(addresses.rules(&name, &before, &admit, chains));
                }
            }
        }
        rules
    }
}

/// The lookup of these addresses, unless there are none, and its sets.
fn listed<T: Elemental>(
    counter: &str,
    name: String,
    ranges: &RangeSet<T>,
    sets: &mut Vec<Set>,
) -> Option<Lookup> {
    let addresses = (!ranges.is_empty()).then(|| {
        AddressLookup::new(End::Source, ranges, |suffix, elements| {
            let name = format!("{name}{suffix}");
            sets.push(Set { name: name.clone(), elements });
            name
        })
    })?;
    Some(Lookup::Listed { family: T::FAMILY, counter: counter.to_owned(), name, addresses })
}

/// The counter of every address, if the admission is of all addresses and they have one counter.
fn everyone(admission: &Admission, ledger: &OriginMap, labels: &LabelCounters) -> Option<String> {
    let ([(_, v4)], [(_, v6)]) = (ledger.v4().entries(), ledger.v6().entries()) else {
        return None;
    };
    let place = labels.place(*v4).filter(|_| admission.addresses.is_all() && v4 == v6)?;
    labels.counters.get(place).map(|counter| counter.name.clone())
}

/// The ranges that are counted by the counter at `place`.
fn counted<T: Ordinal>(
    ranges: &RangeMap<T, u16>,
    labels: &LabelCounters,
    place: usize,
) -> RangeSet<T> {
    let of_counter = |(_, label): &&(Range<T>, u16)| labels.place(*label) == Some(place);
    ranges.entries().iter().filter(of_counter).map(|(range, _)| *range).collect()
}
