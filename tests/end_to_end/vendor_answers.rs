//! What the manager's API answers, saved as it comes: files of all kinds together, which rules are
//! this host's, and what is no such answer.

use crate::rule_files::{fits_schema, inside, transcript};
use crate::tests;
use agent_fw_lab::{Finished, agent_fw};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

tests![
    a_directory_of_saved_answers_is_told_and_compiled_as_its_golden_files_say,
    each_predefined_rule_is_compiled_as_the_golden_file_says,
    files_of_all_kinds_are_one_namespace_in_whatever_order,
    only_assigned_rules_hold_and_every_one_of_them_must_be_there,
    rules_of_a_manager_that_nobody_has_assigned_are_refused,
    what_is_no_answer_of_the_api_is_recognised,
    every_fault_of_every_file_is_told_at_once_and_once,
    fields_of_headers_have_one_right_answer_in_the_reader_and_in_the_schema,
    what_a_type_does_not_ask_for_is_ignored_with_a_warning_and_a_forgotten_type_is_a_fault,
    what_cannot_be_enforced_is_left_out_only_where_that_opens_nothing,
];

/// The directory of saved answers.
pub(crate) fn answers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("end_to_end/vendor_answers")
}

const LISTS: [&str; 3] = ["iplists.json", "maclists.json", "portlists.json"];

/// Compares with a golden file. `AGENT_FW_GOLDEN=write` writes it anew.
fn golden(name: &str, found: &str) -> Result<()> {
    let path = answers().join("golden").join(name);
    let version = concat!("agent-fw ", env!("CARGO_PKG_VERSION"));
    let found = found.replace(version, "agent-fw VERSION");
    if std::env::var_os("AGENT_FW_GOLDEN").is_some_and(|value| value == "write") {
        fs::create_dir_all(answers().join("golden"))?;
        fs::write(&path, &found)?;
    }
    let expected =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(found == expected, "{}: now\n{found}", path.display());
    Ok(())
}

/// The command, where the answers are.
fn here(words: &[&str]) -> Result<Finished> {
    inside(answers().to_str().context("a path in UTF-8")?, words)
}

fn a_directory_of_saved_answers_is_told_and_compiled_as_its_golden_files_say() -> Result<()> {
    let files = [&LISTS[..], &["firewallrules.json"]].concat();
    let with = |first: &[&'static str], rest: &[&'static str]| [first, &files, rest].concat();
    for (name, words) in [
        ("check.txt", with(&["rules", "check"], &["policy-web-server.json"])),
        ("check-policy.txt", with(&["rules", "check", "--policy"], &["policy-web-server.json"])),
        ("check-all.txt", with(&["rules", "check", "--policy", "--all-rules"], &[])),
        (
            "baseline.txt",
            with(
                &["compile", "--policy", "--allow-from", "192.0.2.10", "--rules"],
                &["policy-web-server.json"],
            ),
        ),
    ] {
        golden(name, &without_timeout(&transcript(&here(&words)?)))?;
    }
    Ok(())
}

/// For how long this host knows a request is its own affair.
fn without_timeout(said: &str) -> String {
    let is_other = |line: &&str| !line.contains("30 s") && !line.contains(" s on this host");
    said.lines().filter(is_other).map(|line| format!("{line}\n")).collect()
}

/// The rules that the fixture has, each as it is.
fn predefined() -> Result<Vec<Value>> {
    let text = fs::read_to_string(answers().join("firewallrules.json"))?;
    let answer: Value = serde_json::from_str(&text)?;
    Ok(answer["firewallRules"].as_array().context("rules")?.clone())
}

/// A directory of its own, which goes with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("agent-fw-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("a path in UTF-8")?.to_owned())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn each_predefined_rule_is_compiled_as_the_golden_file_says() -> Result<()> {
    let directory = Directory::new("predefined")?;
    for name in LISTS {
        fs::copy(answers().join(name), directory.0.join(name))?;
    }
    let rules = predefined()?;
    ensure!(rules.len() >= 75, "only {} rules", rules.len());
    let mut said = String::new();
    for rule in &rules {
        directory.write("rule.json", rule.to_string())?;
        let words = [
            &["compile", "--policy", "--no-engine-rules", "--all-rules", "--allow-from"][..],
            &["192.0.2.10", "--rules", "rule.json"],
            &LISTS,
        ];
        let finished = inside(directory.0.to_str().context("a path")?, &words.concat())?;
        writeln!(said, "== {} {}", rule["ID"], rule["name"])?;
        said += &relevant(&transcript(&finished));
    }
    golden("predefined.txt", &said)
}

