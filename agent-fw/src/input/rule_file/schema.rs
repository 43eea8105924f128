//! JSON Schema of rule files, made from what reading one asks for: it cannot know other fields than
//! the reader does.

use super::header::{CODE, FLAGS, FLAGS_NOT, KIND, MESSAGE_NOT, Names};
use super::lists::Lists;
use super::namespace::{ASSIGNED, POLICIES, WITHOUT_MEANING};
use super::reader::{Asked, Kind, Reader, Reading};
use super::{RULES, rule};
use crate::input::rule_file::syntax::{Language, Path};
use crate::model::Origin;
use serde_json::{Map, Value, json};

/// A form of rule files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum SchemaForm {
    /// JSON: a table with rules and lists, or a bare list of rules.
    Json,
    /// TOML, as the data that it stands for.
    Toml,
}

/// A file in which everything is asked for that ever is.
const EVERYTHING: &str = r#"{
    "firewallRules": [{
        "name": "any", "action": "bypass", "priority": "4", "direction": "incoming",
        "frameType": "any", "protocol": "any"
    }],
    "ipLists": [{"ID": 1, "items": []}],
    "macLists": [{"ID": 1, "items": []}],
    "portLists": [{"ID": 1, "items": []}]
}"#;

/// The schema (draft 2020-12) of rule files of this form. It knows every field and every word; that
/// a rule names the value that its form asks for, and what addresses are, `rules check` tells.
pub fn rule_file_schema(form: SchemaForm) -> Value {
    let asked = asked();
    let has_null = form == SchemaForm::Json;
    let table = |at: &str| table(&asked, at, has_null);
    let lists = |mut properties: Map<String, Value>| {
        for (name, property) in &mut properties {
            let items = json!({ "type": "array", "items": { "$ref": format!("#/$defs/{name}") } });
            *property = items;
        }
        properties
    };
    let whole = table("");
    let (properties, _) = whole;
    let names: Vec<String> = properties.keys().cloned().collect();
    let mut definitions = Map::new();
    for name in &names {
        let (properties, required) = table(&format!("{name}[0]."));
        definitions.insert(name.clone(), object(&properties, &required));
    }
    definitions[RULES]["allOf"] = headers();
    definitions.insert("policy".to_owned(), policy());
    let mut answer = lists(properties);
    for name in POLICIES {
        let policies = json!({ "type": "array", "items": { "$ref": "#/$defs/policy" } });
        answer.insert(name.to_owned(), policies);
    }
    for name in ASSIGNED {
        answer.insert(name.to_owned(), rule_ids());
    }
    for name in WITHOUT_MEANING {
        answer.insert(name.to_owned(), json!(true));
    }
    definitions.insert("file".to_owned(), object(&answer, &[]));
    let to = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let mut forms = vec![to("file")];
    if has_null {
        // One that the API answers to the question for it alone, or a bare list of them.
        let alone = names.iter().map(String::as_str).chain(["policy"]).map(to);
        let alone = json!({ "anyOf": alone.collect::<Vec<_>>() });
        forms.extend([json!({ "type": "array", "items": alone }), alone]);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Firewall rules in the vendor's vocabulary, as agent-fw reads them",
        "anyOf": forms,
        "$defs": definitions,
    })
}

fn rule_ids() -> Value {
    json!({ "type": "array", "items": { "type": "integer", "minimum": 1 } })
}

/// A policy or a computer: what it says about other than its firewall is not looked at.
fn policy() -> Value {
    json!({
        "type": "object",
        "required": ["firewall"],
        "properties": {
            "firewall": { "type": "object", "properties": { "ruleIDs": rule_ids() } },
        },
    })
}

