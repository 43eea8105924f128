//! How much of the Internet is admitted is judged alike wherever sources are named: at the agent's
//! port, at the relay's, and of what goes out.

use crate::late_gate::{OTHER, rewrite};
use crate::scene::{
    AGENT, Guard, PATIENCE, check, expect, from, install, status, try_install, until,
};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::{IpAddr, SocketAddr};

tests![
    a_relay_that_most_of_the_internet_reaches_is_nowhere_called_closed,
    a_wide_source_needs_consent_at_either_port_however_it_is_written,
    a_file_that_comes_to_name_the_whole_internet_opens_neither_port,
    a_relay_that_is_opened_wide_by_hand_needs_to_be_accepted,
    a_relays_port_that_a_rule_leads_to_is_not_called_closed,
    outgoing_connections_that_a_rule_lets_out_are_not_called_dropped,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";
const REGIONS: &str = "/etc/agent-fw/regions.toml";
const RELAY: u16 = 4122;
const STRANGER: &str = "203.0.113.7";

/// What every command says of the promise: kept or not. `what` is `relay` or `outbound`.
fn said_everywhere(what: &str, doctors: &str) -> Result<Vec<(&'static str, bool)>> {
    let key = format!("{what}_closed");
    let (json, _) = status()?;
    let metrics = agent_fw(["metrics"])?.success()?;
    let verify: serde_json::Value =
        serde_json::from_str(&agent_fw(["verify", "--json"])?.stdout).context("verify")?;
    let text = agent_fw(["status"])?.stdout;
    let line =
        text.lines().find(|line| line.starts_with(&format!("{what}:"))).context(text.clone())?;
    let truths = [&json[&key], &verify[&key]].map(|value| value.as_bool().unwrap_or_default());
    Ok(vec![
        ("status", line.contains("closed to all but") || line.contains("the rest is dropped")),
        ("status --json", truths[0]),
        ("metrics", metrics.contains(&format!("agent_fw_{key} 1"))),
        ("verify --json", truths[1]),
        ("doctor", check(doctors)?.0 == "good"),
    ])
}

fn all_say(what: &str, expected: bool, situation: &str) -> Result<()> {
    let doctors = match what {
        "relay" => "the relay's port is closed to others",
        _ => "other outgoing connections are dropped",
    };
    for (who, closed) in said_everywhere(what, doctors)? {
        ensure!(closed == expected, "{situation}: {who} says closed: {closed}");
    }
    Ok(())
}

fn reaches(peer: &Peer, port: u16, due: Outcome, source: &str) -> Result<()> {
    let seen = from(peer, source, port)?;
    ensure!(seen == due, "from {source} to {port}: {seen}, should be {due}");
    Ok(())
}

/// A region of this host's own.
fn write_region(subnets: &str) -> Result<()> {
    fs::create_dir_all("/etc/agent-fw")?;
    let text = format!(
        "[lab]\nplace = \"Here\"\ndomain = \"lab.example\"\nsubnets = [{subnets}]\nsource = \"a test\"\nas_of = \"2026-01-01\"\n"
    );
    fs::write(REGIONS, text).context(REGIONS)
}

/// A file of one rule that replaces the hidden rule of `port`, with this of its source.
fn write_rule(path: &str, port: u16, source: &str) -> Result<()> {
    let rule = format!(
        "[{{\"name\": \"Manager\", \"action\": \"force-allow\", \"priority\": \"4\", \
          \"direction\": \"incoming\", \"frameType\": \"ip\", \"protocol\": \"tcp\", {source} \
          \"destinationPortType\": \"multiple\", \"destinationPortMultiple\": [\"{port}\"]}}]"
    );
    fs::write(path, rule).context("the rule")
}

const NOT_ONE: &str =
    "\"sourceIPType\": \"single\", \"sourceIPValue\": \"198.51.100.7\", \"sourceIPNot\": true,";
const ONE: &str = "\"sourceIPType\": \"single\", \"sourceIPValue\": \"198.51.100.7\",";
const MOST: &str = "\"sourceIPType\": \"range\", \"sourceIPRangeFrom\": \"1.0.0.0\", \
                    \"sourceIPRangeTo\": \"223.255.255.255\",";

fn a_relay_that_most_of_the_internet_reaches_is_nowhere_called_closed() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        let agents = ["--allow-from", "region:us-1"];
        fs::write("/run/half.list", "0.0.0.0/1\n128.0.0.0-191.255.255.255\n")?;
        write_region("\"0.0.0.0/1\", \"128.0.0.0/2\", \"192.0.0.0/3\"")?;
        install(&[&agents[..], &["--relay", "192.0.2.0/24"]].concat())?;
        all_say("relay", true, "one network")?;
        reaches(&peer, RELAY, Outcome::Silent, STRANGER)?;
        let rule = "/run/relay.json";
        write_rule(rule, RELAY, MOST)?;
        let by_rule = ["--rules", rule, "--policy", "--relay", "192.0.2.0/24"];
        for words in [
            &["--relay", "0.0.0.0/0"][..],
            &["--relay", "1.0.0.0-223.255.255.255"],
            &["--relay", "0.0.0.0/1", "--relay", "192.0.0.0/4"],
            &["--relay", "file:/run/half.list"],
            &["--relay", "region:lab"],
            &by_rule,
        ] {
            let said = install(&[&agents[..], words, &["--allow-wide"]].concat())?;
            ensure!(said.contains("4122 is not closed"), "{words:?}: {said}");
            all_say("relay", false, &format!("{words:?}"))?;
            // What is meant is no alarm.
            ensure!(agent_fw(["status", "--check"])?.code == Some(0));
            let stranger =
                if words.contains(&"file:/run/half.list") { "9.9.9.9" } else { STRANGER };
            let stranger = if words.contains(&"192.0.0.0/4") { "198.51.100.9" } else { stranger };
            reaches(&peer, RELAY, Outcome::Talked, stranger)?;
        }
        Ok(())
    })
}

