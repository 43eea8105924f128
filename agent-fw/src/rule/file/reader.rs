//! Reading a table field by field. Every fault is kept, with its place; what no one asked for is
//! unknown.

use super::node::{Node, Path};
use serde::de::DeserializeOwned;
use serde::de::IntoDeserializer as _;
use serde::de::value::Error;
use std::collections::BTreeMap;

/// What is wrong with a file, and which fields nobody knows.
#[derive(Default, Debug)]
pub(super) struct Faults {
    pub(super) faults: Vec<(Path, String)>,
    pub(super) unknown: Vec<Path>,
}

/// A table, of which each field is taken once.
pub(super) struct Reader<'f> {
    at: Path,
    fields: BTreeMap<String, Node>,
    faults: &'f mut Faults,
}

impl<'f> Reader<'f> {
    /// Begins with a table; anything else is a fault, and a table without fields.
    pub(super) fn new(at: Path, node: Node, faults: &'f mut Faults) -> Self {
        let mut reader = Self { at: at.clone(), fields: BTreeMap::new(), faults };
        match node {
            Node::Table(fields) => reader.fields = fields,
            other => reader.say(at, &format!("expected a table, found {}", other.kind())),
        }
        reader
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

    /// A field; one that is null is not there.
    fn take(&mut self, name: &str) -> Option<Node> {
        self.fields.remove(name).filter(|node| *node != Node::Nothing)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
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
        let text = self.text(name)?;
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
        if self.fields.get(name).is_none_or(|node| *node == Node::Nothing) {
            self.fields.remove(name);
            self.say(self.at.clone(), &format!("expected a field `{name}`"));
            return None;
        }
        take(self, name)
    }

    /// Texts or numbers; a text alone is a list of one.
    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
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

    /// Reads each table of a list.
    pub(super) fn each(&mut self, name: &str, mut read: impl FnMut(Reader<'_>)) {
        match self.take(name) {
            None => {}
            Some(Node::List(list)) => {
                let at = self.at.field(name);
                for (index, node) in list.into_iter().enumerate() {
                    let at = at.index(index);
                    match node {
                        Node::Table(_) => read(Reader::new(at, node, self.faults)),
                        other => self.say(at, &format!("expected a table, found {}", other.kind())),
                    }
                }
            }
            Some(other) => self.wrong(name, "a list", &other),
        }
    }

    /// Fields that are known and mean nothing here.
    pub(super) fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.fields.remove(*name);
        }
    }

    /// Takes note of what nobody asked for.
    pub(super) fn finish(self) {
        let unknown = self.fields.keys().map(|name| self.at.field(name));
        self.faults.unknown.extend(unknown);
    }
}
