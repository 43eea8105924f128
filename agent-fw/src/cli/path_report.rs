//! The road of a packet, in words and in JSON.

use super::asking::PacketsSent;
use super::report::{self, say};
use crate::model::Port;
use crate::system::ds_agent;
use crate::trace::{
    Action, Conclusion, Decider, Decision, Driver, LegacyRule, PacketTrace, ResolvedProbe, Taker,
    Verdict,
};
use serde_json::{Value, json};
use std::net::IpAddr;

/// What the agent's own rules of iptables mean.
pub(super) const OWN_RULES: &str =
    "it accepts from every address in iptables, which binds no other table";

/// The packet, in a line.
pub(super) fn packet(case: &ResolvedProbe) -> String {
    let ResolvedProbe { syn, mac, is_mac_invented, interface, .. } = case;
    let (from, to, port) = (syn.source, syn.destination, syn.port);
    let invented = if *is_mac_invented { ", invented: the neighbour's is not known" } else { "" };
    format!(
        "TCP from {from} (MAC address {mac}{invented}) to {to} port {port}, by {}",
        interface.name
    )
}

/// Prints the road, a line a station.
pub(super) fn print(case: &ResolvedProbe, road: &PacketTrace) {
    report::remark(&packet(case));
    if let Some(driver) = &road.driver {
        station("XDP", &driver_in_words(driver));
    }
    // What the program does not let pass meets no chain.
    let met = if road.conclusion == Conclusion::AtDriver { &[][..] } else { &road.decisions };
    for (index, decision) in met.iter().enumerate() {
        if index == road.before_routing && road.is_local {
            station("routing", "to this host");
        }
        let Decision { at, base, .. } = decision;
        let hook = base.as_ref().map_or("", |base| base.hook);
        let priority = base.as_ref().map_or(String::new(), |base| format!(" {}", base.priority));
        station(&format!("{hook}{priority}"), &format!("{at}: {}", decided(decision)));
    }
    if road.before_routing == met.len() && road.is_local && !met.is_empty() {
        station("routing", "to this host");
    }
    for missing in &road.missing {
        station("not known", missing);
    }
    if let Some(back) = road.answer_by(case) {
        station("note", &format!("the answer would go out by {back}"));
    }
    if let Some((address, port)) = rewritten(case, road) {
        station("note", &format!("rules have changed where it goes: to {address} port {port}"));
    }
    if let Some(note) = not_taken(case, road) {
        station("note", &note);
    }
    for (program, rule) in ds_agent::own_rules(case.syn.port) {
        let text = format!("the agent has added `{rule}` ({program}): {OWN_RULES}");
        station("note", &text);
    }
    match &road.answer {
        Some(Ok(answer)) if road.connects() == Some(true) && !answer.decisions.is_empty() => {
            station("answer", "this host's own rules let it out");
        }
        Some(Err(why)) => station("not known", &format!("whether the answer gets out: {why}")),
        _ => {}
    }
    station("sent", &PacketsSent::of(road).to_string());
    match &road.conclusion {
        Conclusion::Reaches if road.connects() == Some(true) => {
            report::good("reaches", "the port: the next is the socket");
        }
        _ if road.connects().is_none() => report::caution("not known:", not_known(road)),
        Conclusion::Reaches => report::bad("does not connect:", conclusion(road)),
        _ => report::bad("does not reach the port:", conclusion(road)),
    }
}

/// Where the packet has come to, where that is not what it was sent to.
fn rewritten(case: &ResolvedProbe, road: &PacketTrace) -> Option<(IpAddr, Port)> {
    road.arrived_at.filter(|end| *end != (case.syn.destination, case.syn.port))
}

/// Why no socket takes a packet that reaches the port, in words.
fn not_taken(case: &ResolvedProbe, road: &PacketTrace) -> Option<String> {
    let (address, port) = road.arrived_at.unwrap_or((case.syn.destination, case.syn.port));
    match &road.taker {
        Some(Taker::Nobody) => Some(format!("nothing listens on TCP {port} now")),
        Some(Taker::Elsewhere(places)) => Some(format!(
            "nothing takes it at {address} port {port}: what listens on that port does so at {}",
            places.join(" and ")
        )),
        Some(Taker::NotKnown) if ds_agent::listeners(port).is_empty() => {
            Some(format!("nothing listens on TCP {port} now"))
        }
        _ => None,
    }
}

/// Why it is not known whether a connection comes about.
fn not_known(road: &PacketTrace) -> String {
    match (&road.conclusion, &road.answer) {
        (Conclusion::Reaches, Some(Err(why))) => {
            format!("it reaches the port, but whether the answer gets out is not known: {why}")
        }
        _ => conclusion(road),
    }
}

fn station(place: &str, text: &str) {
    let (first, others) = (format!("  {place:<16} "), " ".repeat(19));
    say!("{}", report::wrapped(&first, &others, text));
}

fn driver_in_words(driver: &Driver) -> String {
    let Driver { place, program, action } = driver;
    let does = match action {
        Ok(Action::Passes) => "lets it pass",
        Ok(Action::Drops) => "drops it",
        Ok(Action::SendsAway) => "sends it elsewhere",
        Err(_) => "could not be asked",
    };
    format!("{place} program {program} {does}")
}

fn verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Accept => "accept",
        Verdict::Drop => "drop",
        Verdict::Queue => "queue",
        Verdict::Stolen => "stolen",
        Verdict::Continue | Verdict::Return | Verdict::Jump(_) => "continue",
    }
}

