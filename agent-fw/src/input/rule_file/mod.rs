//! Rule files: the vendor's API form in JSON, and the same vocabulary in TOML.
//!
//! Rules, lists, policies and assignments come from different addresses of the API. All files are one
//! namespace: a rule of one names lists of another, and a third says which rules are this host's.

mod assignment;
mod document;
mod endpoint;
mod format;
mod header;
mod keywords;
mod lists;
mod namespace;
mod reader;
mod rule;
mod schema;
mod supported;
mod syntax;

pub use assignment::Assignment;
pub use schema::{SchemaForm, rule_file_schema};
pub use supported::{LeftOut, Refused};

use crate::model::rule::Rule;
use crate::model::{Origin, Port};
use document::Document;
use namespace::Namespace;
use std::borrow::Cow;
use std::fmt;

/// The text of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleText<'t> {
    /// The file's name, for messages.
    pub name: String,
    /// What is in it.
    pub text: Cow<'t, str>,
    /// What its sources are counted under.
    pub label: Origin,
    /// Whether it was named as the one that says which rules are assigned.
    pub assigns: bool,
}

/// Which rules of the files are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of them, whatever is assigned.
    All,
    /// Those that are assigned. Rules of a manager of which none is assigned are refused.
    Assigned,
    /// As they are: nothing is refused that could be read.
    Told,
}

/// How files are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options<'o> {
    /// Ignore fields that are not known.
    pub lenient: bool,
    /// Which rules are meant.
    pub scope: Scope,
    /// The policy that is meant, by its name or number, where there are several.
    pub policy: Option<&'o str>,
    /// Whether all rules are to be enforced, and not only the agent's port restricted.
    pub whole: bool,
    /// Where the agent listens.
    pub port: Port,
    /// Leave out what agent-fw does not have, where that cannot open anything.
    pub skip_unsupported: bool,
}

/// A rule, and where it is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The rule.
    pub rule: Rule,
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The number that the manager has given it.
    pub id: Option<u32>,
}

/// A rule that is not assigned to this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unassigned {
    /// What a person calls it.
    pub name: String,
    /// The number that the manager has given it.
    pub id: u32,
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
}

/// What files say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RuleFiles {
    /// The rules that are meant, in the order of the files.
    pub rules: Vec<Written>,
    /// Rules that are not assigned to this host.
    pub unassigned: Vec<Unassigned>,
    /// Who says which rules are assigned, and where.
    pub assignment: Option<(Assignment, FieldPath)>,
    /// Rules that agent-fw cannot enforce.
    pub refused: Vec<Refused>,
    /// Such rules that were left out.
    pub left_out: Vec<LeftOut>,
    /// Fields that were not known, each with its place; none unless that was allowed.
    pub ignored: Vec<FieldPath>,
    /// Fields that have no effect where they stand, each with its place and the reason.
    pub idle: Vec<(FieldPath, String)>,
}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldPath {
    /// The file's name.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1, where it is known.
    pub column: Option<usize>,
    /// The field: `firewallRules[0].sourceIPValue`.
    pub path: String,
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, path } = self;
        write!(f, "{file}:{line}")?;
        if let Some(column) = column {
            write!(f, ":{column}")?;
        }
        let separator = if path.is_empty() { "" } else { ": " };
        write!(f, "{separator}{path}")
    }
}

/// All that is wrong with files.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct RuleFileError {
    /// What is wrong, and where.
    pub faults: Vec<(FieldPath, String)>,
    /// Faults beyond those.
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

/// Faults that are said before the rest is only counted.
const SAID: usize = 50;

/// Reads files as one namespace. All that is wrong with any of them is said at once.
pub fn read_rules(
    texts: &[RuleText<'_>],
    options: Options<'_>,
) -> Result<RuleFiles, RuleFileError> {
    let mut documents: Vec<Document<'_>> = texts.iter().map(Document::open).collect();
    let mut namespace = Namespace::default();
    for (file, document) in documents.iter_mut().enumerate() {
        namespace.take(file, document);
    }
    let mut found = namespace.resolve(&mut documents, options);
    let mut faults = supported::settle(&mut found, options);
    for document in &documents {
        let (said, unknown, idle) = document.findings(options.lenient);
        faults.extend(said);
        found.ignored.extend(unknown.into_iter().take(SAID));
        found.idle.extend(idle.into_iter().take(SAID));
    }
    if faults.is_empty() {
        return Ok(found);
    }
    let place = |file: &str| texts.iter().position(|text| text.name == file);
    faults.sort_by_key(|(at, _)| (place(&at.file), at.line));
    let more = faults.len().saturating_sub(SAID);
    faults.truncate(SAID);
    Err(RuleFileError { faults, more })
}

/// The field that has the rules.
const RULES: &str = "firewallRules";
