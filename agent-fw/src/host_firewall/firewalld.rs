//! Exceptions in firewalld: rich rules of a zone, in its permanent configuration and now.
//!
//! A rule a prefix where they are few. Where they are many, a set: a new one takes effect only when
//! firewalld is reloaded, and what only its runtime configuration has would be lost by that, so
//! that such a firewalld is left alone.

use super::sources::Sources;
use super::step::{Presence, Step};
use crate::host_firewall::command::Call;
use crate::model::Port;
use anyhow::ensure;

/// Sources that get a rule each.
pub(super) const FEW: usize = 16;
/// The sets, by version of IP.
const SETS: [(&str, bool); 2] = [("agent-fw-v4", true), ("agent-fw-v6", false)];

/// The zone that a packet comes to by an interface.
pub(super) fn zone_of(interface: &str) -> anyhow::Result<String> {
    let of_interface = command(&[&format!("--get-zone-of-interface={interface}")]);
    let zone = of_interface.run().or_else(|_| command(&["--get-default-zone"]).run())?;
    Ok(zone.trim().to_owned())
}

pub(super) fn steps(zone: &str, sources: &Sources, port: Port) -> Vec<Step> {
    let by_mac = sources.macs().iter().map(|mac| format!("source mac=\"{mac}\" "));
    let mut steps = Vec::new();
    let (mut whom, mut is_reloaded) = (Vec::new(), false);
    if *sources == Sources::Everyone {
        whom.push(String::new());
    } else if sources.count() > FEW {
        is_reloaded = true;
        for (set, is_v4) in SETS {
            let addresses = sources.addresses(is_v4);
            if !addresses.is_empty() {
                steps.push(new_set(set, is_v4, &addresses));
                whom.push(format!("{}source ipset=\"{set}\" ", family(is_v4)));
            }
        }
    } else {
        for is_v4 in [true, false] {
            let source = |a: String| format!("{}source address=\"{a}\" ", family(is_v4));
            whom.extend(sources.addresses(is_v4).into_iter().map(source));
        }
    }
    whom.extend(by_mac);
    // Before any other rule of the zone, its denials included.
    let rule = |whom: String| {
        format!("rule priority=\"-32768\" {whom}port port=\"{port}\" protocol=\"tcp\" accept")
    };
    let rules: Vec<String> = whom.into_iter().map(rule).collect();
    steps.extend(rules.iter().map(|rule| rich_rule(zone, rule, true)));
    let now: Vec<Step> = rules.iter().map(|rule| rich_rule(zone, rule, false)).collect();
    if is_reloaded {
        steps.extend(by_reload(zone, now));
    } else {
        steps.extend(now);
    }
    steps
}

/// What firewalld's runtime configuration has and its permanent one has not would be lost by a
/// reload: fails if there is something.
pub(super) fn check_reload() -> anyhow::Result<()> {
    for list in ["--list-all-zones", "--list-all-policies"] {
        let now = command(&[list]).run()?;
        let permanent = command(&["--permanent", list]).run()?;
        ensure!(
            lasting(&now) == lasting(&permanent),
            "firewalld must be reloaded for so many sources, and would lose what only its runtime \
             configuration has; `firewall-cmd --runtime-to-permanent` keeps it"
        );
    }
    Ok(())
}

/// What a reload would change; interfaces stay where they are, and the order of rules means nothing.
fn lasting(listed: &str) -> Vec<String> {
    let mut zone = "";
    let mut lines = Vec::new();
    for line in listed.lines() {
        if !line.starts_with(char::is_whitespace) {
            zone = line.trim_end_matches(" (active)");
        } else if !line.trim_start().starts_with("interfaces:") {
            lines.push(format!("{zone}: {}", line.trim()));
        }
    }
    lines.sort_unstable();
    lines
}

fn family(is_v4: bool) -> &'static str {
    if is_v4 { "family=\"ipv4\" " } else { "family=\"ipv6\" " }
}

fn command(arguments: &[&str]) -> Call {
    Call::new(["firewall-cmd"].iter().chain(arguments).copied())
}

/// Has firewalld read its permanent configuration again.
pub(super) fn reload() -> Call {
    command(&["--reload"])
}

fn rich_rule(zone: &str, rule: &str, is_permanent: bool) -> Step {
    let call = |verb: &str| {
        let zone = format!("--zone={zone}");
        let rule = format!("--{verb}-rich-rule={rule}");
        let permanent = is_permanent.then_some("--permanent");
        command(&permanent.into_iter().chain([&*zone, &*rule]).collect::<Vec<_>>())
    };
    let when = if is_permanent { "permanent" } else { "now" };
    Step {
        what: format!("a rich rule in firewalld's zone {zone}, {when}: {rule}"),
        presence: Presence::Answer(call("query")),
        is_named: false,
        make: vec![call("add")],
        take_back: vec![call("remove")],
    }
}

/// The same for all rules at once, by a reload: of the permanent ones, and of the sets that they
/// name.
fn by_reload(zone: &str, rules: Vec<Step>) -> Option<Step> {
    let presence = rules.first()?.presence.clone();
    let take_back = rules.into_iter().flat_map(|rule| rule.take_back).collect();
    let what = format!("these rules in firewalld's zone {zone}, now, by a reload");
    Some(Step { what, presence, is_named: false, make: vec![reload()], take_back })
}

/// Whether this firewalld has sets. With iptables it has none without the program ipset, and a
/// reload with one would leave it without any rules.
pub(super) fn has_sets() -> bool {
    let types = command(&["--get-ipset-types"]).run();
    types.is_ok_and(|types| types.split_whitespace().any(|kind| kind == "hash:net"))
}

fn new_set(name: &str, is_v4: bool, addresses: &[String]) -> Step {
    let version = if is_v4 { "inet" } else { "inet6" };
    let (new, most) = (format!("--new-ipset={name}"), addresses.len().max(65_536));
    let (family, most) = (format!("--option=family={version}"), format!("--option=maxelem={most}"));
    let entries = addresses.iter().map(|address| format!("{address}\n")).collect();
    let set = format!("--ipset={name}");
    let fill = ["--permanent", &set, "--add-entries-from-file=/dev/stdin"];
    Step {
        what: format!("firewalld's ipset {name} with {} prefixes", addresses.len()),
        presence: Presence::Output(command(&["--permanent", "--get-ipsets"]), name.to_owned()),
        is_named: true,
        make: vec![
            command(&["--permanent", &new, "--type=hash:net", &family, &most]),
            command(&fill).with_input(entries),
        ],
        take_back: vec![command(&["--permanent", &format!("--delete-ipset={name}")]), reload()],
    }
}

#[cfg(test)]
mod tests {
    use super::lasting;

    #[test]
    fn interfaces_and_order_are_no_difference_between_now_and_permanent() {
        let now =
            "public (active)\n  target: default\n  interfaces: eth0\n  rich rules: \n\ta\n\tb\n";
        let permanent = "public\n  target: default\n  interfaces: \n  rich rules: \n\tb\n\ta\n";
        assert_eq!(lasting(now), lasting(permanent));
        assert_ne!(lasting(now), lasting("public\n  target: DROP\n"));
    }
}
