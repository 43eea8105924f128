//! One end of a rule's way: the fields that begin with `source`, or with `destination`.

use super::lists::{Items, Lists, Numbered};
use super::reader::{Kind, Reader};
use crate::model::rule::{Addresses, Endpoint, Match};
use crate::model::{AddressSet, Origin};
use serde::{Deserialize, Serialize};

/// How addresses, MAC addresses or ports are named. Not each has all of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Form {
    Any,
    Single,
    Multiple,
    MaskedIp,
    Range,
    IpList,
    MacList,
    PortList,
}

impl Form {
    fn word(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|word| word.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// The fields of one kind at one end, and what they have.
struct Fields<'r, 'f> {
    reader: &'r mut Reader<'f>,
    /// What their names begin with: `sourceIP`.
    prefix: String,
    /// Whether it is written how they are named.
    has_form: bool,
}

pub(super) fn read(reader: &mut Reader<'_>, end: &str, lists: &Lists, label: &Origin) -> Endpoint {
    let addresses = Fields::new(reader, end, "IP").addresses(&lists.addresses);
    let macs = Fields::new(reader, end, "MAC").listed(
        &[Form::Any, Form::Single, Form::Multiple, Form::MacList],
        "macLists",
        &lists.macs,
    );
    let ports = Fields::new(reader, end, "Port").listed(
        &[Form::Any, Form::Multiple, Form::PortList],
        "portLists",
        &lists.ports,
    );
    let labelled = |set: AddressSet| Addresses(vec![(label.clone(), set)]);
    let addresses = match addresses {
        Match::Any => Match::Any,
        Match::Is(set) => Match::Is(labelled(set)),
        Match::Not(set) => Match::Not(labelled(set)),
    };
    Endpoint { addresses, macs, ports }
}

impl<'r, 'f> Fields<'r, 'f> {
    fn new(reader: &'r mut Reader<'f>, end: &str, kind: &str) -> Self {
        let prefix = format!("{end}{kind}");
        let has_form = reader.has(&format!("{prefix}Type"));
        Self { reader, prefix, has_form }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn fault(&mut self, suffix: &str, said: &str) {
        let name = self.name(suffix);
        self.reader.fault(&name, said);
    }

    /// The form; without one, any.
    fn form(&mut self, known: &[Form]) -> Form {
        let name = self.name("Type");
        let form = self.reader.choice(&name).unwrap_or(Form::Any);
        self.reader.ask(&name, || Kind::Word(known.iter().copied().map(Form::word).collect()));
        if !known.contains(&form) {
            self.fault("Type", "this word is for addresses, MAC addresses or ports alone");
            return Form::Any;
        }
        form
    }

    fn text(&mut self, form: Form, used: &[Form], suffix: &str) -> Option<String> {
        let name = self.name(suffix);
        let text = self.reader.text(&name).filter(|text| !text.is_empty());
        self.demand(form, used, suffix, text)
    }

    fn texts(&mut self, form: Form, suffix: &str) -> Option<Vec<String>> {
        let name = self.name(suffix);
        let texts = self.reader.texts(&name).filter(|texts| !texts.is_empty());
        self.demand(form, &[Form::Multiple], suffix, texts)
    }

    /// A value where the form needs one. Where the form is written and does not ask for it, it has no
    /// effect, as for the vendor; where none is written, it was forgotten, and what would restrict
    /// the rule must not be ignored.
    fn demand<T>(
        &mut self,
        form: Form,
        used: &[Form],
        suffix: &str,
        value: Option<T>,
    ) -> Option<T> {
        let (needed, kind) = (used.contains(&form), self.name("Type"));
        if needed && value.is_none() {
            self.fault(suffix, &format!("expected a value, as {kind} asks for one"));
        } else if !needed && value.is_some() && self.has_form {
            let name = self.name(suffix);
            self.reader.idle(&name, &format!("{kind} does not ask for it; it is ignored"));
        } else if !needed && value.is_some() {
            self.fault(suffix, &format!("expected a field `{kind}` that asks for it"));
        }
        value.filter(|_| needed)
    }

    /// The list that the form asks for.
    fn list<T: Clone>(&mut self, form: Form, kind: &str, lists: &Numbered<T>) -> Option<T> {
        let name = self.name("ListID");
        let number = self.reader.reference(&name);
        let used = [Form::IpList, Form::MacList, Form::PortList];
        let number = self.demand(form, &used, "ListID", number)?;
        let list = lists.get(&number);
        if list.is_none() {
            let said = format!("no file has a list with ID {number} in {kind}; save it too");
            self.fault("ListID", &said);
        }
        list.and_then(|list| list.items.clone())
    }

    /// `not`, which has nothing to turn round where the form is any.
    fn turned<T>(&mut self, form: Form, set: Option<T>) -> Match<T> {
        let name = self.name("Not");
        let not = self.reader.flag(&name);
        if form == Form::Any {
            if not {
                self.fault("Not", "not any: no packet could match; leave it out");
            }
            return Match::Any;
        }
        match set {
            // A fault was said.
            None => Match::Any,
            Some(set) if not => Match::Not(set),
            Some(set) => Match::Is(set),
        }
    }

    fn parse<T: Items>(&mut self, suffix: &str, items: &[String]) -> Option<T> {
        let parsed = T::parse(items.iter().map(String::as_str));
        parsed.map_err(|error| self.fault(suffix, &error)).ok()
    }

    fn addresses(mut self, lists: &Numbered<AddressSet>) -> Match<AddressSet> {
        let known =
            [Form::Any, Form::Single, Form::Multiple, Form::MaskedIp, Form::Range, Form::IpList];
        let form = self.form(&known);
        let value = self.text(form, &[Form::Single, Form::MaskedIp], "Value");
        let mask = self.text(form, &[Form::MaskedIp], "Mask");
        let first = self.text(form, &[Form::Range], "RangeFrom");
        let last = self.text(form, &[Form::Range], "RangeTo");
        let several = self.texts(form, "Multiple");
        let listed = self.list(form, "ipLists", lists);
        let set = match (value, mask, first.zip(last)) {
            (Some(value), Some(mask), _) => {
                self.whole("Value", &value);
                self.parse("Mask", &[format!("{value}/{}", mask.trim_start_matches('/'))])
            }
            (Some(value), None, _) => {
                self.whole("Value", &value);
                self.parse("Value", &[value])
            }
            (_, _, Some((first, last))) => {
                self.whole("RangeFrom", &first);
                self.whole("RangeTo", &last);
                self.parse("RangeTo", &[format!("{first}-{last}")])
            }
            _ => several.and_then(|several| self.parse("Multiple", &several)).or(listed),
        };
        self.turned(form, set)
    }

    /// Demands one address: a prefix or a range belongs elsewhere.
    fn whole(&mut self, suffix: &str, value: &str) {
        if value.contains(['/', '-', '#']) {
            self.fault(suffix, &format!("`{}`: expected one address", value.escape_debug()));
        }
    }

    fn listed<T: Items + Clone>(
        mut self,
        known: &[Form],
        kind: &str,
        lists: &Numbered<T>,
    ) -> Match<T> {
        let form = self.form(known);
        // Ports have no such field, so that theirs stays unknown.
        let has_single = known.contains(&Form::Single);
        let single = has_single.then(|| self.text(form, &[Form::Single], "Value")).flatten();
        let several = self.texts(form, "Multiple");
        let listed = self.list(form, kind, lists);
        let set = match (single, several) {
            (Some(single), _) => self.parse("Value", &[single]),
            (None, Some(several)) => self.parse("Multiple", &several),
            (None, None) => listed,
        };
        self.turned(form, set)
    }
}
