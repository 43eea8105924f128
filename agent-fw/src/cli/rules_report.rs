//! What `rules check` found, as JSON, and who a rule admits in words.

use super::report;
use super::rules_check::{Findings, Judged};
use crate::model::rule::{Direction, HiddenRuleMatch, Rule, engine_rules};
use serde_json::{Value, json};

/// Who a rule admits, the first of them, in words.
pub(super) fn sources(rule: &Rule) -> String {
    let source = &rule.source;
    let addresses = shortened(&report::addresses_in_words(&source.addresses));
    let macs = shortened(&source.macs.to_string());
    let to = shortened(&report::addresses_in_words(&rule.destination.addresses));
    let limits = [
        ("from MAC address", macs),
        ("from port", shortened(&source.ports.to_string())),
        ("to", to),
        ("to MAC address", shortened(&rule.destination.macs.to_string())),
    ];
    let limits = limits.into_iter().filter(|(_, value)| value != "any");
    let words = limits.map(|(what, value)| format!(", {what} {value}"));
    let flags = rule.tcp_flags.map(|_| ", with some TCP flags".to_owned());
    std::iter::once(addresses).chain(words).chain(flags).collect()
}

/// The first items of a long list.
fn shortened(list: &str) -> String {
    let items: Vec<&str> = list.split(", ").collect();
    match items.len() {
        ..=8 => list.to_owned(),
        many => format!("{}, and {} more", items[..8].join(", "), many - 8),
    }
}

pub(super) fn as_json(found: &Findings) -> Value {
    let idle = found.idle();
    let idle =
        idle.iter().map(|idle| json!({ "name": idle.rule.name, "shadowed_by": idle.names() }));
    let engine = engine_rules().into_iter().map(|rule| {
        let Rule { name, action, priority, direction, .. } = rule;
        json!({
            "name": name,
            "action": action.to_string(),
            "priority": priority.to_string(),
            "direction": direction.to_string(),
        })
    });
    let files = &found.files;
    let unassigned = files
        .unassigned
        .iter()
        .map(|of| json!({ "name": of.name, "id": of.id, "file": of.file, "line": of.line }));
    let refused = files.refused.iter().map(|refused| {
        let why: Vec<String> = refused.why.iter().map(ToString::to_string).collect();
        json!({
            "name": refused.rule, "file": refused.file, "line": refused.line, "why": why,
            "said": refused.to_string(),
        })
    });
    let idle_fields = files.idle.iter().map(|(place, why)| {
        json!({ "file": place.file, "line": place.line, "field": place.path, "why": why })
    });
    let assignment = files.assignment.as_ref().map(|(assignment, place)| {
        json!({
            "by": assignment.by, "file": place.file, "line": place.line,
            "rules": assignment.rules,
        })
    });
    let restrictive = |direction| found.firewall.restricts(direction);
    let policy = found.is_policy.then(|| {
        json!({
            "incoming_is_restrictive": restrictive(Direction::Incoming),
            "outgoing_is_restrictive": restrictive(Direction::Outgoing),
            "udp_is_stateful": found.firewall.inspected().udp,
        })
    });
    json!({
        "port": found.port.0,
        "replaced": found.is_replaced(),
        "rules": found.judged.iter().map(rule_as_json).collect::<Vec<_>>(),
        "assignment": assignment,
        "lacks_assignment": found.lacks_assignment,
        "unassigned": unassigned.collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
        "left_out": files.left_out.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "without_effect": idle_fields.collect::<Vec<_>>(),
        "policy": policy,
        "never_decide": idle.collect::<Vec<_>>(),
        "engine_rules": engine.collect::<Vec<_>>(),
        "ignored": files.ignored.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn rule_as_json(Judged { written, meaning }: &Judged) -> Value {
    let rule = &written.rule;
    let reasons: Vec<Value> = match meaning {
        HiddenRuleMatch::Differs(misses) => misses
            .iter()
            .map(|miss| {
                json!({ "field": miss.field, "found": miss.found, "required": miss.required })
            })
            .collect(),
        _ => vec![],
    };
    json!({
        "name": rule.name,
        "id": written.id,
        "file": written.file,
        "line": written.line,
        "action": rule.action.to_string(),
        "priority": rule.priority.to_string(),
        "meaning": meaning.word(),
        "said": meaning.to_string(),
        "reasons": reasons,
        "source_addresses": report::addresses_in_words(&rule.source.addresses),
        "source_macs": rule.source.macs.to_string(),
    })
}
