//! Rule files: the vendor's API form in JSON, and the same vocabulary in TOML.

mod endpoint;
mod keywords;
mod lists;
mod reader;
mod rule;
mod schema;
mod syntax;

pub use schema::{SchemaForm, rule_file_schema};

use crate::input::rule_file::syntax::{Language, Node, Path};
use crate::model::Origin;
use crate::model::rule::Rule;
use lists::Lists;
use reader::{Reader, Reading};
use std::collections::BTreeMap;
use std::fmt;

/// A rule, and the line on which it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The rule.
    pub rule: Rule,
    /// The line, counted from 1.
    pub line: usize,
}

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleFile {
    /// Its rules, in their order.
    pub rules: Vec<Written>,
    /// Fields that were not known, each with its place; none unless that was allowed.
    pub ignored: Vec<FieldPath>,
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldPath {
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The field: `firewallRules[0].sourceIPValue`.
    pub path: String,
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, path } = self;
        let separator = if path.is_empty() { "" } else { ": " };
        write!(f, "{file}:{line}{separator}{path}")
    }
}

/// All that is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct RuleFileError {
    /// What is wrong, and where.
    pub faults: Vec<(FieldPath, String)>,
    /// Reading beyond those.
    pub more: usize,
}

impl fmt::Display for RuleFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, fault)) in self.faults.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{place}: {fault}")?;
        }
        if self.more > 0 { write!(f, "\nand {} more", self.more) } else { Ok(()) }
    }
}

/// Reading that are said before the rest is only counted.
const SAID: usize = 50;

/// Reads a rule file. `file` is its name, for errors; `label` is what its sources are counted
/// under. Unknown fields are refused unless `lenient`.
pub fn read_rules(
    file: &str,
    text: &str,
    label: &Origin,
    lenient: bool,
) -> anyhow::Result<RuleFile> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let language = Language::of(text);
    let mut faults = Reading::default();
    // A bare list has no lists that its rules could name.
    let (table, bare) = match language.parse(file, text)? {
        list @ Node::List(_) => (Node::Table(BTreeMap::from([(RULES.to_owned(), list)])), true),
        other => (other, false),
    };
    let mut rules = Vec::new();
    let mut whole = Reader::new(Path::default(), table, &mut faults);
    let lists = Lists::read(&mut whole);
    whole.each(RULES, |mut reader| {
        rules.extend(rule::read(&mut reader, &lists, label));
        reader.finish();
    });
    whole.finish();
    let place = |path: &Path| {
        let path = if bare { path.without_first() } else { path.clone() };
        FieldPath {
            file: file.to_owned(),
            line: language.line_of(text, &path),
            path: path.to_string(),
        }
    };
    let Reading { mut faults, mut unknown, .. } = faults;
    if !lenient {
        let said = |path| (path, "unknown field (--lenient ignores it)".to_owned());
        faults.extend(std::mem::take(&mut unknown).into_iter().map(said));
    }
    if !faults.is_empty() {
        let more = faults.len().saturating_sub(SAID);
        let said = faults.into_iter().take(SAID).map(|(path, said)| (place(&path), said));
        let mut faults: Vec<_> = said.collect();
        faults.sort_by_key(|(place, _)| place.line);
        return Err(RuleFileError { faults, more }.into());
    }
    let list = if bare { Path::default() } else { Path::default().field(RULES) };
    let lines = language.lines_of_list(text, &list);
    let rules = rules.into_iter().zip(lines).map(|(rule, line)| Written { rule, line }).collect();
    Ok(RuleFile { rules, ignored: unknown.iter().take(SAID).map(place).collect() })
}

/// The field that has the rules.
const RULES: &str = "firewallRules";
