//! What differs between the table that should be in the kernel and the one that is there.

use super::expression::Program;
use super::table::{Chain, Elements, Image, Prefixes, Set};
use crate::model::TableName;
use crate::model::{Address, Notation, Ordinal, Range};
use crate::nft::kernel::LiveTable;
use std::collections::BTreeSet;
use std::fmt;

/// Elements of a set that are shown, of each kind; the rest are counted.
const SHOWN: usize = 3;

/// One part of the table that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The table is not there.
    NoTable(TableName),
    /// A part is missing.
    Missing(String),
    /// A part should not be there.
    Extra(String),
    /// A part is there in another form.
    Changed {
        /// The part.
        part: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(name) => write!(f, "the table {name} is not there"),
            Self::Missing(part) => write!(f, "missing: {part}"),
            Self::Extra(part) => write!(f, "not in this policy: {part}"),
            Self::Changed { part, expected, found } => {
                write!(f, "{part} should be {expected}, but is {found}")
            }
        }
    }
}

/// Whether a difference, in words, is about a part of a table.
pub fn is_inside_a_table(difference: &str) -> bool {
    let begins = ["missing: ", "not in this policy: ", "rule ", "set ", "table ", "the table's "];
    begins.into_iter().any(|begin| difference.starts_with(begin))
}

/// A difference in words without the expressions of a rule, which stand behind the rule's place.
pub fn without_expressions(difference: &str) -> &str {
    const PLACE: &str = " of chain ";
    let Some(place) = difference.find(PLACE).filter(|_| difference.contains("rule ")) else {
        return difference;
    };
    let behind = place + PLACE.len();
    let ends = [": ", " should be "].into_iter().filter_map(|end| difference[behind..].find(end));
    ends.min().map_or(difference, |end| &difference[..behind + end])
}

/// Everything in which the kernel's table differs from `expected`. What counters have counted is
/// no difference.
pub fn differences(expected: &Image, live: Option<&LiveTable>) -> Vec<Difference> {
    let Some(live) = live else { return vec![Difference::NoTable(expected.name)] };
    let mut found: Vec<_> = live.strays.iter().cloned().map(Difference::Extra).collect();
    let unused = |set: &String| Difference::Extra(format!("set {set}, which no rule uses"));
    found.extend(live.leftovers.iter().map(unused));
    changed(&mut found, "the table's comment", &expected.comment, &live.image.comment);
    compare_names(
        &mut found,
        "counter",
        expected.counters.iter().map(|counter| counter.name.as_str()),
        live.image.counters.iter().map(|counter| counter.name.as_str()),
    );
    compare_sets(&mut found, expected, &live.image);
    compare_chains(&mut found, &expected.chains, &live.image.chains);
    found
}

fn changed(found: &mut Vec<Difference>, part: &str, expected: &str, live: &str) {
    if expected != live {
        let (expected, live) = (quoted(expected), quoted(live));
        found.push(Difference::Changed { part: part.to_owned(), expected, found: live });
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { "empty".to_owned() } else { text.escape_debug().to_string() }
}

fn compare_names<'a>(
    found: &mut Vec<Difference>,
    kind: &str,
    expected: impl Iterator<Item = &'a str>,
    live: impl Iterator<Item = &'a str>,
) {
    let expected: BTreeSet<_> = expected.collect();
    let live: BTreeSet<_> = live.collect();
    let named = |name: &&str| format!("{kind} {}", name.escape_debug());
    found.extend(expected.difference(&live).map(|name| Difference::Missing(named(name))));
    found.extend(live.difference(&expected).map(|name| Difference::Extra(named(name))));
}

fn compare_sets(found: &mut Vec<Difference>, expected: &Image, live: &Image) {
    let names = |image: &'_ Image| -> Vec<String> {
        image.sets.iter().map(|set| set.name.clone()).collect()
    };
    let (expected_names, live_names) = (names(expected), names(live));
    compare_names(
        found,
        "set",
        expected_names.iter().map(String::as_str),
        live_names.iter().map(String::as_str),
    );
    let elements = |set: &Set| -> Vec<String> {
        (0..set.elements.len()).filter_map(|index| set.elements.notation(index)).collect()
    };
    for set in &expected.sets {
        match live.sets.iter().find(|other| other.name == set.name) {
            Some(other) => compare_elements(found, set, other),
            None => report(found, &set.name, elements(set), vec![]),
        }
    }
    for set in live.sets.iter().filter(|set| !expected_names.contains(&set.name)) {
        report(found, &set.name, vec![], elements(set));
    }
}

