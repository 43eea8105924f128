//! How a packet's address is looked up: compared with a few prefixes, found by hashes of prefixes of
//! one length, or in sets of intervals, with a search tree of chains where there are many.
//!
//! Everything is a plain set. When a table is replaced while packets are on their way through it,
//! the kernel takes the elements out of a replaced *map* at once, and a packet that is just looking
//! there finds nothing and is dropped; the elements of a replaced *set* stay until the last packet
//! has left it. So counters are named by rules, and the tree is made of comparisons.

use crate::model::{Address, Family, Range, RangeSet};
use crate::nft::compile::lookup_cost::{Choice, FAN, Form, choices};
use crate::nft::statement::{End, Rule, Statement};
use crate::nft::table::{Chain, Elements, Prefixes};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses of one version of IP, ready to be looked up.
pub(crate) struct AddressLookup {
    family: Family,
    end: End,
    /// The forms that were possible, the one that it has first.
    choices: Vec<Choice>,
    /// The parts that the addresses are divided into, in their order.
    parts: Vec<Part>,
}

/// Some of the addresses.
struct Part {
    number: usize,
    /// The last of them.
    last: IpAddr,
    /// An address is one of them if one of these conditions holds.
    conditions: Vec<Statement>,
}

/// An address whose sets nftables has.
pub(crate) trait Elemental: Address {
    /// The elements of a set of ranges.
    fn intervals(ranges: Vec<Range<Self>>) -> Elements;
    /// The elements of a set of prefixes.
    fn hashed(prefixes: Prefixes<Self>) -> Elements;
}

impl Elemental for Ipv4Addr {
    fn intervals(ranges: Vec<Range<Self>>) -> Elements {
        Elements::V4(ranges)
    }

    fn hashed(prefixes: Prefixes<Self>) -> Elements {
        Elements::HashedV4(prefixes)
    }
}

impl Elemental for Ipv6Addr {
    fn intervals(ranges: Vec<Range<Self>>) -> Elements {
        Elements::V6(ranges)
    }

    fn hashed(prefixes: Prefixes<Self>) -> Elements {
        Elements::HashedV6(prefixes)
    }
}

impl AddressLookup {
    /// Chooses the cheapest form, and has `set` make each set that it takes: what is to be added to
    /// the name that all of them have, and the elements; it returns the set's name.
    pub(crate) fn new<T: Elemental>(
        end: End,
        ranges: &RangeSet<T>,
        mut set: impl FnMut(&str, Elements) -> String,
    ) -> Self {
        let choices = choices_for(ranges);
        let (form, parts) = choices.first().map_or((&Form::Intervals, 1), |c| (&c.form, c.parts));
        let chunk = ranges.ranges().len().div_ceil(parts).max(1);
        let part = |(number, ranges): (usize, &[Range<T>])| {
            let part = if parts > 1 { part_suffix(number) } else { String::new() };
            let mut set = |suffix: String, elements| set(&format!("{part}{suffix}"), elements);
            let conditions = match form {
                Form::Prefixes => prefixes(ranges)
                    .map(|(address, length)| Statement::AddressIs(end, address.into(), length))
                    .collect(),
                Form::Hashes(lengths) => {
                    let hash = |prefixes: Prefixes<T>| {
                        let length = prefixes.length;
                        let set = set(format!("_{length}"), T::hashed(prefixes));
                        Statement::PrefixIn(end, T::FAMILY, length, set)
                    };
                    let sets = by_length(prefixes(ranges), lengths).into_iter();
                    sets.filter(|set| !set.first.is_empty()).map(hash).collect()
                }
                Form::Intervals => {
                    let set = set(String::new(), T::intervals(ranges.to_vec()));
                    vec![Statement::AddressIn(end, T::FAMILY, set)]
                }
            };
            let last = ranges.last()?.last().into();
            Some(Part { number, last, conditions })
        };
        let parts = (1..).zip(ranges.ranges().chunks(chunk)).filter_map(part).collect();
        Self { family: T::FAMILY, end, parts, choices }
    }