/// What a base chain said, and by which rule.
fn decided(decision: &Decision) -> String {
    let said = verdict(&decision.verdict);
    match &decision.decider {
        Decider::Policy => format!("{said} (its policy)"),
        Decider::Rule { at, handle, text } => {
            let text = text.clone().unwrap_or_else(|| format!("rule with handle {handle}"));
            let within =
                if at == &decision.at { String::new() } else { format!("in {}: ", at.chain) };
            format!("{said} ({within}{text})")
        }
    }
}

/// What became of the packet, in one line.
pub(super) fn conclusion(road: &PacketTrace) -> String {
    match &road.conclusion {
        Conclusion::Reaches => match road.stopped_answer() {
            None => "reaches the port".to_owned(),
            Some(PacketTrace { conclusion: Conclusion::NotKnown(why), .. }) => {
                format!("reaches the port; whether the answer gets out is not known: {why}")
            }
            Some(answer) => format!("reaches the port, but the answer is {}", conclusion(answer)),
        },
        Conclusion::AtDriver => match &road.driver {
            Some(driver) => driver_in_words(driver),
            None => "dropped by XDP".to_owned(),
        },
        Conclusion::Dropped(index) => road.decisions.get(*index).map_or_else(String::new, dropped),
        Conclusion::Vanished(place) => format!("dropped {place}"),
        Conclusion::Legacy(rules) => {
            let rules: Vec<String> = rules.iter().map(legacy_rule).collect();
            format!(
                "dropped by iptables-legacy: {}, whose counter grew with each such packet",
                rules.join(" or ")
            )
        }
        Conclusion::AtEntrance(suspects) if suspects.is_empty() => {
            "dropped at the interface's entrance, before nf_tables, as by a port of a bridge or \
             bond; ask about the interface that has the IP address"
                .to_owned()
        }
        Conclusion::AtEntrance(suspects) => format!(
            "dropped at the interface's entrance, before nf_tables: by {}",
            suspects.join(" or ")
        ),
        Conclusion::BelowIp(suspects) if suspects.is_empty() => {
            "dropped behind the hook ingress, before IP: is IP of this version on at the interface?"
                .to_owned()
        }
        Conclusion::BelowIp(suspects) => {
            format!("dropped behind the hook ingress, before IP: by {}", suspects.join(" or "))
        }
        Conclusion::ByProgram(what) => format!("dropped {what}"),
        Conclusion::Unroutable(why) => format!("refused {why}"),
        Conclusion::NotKnown(why) => format!("not known: {why}"),
        Conclusion::Forwarded => "it is for another host: this one would forward it".to_owned(),
    }
}

fn legacy_rule(rule: &LegacyRule) -> String {
    let LegacyRule { table, text, .. } = rule;
    match text.strip_prefix(':').and_then(|text| text.split_once(' ')) {
        Some((chain, _)) => format!("the policy of chain {chain} in table {table}"),
        None => format!("rule `{text}` in table {table}"),
    }
}

fn dropped(decision: &Decision) -> String {
    match &decision.decider {
        Decider::Policy => format!("dropped by the policy of chain {}", decision.at),
        Decider::Rule { at, handle, text } => {
            let text = text.clone().unwrap_or_else(|| format!("handle {handle}"));
            format!("dropped by rule `{text}` in {at}")
        }
    }
}

/// The road as data.
pub(super) fn to_json(case: &ResolvedProbe, road: &PacketTrace) -> Value {
    let decisions = road.decisions.iter().map(|decision| {
        let Decision { at, base, .. } = decision;
        let (rule, chain, handle) = match &decision.decider {
            Decider::Policy => (None, &at.chain, None),
            Decider::Rule { at, handle, text } => (text.clone(), &at.chain, Some(*handle)),
        };
        json!({
            "base_chain": at.to_string(),
            "hook": base.as_ref().map(|base| base.hook),
            "priority": base.as_ref().map(|base| base.priority),
            "verdict": verdict(&decision.verdict),
            "by_policy": decision.decider == Decider::Policy,
            "chain": chain,
            "handle": handle,
            "rule": rule,
        })
    });
    json!({
        "source": case.syn.source,
        "mac": case.mac.to_string(),
        "mac_is_invented": case.is_mac_invented,
        "destination": case.syn.destination,
        "port": case.syn.port.0,
        "interface": case.interface.name,
        "answer_by": road.answer_by(case),
        "listening": match &road.taker {
            Some(Taker::Socket(_)) => true,
            Some(Taker::Nobody | Taker::Elsewhere(_)) => false,
            Some(Taker::NotKnown) | None => !ds_agent::listeners(case.syn.port).is_empty(),
        },
        "not_taken": not_taken(case, road),
        "arrives_at": rewritten(case, road).map(|(address, port)| {
            json!({ "address": address, "port": port.0 })
        }),
        "xdp": road.driver.as_ref().map(driver_in_words),
        "decisions": decisions.collect::<Vec<_>>(),
        "to_this_host": road.is_local,
        "reaches": match road.conclusion {
            Conclusion::NotKnown(_) => None,
            _ => Some(road.conclusion == Conclusion::Reaches),
        },
        "answer": match &road.answer {
            None => Value::Null,
            Some(Ok(answer)) if answer.conclusion == Conclusion::Reaches => json!("gets out"),
            Some(Ok(answer)) => json!(conclusion(answer)),
            Some(Err(why)) => json!(format!("not known: {why}")),
        },
        "connects": road.connects(),
        "conclusion": conclusion(road),
        "missing": road.missing,
        "asked": true,
        "packets_sent": PacketsSent::of(road).to_json(),
    })
}
