//! Changes by hand of each kind of rule, as the program `verify` reports them: with a packet that
//! behaves so.

use super::counterexample::{agree, prove, widen};
use super::kernel::Stage;
use super::proof::listing;
use crate::scene::install;
use crate::tests;
use crate::verify::verify;
use agent_fw::configuration::Configuration;
use agent_fw::input::{Catalogue, Lists};
use agent_fw::model::firewall::Firewall;
use agent_fw_lab::{Lab, Peer, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;

tests![
    a_change_by_hand_of_each_kind_of_rule_is_reported_with_a_packet_that_behaves_so,
    a_change_by_hand_of_outbound_rules_is_reported_with_a_packet_that_behaves_so,
    a_change_by_hand_of_the_relays_rules_is_reported_with_a_packet_that_behaves_so,
];

const TABLE: &str = "inet agent_fw_policy";

fn rule(name: &str, action: &str, priority: u8, direction: &str, more: &Value) -> Value {
    let mut rule = json!({
        "name": name, "action": action, "priority": priority.to_string(),
        "direction": direction, "frameType": "ip",
    });
    let fields = rule.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    rule
}

/// A rule of each kind.
fn policy() -> Value {
    let to = |protocol: &str, ports: &[&str]| {
        json!({ "protocol": protocol, "destinationPortType": "multiple",
            "destinationPortMultiple": ports })
    };
    let from = |sources: &[&str]| json!({ "protocol": "any", "sourceIPType": "multiple", "sourceIPMultiple": sources });
    let mut syns = to("tcp", &["8080"]);
    syns["tcpFlags"] = json!(["syn"]);
    let ping = json!({ "protocol": "icmp", "icmpType": 8, "icmpCode": 0 });
    let rules = vec![
        rule("web", "allow", 0, "incoming", &to("tcp", &["80", "443", "8080"])),
        rule("names", "force-allow", 1, "incoming", &to("udp", &["53"])),
        rule("bad", "deny", 3, "incoming", &from(&["192.0.2.2", "192.0.2.4-192.0.2.6"])),
        rule("watch", "log-only", 4, "incoming", &to("tcp", &["443"])),
        rule("agent", "bypass", 4, "incoming", &to("tcp", &["4118"])),
        rule("syns", "deny", 2, "incoming", &syns),
        rule("ping", "force-allow", 0, "incoming", &ping),
        rule("secure", "allow", 0, "outgoing", &to("tcp", &["443", "8443"])),
        rule("out names", "deny", 2, "outgoing", &to("udp", &["5353"])),
    ];
    Value::Array(rules)
}

/// The policy that is installed beyond the agent's port.
fn installed() -> Result<Firewall> {
    let text = fs::read_to_string("/etc/agent-fw/policy.toml")?;
    let configuration = Configuration::parse("policy.toml", &text)?;
    let compiled = configuration.compile(&Catalogue::published()?, &Lists::default())?;
    compiled.firewall.context("there is a policy")
}

/// Where in the table a rule is that has this text: chain and handle, and what it says.
fn find(chain: &str, part: &str) -> Result<[String; 3]> {
    let rules = listing()?;
    let found = rules.iter().find(|[of, text, _]| of == chain && text.contains(part));
    found.cloned().with_context(|| format!("no rule of {chain} has `{part}`: {rules:#?}"))
}

/// Carries a change out, demands that `verify` reports it, and tries the packet that it names.
fn reports(stage: &mut Stage, peer: &Peer, script: &str, drops: bool) -> Result<()> {
    let firewall = installed()?;
    let before = verify()?;
    ensure!(before.1.code == Some(0), "{script}: a false alarm: {}", before.1);
    run(["nft", script])?;
    let (value, finished) = verify()?;
    ensure!(finished.code == Some(1), "{script}: not reported: {finished}");
    let found = &value["counterexample"];
    ensure!(found["kernel_drops"] == drops, "{script}: {value:#}");
    let plain = agent_fw(["verify"])?;
    ensure!(plain.stdout.contains("a packet that is decided otherwise"), "{plain}");
    let found = prove(&firewall)?.context("a counterexample")?;
    let agreed = agree(stage, peer, &firewall, &found).with_context(|| script.to_owned())?;
    ensure!(agreed.is_some(), "{script}: this packet cannot be sent: {found:?}");
    agent_fw(["apply"])?.success()?;
    Ok(())
}

fn replaced(chain: &str, part: &str, from: &str, to: &str) -> Result<String> {
    let [_, text, handle] = find(chain, part)?;
    ensure!(text.contains(from), "{text} has no `{from}`");
    Ok(format!("replace rule {TABLE} {chain} handle {handle} {}", text.replace(from, to)))
}

fn deleted(chain: &str, part: &str) -> Result<String> {
    let [_, _, handle] = find(chain, part)?;
    Ok(format!("delete rule {TABLE} {chain} handle {handle}"))
}

/// The set that a rule looks into.
fn set_of(chain: &str, part: &str) -> Result<String> {
    let [_, text, _] = find(chain, part)?;
    let (_, rest) = text.split_once('@').with_context(|| format!("no set in {text}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().to_owned())
}

fn on_stage(
    words: &[&str],
    test: impl FnOnce(&mut Stage, &Peer) -> Result<()> + Send,
) -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let mut stage = Stage::set(&peer)?;
        widen(&peer)?;
        fs::write("/run/rules.json", policy().to_string())?;
        install(words)?;
        test(&mut stage, &peer)
    })
}