/// What of a table's text is the rule's own: what is in chains and sets, without what is the same
/// for each.
fn relevant(text: &str) -> String {
    let (gate, policy) = text.split_once("The firewall policy").unwrap_or(("", text));
    let outcome = text.lines().last().unwrap_or_default();
    let told = gate.lines().filter(|line| line.starts_with("note:"));
    let is_own = |line: &&str| {
        let line = line.trim();
        let is_same = line.starts_with("type filter hook") || line.contains("--allow-from");
        let words = ["accept", "drop", "goto", "jump", "elements", "log prefix", "error:", "note:"];
        words.iter().any(|word| line.contains(word))
            && !is_same
            && !line.contains("iif \"lo\"")
            && !line.contains("oif \"lo\"")
            && !line.starts_with('#')
            && !line.contains("counter refused")
    };
    let lines = told.chain(policy.lines().filter(is_own));
    let lines: String = lines.map(|line| format!("{}\n", line.trim())).collect();
    format!("{lines}{outcome}\n")
}

/// The firewall that these files compile to, as data.
fn compiled(words: &[&str]) -> Result<Value> {
    let first = ["compile", "--format", "json", "--policy", "--allow-from", "192.0.2.10"];
    let text = here(&[&first, words].concat())?.success()?;
    Ok(serde_json::from_str::<Value>(&text)?["firewall"].clone())
}

fn files_of_all_kinds_are_one_namespace_in_whatever_order() -> Result<()> {
    let mut files = [&LISTS[..], &["firewallrules.json", "policy-web-server.json"]].concat();
    let once = compiled(&[&["--rules"], &files[..]].concat())?;
    ensure!(once["rules"].as_array().is_some_and(|rules| rules.len() == 11 + 4 + 1), "{once:#}");
    files.reverse();
    for (what, more) in [
        ("in another order", &[][..]),
        // The same rule and list once more, the same assignment by a computer's answer, and all
        // policies: those that were asked for alone are meant.
        ("saved twice", &["firewallrule-20.json", "portlist-11.json", "computer-rules.json"]),
        ("beside all policies", &["policies.json"]),
    ] {
        let again = compiled(&[&["--rules"], &files[..], more].concat())?;
        ensure!(again == once, "{what}: {again:#}");
    }
    // Lists that stand alone, of which the kind has to be told by what they list.
    let directory = Directory::new("bare")?;
    let mut words = vec!["compile".to_owned(), "--all-rules".to_owned(), "--rules".to_owned()];
    for (name, value) in [
        (
            "rule",
            json!({
                "name": "r", "action": "bypass", "priority": 4, "direction": "incoming", "frameType": "ip",
                "protocol": "tcp", "sourceIPType": "ip-list", "sourceIPListID": 5,
                "sourceMACType": "mac-list", "sourceMACListID": 5, "destinationPortType": "port-list",
                "destinationPortListID": 5, "ID": 1,
            }),
        ),
        ("ips", json!({ "ID": 5, "name": "a", "items": ["192.0.2.77", "# none"] })),
        ("macs", json!({ "ID": 5, "name": "b", "items": ["02-00-00-00-00-07"] })),
        ("ports", json!([{ "ID": 5, "name": "c", "items": ["4118 # agent", "4119-4120"] }])),
    ] {
        words.push(directory.write(&format!("{name}.json"), value.to_string())?);
    }
    let text = agent_fw(&words)?.success()?;
    ensure!(text.contains("192.0.2.77") && text.contains("02:00:00:00:00:07"), "{text}");
    // Answers that were put into one list, as `jq -s` does.
    let all: Vec<Value> = [&LISTS[..], &["firewallrules.json", "policy-web-server.json"]]
        .concat()
        .iter()
        .map(|name| Ok(serde_json::from_str(&fs::read_to_string(answers().join(name))?)?))
        .collect::<Result<_>>()?;
    let slurped = directory.write("all.json", json!(all).to_string())?;
    let again = compiled(&["--rules", &slurped])?;
    ensure!(again == once, "slurped: {again:#}");
    Ok(())
}

