//! How a packet's address is looked up: compared with a few prefixes, found by hashes of prefixes of
//! one length, or in sets of intervals, with a search tree of chains where there are many.
//!
//! Everything is a plain set. When a table is replaced while packets are on their way through it,
//! the kernel takes the elements out of a replaced *map* at once, and a packet that is just looking
//! there finds nothing and is dropped; the elements of a replaced *set* stay until the last packet
//! has left it. So counters are named by rules, and the tree is made of comparisons.

use crate::model::{Address, Family, Range, RangeSet};
use crate::nft::compile::lookup_cost::{Choice, Form, choose};
use crate::nft::statement::{End, Rule, Statement};
use crate::nft::table::{Chain, Elements, Prefixes};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges in one set. The kernel reads a set out from its beginning for every 32 KiB of answer, so
/// that a set of a million ranges takes minutes to read back; in parts of this size it takes
/// seconds, and they are faster to search and to load.
const PART: usize = 1024;

/// Comparisons in one chain of the search tree.
const FAN: usize = 16;

/// The addresses of one version of IP, ready to be looked up.
pub(crate) struct AddressLookup {
    family: Family,
    end: End,
    parts: Parts,
}

enum Parts {
    Prefixes(Vec<(IpAddr, u8)>),
    /// Sets of prefixes, each of one length.
    Hashes(Vec<(u8, String)>),
    /// Sets of ranges, in the order of their addresses.
    Intervals(Vec<Part>),
}

/// A set with some of the addresses, and the last of them.
struct Part {
    number: usize,
    set: String,
    last: IpAddr,
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
        let prefixes: Vec<(T, u8)> = ranges.ranges().iter().flat_map(T::prefixes).collect();
        let parts = match choice(ranges, &prefixes).form {
            Form::Prefixes => Parts::Prefixes(
                prefixes.into_iter().map(|(address, length)| (address.into(), length)).collect(),
            ),
            Form::Hashes(lengths) => {
                let sets = by_length(&prefixes, &lengths).into_iter();
                let hash = |prefixes: Prefixes<T>| {
                    let length = prefixes.length;
                    (length, set(&format!("_{length}"), T::hashed(prefixes)))
                };
                Parts::Hashes(sets.map(hash).collect())
            }
            Form::Intervals => {
                let several = ranges.ranges().len() > PART;
                let part = |(number, part): (usize, &[Range<T>])| {
                    let suffix = if several { part_suffix(number) } else { String::new() };
                    let last = part.last()?.last().into();
                    Some(Part { number, set: set(&suffix, T::intervals(part.to_vec())), last })
                };
                Parts::Intervals((1..).zip(ranges.ranges().chunks(PART)).filter_map(part).collect())
            }
        };
        Self { family: T::FAMILY, end, parts }
    }

    /// The conditions of which one has to hold; none where a tree is searched.
    pub(crate) fn conditions(&self) -> Vec<Statement> {
        let Self { family, end, parts } = self;
        match parts {
            Parts::Prefixes(prefixes) => prefixes
                .iter()
                .map(|(address, length)| Statement::AddressIs(*end, *address, *length))
                .collect(),
            Parts::Hashes(sets) => sets
                .iter()
                .map(|(length, set)| {
                    if *length == family.bits() {
                        Statement::AddressIn(*end, *family, set.clone())
                    } else {
                        Statement::PrefixIn(*end, *family, *length, set.clone())
                    }
                })
                .collect(),
            Parts::Intervals(parts) => match parts.as_slice() {
                [only] => vec![Statement::AddressIn(*end, *family, only.set.clone())],
                _ => vec![],
            },
        }
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
        let rule = |middle: Statement, then: &[Statement]| {
            Rule::new(before.iter().cloned().chain([middle]).chain(then.iter().cloned()))
        };
        match &self.parts {
            Parts::Intervals(parts) if parts.len() > 1 => {
                self.grow(name, name, parts, then, chains);
                vec![rule(Statement::Jump(name.to_owned()), &[])]
            }
            _ => self.conditions().into_iter().map(|condition| rule(condition, then)).collect(),
        }
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
                    let found = Statement::AddressIn(*end, *family, leaf.set.clone());
                    let conditions = [Statement::Is(*family), found];
                    let rule = Rule::new(conditions.into_iter().chain(then.iter().cloned()));
                    chains.push(Chain { name: target, base: None, rules: vec![rule] });
                }
                _ => self.grow(tree, &target, parts, then, chains),
            }
        }
    }
}

fn part_suffix(number: usize) -> String {
    format!("_part_{number}")
}

/// What is chosen for these addresses.
fn choice<T: Address>(ranges: &RangeSet<T>, prefixes: &[(T, u8)]) -> Choice {
    let mut counts = BTreeMap::new();
    for (_, length) in prefixes {
        *counts.entry(*length).or_insert(0) += 1;
    }
    let counts: Vec<(u8, usize)> = counts.into_iter().collect();
    choose(T::FAMILY, &counts, ranges.ranges().len())
}

/// The prefixes of each of these lengths: a shorter one is as many of the next length that there is.
fn by_length<T: Address>(prefixes: &[(T, u8)], lengths: &[u8]) -> Vec<Prefixes<T>> {
    let empty = |length: &u8| Prefixes { length: *length, first: Vec::new() };
    let mut sets: Vec<Prefixes<T>> = lengths.iter().map(empty).collect();
    for (address, length) in prefixes {
        let place = sets.partition_point(|set| set.length < *length);
        let Some(set) = sets.get_mut(place) else { continue };
        let step = 1_u128.checked_shl((T::FAMILY.bits() - set.length).into()).unwrap_or(0);
        let each = 0..1_u128 << (set.length - length);
        set.first.extend(each.map(|index| T::of_bits(address.to_u128() + index * step)));
    }
    sets
}