fn a_change_by_hand_of_each_kind_of_rule_is_reported_with_a_packet_that_behaves_so() -> Result<()> {
    on_stage(&["--rules", "/run/rules.json", "--policy", "--allow-wide"], |stage, peer| {
        let mut change =
            |script: Result<String>, drops: bool| reports(stage, peer, &script?, drops);
        // Allow, Force Allow, Deny.
        change(deleted("incoming", "rule_web"), true)?;
        change(replaced("incoming", "rule_names", "accept", "drop"), true)?;
        change(deleted("incoming", "rule_bad"), false)?;
        // TCP flags, ICMP.
        change(deleted("incoming", "rule_syns"), false)?;
        change(deleted("incoming", "rule_ping"), true)?;
        // Log Only, with a verdict that it has not.
        let [_, _, handle] = find("incoming", "rule_watch")?;
        let drop = format!("replace rule {TABLE} incoming handle {handle} tcp dport 443 drop");
        change(Ok(drop), true)?;
        // Bypass: without its label, answers would pass.
        change(replaced("incoming", "rule_agent", "goto bypass", "accept"), false)?;
        // What goes out, and what goes back.
        change(replaced("outgoing", "rule_out_names", "drop", "accept"), false)?;
        change(deleted("outgoing", "rule_secure"), true)?;
        change(deleted("outgoing", "ct direction reply accept"), true)?;
        change(Ok(format!("insert rule {TABLE} incoming ct state established drop")), true)?;
        change(
            Ok(format!("insert rule {TABLE} incoming tcp flags & (syn|ack) == syn accept")),
            false,
        )?;
        change(Ok(format!("insert rule {TABLE} outgoing icmp type echo-request accept")), false)?;
        // An element that is added by hand.
        let ports = set_of("incoming", "rule_web")?;
        change(Ok(format!("add element {TABLE} {ports} {{ 9000 }}")), false)?;
        // A set of values has its size, and no room for more.
        let bad = set_of("incoming", "rule_bad")?;
        let exchange = format!(
            "delete element {TABLE} {bad} {{ 192.0.2.2 }}; add element {TABLE} {bad} {{ 192.0.2.9 }}"
        );
        change(Ok(exchange), true)?;
        Ok(())
    })
}

fn a_change_by_hand_of_outbound_rules_is_reported_with_a_packet_that_behaves_so() -> Result<()> {
    on_stage(&["--allow-from", "any", "--default-deny-outbound"], |stage, peer| {
        let mut change = |script: String, drops: bool| reports(stage, peer, &script, drops);
        change(format!("insert rule {TABLE} outgoing tcp dport 8443 accept"), false)?;
        change(format!("insert rule {TABLE} outgoing udp dport 53 drop"), true)?;
        change(deleted("refused_outgoing", "drop")?, false)
    })
}

fn a_change_by_hand_of_the_relays_rules_is_reported_with_a_packet_that_behaves_so() -> Result<()> {
    let relay = ["--allow-from", "any", "--relay", "192.0.2.2", "--relay", "192.0.2.8"];
    on_stage(&relay, |stage, peer| {
        let mut change = |script: String, drops: bool| reports(stage, peer, &script, drops);
        change(format!("insert rule {TABLE} incoming ip saddr 192.0.2.5 accept"), false)?;
        change(deleted("incoming", "drop")?, false)?;
        change(deleted("incoming", "--relay")?, true)
    })
}