fn only_assigned_rules_hold_and_every_one_of_them_must_be_there() -> Result<()> {
    let rules = [&["--rules", "firewallrules.json"][..], &LISTS].concat();
    for words in [
        &["--assigned", "computer-rules.json"][..],
        &["--assigned", "policy-web-server.json"],
        &["--assigned", "policies.json", "--assigned-policy", "Web Server"],
        &["--assigned", "policies.json", "--assigned-policy", "7"],
    ] {
        let found = compiled(&[&rules[..], words].concat())?;
        let count = found["rules"].as_array().map(Vec::len);
        ensure!(count == Some(11 + 4 + 1), "{words:?}: {found:#}");
    }
    let refused = |words: &[&str], parts: &[&str]| {
        let finished = here(&[&["compile", "--allow-from", "any"], words].concat())?;
        let said = finished.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_said = parts.iter().all(|part| said.contains(part));
        ensure!(finished.code == Some(2) && is_said, "{words:?}: {finished}");
        ensure!(!said.contains("--all-rules if all are meant"), "a second message: {finished}");
        Ok(())
    };
    let of_all = [&rules[..], &["--assigned", "policies.json"]].concat();
    refused(&of_all, &["assign different rules", "`Web Server` (ID 7)", "--assigned-policy"])?;
    let unknown = [&of_all[..], &["--assigned-policy", "Mail"]].concat();
    refused(&unknown, &["no file has a policy `Mail`", "`Base Policy` (ID 1)"])?;
    let silent = [&rules[..], &["--assigned", "portlist-11.json"]].concat();
    refused(&silent, &["portlist-11.json:1: expected an assignment"])?;
    // A rule that is assigned and missing may be a Deny.
    let directory = Directory::new("missing")?;
    let fewer: Vec<Value> =
        predefined()?.into_iter().filter(|rule| rule["ID"] != 47 && rule["ID"] != 49).collect();
    let fewer = directory.write("fewer.json", json!({ "firewallRules": fewer }).to_string())?;
    let words = [&["--rules", &fewer][..], &LISTS, &["--assigned", "computer-rules.json"]];
    refused(&words.concat(), &["computer-rules.json:2: assignedRuleIDs", "47, 49"])?;
    // What another host's rule says matters to nobody here: neither its faults nor its lists.
    let broken = json!({ "firewallRules": [
        { "ID": 5, "name": "another's", "action": "nonsense", "destinationPortListID": 99 },
        { "ID": 6, "name": "ours", "action": "deny", "priority": "4", "direction": "incoming",
          "frameType": "ip", "protocol": "tcp" },
    ], "assignedRuleIDs": [6] });
    let broken = directory.write("broken.json", broken.to_string())?;
    let told = agent_fw(["compile", "--allow-from", "any", "--policy", "--rules", &broken])?;
    told.success()?;
    Ok(())
}

fn rules_of_a_manager_that_nobody_has_assigned_are_refused() -> Result<()> {
    for policy in [&[][..], &["--policy"]] {
        let rules = [
            &["compile", "--allow-from", "any", "--rules", "firewallrule-20.json"],
            &LISTS[..],
            policy,
        ];
        let refused = here(&rules.concat())?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("--all-rules"), "{refused}");
        here(&[&rules.concat()[..], &["--all-rules"]].concat())?.success()?;
    }
    let told = here(&[&["rules", "check", "firewallrule-20.json"], &LISTS[..]].concat())?;
    ensure!(told.stderr.contains("--assigned FILE"), "{told}");
    Ok(())
}

