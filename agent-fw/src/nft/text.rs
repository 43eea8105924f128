//! The ruleset as text: what `nft -f` loads and a person reviews.

use super::table::{Chain, Elements, Key, MEMORIES, MEMORY, Prefixes, Set};
use crate::model::{Address, Notation};
use crate::nft::compile::agent_port::Ruleset;
use std::collections::BTreeMap;
use std::fmt;

/// A ruleset with what a reviewer wants to know beside it.
pub struct Document<'a> {
    /// The ruleset.
    pub ruleset: &'a Ruleset,
    /// Lines to begin with.
    pub preamble: Vec<String>,
    /// Where the addresses that each counter counts come from, by the counter's name.
    pub provenance: BTreeMap<String, String>,
}

impl fmt::Display for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.preamble {
            writeln!(f, "# {}", harmless(line))?;
        }
        let table = self.ruleset.name;
        writeln!(f, "add table {table}\ndelete table {table}\n")?;
        writeln!(f, "table {table} {{")?;
        writeln!(f, "\tcomment \"{}\"", self.ruleset.comment)?;
        for counter in &self.ruleset.counters {
            writeln!(f, "\n\tcounter {} {{", counter.name)?;
            writeln!(f, "\t\tcomment \"{}\"\n\t}}", counter.comment)?;
        }
        for set in &self.ruleset.sets {
            self.write_set(f, set)?;
        }
        for chain in &self.ruleset.chains {
            write_chain(f, chain)?;
        }
        writeln!(f, "}}")
    }
}

impl Document<'_> {
    fn write_set(&self, f: &mut fmt::Formatter<'_>, set: &Set) -> fmt::Result {
        let key = match &set.elements {
            Elements::V4(_) | Elements::HashedV4(_) | Elements::Learned(Key::V4) => "ipv4_addr",
            Elements::V6(_) | Elements::HashedV6(_) | Elements::Learned(Key::V6) => "ipv6_addr",
            Elements::Mac(_) => "ether_addr",
            Elements::Port(_) | Elements::Learned(Key::Port) => "inet_service",
        };
        writeln!(f, "\n\tset {} {{", set.name)?;
        if matches!(set.elements, Elements::Learned(_)) {
            writeln!(f, "\t\ttype {key}\n\t\tsize {MEMORIES}\n\t\tflags dynamic,timeout")?;
            return writeln!(f, "\t\ttimeout {}s\n\t}}", MEMORY.as_secs());
        }
        let form = match &set.elements {
            Elements::HashedV4(_) | Elements::HashedV6(_) => format!("size {}", set.elements.len()),
            _ => "flags interval".to_owned(),
        };
        writeln!(f, "\t\ttype {key}\n\t\t{form}\n\t\telements = {{")?;
        if let Some(provenance) = self.provenance_of(set) {
            write_remark(f, &harmless(provenance))?;
        }
        match &set.elements {
            Elements::V4(ranges) => write_ranges(f, ranges)?,
            Elements::V6(ranges) => write_ranges(f, ranges)?,
            Elements::Mac(ranges) => write_ranges(f, ranges)?,
            Elements::Port(ranges) => write_ranges(f, ranges)?,
            Elements::HashedV4(prefixes) => write_prefixes(f, prefixes)?,
            Elements::HashedV6(prefixes) => write_prefixes(f, prefixes)?,
            Elements::Learned(_) => {}
        }
        writeln!(f, "\t\t}}\n\t}}")
    }

    /// Where the addresses of a set come from: its name begins with that of its counter.
    fn provenance_of(&self, set: &Set) -> Option<&str> {
        let belongs = |counter: &str| {
            let rest = set.name.strip_prefix(counter);
            rest.is_some_and(|rest| rest.starts_with("_v4") || rest.starts_with("_v6"))
        };
        self.provenance
            .iter()
            .filter(|(counter, _)| belongs(counter))
            // Of two regions `a` and `a_v4`, the longer name is the set's.
            .max_by_key(|(counter, _)| counter.len())
            .map(|(_, words)| words.as_str())
    }
}

/// Writes a remark among the elements, in lines of at most 80 columns where a tab is eight wide.
fn write_remark(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    textwrap::wrap(text, 80 - 3 * 8 - 2)
        .into_iter()
        .try_for_each(|line| writeln!(f, "\t\t\t# {line}"))
}

fn write_ranges<R: Notation>(f: &mut fmt::Formatter<'_>, ranges: &[R]) -> fmt::Result {
    ranges.iter().try_for_each(|range| writeln!(f, "\t\t\t{},", range.notation()))
}

/// Writes the first addresses of prefixes, with the prefix beside each.
fn write_prefixes<T: Address + fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    prefixes: &Prefixes<T>,
) -> fmt::Result {
    let is_shorter = prefixes.length < T::FAMILY.bits();
    prefixes.first.iter().try_for_each(|first| {
        write!(f, "\t\t\t{first},")?;
        if is_shorter {
            write!(f, " # {}", prefixes.notation(*first))?;
        }
        writeln!(f)
    })
}

fn write_chain(f: &mut fmt::Formatter<'_>, chain: &Chain<super::Rule>) -> fmt::Result {
    writeln!(f, "\n\tchain {} {{", chain.name)?;
    if let Some(base) = chain.base {
        let (hook, priority) = (base.hook, base.priority);
        writeln!(f, "\t\ttype filter hook {hook} priority {priority}; policy accept;")?;
    }
    chain.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
    writeln!(f, "\t}}")
}

/// A line without what would end a comment: file names are the user's.
fn harmless(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
