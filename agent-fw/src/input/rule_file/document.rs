//! A file, what it was read as, and what was found to be wrong with it.

use super::reader::{Fields, Reader, Reading};
use super::syntax::{Language, Node, Path};
use super::{FieldPath, RuleText, format};
use crate::model::Origin;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A file.
pub(super) struct Document<'t> {
    pub(super) name: &'t str,
    pub(super) label: &'t Origin,
    /// Whether it was named as the one that says which rules are assigned.
    pub(super) assigns: bool,
    text: &'t str,
    language: Language,
    reading: Reading,
    /// Why it cannot be read at all.
    unreadable: Option<(FieldPath, String)>,
    /// What it says; taken once.
    root: Option<Node>,
    /// The lines of the values of lists, by the lists' places.
    lines: RefCell<BTreeMap<String, Vec<usize>>>,
}

/// Faults, fields that are not known, and fields without effect; each with its place.
pub(super) type Findings = (Vec<(FieldPath, String)>, Vec<FieldPath>, Vec<(FieldPath, String)>);

impl<'t> Document<'t> {
    pub(super) fn open(of: &'t RuleText<'_>) -> Self {
        let text = of.text.strip_prefix('\u{feff}').unwrap_or(&of.text);
        let language = Language::of(text);
        let first = |said| (FieldPath::of_line(&of.name, 1), said);
        let parsed = match format::foreign(text) {
            Some(said) => Err(first(said)),
            None => language.parse(&of.name, text),
        };
        let (root, unreadable) = match parsed {
            Ok(node) => (Some(node), None),
            Err(fault) => (None, Some(fault)),
        };
        Self {
            name: &of.name,
            label: &of.label,
            assigns: of.assigns,
            text,
            language,
            reading: Reading::default(),
            unreadable,
            root,
            lines: RefCell::default(),
        }
    }

    /// What the file says.
    pub(super) fn take_root(&mut self) -> Option<Node> {
        self.root.take()
    }

    /// Whether it could be read.
    pub(super) fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }

    /// A reader of a table of it.
    pub(super) fn reader(&mut self, at: Path, fields: Fields) -> Reader<'_> {
        Reader::new(at, Node::Table(fields), &mut self.reading)
    }

    /// The tables of a list.
    pub(super) fn tables(&mut self, at: &Path, list: Vec<Node>) -> Vec<(Path, Fields)> {
        self.reading.tables(at, list)
    }

    /// Takes note of a fault.
    pub(super) fn fault(&mut self, at: Path, said: impl Into<String>) {
        self.reading.faults.push((at, said.into()));
    }

    /// The line of what stands there; those of a list are found in one reading.
    pub(super) fn line(&self, at: &Path) -> usize {
        let Some((list, index)) = at.in_list() else {
            return self.language.line_of(self.text, at);
        };
        let mut known = self.lines.borrow_mut();
        let lines = known
            .entry(list.to_string())
            .or_insert_with(|| self.language.lines_of_list(self.text, &list));
        lines.get(index).copied().unwrap_or_else(|| self.language.line_of(self.text, at))
    }

    /// The place of what stands there.
    pub(super) fn place(&self, at: &Path) -> FieldPath {
        FieldPath { path: at.to_string(), ..FieldPath::of_line(self.name, self.line(at)) }
    }

    /// What was found in it. Fields that are not known are faults, unless `lenient`.
    pub(super) fn findings(&self, lenient: bool) -> Findings {
        let Reading { faults, unknown, idle, .. } = &self.reading;
        let said = |(at, said): &(Path, String)| (self.place(at), said.clone());
        let mut faults: Vec<_> = faults.iter().map(said).collect();
        faults.extend(self.unreadable.clone());
        let idle = idle.iter().map(said).collect();
        let unknown = unknown.iter().map(|at| self.place(at));
        if lenient {
            return (faults, unknown.collect(), idle);
        }
        let refused = |at| (at, "unknown field (--lenient ignores it)".to_owned());
        faults.extend(unknown.map(refused));
        (faults, Vec::new(), idle)
    }
}

impl FieldPath {
    /// A line of a file.
    pub(super) fn of_line(file: &str, line: usize) -> Self {
        Self { file: file.to_owned(), line, column: None, path: String::new() }
    }
}