fn what_is_no_answer_of_the_api_is_recognised() -> Result<()> {
    let directory = Directory::new("foreign")?;
    let utf16: Vec<u8> =
        "\u{feff}{\"firewallRules\": []}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let without_mark = utf16[2..].to_vec();
    let snake = json!({ "firewall_rules": [{ "name": "x", "frame_type": "ip" }] }).to_string();
    let snake_rule = json!([{ "name": "x", "action": "deny", "frame_type": "ip" }]).to_string();
    let inside = json!({ "firewallRules": [{ "name": "x", "source_iptype": "any" }] }).to_string();
    let result = json!({ "changed": false, "config": { "firewall_rules": [] } }).to_string();
    for (text, expected) in [
        (r#"{"message": "Invalid API key"}"#.as_bytes(), "`Invalid API key`"),
        (b"<?xml version=\"1.0\"?><rules/>", "XML"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\"Name\",\"Action\",\"Priority\"\n\"SSH\",\"Allow\",\"0\"\n", "CSV"),
        (b"firewallRules:\n- name: x\n", "YAML"),
        (b"", "is empty"),
        (&utf16, "UTF-16"),
        (&without_mark, "UTF-16"),
        (snake.as_bytes(), "snake_case"),
        (snake_rule.as_bytes(), "snake_case"),
        (inside.as_bytes(), "snake_case"),
        (result.as_bytes(), "snake_case"),
        (b"{\"firewallRules\": []}\n{\"ipLists\": []}\n", "a file of its own"),
        (b"{\"events\": [], \"tags\": 1}", "expected rules, lists, a policy"),
    ] {
        let path = directory.write("answer", text)?;
        for command in [&["rules", "check"][..], &["compile", "--allow-from", "any", "--rules"]] {
            for lenient in [&[][..], &["--lenient"]] {
                let refused = agent_fw(command.iter().chain(&[path.as_str()]).chain(lenient))?;
                let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
                ensure!(
                    refused.code == Some(2) && said.contains(expected),
                    "{expected}: {refused}"
                );
            }
        }
    }
    Ok(())
}

fn every_fault_of_every_file_is_told_at_once_and_once() -> Result<()> {
    let directory = Directory::new("faults")?;
    let rule = |name: &str, more: Value| {
        let mut rule = json!({
            "name": name, "action": "deny", "priority": "0", "direction": "incoming",
            "frameType": "ip", "protocol": "tcp",
        });
        let fields =
            rule.as_object_mut().map(|rule| more.as_object().map(|more| rule.extend(more.clone())));
        fields.flatten();
        rule
    };
    let first = json!([
        rule("a", json!({ "destinationPortType": "port-list", "destinationPortListID": 3 })),
        rule("b", json!({ "destinationPortType": "port-list", "destinationPortListID": 4 })),
        rule("c", json!({ "scheduleID": 7, "contextID": 8 })),
    ]);
    let first = directory.write("1.json", format!("{first:#}"))?;
    let second = json!({ "portLists": [{ "ID": 3, "name": "x", "items": ["80", "eighty"] }] });
    let second = directory.write("2.json", format!("{second:#}"))?;
    let third = directory.write("3.json", "{\n  \"ipLists\": [\n")?;
    let fourth = directory.write("4.json", "<x/>")?;
    let words = ["compile", "--allow-from", "any", "--policy", "--rules"];
    let files = [&first, &second, &third, &fourth].map(String::as_str);
    let refused = agent_fw(words.iter().chain(&files))?;
    let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(refused.code == Some(2), "{refused}");
    for (part, times) in [
        // Of the faulty list it is said what is wrong, and not also that there is none.
        ("with ID 3", 0),
        ("`eighty`", 1),
        ("no file has a list with ID 4 in portLists", 1),
        ("schedules are not supported", 1),
        ("contexts are not supported", 1),
        ("3.json:3:", 1),
        ("this is XML", 1),
    ] {
        ensure!(said.matches(part).count() == times, "`{part}`: {refused}");
    }
    let told = agent_fw(["rules", "check", "--policy"].iter().chain(&files))?;
    ensure!(told.code == Some(2) && told.stderr.contains("`eighty`"), "{told}");
    Ok(())
}

/// A rule with some more fields, as a bare list.
fn with(more: &Value) -> Value {
    let mut rule = json!({
        "name": "r", "action": "bypass", "priority": "4", "direction": "incoming",
        "frameType": "ip", "sourceIPType": "single", "sourceIPValue": "192.0.2.1",
        "destinationPortType": "multiple", "destinationPortMultiple": ["4118"],
    });
    if let (Some(rule), Some(more)) = (rule.as_object_mut(), more.as_object()) {
        rule.extend(more.clone());
    }
    json!([rule])
}

fn fields_of_headers_have_one_right_answer_in_the_reader_and_in_the_schema() -> Result<()> {
    let directory = Directory::new("headers")?;
    for (more, fault, warning) in [
        (json!({ "protocol": "tcp", "anyFlags": true }), None, None),
        (json!({ "protocol": "tcp", "TCPNot": true }), Some("TCPNot"), None),
        (json!({ "protocol": "tcp", "TCPNot": true, "tcpflags": [] }), Some("TCPNot"), None),
        (json!({ "protocol": "tcp", "TCPNot": true, "tcpflags": ["syn"] }), None, None),
        (json!({ "protocol": "tcp", "anyFlags": false }), Some("anyFlags"), None),
        (json!({ "protocol": "tcp", "anyFlags": false, "tcpflags": ["syn"] }), None, None),
        (
            json!({ "protocol": "tcp", "anyFlags": true, "tcpflags": ["syn"] }),
            None,
            Some("tcpflags: anyFlags is true; it is ignored"),
        ),
        (
            json!({ "protocol": "tcp", "ICMPType": 3, "ICMPCode": 4 }),
            None,
            Some("ICMPType: the protocol is TCP, which has no ICMP type"),
        ),
        (
            json!({ "protocol": "udp", "tcpflags": ["syn"], "TCPNot": true }),
            None,
            Some("the protocol is UDP, which has no TCP flags"),
        ),
        (json!({ "protocol": "tcp", "tcpflags": ["sin"] }), Some("`sin` is no flag"), None),
    ] {
        let data = with(&more);
        let path = directory.write("rules.json", data.to_string())?;
        let checked = agent_fw(["rules", "check", &path])?;
        let said = checked.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!((checked.code == Some(2)) == fault.is_some(), "{more}: {checked}");
        for part in fault.iter().chain(&warning) {
            ensure!(said.contains(part), "{more}: {checked}");
        }
        ensure!(fault.is_some() || warning.is_some() || !said.contains("ignored"), "{checked}");
        // A word that is none is told by `rules check` alone.
        let is_word = more["tcpflags"] == json!(["sin"]);
        ensure!(fits_schema(&data, "json")? == (fault.is_none() || is_word), "{more}: the schema");
        // What `rules check` takes, `compile` takes, too: here the rule replaces the hidden one.
        let compiled = agent_fw(["compile", "--rules", &path])?;
        let is_whole = more["protocol"] == "tcp";
        ensure!(
            compiled.code == Some(if fault.is_some() || !is_whole { 2 } else { 0 }),
            "{compiled}"
        );
    }
    for (more, fault) in [
        (json!({ "protocol": "icmp", "ICMPCode": 4 }), Some("ICMPCode")),
        (json!({ "protocol": "icmp", "ICMPNot": true }), Some("ICMPNot")),
        (json!({ "protocol": "icmp", "anyFlags": false }), Some("anyFlags")),
        (json!({ "protocol": "icmp", "ICMPType": 3, "ICMPCode": 4, "anyFlags": false }), None),
        (json!({ "protocol": "icmpv6", "ICMPType": 128 }), None),
    ] {
        let mut data = with(&more);
        data[0]["destinationPortType"] = "any".into();
        data[0].as_object_mut().map(|rule| rule.remove("destinationPortMultiple"));
        let path = directory.write("rules.json", data.to_string())?;
        let words = ["compile", "--allow-from", "any", "--policy", "--rules", &path];
        let compiled = agent_fw(words)?;
        ensure!((compiled.code == Some(2)) == fault.is_some(), "{more}: {compiled}");
        ensure!(fault.is_none_or(|part| compiled.stderr.contains(part)), "{more}: {compiled}");
        ensure!(fits_schema(&data, "json")? == fault.is_none(), "{more}: the schema");
    }
    for name in [
        "firewallrules.json",
        "portlists.json",
        "policies.json",
        "policy-web-server.json",
        "computer-rules.json",
        "firewallrule-20.json",
        "portlist-11.json",
    ] {
        let data: Value = serde_json::from_str(&fs::read_to_string(answers().join(name))?)?;
        ensure!(fits_schema(&data, "json")?, "{name} does not fit the schema");
    }
    Ok(())
}

fn what_a_type_does_not_ask_for_is_ignored_with_a_warning_and_a_forgotten_type_is_a_fault()
-> Result<()> {
    let directory = Directory::new("types")?;
    let base = || {
        let mut rules = with(&json!({ "protocol": "tcp" }));
        rules[0]["sourceMACType"] = "single".into();
        rules[0]["sourceMACValue"] = "02:00:00:00:00:01".into();
        rules
    };
    let mut beside = base();
    beside[0]["sourceIPType"] = "any".into();
    beside[0]["sourcePortMultiple"] = json!(["80"]);
    beside[0]["sourcePortType"] = "any".into();
    let path = directory.write("rules.json", beside.to_string())?;
    let told = agent_fw(["rules", "check", &path, "--json"])?;
    let json: Value = serde_json::from_str(&told.stdout)?;
    let fields: Vec<&str> = json["without_effect"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|field| field["field"].as_str())
        .collect();
    ensure!(told.code == Some(0), "{told}");
    ensure!(fields == ["[0].sourceIPValue", "[0].sourcePortMultiple"], "{json:#}");
    let compiled = agent_fw(["compile", "--allow-wide", "--rules", &path])?;
    ensure!(compiled.code == Some(0) && compiled.stderr.contains("it is ignored"), "{compiled}");
    // Without a type, the value was meant: to ignore it would open the port.
    let mut forgotten = base();
    forgotten[0].as_object_mut().map(|rule| rule.remove("sourceIPType"));
    let path = directory.write("rules.json", forgotten.to_string())?;
    let refused = agent_fw(["rules", "check", &path])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("`sourceIPType`"), "{refused}");
    Ok(())
}

