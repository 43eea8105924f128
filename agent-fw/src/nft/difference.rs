//! What differs between the table that should be in the kernel and the one that is there.

use super::expression::Expression;
use super::netlink::Live;
use super::table::{Chain, Elements, Image, Set};
use crate::policy::{LabelIndex, Notation, Ordinal, Range};
use std::collections::BTreeSet;
use std::fmt;

/// Elements of a set that are shown, of each kind; the rest are counted.
const SHOWN: usize = 3;

/// One part of the table that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The table is not there.
    NoTable,
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
            Self::NoTable => write!(f, "the table inet {} is not there", super::TABLE),
            Self::Missing(part) => write!(f, "missing: {part}"),
            Self::Extra(part) => write!(f, "not ours: {part}"),
            Self::Changed { part, expected, found } => {
                write!(f, "{part} should be {expected}, but is {found}")
            }
        }
    }
}

/// Everything in which the kernel's table differs from `expected`. What counters have counted is
/// no difference.
pub fn differences(expected: &Image, live: Option<&Live>) -> Vec<Difference> {
    let Some(live) = live else { return vec![Difference::NoTable] };
    let mut found: Vec<_> = live.strays.iter().cloned().map(Difference::Extra).collect();
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
    for set in &expected.sets {
        if let Some(other) = live.sets.iter().find(|other| other.name == set.name) {
            compare_elements(found, set, expected, other, live);
        }
    }
}

fn compare_elements(
    found: &mut Vec<Difference>,
    set: &Set,
    expected: &Image,
    live_set: &Set,
    live: &Image,
) {
    let name = &set.name;
    let counters = Counters { expected, live };
    match (&set.elements, &live_set.elements) {
        (Elements::V4(a), Elements::V4(b)) => compare_counted(found, name, a, b, &counters),
        (Elements::V6(a), Elements::V6(b)) => compare_counted(found, name, a, b, &counters),
        (Elements::ChainsV4(a), Elements::ChainsV4(b)) => compare_jumps(found, name, a, b),
        (Elements::ChainsV6(a), Elements::ChainsV6(b)) => compare_jumps(found, name, a, b),
        (Elements::Mac(a), Elements::Mac(b)) => compare_plain(found, name, a, b),
        (Elements::Port(a), Elements::Port(b)) => compare_plain(found, name, a, b),
        _ => changed(found, &format!("set {name}"), "of its type", "of another type"),
    }
}

/// The counters of both tables, to which elements point by index.
struct Counters<'a> {
    expected: &'a Image,
    live: &'a Image,
}

impl Counters<'_> {
    fn name(image: &Image, index: LabelIndex) -> &str {
        image.counters.get(usize::from(index)).map_or("no counter", |counter| &counter.name)
    }

    /// For each counter of the live table, the index of the expected one of the same name.
    fn translation(&self) -> Vec<Option<LabelIndex>> {
        let position = |name: &str| self.expected.counters.iter().position(|c| c.name == name);
        let index = |name: &str| position(name).and_then(|index| index.try_into().ok());
        self.live.counters.iter().map(|counter| index(&counter.name)).collect()
    }
}

fn compare_counted<T: Ordinal>(
    found: &mut Vec<Difference>,
    set: &str,
    expected: &[(Range<T>, LabelIndex)],
    live: &[(Range<T>, LabelIndex)],
    counters: &Counters<'_>,
) where
    Range<T>: Notation,
{
    let translation = counters.translation();
    let translated = |index: LabelIndex| translation.get(usize::from(index)).copied().flatten();
    let equal = |(a, b): (&(Range<T>, LabelIndex), &(Range<T>, LabelIndex))| {
        a.0 == b.0 && Some(a.1) == translated(b.1)
    };
    if expected.len() == live.len() && expected.iter().zip(live).all(equal) {
        return;
    }
    let named = |image, elements: &[(Range<T>, LabelIndex)]| -> BTreeSet<(Range<T>, String)> {
        elements.iter().map(|&(r, index)| (r, Counters::name(image, index).to_owned())).collect()
    };
    let show = |(range, counter): &(Range<T>, String)| format!("{} : {counter}", range.notation());
    let (expected, live) = (named(counters.expected, expected), named(counters.live, live));
    let missing = expected.difference(&live).map(show);
    let extra = live.difference(&expected).map(show);
    report(found, set, missing.collect(), extra.collect());
}

fn compare_jumps<T: Ordinal>(
    found: &mut Vec<Difference>,
    set: &str,
    expected: &[(Range<T>, String)],
    live: &[(Range<T>, String)],
) where
    Range<T>: Notation,
{
    let show = |(range, chain): &&(Range<T>, String)| format!("{} : {chain}", range.notation());
    let expected: BTreeSet<_> = expected.iter().collect();
    let live: BTreeSet<_> = live.iter().collect();
    let missing = expected.difference(&live).map(show);
    let extra = live.difference(&expected).map(show);
    report(found, set, missing.collect(), extra.collect());
}

fn compare_plain<T: Ordinal + fmt::Display>(
    found: &mut Vec<Difference>,
    set: &str,
    expected: &[Range<T>],
    live: &[Range<T>],
) {
    let expected: BTreeSet<_> = expected.iter().collect();
    let live: BTreeSet<_> = live.iter().collect();
    let missing = expected.difference(&live).map(ToString::to_string);
    let extra = live.difference(&expected).map(ToString::to_string);
    report(found, set, missing.collect(), extra.collect());
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
    expected: &[Chain<Vec<Expression>>],
    live: &[Chain<Vec<Expression>>],
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
                    found.push(Difference::Missing(format!("{part}: {}", program(rule))));
                }
                (None, Some(rule)) => {
                    found.push(Difference::Extra(format!("{part}: {}", program(rule))));
                }
                (Some(a), Some(b)) => changed(found, &part, &program(a), &program(b)),
                (None, None) => {}
            }
        }
    }
}

fn hook(chain: &Chain<Vec<Expression>>) -> String {
    chain.base.map_or_else(
        || "nowhere".to_owned(),
        |base| format!("hook {} priority {}", base.hook, base.priority),
    )
}

fn program(rule: &[Expression]) -> String {
    rule.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
