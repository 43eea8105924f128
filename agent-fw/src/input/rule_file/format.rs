//! What a file is that is no rule file: the forms in which rules are often saved by mistake, each with
//! what to do about it.

use super::syntax::Node;
use std::collections::BTreeMap;

/// What to save instead.
const API: &str = "save the API's answer as it comes, such as that of GET /api/firewallrules \
                   (`agent-fw install --help` has the commands)";

/// What a text is that is neither JSON nor TOML.
pub(super) fn foreign(text: &str) -> Option<String> {
    let start = text.trim_start();
    let first = start.lines().next().unwrap_or_default().trim_end();
    let said = if start.is_empty() {
        "the file is empty: the download may have failed".to_owned()
    } else if start.get(..9).is_some_and(|word| word.eq_ignore_ascii_case("<!doctype"))
        || start.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("<html"))
    {
        "this is a web page: the address or the key of the request may be wrong".to_owned()
    } else if start.starts_with('<') {
        "this is XML, as the manager's console exports it".to_owned()
    } else if is_yaml(first) {
        "this is YAML".to_owned()
    } else if is_csv(first) {
        "this is CSV, as the manager's console exports lists".to_owned()
    } else {
        return None;
    };
    Some(format!("{said}; {API}"))
}

/// A document of YAML begins with its marker, a list or a bare key.
fn is_yaml(first: &str) -> bool {
    let is_key = |key: &str| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let has_key = first
        .split_once(':')
        .is_some_and(|(key, rest)| is_key(key) && (rest.is_empty() || rest.starts_with(' ')));
    first == "---" || first.starts_with("- ") || has_key
}

/// The first line of CSV names columns.
fn is_csv(first: &str) -> bool {
    let is_column = |column: &str| {
        let column = column.trim().trim_matches('"');
        column.starts_with(|c: char| c.is_ascii_alphabetic())
            && !column.contains(['=', '{', '}', '[', ']', '#'])
    };
    [',', ';', '\t'].into_iter().any(|separator| {
        let columns: Vec<&str> = first.split(separator).collect();
        columns.len() > 2 && columns.iter().all(|column| is_column(column))
    })
}

/// What a table is that is no rule, list, policy or assignment.
pub(super) fn foreign_table(fields: &BTreeMap<String, Node>) -> Option<String> {
    if let Some(Node::Text(message)) = fields.get("message") {
        let shown: String = message.escape_debug().take(120).collect();
        return Some(format!(
            "this is an error that the manager answered, not what was asked for: `{shown}`; check \
             the address and the key of the request, and save the answer again"
        ));
    }
    has_snake_case(fields).then(|| {
        format!(
            "the names of its fields are in snake_case, as the Ansible collection and the Python \
             SDK print them, and not those of the API; {API}"
        )
    })
}

/// Whether these fields are the API's under other names, or the tables in them have such.
pub(super) fn has_snake_case(fields: &BTreeMap<String, Node>) -> bool {
    const KNOWN: [&str; 12] = [
        "firewallrules",
        "iplists",
        "maclists",
        "portlists",
        "assignedruleids",
        "ruleids",
        "frametype",
        "framenumber",
        "sourceiptype",
        "destinationiptype",
        "sourceporttype",
        "destinationporttype",
    ];
    let is_one = |name: &String| name.contains('_') && KNOWN.contains(&&*name.replace('_', ""));
    fields.keys().any(is_one) || fields.values().any(contains_snake_case)
}

fn contains_snake_case(node: &Node) -> bool {
    match node {
        Node::Table(fields) => has_snake_case(fields),
        Node::List(list) => list.iter().any(contains_snake_case),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_rule_file_is_recognised() {
        for (text, expected) in [
            ("", "is empty"),
            (" \r\n", "is empty"),
            ("<!DOCTYPE html><html>", "web page"),
            ("<html>", "web page"),
            ("<?xml version=\"1.0\"?>\n<FirewallRules/>", "XML"),
            ("---\nrules: []\n", "YAML"),
            ("firewallRules:\n  - name: x\n", "YAML"),
            ("- name: x\n", "YAML"),
            ("Name,Action Type,Priority\nWeb,Allow,0\n", "CSV"),
            ("\"Name\";\"Action\";\"Priority\"\n", "CSV"),
        ] {
            let said = foreign(text).unwrap_or_else(|| panic!("{text}"));
            assert!(said.contains(expected), "{text}: {said}");
        }
    }

    #[test]
    fn rule_files_are_not_taken_for_anything_else() {
        for text in [
            "{\"firewallRules\": []}",
            "[{\"name\": \"a,b,c\"}]",
            "[]",
            "[[firewallRules]]\nname = \"a\"\n",
            "# a, b, c\nfirewallRules = []\n",
            "firewallRules = [{name = 'x', action = 'deny', priority = 4}]\n",
        ] {
            assert_eq!(foreign(text), None, "{text}");
        }
    }
}
