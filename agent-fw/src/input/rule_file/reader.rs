//! Reading a table field by field. Every fault is kept, with its place; what no one asked for is
//! unknown.

use crate::input::rule_file::keywords::words;
use crate::input::rule_file::syntax::{Node, Path};
use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error;
use std::collections::{BTreeMap, BTreeSet};

/// What reading a file has found: what is wrong, and which fields nobody knows.
#[derive(Default, Debug)]
pub(super) struct Reading {
    pub(super) faults: Vec<(Path, String)>,
    /// What is known and has no effect there, with the reason.
    pub(super) idle: Vec<(Path, String)>,
    pub(super) unknown: Vec<Path>,
    /// What was asked for, where that is wanted instead of the values.
    pub(super) asked: Option<Asked>,
}

/// The fields of a table.
pub(super) type Fields = BTreeMap<String, Node>;

impl Reading {
    /// The tables of a list at `at`, each with its place. Anything else in it is a fault.
    pub(super) fn tables(&mut self, at: &Path, list: Vec<Node>) -> Vec<(Path, Fields)> {
        let mut tables = Vec::new();
        for (index, node) in list.into_iter().enumerate() {
            let at = at.index(index);
            match node {
                Node::Table(fields) => tables.push((at, fields)),
                other => {
                    let said = format!("expected a table, found {}", other.kind());
                    self.faults.push((at, said));
                }
            }
        }
        tables
    }
}

/// The fields that a file is asked for, by their paths: what its schema is made of.
#[derive(Default, Debug)]
pub(super) struct Asked {
    pub(super) fields: BTreeMap<String, Kind>,
    pub(super) required: BTreeSet<String>,
}

/// What a field can hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Text,
    Flag,
    /// A number up to this one.
    Number(u64),
    /// A digit up to this one, as a text or a number.
    Digit(u8),
    /// One of these words.
    Word(Vec<String>),
    Texts,
    Tables,
    /// What it holds does not matter.
    Anything,
}

/// A table, of which each field is taken once.
pub(super) struct Reader<'f> {
    at: Path,
    fields: BTreeMap<String, Node>,
    faults: &'f mut Reading,
}

impl<'f> Reader<'f> {
    /// Begins with a table; anything else is a fault, and a table without fields.
    pub(super) fn new(at: Path, node: Node, faults: &'f mut Reading) -> Self {
        let mut reader = Self { at: at.clone(), fields: BTreeMap::new(), faults };
        match node {
            Node::Table(fields) => reader.fields = fields,
            other => reader.say(at, &format!("expected a table, found {}", other.kind())),
        }
        reader
    }

    /// Where the table stands.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Takes note of a field that has no effect.
    pub(super) fn idle(&mut self, name: &str, said: &str) {
        self.faults.idle.push((self.at.field(name), said.to_owned()));
    }

    /// Takes note of a fault of a field.
    pub(super) fn fault(&mut self, name: &str, said: &str) {
        self.say(self.at.field(name), said);
    }

    fn say(&mut self, at: Path, said: &str) {
        self.faults.faults.push((at, said.to_owned()));
    }

    fn wrong(&mut self, name: &str, expected: &str, found: &Node) {
        self.fault(name, &format!("expected {expected}, found {}", found.kind()));
    }

    /// Takes note of what a field can hold, where that is wanted.
    pub(super) fn ask(&mut self, name: &str, kind: impl FnOnce() -> Kind) {
        if let Some(asked) = &mut self.faults.asked {
            asked.fields.insert(self.at.field(name).to_string(), kind());
        }
    }

    /// Whether what is asked for is wanted, and not the values.
    pub(super) fn describes(&self) -> bool {
        self.faults.asked.is_some()
    }