fn compare_elements(found: &mut Vec<Difference>, expected: &Set, live: &Set) {
    let name = &expected.name;
    match (&expected.elements, &live.elements) {
        (Elements::V4(a), Elements::V4(b)) => compare_ranges(found, name, a, b),
        (Elements::V6(a), Elements::V6(b)) => compare_ranges(found, name, a, b),
        (Elements::Mac(a), Elements::Mac(b)) => compare_ranges(found, name, a, b),
        (Elements::Port(a), Elements::Port(b)) => compare_ranges(found, name, a, b),
        (Elements::HashedV4(a), Elements::HashedV4(b)) => compare_prefixes(found, name, a, b),
        (Elements::HashedV6(a), Elements::HashedV6(b)) => compare_prefixes(found, name, a, b),
        // What is in them comes and goes.
        (Elements::Learned(a), Elements::Learned(b)) if a == b => {}
        _ => changed(found, &format!("set {name}"), "of its type", "of another type"),
    }
}

fn compare_ranges<T: Ordinal>(
    found: &mut Vec<Difference>,
    set: &str,
    expected: &[Range<T>],
    live: &[Range<T>],
) where
    Range<T>: Notation,
{
    if expected == live {
        return;
    }
    let expected: BTreeSet<_> = expected.iter().collect();
    let live: BTreeSet<_> = live.iter().collect();
    let missing = expected.difference(&live).map(|range| range.notation()).collect();
    let extra = live.difference(&expected).map(|range| range.notation()).collect();
    report(found, set, missing, extra);
}

fn compare_prefixes<T: Address>(
    found: &mut Vec<Difference>,
    set: &str,
    expected: &Prefixes<T>,
    live: &Prefixes<T>,
) {
    if expected.first == live.first {
        return;
    }
    let firsts = |prefixes: &Prefixes<T>| prefixes.first.iter().copied().collect::<BTreeSet<T>>();
    let (wanted, there) = (firsts(expected), firsts(live));
    let words = |first: &T| expected.notation(*first);
    let missing = wanted.difference(&there).map(words).collect();
    let extra = there.difference(&wanted).map(words).collect();
    report(found, set, missing, extra);
}

fn report(found: &mut Vec<Difference>, set: &str, missing: Vec<String>, extra: Vec<String>) {
    let mut push = |elements: Vec<String>, make: fn(String) -> Difference| {
        let rest = elements.len().saturating_sub(SHOWN);
        for element in elements.into_iter().take(SHOWN) {
            found.push(make(format!("element {element} of set {set}")));
        }
        if rest > 0 {
            found.push(make(format!("{rest} more elements of set {set}")));
        }
    };
    push(missing, Difference::Missing);
    push(extra, Difference::Extra);
}

fn compare_chains(
    found: &mut Vec<Difference>,
    expected: &[Chain<Program>],
    live: &[Chain<Program>],
) {
    compare_names(
        found,
        "chain",
        expected.iter().map(|chain| chain.name.as_str()),
        live.iter().map(|chain| chain.name.as_str()),
    );
    for chain in expected {
        let Some(other) = live.iter().find(|other| other.name == chain.name) else { continue };
        let part = format!("where chain {} hangs", chain.name);
        changed(found, &part, &hook(chain), &hook(other));
        for index in 0..chain.rules.len().max(other.rules.len()) {
            let part = format!("rule {} of chain {}", index + 1, chain.name);
            match (chain.rules.get(index), other.rules.get(index)) {
                (Some(rule), None) => {
                    found.push(Difference::Missing(format!("{part}: {rule}")));
                }
                (None, Some(rule)) => {
                    found.push(Difference::Extra(format!("{part}: {rule}")));
                }
                (Some(a), Some(b)) => changed(found, &part, &a.to_string(), &b.to_string()),
                (None, None) => {}
            }
        }
    }
}

fn hook(chain: &Chain<Program>) -> String {
    chain.base.map_or_else(
        || "nowhere".to_owned(),
        |base| format!("hook {} priority {}", base.hook, base.priority),
    )
}

#[cfg(test)]
mod tests {
    use super::without_expressions;

    #[test]
    fn the_place_of_a_rule_is_kept() {
        for (whole, brief) in [
            (
                "missing: rule 1 of chain gate: meta load l4proto; drop",
                "missing: rule 1 of chain gate",
            ),
            ("rule 2 of chain gate should be accept, but is drop", "rule 2 of chain gate"),
            ("unexpected table arp agent_fw_policy", "unexpected table arp agent_fw_policy"),
            ("missing: chain gate", "missing: chain gate"),
        ] {
            assert_eq!(without_expressions(whole), brief);
        }
    }
}
