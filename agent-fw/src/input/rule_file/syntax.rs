//! The text of a rule file as a tree, the same for JSON and TOML, and where its parts stand.

use super::FieldPath;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

/// A value of a rule file.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Node {
    Nothing,
    Flag(bool),
    Number(u64),
    /// A number that no field has: below 0, or with a fraction.
    OddNumber,
    Text(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "null",
            Self::Flag(_) => "true or false",
            Self::Number(_) => "a number",
            Self::OddNumber => "a number that is below 0 or not whole",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a whole number, true, false, a list or a table")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Node, E> {
        Ok(Node::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(number.try_into().map_or(Node::OddNumber, Node::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::OddNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Node::List(list))
    }

    /// A field that stands twice is refused: which one was meant cannot be known.
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut table = BTreeMap::new();
        while let Some(name) = fields.next_key::<String>()? {
            if table.contains_key(&name) {
                return Err(A::Error::custom(format!("field `{name}` stands here twice")));
            }
            table.insert(name, fields.next_value()?);
        }
        Ok(Node::Table(table))
    }
}

/// The language of a rule file, which its first characters tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Language {
    Json,
    Toml,
}

impl Language {
    /// A list of rules in JSON begins with `[{`, a table of TOML with `[[`.
    pub(super) fn of(text: &str) -> Self {
        let mut first = text.chars().filter(|c| !c.is_whitespace());
        match (first.next(), first.next()) {
            (Some('{'), _) | (Some('['), None | Some('{' | ']')) => Self::Json,
            _ => Self::Toml,
        }
    }

    /// Reads the text. `file` is its name, for errors.
    pub(super) fn parse(self, file: &str, text: &str) -> Result<Node, (FieldPath, String)> {
        let place = |line, column| {
            let (file, path, column) = (file.to_owned(), String::new(), Some(column));
            FieldPath { file, line, column, path }
        };
        match self {
            Self::Json => serde_json::from_str(text).map_err(|error| {
                let said = error.to_string();
                // serde_json says the place at the end, in words.
                let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
                let said = match said {
                    "trailing characters" => {
                        "a second document begins here; give each of them a file of its own"
                    }
                    said => said,
                };
                (place(error.line(), error.column()), said.to_owned())
            }),
            Self::Toml => toml::from_str(text).map_err(|error| {
                let (line, column) = crate::input::line_and_column(text, &error);
                (place(line, column), error.message().to_owned())
            }),
        }
    }

    /// The line of the part at `path`, or of the nearest part around it that is there.
    pub(super) fn line_of(self, text: &str, path: &Path) -> usize {
        let offset = match self {
            Self::Json => json_offset(text, path),
            Self::Toml => toml_offset(text, path),
        };
        1 + text[..text.floor_char_boundary(offset.unwrap_or(0))].matches('\n').count()
    }
}

impl Language {
    /// The line of each value of the list at `path`: one reading for all.
    pub(super) fn lines_of_list(self, text: &str, path: &Path) -> Vec<usize> {
        let offsets = match self {
            Self::Json => json_offsets(text, path),
            Self::Toml => toml_offsets(text, path),
        };
        let (mut line, mut counted) = (1, 0);
        let line_at = |offset: usize| {
            line += text.get(counted..offset).map_or(0, |part| part.matches('\n').count());
            counted = offset;
            line
        };
        offsets.unwrap_or_default().into_iter().map(line_at).collect()
    }
}

fn json_offsets(text: &str, path: &Path) -> Option<Vec<usize>> {
    let list = &text[json_offset(text, path)?..];
    let mut values = serde_json::Deserializer::from_str(list).into_iter::<Vec<&RawValue>>();
    let offset = |value: &RawValue| value.get().as_ptr().addr() - text.as_ptr().addr();
    Some(values.next()?.ok()?.into_iter().map(offset).collect())
}

fn toml_offsets(text: &str, Path(steps): &Path) -> Option<Vec<usize>> {
    let [Step::Field(name)] = steps.as_slice() else { return None };
    let table = DeTable::parse(text).ok()?;
    let list = table.get_ref().get(name.as_str())?.get_ref().as_array()?;
    Some(list.iter().map(|value| value.span().start).collect())
}

fn json_offset(text: &str, Path(steps): &Path) -> Option<usize> {
    let mut at: &RawValue = serde_json::from_str(text).ok()?;
    for step in steps {
        let inner = match step {
            Step::Field(name) => serde_json::from_str::<BTreeMap<String, &RawValue>>(at.get())
                .ok()
                .and_then(|mut fields| fields.remove(name)),
            Step::Index(index) => serde_json::from_str::<Vec<&RawValue>>(at.get())
                .ok()
                .and_then(|values| values.get(*index).copied()),
        };
        let Some(inner) = inner else { break };
        at = inner;
    }
    at.get().as_ptr().addr().checked_sub(text.as_ptr().addr())
}

fn toml_offset(text: &str, Path(steps): &Path) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut offset = table.span().start;
    let mut at = &DeValue::Table(table.into_inner());
    for step in steps {
        let inner = match (step, at) {
            (Step::Field(name), DeValue::Table(table)) => table.get(name.as_str()),
            (Step::Index(index), DeValue::Array(values)) => values.get(*index),
            _ => None,
        };
        let Some(inner) = inner else { break };
        (offset, at) = (inner.span().start, inner.get_ref());
    }
    Some(offset)
}

/// A step from a value to a part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Field(String),
    Index(usize),
}

/// Where in the tree a value stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Path(Vec<Step>);

impl Path {
    pub(super) fn field(&self, name: &str) -> Self {
        self.then(Step::Field(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// The list that this is a value of, and its place in it.
    pub(super) fn in_list(&self) -> Option<(Self, usize)> {
        match self.0.split_last() {
            Some((Step::Index(index), list)) => Some((Self(list.to_vec()), *index)),
            _ => None,
        }
    }

    fn then(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if place == 0 => write!(f, "{}", name.escape_debug())?,
                Step::Field(name) => write!(f, ".{}", name.escape_debug())?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