fn a_wide_source_needs_consent_at_either_port_however_it_is_written() -> Result<()> {
    Lab::run(|_| {
        fs::write("/run/all.list", "0.0.0.0/0\n::/0\n")?;
        fs::write("/run/wide.list", "10.0.0.0/8\n11.0.0.0/8\n")?;
        write_region("\"10.0.0.0/8\", \"11.0.0.0/8\"")?;
        let file = |name: &str, source| write_rule(&format!("/run/{name}.json"), AGENT, source);
        file("not", NOT_ONE)?;
        file("most", MOST)?;
        file("any", "")?;
        write_rule("/run/relay.json", RELAY, MOST)?;
        install(&["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"])?;
        let (port, relay) = (["--allow-from", "region:us-1"], ["--relay", "192.0.2.0/24"]);
        for words in [
            &["--allow-from", "file:/run/wide.list"][..],
            &["--allow-from", "file:/run/all.list"],
            &["--allow-from", "0.0.0.0/0", "--allow-from", "::/0"],
            &["--allow-from", "region:lab"],
            &["--rules", "/run/not.json"],
            &["--rules", "/run/most.json"],
            &["--rules", "/run/any.json"],
            &["--rules", "/run/not.json", "--policy"],
        ] {
            let refused = try_install(&[words, &relay].concat())?;
            ensure!(refused.code == Some(2), "{words:?}: {refused}");
            ensure!(refused.stderr.contains("--allow-wide"), "{words:?}: {refused}");
        }
        for words in [
            &["--relay", "0.0.0.0/0"][..],
            &["--relay", "10.0.0.0-11.0.0.0"],
            &["--relay", "10.0.0.0/8", "--relay", "11.0.0.0/8"],
            &["--relay", "0.0.0.0/0", "--relay", "::/0"],
            &["--relay", "file:/run/wide.list"],
            &["--relay", "file:/run/all.list"],
            &["--relay", "region:lab"],
            &["--relay", "192.0.2.0/24", "--rules", "/run/relay.json", "--policy"],
        ] {
            let refused = try_install(&[&port[..], words].concat())?;
            ensure!(refused.code == Some(2), "{words:?}: {refused}");
            ensure!(refused.stderr.contains("--allow-wide"), "{words:?}: {refused}");
        }
        ensure!(status()?.1 == Some(0), "something was changed");
        Ok(())
    })
}

/// Puts everything anew into force that may: the unit, a person, and the guard.
fn nothing_opens(peer: &Peer, port: u16, what: &str) -> Result<()> {
    let applied = agent_fw(["apply"])?;
    ensure!(applied.code != Some(0), "{what}: {applied}");
    reaches(peer, port, Outcome::Silent, STRANGER).with_context(|| format!("{what}: apply"))?;
    run(["nft", "flush", "ruleset"])?;
    let booted = agent_fw(["apply", "--boot"])?;
    ensure!(booted.code == Some(1), "{what}: {booted}");
    reaches(peer, port, Outcome::Silent, STRANGER).with_context(|| format!("{what}: boot"))?;
    run(["nft", "flush", "ruleset"])?;
    reaches(peer, port, Outcome::Talked, STRANGER).context("it would have arrived")?;
    let _guard = Guard::start()?;
    until("the guard closes it", || Ok(from(peer, STRANGER, port)? == Outcome::Silent))
        .with_context(|| format!("{what}: guard"))
        .map(drop)
}