    /// The forms that were possible, the one that it has first.
    pub(crate) fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The condition that one rule can say among others; `None` where it takes several rules.
    pub(crate) fn condition(&self) -> Option<&Statement> {
        let [Part { conditions, .. }] = self.parts.as_slice() else { return None };
        if let [only] = conditions.as_slice() { Some(only) } else { None }
    }

    /// The rules that do `then` with packets that meet `before` and have one of these addresses.
    /// `before` says of which version they are; a tree of chains has names that begin with `name`,
    /// and is added to `chains`.
    pub(crate) fn rules(
        &self,
        name: &str,
        before: &[Statement],
        then: &[Statement],
        chains: &mut Vec<Chain<Rule>>,
    ) -> Vec<Rule> {
        if let [only] = self.parts.as_slice() {
            return only.rules(before, then);
        }
        self.grow(name, name, &self.parts, then, chains);
        let go = Statement::Jump(name.to_owned());
        vec![Rule::new(before.iter().cloned().chain([go]))]
    }

    /// A search tree: chains that compare the address with the last one of each branch, and at its
    /// leaves the lookups.
    fn grow(
        &self,
        tree: &str,
        chain: &str,
        parts: &[Part],
        then: &[Statement],
        chains: &mut Vec<Chain<Rule>>,
    ) {
        let Self { family, end, .. } = self;
        let mut branch = 1;
        // The smallest power of FAN with which FAN branches hold all parts.
        while branch * FAN < parts.len() {
            branch *= FAN;
        }
        let mut rules = Vec::new();
        let mut branches = Vec::new();
        for (index, parts) in parts.chunks(branch).enumerate() {
            let target = match parts {
                [leaf] => format!("{tree}{}", part_suffix(leaf.number)),
                _ => format!("{chain}_branch_{}", index + 1),
            };
            let last = parts.last().map(|part| Statement::AddressUpTo(*end, part.last));
            let go = Statement::Goto(target.clone());
            rules.push(Rule::new([Statement::Is(*family)].into_iter().chain(last).chain([go])));
            branches.push((target, parts));
        }
        chains.push(Chain { name: chain.to_owned(), base: None, rules });
        for (target, parts) in branches {
            match parts {
                [leaf] => {
                    let rules = leaf.rules(&[Statement::Is(*family)], then);
                    chains.push(Chain { name: target, base: None, rules });
                }
                _ => self.grow(tree, &target, parts, then, chains),
            }
        }
    }
}

impl Part {
    fn rules(&self, before: &[Statement], then: &[Statement]) -> Vec<Rule> {
        let rule = |condition: &Statement| {
            Rule::new(before.iter().chain([condition]).chain(then).cloned())
        };
        self.conditions.iter().map(rule).collect()
    }
}

fn part_suffix(number: usize) -> String {
    format!("_part_{number}")
}

/// The forms that are possible for these addresses, the cheapest first.
fn choices_for<T: Address>(ranges: &RangeSet<T>) -> Vec<Choice> {
    let mut counts = BTreeMap::new();
    for (_, length) in prefixes(ranges.ranges()) {
        *counts.entry(length).or_insert(0) += 1;
    }
    let counts: Vec<(u8, usize)> = counts.into_iter().collect();
    choices(T::FAMILY, &counts, ranges.ranges().len())
}

fn prefixes<T: Address>(ranges: &[Range<T>]) -> impl Iterator<Item = (T, u8)> {
    ranges.iter().flat_map(T::prefixes)
}

/// The prefixes of each of these lengths: a shorter one is as many of the next length that there is.
fn by_length<T: Address>(
    prefixes: impl Iterator<Item = (T, u8)>,
    lengths: &[u8],
) -> Vec<Prefixes<T>> {
    let empty = |length: &u8| Prefixes { length: *length, first: Vec::new() };
    let mut sets: Vec<Prefixes<T>> = lengths.iter().map(empty).collect();
    for (address, length) in prefixes {
        let place = sets.partition_point(|set| set.length < length);
        let Some(set) = sets.get_mut(place) else { continue };
        let step = 1_u128.checked_shl((T::FAMILY.bits() - set.length).into()).unwrap_or(0);
        let each = 0..1_u128 << (set.length - length);
        set.first.extend(each.map(|index| T::of_bits(address.to_u128() + index * step)));
    }
    sets
}
