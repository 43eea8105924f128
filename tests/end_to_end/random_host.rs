//! Rulesets as other firewalls of a host have them, drawn at random.

use crate::chance::Chance;
use crate::scene::AGENT;

/// How many sources they are about: 192.0.2.0 and on, and 2001:db8::3 and every fourth on.
pub(crate) const SOURCES: usize = 20;

/// Tables, priorities, policies, sets, jumps, NAT, marks, connection tracking, output filtering.
pub(crate) fn ruleset(chance: &mut Chance) -> String {
    let mut lines = vec!["flush ruleset".to_owned()];
    for number in 0..=chance.below(3) {
        let family = *chance.pick(&["inet", "inet", "ip", "ip6"]);
        lines.push(format!("table {family} host{number} {{"));
        lines.extend(set(chance));
        lines.push("chain inner {".to_owned());
        lines.extend((0..2).map(|_| rule(chance, family, false)));
        lines.push("}".to_owned());
        for hook in ["prerouting", "input"] {
            if !chance.once_in(4) {
                lines.extend(base_chain(chance, family, hook));
            }
        }
        if chance.once_in(2) {
            lines.extend(output(chance, family));
        }
        if chance.once_in(3) {
            lines.push("chain nat {\ntype nat hook prerouting priority -100;".to_owned());
            let (source, port) = (from(chance, family), AGENT + 1);
            lines.push(format!("{source} tcp dport {AGENT} redirect to :{port}\n}}"));
        }
        lines.push("}".to_owned());
    }
    lines.join("\n") + "\n"
}

fn set(chance: &mut Chance) -> Vec<String> {
    let (a, b) = (chance.below(SOURCES), chance.below(SOURCES));
    let (first, last) = (a.min(b), a.max(b));
    vec![
        "set some {\ntype ipv4_addr\nflags interval".to_owned(),
        format!("elements = {{ 192.0.2.{first}-192.0.2.{last} }}\n}}"),
    ]
}

fn base_chain(chance: &mut Chance, family: &str, hook: &str) -> Vec<String> {
    let priority = *chance.pick(&[-310, -250, -150, -10, 0, 10, 100]);
    let policy = if hook == "input" && chance.once_in(3) { "drop" } else { "accept" };
    // Neighbours have to be found, and connections have to go on.
    let goes_on = if priority > -200 {
        "ct state established,related accept"
    } else {
        "tcp flags & (syn | ack) != syn accept"
    };
    let mut lines = vec![
        format!("chain {hook} {{\ntype filter hook {hook} priority {priority}; policy {policy};"),
        "meta l4proto ipv6-icmp accept".to_owned(),
        goes_on.to_owned(),
    ];
    lines.extend((0..chance.below(5)).map(|_| rule(chance, family, true)));
    lines.push("}".to_owned());
    lines
}

/// What the answers meet.
fn output(chance: &mut Chance, family: &str) -> Vec<String> {
    let hook = *chance.pick(&["output", "output", "postrouting"]);
    let priority = *chance.pick(&[-310, -150, 0, 50, 110]);
    let is_closed = chance.once_in(3);
    let policy = if is_closed { "drop" } else { "accept" };
    let mut lines = vec![
        format!("chain out {{\ntype filter hook {hook} priority {priority}; policy {policy};"),
        "meta l4proto ipv6-icmp accept".to_owned(),
    ];
    if is_closed && priority > -200 && !chance.once_in(3) {
        lines.push("ct state established accept".to_owned());
    }
    for _ in 0..=chance.below(3) {
        let to = from(chance, family).replace("saddr", "daddr");
        let port = *chance.pick(&["4118", "4119", "{ 4118, 4119 }", "22", "!= 4118"]);
        let action = *chance.pick(&["accept", "accept", "drop", "counter drop"]);
        lines.push(format!("{to} tcp sport {port} {action}"));
    }
    lines.push("}".to_owned());
    lines
}

fn from(chance: &mut Chance, family: &str) -> String {
    let (a, b) = (chance.below(SOURCES), chance.below(SOURCES));
    match chance.below(6) {
        0 if family != "ip6" => "ip saddr @some".to_owned(),
        1 if family != "ip6" => "ip saddr != @some".to_owned(),
        2 if family != "ip6" => format!("ip saddr 192.0.2.{a}"),
        3 if family != "ip6" => format!("ip saddr {{ 192.0.2.{a}, 192.0.2.{} }}", b + SOURCES),
        4 if family != "ip" => format!("ip6 saddr 2001:db8::{}", a / 4 * 4 + 3),
        _ => String::new(),
    }
}

fn rule(chance: &mut Chance, family: &str, may_jump: bool) -> String {
    let source = from(chance, family);
    let condition = *chance.pick(&[
        "tcp dport 4118",
        "tcp dport { 4118, 4119 }",
        "tcp dport 4119",
        "tcp dport 22",
        "meta mark 7",
        "meta l4proto tcp",
    ]);
    let action = *chance.pick(&[
        "accept",
        "accept",
        "drop",
        "counter drop",
        "meta mark set 7",
        "return",
        if may_jump { "jump inner" } else { "continue" },
    ]);
    format!("{source} {condition} {action}")
}