fn a_file_that_comes_to_name_the_whole_internet_opens_neither_port() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [AGENT, RELAY].map(|port| Listener::bind(port).expect("free"));
        let list = "/run/a.list";
        let ours = ["--allow-from", "198.51.100.7"];
        for all in ["0.0.0.0/0\n", "0.0.0.0/0\n::/0\n", "0.0.0.0/1\n128.0.0.0/1\n"] {
            fs::write(list, "198.51.100.7\n")?;
            install(&["--allow-from", "file:/run/a.list"])?;
            fs::write(list, all)?;
            nothing_opens(&peer, AGENT, &format!("a list of the agent's: {all}"))?;
            agent_fw(["uninstall"])?.success()?;
            fs::write(list, "198.51.100.7\n")?;
            install(&[&ours[..], &["--relay", "file:/run/a.list"]].concat())?;
            fs::write(list, all)?;
            nothing_opens(&peer, RELAY, &format!("a list of the relay's: {all}"))?;
            agent_fw(["uninstall"])?.success()?;
        }
        for (flag, port) in [("--allow-from", AGENT), ("--relay", RELAY)] {
            write_region("\"198.51.100.7/32\"")?;
            let others: &[&str] = if port == RELAY { &ours } else { &[] };
            install(&[others, &[flag, "region:lab"]].concat())?;
            write_region("\"0.0.0.0/0\", \"::/0\"")?;
            nothing_opens(&peer, port, &format!("a region of {flag}"))?;
            agent_fw(["uninstall"])?.success()?;
        }
        for wide in ["", NOT_ONE, MOST] {
            for words in [&["--rules", "/run/a.json"][..], &["--rules", "/run/a.json", "--policy"]]
            {
                write_rule("/run/a.json", AGENT, ONE)?;
                install(words)?;
                write_rule("/run/a.json", AGENT, wide)?;
                nothing_opens(&peer, AGENT, &format!("{words:?}: {wide}"))?;
                agent_fw(["uninstall"])?.success()?;
            }
        }
        Ok(())
    })
}

fn a_relay_that_is_opened_wide_by_hand_needs_to_be_accepted() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        install(&["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"])?;
        let text = fs::read_to_string(POLICY)?;
        let text = text.replace("relay = [\"192.0.2.0/24\"]", "relay = [\"0.0.0.0/0\"]");
        fs::write(POLICY, &text)?;
        let refused = agent_fw(["apply", "--accept-opening"])?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("allow_wide"), "{refused}");
        fs::write(POLICY, text.replace("allow_wide = false", "allow_wide = true"))?;
        let refused = agent_fw(["apply"])?;
        ensure!(refused.stderr.contains("--accept-opening"), "{refused}");
        ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
        reaches(&peer, RELAY, Outcome::Silent, STRANGER)?;
        agent_fw(["apply", "--accept-opening"])?.success()?;
        reaches(&peer, RELAY, Outcome::Talked, STRANGER)?;
        all_say("relay", false, "accepted")
    })
}

fn a_relays_port_that_a_rule_leads_to_is_not_called_closed() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        install(&["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"])?;
        all_say("relay", true, "before")?;
        for (priority, open) in [(-20, false), (10, true)] {
            rewrite(priority, RELAY)?;
            let due = if open { Outcome::Talked } else { Outcome::Silent };
            reaches(&peer, OTHER, due, STRANGER).with_context(|| format!("at {priority}"))?;
            all_say("relay", !open, &format!("rewritten at priority {priority}"))?;
            ensure!(agent_fw(["status", "--check"])?.code == Some(i32::from(open)));
            run(["nft", "delete", "table", "inet", "rewriting"])?;
        }
        // Sent on to a container, before any table of agent-fw's.
        lab.forward()?;
        let container = lab.peer("container")?;
        let _there = container.enter(|| Listener::bind(RELAY))??;
        let to = container.v4();
        let rule = format!(
            "table ip x {{ chain c {{ type nat hook prerouting priority -100;\n\
             iifname world0 tcp dport {RELAY} dnat to {to}\n}}\n}}"
        );
        feed(["nft", "-f", "-"], &rule)?;
        reaches(&peer, RELAY, Outcome::Talked, STRANGER)?;
        all_say("relay", false, "sent on")
    })
}

fn outgoing_connections_that_a_rule_lets_out_are_not_called_dropped() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there = peer.enter(|| Listener::bind(3306))??;
        let (here, there) = (IpAddr::from(peer.host_v4()), IpAddr::from(peer.v4()));
        let out = || connect(here, SocketAddr::new(there, 3306), PATIENCE);
        let denied = ["--allow-from", "region:us-1", "--default-deny-outbound"];
        install(&denied)?;
        all_say("outbound", true, "the rest is dropped")?;
        ensure!(!matches!(out(), Ok(Outcome::Talked)), "it gets out");
        let rule = "[{\"name\": \"All out\", \"action\": \"force-allow\", \"priority\": \"0\", \
                    \"direction\": \"outgoing\", \"frameType\": \"ip\", \"protocol\": \"tcp\"}]";
        fs::write("/run/out.json", rule)?;
        let said = install(&[&denied[..], &["--rules", "/run/out.json", "--policy"]].concat())?;
        ensure!(said.contains("the rest is not dropped"), "{said}");
        ensure!(matches!(out(), Ok(Outcome::Talked)), "it does not get out");
        all_say("outbound", false, "a rule lets all out")?;
        expect(&peer, Outcome::Silent, &[STRANGER])
    })
}