/// What fields of headers ask of each other, where they have an effect.
fn headers() -> Value {
    let is_there = |names: Names, value: Value| {
        let one = |name: &str| {
            let mut properties = Map::new();
            properties.insert(name.to_owned(), value.clone());
            json!({ "required": [name], "properties": properties })
        };
        json!({ "anyOf": names.map(one) })
    };
    let some = json!({ "anyOf": [
        { "type": ["string", "integer"] }, { "type": "array", "minItems": 1 },
    ] });
    let looks_at = |protocols: [&str; 2]| {
        json!({
            "required": ["protocol"],
            "properties": {
                "protocol": { "enum": protocols },
                "protocolNot": { "not": { "const": true } },
                "anyFlags": { "not": { "const": true } },
            },
        })
    };
    let number = json!({ "type": "integer" });
    let rule = |protocols, asks: Value, then: Value| json!({ "if": { "allOf": [looks_at(protocols), asks] }, "then": then });
    let (tcp, icmp) = (["tcp", "tcp-udp"], ["icmp", "icmpv6"]);
    let named =
        json!({ "required": ["anyFlags"], "properties": { "anyFlags": { "const": false } } });
    let (flags, kind) = (is_there(FLAGS, some), is_there(KIND, number.clone()));
    json!([
        rule(tcp, is_there(FLAGS_NOT, json!({ "const": true })), flags.clone()),
        rule(tcp, named.clone(), flags),
        rule(icmp, is_there(MESSAGE_NOT, json!({ "const": true })), kind.clone()),
        rule(icmp, is_there(CODE, number), kind.clone()),
        rule(icmp, named, kind),
    ])
}

/// What reading a file asks for.
fn asked() -> Asked {
    let mut faults = Reading { asked: Some(Asked::default()), ..Reading::default() };
    if let Ok(node) = Language::of(EVERYTHING).parse("", EVERYTHING) {
        let mut whole = Reader::new(Path::default(), node, &mut faults);
        let mut lists = Lists::default();
        lists.take(&mut whole, 0);
        whole.each(RULES, |mut reader| {
            drop(rule::read(&mut reader, &lists, &Origin::Address));
            reader.finish();
        });
        whole.finish();
    }
    faults.asked.unwrap_or_default()
}

/// The fields whose paths begin so, and which of them must be there.
fn table(asked: &Asked, at: &str, has_null: bool) -> (Map<String, Value>, Vec<String>) {
    let own = |path: &str| {
        let name = path.strip_prefix(at)?;
        (!name.contains(['.', '['])).then(|| name.to_owned())
    };
    let required: Vec<String> = asked.required.iter().filter_map(|path| own(path)).collect();
    let field = |(path, kind): (&String, &Kind)| {
        let name = own(path)?;
        // What must be there must not be null.
        let value = schema(kind, has_null && !required.contains(&name));
        Some((name, value))
    };
    (asked.fields.iter().filter_map(field).collect(), required)
}

fn object(properties: &Map<String, Value>, required: &[String]) -> Value {
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn schema(kind: &Kind, has_null: bool) -> Value {
    let text = json!({ "type": ["string", "integer"] });
    let one = match kind {
        Kind::Anything => return json!(true),
        Kind::Text => text,
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Number(largest) => json!({ "type": "integer", "minimum": 0, "maximum": largest }),
        Kind::Digit(largest) => json!({ "anyOf": [
            { "type": "string", "pattern": format!("^[0-{largest}]$") },
            { "type": "integer", "minimum": 0, "maximum": largest },
        ] }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Texts => json!({ "anyOf": [text, { "type": "array", "items": text }] }),
        Kind::Tables => json!({ "type": "array", "items": { "type": "object" } }),
    };
    if has_null { json!({ "anyOf": [one, { "type": "null" }] }) } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_vendors_is_in_the_schema_with_its_words() {
        let schema = rule_file_schema(SchemaForm::Toml);
        let rule = &schema["$defs"][RULES]["properties"];
        for end in ["source", "destination"] {
            for field in [
                "IPType",
                "IPValue",
                "IPMask",
                "IPRangeFrom",
                "IPRangeTo",
                "IPMultiple",
                "IPListID",
                "IPNot",
                "MACType",
                "MACValue",
                "MACMultiple",
                "MACListID",
                "MACNot",
                "PortType",
                "PortMultiple",
                "PortListID",
                "PortNot",
            ] {
                assert!(!rule[format!("{end}{field}")].is_null(), "{end}{field}");
            }
        }
        let ports = json!({ "enum": ["any", "multiple", "port-list"] });
        assert_eq!(rule["sourcePortType"], ports);
        assert_eq!(rule["frameNumber"]["maximum"], 65_535);
        let actions = json!(["bypass", "log-only", "force-allow", "deny", "allow"]);
        assert_eq!(rule["action"]["enum"], actions);
        assert!(rule["action_"].is_null());
    }
}