    /// A field; one that is null is not there.
    fn take(&mut self, name: &str) -> Option<Node> {
        self.fields.remove(name).filter(|node| *node != Node::Nothing)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.ask(name, || Kind::Text);
        match self.take(name)? {
            Node::Text(text) => Some(text),
            Node::Number(number) => Some(number.to_string()),
            other => {
                self.wrong(name, "a text", &other);
                None
            }
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.ask(name, || Kind::Flag);
        match self.take(name) {
            None => false,
            Some(Node::Flag(flag)) => flag,
            Some(other) => {
                self.wrong(name, "true or false", &other);
                false
            }
        }
    }

    pub(super) fn number<N: TryFrom<u64>>(&mut self, name: &str) -> Option<N> {
        self.ask(name, || Kind::Number(largest::<N>()));
        match self.take(name)? {
            Node::Number(number) => {
                let fits = number.try_into().ok();
                if fits.is_none() {
                    self.fault(name, &format!("{number} is too large"));
                }
                fits
            }
            other => {
                self.wrong(name, "a number", &other);
                None
            }
        }
    }

    /// The number of a list, a schedule or a context; the vendor writes 0 for none.
    pub(super) fn reference(&mut self, name: &str) -> Option<u32> {
        self.number(name).filter(|number| *number != 0)
    }

    /// One word of several.
    pub(super) fn choice<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name);
        self.ask(name, || Kind::Word(words::<T>()));
        let text = text?;
        match T::deserialize(text.as_str().into_deserializer()) {
            Ok(choice) => Some(choice),
            Err(error) => {
                let error: Error = error;
                self.fault(name, &error.to_string());
                None
            }
        }
    }

    /// A field that must be there.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        take: impl FnOnce(&mut Self, &str) -> Option<T>,
    ) -> Option<T> {
        if let Some(asked) = &mut self.faults.asked {
            asked.required.insert(self.at.field(name).to_string());
        }
        if !self.has(name) {
            self.fields.remove(name);
            self.say(self.at.clone(), &format!("expected a field `{name}`"));
            return None;
        }
        take(self, name)
    }

    /// A field that, where it is not there, is as if it held this.
    pub(super) fn or_else<T>(
        &mut self,
        name: &str,
        otherwise: T,
        take: impl FnOnce(&mut Self, &str) -> Option<T>,
    ) -> Option<T> {
        if self.has(name) || self.describes() { take(self, name) } else { Some(otherwise) }
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|node| *node != Node::Nothing)
    }

    /// Texts or numbers; a text alone is a list of one.
    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        self.ask(name, || Kind::Texts);
        let list = match self.take(name)? {
            Node::List(list) => list,
            one => vec![one],
        };
        let mut texts = Vec::new();
        for node in list {
            match node {
                Node::Text(text) => texts.push(text),
                Node::Number(number) => texts.push(number.to_string()),
                other => self.wrong(name, "texts", &other),
            }
        }
        Some(texts)
    }

    /// Numbers, of which none is 0.
    pub(super) fn numbers(&mut self, name: &str) -> Option<BTreeSet<u32>> {
        let list = match self.take(name)? {
            Node::List(list) => list,
            other => {
                self.wrong(name, "a list", &other);
                return None;
            }
        };
        let mut numbers = BTreeSet::new();
        for node in list {
            match node {
                Node::Number(number) if u32::try_from(number).is_ok_and(|number| number > 0) => {
                    numbers.extend(u32::try_from(number));
                }
                other => self.wrong(name, "numbers of rules", &other),
            }
        }
        Some(numbers)
    }

    /// Reads a table inside this one. What nobody asks for in it is not looked at.
    pub(super) fn table(&mut self, name: &str, read: impl FnOnce(Reader<'_>)) {
        match self.take(name) {
            None => {}
            Some(node @ Node::Table(_)) => {
                read(Reader::new(self.at.field(name), node, self.faults));
            }
            Some(other) => self.wrong(name, "a table", &other),
        }
    }

    /// Takes each table of a list, with its place.
    pub(super) fn tables(&mut self, name: &str) -> Vec<(Path, Fields)> {
        self.ask(name, || Kind::Tables);
        match self.take(name) {
            None => Vec::new(),
            Some(Node::List(list)) => self.faults.tables(&self.at.field(name), list),
            Some(other) => {
                self.wrong(name, "a list", &other);
                Vec::new()
            }
        }
    }

    /// Reads each table of a list.
    pub(super) fn each(&mut self, name: &str, mut read: impl FnMut(Reader<'_>)) {
        for (at, fields) in self.tables(name) {
            read(Reader::new(at, Node::Table(fields), self.faults));
        }
    }

    /// Fields that are known and mean nothing here.
    pub(super) fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.ask(name, || Kind::Anything);
            self.fields.remove(*name);
        }
    }

    /// Takes note of what nobody asked for.
    pub(super) fn finish(self) {
        let unknown = self.fields.keys().map(|name| self.at.field(name));
        self.faults.unknown.extend(unknown);
    }
}

/// The largest number that `N` holds.
fn largest<N: TryFrom<u64>>() -> u64 {
    let fits = |bits: &u32| N::try_from((1 << *bits) - 1).is_ok();
    [32, 16, 8].into_iter().find(fits).map_or(0, |bits| (1 << bits) - 1)
}
