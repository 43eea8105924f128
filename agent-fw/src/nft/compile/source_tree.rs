//! How a packet's source is looked up: sets, and a search tree of chains where sets are large.
//!
//! Everything is a plain set. When a table is replaced while packets are on their way through it,
//! the kernel takes the elements out of a replaced *map* at once, and a packet that is just looking
//! there finds nothing and is dropped; the elements of a replaced *set* stay until the last packet
//! has left it. So counters are named by rules, and the tree is made of comparisons.

use crate::model::Family;
use crate::model::{Admission, Ledger, MacMatch, Ordinal, Range, RangeMap, RangeSet};
use crate::nft::counters::LabelCounters;
use crate::nft::statement::{Rule, Statement};
use crate::nft::table::{Chain, Elements, Set};
use std::net::IpAddr;

/// Ranges in one set. The kernel reads a set out from its beginning for every 32 KiB of answer, so
/// that a set of a million ranges takes minutes to read back; in parts of this size it takes
/// seconds, and they are faster to search and to load.
const PART: usize = 1024;

/// Comparisons in one chain of the search tree.
const FAN: usize = 16;

/// The sets that an admission is looked up in.
pub(crate) struct Sources {
    macs: Option<String>,
    lookups: Vec<Lookup>,
}

/// Sources that are counted together.
enum Lookup {
    /// Every address: there is nothing to look up.
    Everyone { counter: String },
    /// The addresses of one family in some sets.
    Listed { family: Family, counter: String, name: String, parts: Vec<Part> },
}

/// A set with some of the addresses, and the last of them.
struct Part {
    set: String,
    last: IpAddr,
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
        ledger: &Ledger,
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
            let mut list = |family: Family, parts: Vec<Part>, name: String| {
                let counter = counter.name.clone();
                if !parts.is_empty() {
                    lookups.push(Lookup::Listed { family, counter, name, parts });
                }
            };
            let name = format!("{}_v4{suffix}", counter.name);
            list(Family::V4, parts(&name, &counted(&v4, labels, place), Elements::V4, sets), name);
            let name = format!("{}_v6{suffix}", counter.name);
            list(Family::V6, parts(&name, &counted(&v6, labels, place), Elements::V6, sets), name);
        }
        Self { macs, lookups }
    }

    /// The rules that admit these sources. Chains that they lead to are added to `chains`.
    pub(crate) fn rules(&self, stage: Stage, chains: &mut Vec<Chain<Rule>>) -> Vec<Rule> {
        let from_macs = || self.macs.clone().map(Statement::FromAnyMacOf);
        let rule = |lookup: &Lookup| match lookup {
            Lookup::Everyone { counter } => {
                Rule::new(from_macs().into_iter().chain(stage.admit(counter)))
            }
            Lookup::Listed { family, counter, name, parts } => {
                let tree = Tree { stage, family: *family, admit: stage.admit(counter) };
                let decide = tree.decide(name, parts, chains);
                let family = Statement::Is(*family);
                Rule::new([family].into_iter().chain(from_macs()).chain(decide))
            }
        };
        self.lookups.iter().map(rule).collect()
    }
}

/// The counter of every address, if the admission is of all addresses and they have one counter.
fn everyone(admission: &Admission, ledger: &Ledger, labels: &LabelCounters) -> Option<String> {
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

/// Makes one set of the ranges, or several where they are many.
fn parts<T: Ordinal + Into<IpAddr>>(
    name: &str,
    ranges: &RangeSet<T>,
    elements: fn(Vec<Range<T>>) -> Elements,
    sets: &mut Vec<Set>,
) -> Vec<Part> {
    let several = ranges.ranges().len() > PART;
    let mut parts = Vec::new();
    for (index, part) in ranges.ranges().chunks(PART).enumerate() {
        let set = if several { format!("{name}_part_{}", index + 1) } else { name.to_owned() };
        parts.extend(part.last().map(|range| Part { set: set.clone(), last: range.last().into() }));
        sets.push(Set { name: set, elements: elements(part.to_vec()) });
    }
    parts
}

/// A search tree: chains that compare the source with the last address of each branch, and at its
/// leaves the lookups.
struct Tree {
    stage: Stage,
    family: Family,
    admit: Vec<Statement>,
}

impl Tree {
    /// The statements that decide on the sources of `parts`.
    fn decide(&self, name: &str, parts: &[Part], chains: &mut Vec<Chain<Rule>>) -> Vec<Statement> {
        if let [only] = parts {
            return self.look_up(only);
        }
        let chain = self.stage.chain(name);
        self.grow(&chain, parts, chains);
        vec![Statement::Jump(chain)]
    }

    fn look_up(&self, part: &Part) -> Vec<Statement> {
        let from = Statement::FromAnyOf(self.family, part.set.clone());
        std::iter::once(from).chain(self.admit.iter().cloned()).collect()
    }

    fn grow(&self, chain: &str, parts: &[Part], chains: &mut Vec<Chain<Rule>>) {
        // The smallest power of FAN with which FAN branches hold all parts.
        let mut branch = 1;
        while branch * FAN < parts.len() {
            branch *= FAN;
        }
        let mut rules = Vec::new();
        let mut branches = Vec::new();
        for (index, parts) in parts.chunks(branch).enumerate() {
            let target = match parts {
                [leaf] => self.stage.chain(&leaf.set),
                _ => format!("{chain}_branch_{}", index + 1),
            };
            let last = parts.last().map(|part| Statement::FromUpTo(part.last));
            let go = Statement::Goto(target.clone());
            rules.push(Rule::new([Statement::Is(self.family)].into_iter().chain(last).chain([go])));
            branches.push((target, parts));
        }
        chains.push(Chain { name: chain.to_owned(), base: None, rules });
        for (target, parts) in branches {
            match parts {
                [leaf] => {
                    let family = Statement::Is(self.family);
                    let rule = Rule::new([family].into_iter().chain(self.look_up(leaf)));
                    chains.push(Chain { name: target, base: None, rules: vec![rule] });
                }
                _ => self.grow(&target, parts, chains),
            }
        }
    }
}
