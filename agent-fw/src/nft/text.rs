//! The ruleset as text: what `nft -f` loads and a person reviews.

use super::TABLE;
use super::ruleset::Ruleset;
use super::table::{Chain, Elements, Set};
use crate::policy::{LabelIndex, Notation, Range};
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
        writeln!(f, "add table inet {TABLE}\ndelete table inet {TABLE}\n")?;
        writeln!(f, "table inet {TABLE} {{")?;
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
        let (kind, key, data) = match &set.elements {
            Elements::V4(_) => ("map", "ipv4_addr", " : counter"),
            Elements::V6(_) => ("map", "ipv6_addr", " : counter"),
            Elements::ChainsV4(_) => ("map", "ipv4_addr", " : verdict"),
            Elements::ChainsV6(_) => ("map", "ipv6_addr", " : verdict"),
            Elements::Mac(_) => ("set", "ether_addr", ""),
            Elements::Port(_) => ("set", "inet_service", ""),
        };
        writeln!(f, "\n\t{kind} {} {{", set.name)?;
        writeln!(f, "\t\ttype {key}{data}\n\t\tflags interval\n\t\telements = {{")?;
        match &set.elements {
            Elements::V4(elements) => self.write_labelled(f, elements)?,
            Elements::V6(elements) => self.write_labelled(f, elements)?,
            Elements::ChainsV4(elements) => write_jumps(f, elements)?,
            Elements::ChainsV6(elements) => write_jumps(f, elements)?,
            Elements::Mac(elements) => write_plain(f, elements)?,
            Elements::Port(elements) => write_plain(f, elements)?,
        }
        writeln!(f, "\t\t}}\n\t}}")
    }

    /// Writes the elements counter by counter, each after a line that says where they come from.
    fn write_labelled<T>(
        &self,
        f: &mut fmt::Formatter<'_>,
        elements: &[(Range<T>, LabelIndex)],
    ) -> fmt::Result
    where
        Range<T>: Notation,
    {
        for (index, counter) in self.ruleset.counters.iter().enumerate() {
            let name = &counter.name;
            let provenance = self.provenance.get(name).unwrap_or(&counter.comment);
            let mut first = true;
            for (range, _) in elements.iter().filter(|(_, of)| usize::from(*of) == index) {
                if std::mem::take(&mut first) {
                    write_remark(f, &harmless(provenance))?;
                }
                writeln!(f, "\t\t\t{} : \"{name}\",", range.notation())?;
            }
        }
        Ok(())
    }
}

/// Writes a remark among the elements, in lines of at most 80 columns where a tab is eight wide.
fn write_remark(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    textwrap::wrap(text, 80 - 3 * 8 - 2)
        .into_iter()
        .try_for_each(|line| writeln!(f, "\t\t\t# {line}"))
}

fn write_jumps<T>(f: &mut fmt::Formatter<'_>, elements: &[(Range<T>, String)]) -> fmt::Result
where
    Range<T>: Notation,
{
    elements
        .iter()
        .try_for_each(|(range, chain)| writeln!(f, "\t\t\t{} : jump {chain},", range.notation()))
}

fn write_plain<T>(f: &mut fmt::Formatter<'_>, elements: &[T]) -> fmt::Result
where
    T: fmt::Display,
{
    elements.iter().try_for_each(|range| writeln!(f, "\t\t\t{range},"))
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