fn what_cannot_be_enforced_is_left_out_only_where_that_opens_nothing() -> Result<()> {
    let directory = Directory::new("skip")?;
    let rule = |name: &str, action: &str, direction: &str, is_limited: bool| {
        let mut rule = json!({
            "name": name, "action": action, "direction": direction, "frameType": "ip",
            "protocol": "tcp",
            "priority": match action { "allow" => "0", "log-only" => "4", _ => "2" },
        });
        if is_limited {
            rule["contextID"] = 3.into();
        }
        rule
    };
    for (rules, why_not) in [
        (vec![rule("x", "force-allow", "incoming", true)], None),
        (vec![rule("x", "bypass", "incoming", true)], None),
        (
            vec![rule("x", "bypass", "incoming", true), rule("o", "allow", "outgoing", false)],
            Some("answers"),
        ),
        (vec![rule("x", "allow", "incoming", true), rule("y", "allow", "incoming", false)], None),
        (vec![rule("x", "allow", "incoming", true)], Some("the last Allow")),
        (
            vec![rule("x", "allow", "incoming", true), rule("y", "allow", "outgoing", false)],
            Some("the last Allow"),
        ),
        (
            vec![rule("x", "allow", "incoming", true), rule("y", "allow", "incoming", true)],
            Some("the last Allow"),
        ),
        (vec![rule("x", "deny", "incoming", true)], Some("what it denies could pass")),
        (vec![rule("x", "log-only", "incoming", true)], Some("recorded")),
    ] {
        let path = directory.write("rules.json", json!(rules).to_string())?;
        let words = ["compile", "--allow-from", "any", "--policy", "--rules", &path];
        let refused = agent_fw(words)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("contextID"), "{refused}");
        let skipped = agent_fw(words.iter().chain(&["--skip-unsupported"]))?;
        let said = skipped.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        match why_not {
            None => {
                ensure!(
                    skipped.code == Some(0) && said.contains("is left out, as asked"),
                    "{skipped}"
                );
                ensure!(!skipped.stdout.contains("2, Force Allow: x"), "{skipped}");
            }
            Some(why) => ensure!(skipped.code == Some(2) && said.contains(why), "{why}: {skipped}"),
        }
    }
    // A fault of the rule itself is none of agent-fw's lacks.
    let mut faulty = rule("x", "force-allow", "incoming", false);
    faulty["protocol"] = "icmp".into();
    faulty["destinationPortType"] = "multiple".into();
    faulty["destinationPortMultiple"] = json!(["80"]);
    let path = directory.write("rules.json", json!([faulty]).to_string())?;
    let words =
        ["compile", "--allow-from", "any", "--policy", "--skip-unsupported", "--rules", &path];
    ensure!(agent_fw(words)?.code == Some(2));
    Ok(())
}
