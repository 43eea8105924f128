//! `agent-fw explain`: what it says of a source is what a real connection meets, and asking leaves
//! no trace.

use crate::chance::Chance;
use crate::random_host::{SOURCES, ruleset};
use crate::scene::{AGENT, PATIENCE, address, connect_from, install};
use crate::tests;
use agent_fw::model::Port;
use agent_fw::trace;
use agent_fw::trace::{ProbeRequest, ResolvedProbe, SideEffects};
use agent_fw_lab::{
    Finished, Lab, Listener, Outcome, Peer, Wire, agent_fw, connect, feed, is_emulated,
    kill_agent_fw_after, rounds, run,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

tests![
    explain_says_of_random_host_rulesets_what_real_connections_meet,
    explain_names_the_rule_of_another_firewall_that_drops_a_listed_source,
    explain_sends_nothing_wakes_nobody_and_leaves_nothing,
    killed_at_any_moment_explain_leaves_nothing,
    explain_asks_the_xdp_program_and_sees_the_reverse_path_filter,
    explain_tells_whether_the_answer_gets_out,
    explain_names_the_rules_of_iptables_legacy,
    explain_names_the_agents_own_rules,
];

fn explain(source: &str) -> Result<(Value, Finished)> {
    let finished = agent_fw(["explain", "--json", "--from", source])?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("explain's answer is no JSON: {finished}"))?;
    Ok((value, finished))
}

/// What a host's tables and devices are, and how many connections are tracked.
fn state() -> Result<(String, String, usize)> {
    // Read, not the kernel's count of entries: that has expired ones, which no packet finds, until
    // a collector comes by within a minute.
    let tracked = "/proc/thread-self/net/nf_conntrack";
    // Without connection tracking, which its first user loads, nothing is tracked.
    let tracked = if Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists() {
        std::fs::read_to_string(tracked).with_context(|| tracked)?.lines().count()
    } else {
        0
    };
    Ok((run(["nft", "list", "tables"])?, run(["ip", "-brief", "link"])?, tracked))
}

fn explain_names_the_rule_of_another_firewall_that_drops_a_listed_source() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for source in ["34.205.5.1", "34.205.5.2", "34.205.5.3"] {
            peer.add_address(address(source))?;
        }
        install(&["--allow-from", "region:us-1"])?;
        let rules = "table inet host {\n\
             chain inner {\nip saddr 34.205.5.2 counter drop comment \"not that one\"\n}\n\
             chain input {\ntype filter hook input priority 0; policy drop;\n\
             ct state established,related accept\n\
             tcp dport { 22, 4000-5000 } jump inner\n\
             ip saddr 34.205.5.1 accept\n}\n}\n";
        feed(["nft", "-f", "-"], rules)?;
        for (source, outcome, part) in [
            ("34.205.5.1", Outcome::Talked, "reaches the port"),
            (
                "34.205.5.2",
                Outcome::Silent,
                "rule `ip saddr 34.205.5.2 counter drop comment \"not that one\"` in inet host inner",
            ),
            ("34.205.5.3", Outcome::Silent, "the policy of chain inet host input"),
        ] {
            let met = connect_from(&peer, address(source), AGENT)?;
            ensure!(met == outcome, "{source}: {met}");
            let (value, finished) = explain(source)?;
            let said = value["conclusion"].as_str().context("a conclusion")?;
            ensure!(said.contains(part), "{source}: {said}");
            ensure!((finished.code == Some(0)) == (outcome == Outcome::Talked), "{finished}");
            let bases: Vec<_> = value["decisions"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|decision| (decision["base_chain"].as_str(), decision["priority"].as_i64()))
                .collect();
            let mut due =
                vec![(Some("inet agent_fw gate"), Some(-300)), (Some("inet host input"), Some(0))];
            if outcome == Outcome::Talked {
                due.push((Some("inet agent_fw late"), Some(2_147_483_645)));
            }
            ensure!(bases == due, "{bases:?}");
            let plain = agent_fw(["explain", "--from", source])?;
            ensure!(plain.stdout.lines().all(|line| line.chars().count() <= 80), "{plain}");
        }
        Ok(())
    })
}

fn explain_sends_nothing_wakes_nobody_and_leaves_nothing() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        // Whatever would answer, by a socket or by a rule.
        let rules = "table inet host {\nchain input {\n\
             type filter hook input priority 0;\nct state new\n\
             ip saddr 34.205.5.7 reject with tcp reset\nip saddr 34.205.5.8 reject\n}\n}\n";
        feed(["nft", "-f", "-"], rules)?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        let before = state()?;
        for source in ["34.205.5.1", "34.205.5.7", "34.205.5.8", "198.51.100.7"] {
            explain(source)?;
        }
        ensure!(state()? == before, "{before:?} became {:?}", state()?);
        let sockets = run(["ss", "--tcp", "--numeric", "--no-header", "state", "syn-recv"])?;
        ensure!(sockets.is_empty(), "a socket was woken: {sockets}");
        // IPv4 to any of the sources would be seen here; a SYN of this host shows that it could.
        let v4 = |frame: &[u8]| (frame.get(12..14) == Some(&[8, 0])).then_some(());
        let seen = wire.find(Duration::from_millis(300), v4)?;
        ensure!(seen.is_none(), "a packet left the host");
        connect(peer.host_v4().into(), (peer.v4(), AGENT).into(), PATIENCE)?;
        ensure!(wire.find(Duration::from_secs(5), v4)?.is_some(), "the wire hears nothing");
        Ok(())
    })
}

fn killed_at_any_moment_explain_leaves_nothing() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        peer.add_address(address("34.205.5.1"))?;
        let before = state()?;
        for delay in 0..40 {
            let delay = Duration::from_millis(delay);
            kill_agent_fw_after(delay, ["explain", "--from", "34.205.5.1"])?;
        }
        // The kernel takes a device of a process that was killed away in its own time, and a tracked
        // connection expires after three seconds.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while state()? != before {
            ensure!(std::time::Instant::now() < deadline, "{before:?} became {:?}", state()?);
            std::thread::sleep(Duration::from_millis(20));
        }
        let (value, _) = explain("34.205.5.1")?;
        ensure!(value["reaches"] == true, "{value:#}");
        Ok(())
    })
}

fn explain_asks_the_xdp_program_and_sees_the_reverse_path_filter() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let other = lab.peer("other")?;
        for source in ["34.205.5.1", "198.51.100.7"] {
            peer.add_address(address(source))?;
        }
        let flags = ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
        install(&flags)?;
        let (value, _) = explain("34.205.5.1")?;
        ensure!(value["reaches"] == true, "{value:#}");
        ensure!(value["xdp"].as_str().is_some_and(|xdp| xdp.contains("lets it pass")), "{value:#}");
        let (value, finished) = explain("198.51.100.7")?;
        ensure!(finished.code == Some(1), "{finished}");
        ensure!(value["conclusion"].as_str().is_some_and(|c| c.contains("drops it")), "{value:#}");
        // From the wrong side: the way back is by manager0.
        lab.host().set_sysctl("net/ipv4/conf/other0/rp_filter", "1")?;
        let to = other.host_v4().to_string();
        let wrong =
            ["explain", "--json", "--from", "34.205.5.1", "--interface", "other0", "--to", &to];
        let refused = agent_fw(wrong)?;
        ensure!(refused.code == Some(1) && refused.stdout.contains("rp_filter"), "{refused}");
        lab.host().set_sysctl("net/ipv4/conf/other0/rp_filter", "0")?;
        let passes = agent_fw(wrong)?;
        ensure!(
            passes.code == Some(0) && passes.stdout.contains("\"answer_by\": \"manager0\""),
            "{passes}"
        );
        Ok(())
    })
}

fn explain_tells_whether_the_answer_gets_out() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let sources = ["34.205.5.1", "2001:db8::1"];
        sources.iter().try_for_each(|source| peer.add_address(address(source)))?;
        install(&["--allow-from", "region:us-1", "--allow-from", "2001:db8::/64"])?;
        let output = |rules: &str| {
            let text = format!(
                "table inet host {{}}\nflush table inet host\ntable inet host {{\nchain output {{\n\
                 type filter hook output priority 0; policy drop;\n\
                 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n{rules}\n}}\n}}\n"
            );
            feed(["nft", "-f", "-"], &text)
        };
        let before = state()?;
        let stopped = "reaches the port, but the answer is dropped by the policy of chain inet host \
                       output";
        for (rules, outcome, said, answer) in [
            ("ct state established accept", Outcome::Talked, "reaches the port", "gets out"),
            ("tcp sport 4118 accept", Outcome::Talked, "reaches the port", "gets out"),
            (
                "ct state new accept",
                Outcome::Silent,
                stopped,
                "dropped by the policy of chain inet",
            ),
            ("", Outcome::Silent, stopped, "dropped by the policy of chain inet host output"),
        ] {
            output(rules)?;
            for source in sources {
                let met = connect_from(&peer, address(source), AGENT)?;
                ensure!(met == outcome, "{source}, {rules}: {met}");
                let (value, finished) = explain(source)?;
                ensure!(value["conclusion"] == said, "{source}, {rules}: {value:#}");
                let found = value["answer"].as_str().unwrap_or_default();
                ensure!(found.starts_with(answer), "{source}, {rules}: {value:#}");
                ensure!(finished.code == Some(i32::from(outcome != Outcome::Talked)), "{finished}");
            }
        }
        let plain = agent_fw(["explain", "--from", sources[0]])?;
        let words = plain.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(words.contains(&format!("does not connect: {stopped}")), "{plain}");
        run(["nft", "delete", "table", "inet", "host"])?;
        // What real connections have left is not ours.
        ensure!(state()?.0 == before.0 && state()?.1 == before.1, "{before:?}: {:?}", state()?);
        Ok(())
    })
}

fn explain_names_the_rules_of_iptables_legacy() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for source in ["34.205.5.1", "2001:db8::1"] {
            peer.add_address(address(source))?;
        }
        install(&["--allow-from", "region:us-1", "--allow-from", "2001:db8::/64"])?;
        let port = "-p tcp --dport 4118 -j";
        for (program, source, rules, named) in [
            (
                "iptables-legacy",
                "34.205.5.1",
                vec![
                    "-A INPUT -p tcp --dport 22 -j DROP".to_owned(),
                    "-N mine".to_owned(),
                    "-A mine -s 34.205.5.2 -j DROP".to_owned(),
                    "-A mine -s 34.205.5.1 -j REJECT".to_owned(),
                    format!("-A INPUT {port} mine"),
                    "-P INPUT DROP".to_owned(),
                ],
                "rule `-A mine -s 34.205.5.1/32 -j REJECT --reject-with icmp-port-unreachable` in \
                 table filter",
            ),
            (
                "iptables-legacy",
                "34.205.5.1",
                vec!["-P INPUT DROP".to_owned()],
                "the policy of chain INPUT in table filter",
            ),
            (
                "iptables-legacy",
                "34.205.5.1",
                vec![format!("-t raw -A PREROUTING {port} DROP")],
                "rule `-A PREROUTING -p tcp -m tcp --dport 4118 -j DROP` in table raw",
            ),
            (
                "ip6tables-legacy",
                "2001:db8::1",
                vec![format!("-A INPUT {port} DROP")],
                "rule `-A INPUT -p tcp -m tcp --dport 4118 -j DROP` in table filter",
            ),
            (
                "iptables-legacy",
                "34.205.5.1",
                vec!["-A OUTPUT -p tcp --sport 4118 -j DROP".to_owned()],
                "but the answer is dropped by iptables-legacy: rule `-A OUTPUT -p tcp -m tcp \
                 --sport 4118 -j DROP` in table filter",
            ),
        ] {
            let (value, _) = explain(source)?;
            ensure!(value["connects"] == true, "{value:#}");
            for rule in &rules {
                run([program].into_iter().chain(rule.split(' ')))?;
            }
            let met = connect_from(&peer, address(source), AGENT)?;
            ensure!(met != Outcome::Talked, "{rules:?}: {met}");
            let (value, _) = explain(source)?;
            let said = value["conclusion"].as_str().unwrap_or_default();
            ensure!(said.contains(named), "{rules:?}: {value:#}");
            ensure!(said.contains("whose counter grew"), "{rules:?}: {value:#}");
            ensure!(!said.contains(" or "), "only one has: {said}");
            run([program, "-P", "INPUT", "ACCEPT"])?;
            for table in ["filter", "raw"] {
                run([program, "-t", table, "-F"])?;
            }
        }
        Ok(())
    })
}

fn explain_names_the_agents_own_rules() -> Result<()> {
    for program in ["iptables-nft", "iptables-legacy"] {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            peer.add_address(address("34.205.5.1"))?;
            let flags = ["install", "--no-boot", "--allow-from", "region:us-1"];
            let said = agent_fw(flags)?.success()?;
            ensure!(!said.contains("the agent has added"), "{said}");
            let rule = "-A INPUT -p tcp -m tcp --dport 4118 -j ACCEPT";
            run([program].into_iter().chain(rule.split(' ')))?;
            let named = format!("the agent has added `{rule}` ({program}-save)");
            for arguments in [&flags[..], &["explain", "--from", "34.205.5.1"]] {
                let said = agent_fw(arguments)?.success()?;
                let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
                ensure!(words.contains(&named), "{arguments:?}: {said}");
            }
            let (value, _) = explain("34.205.5.1")?;
            ensure!(value["own_rules"][0] == rule, "{value:#}");
            Ok(())
        })
        .context(program)?;
    }
    Ok(())
}

/// Rulesets and sources of each.
const RULESETS: u32 = 16;

fn explain_says_of_random_host_rulesets_what_real_connections_meet() -> Result<()> {
    let rulesets = std::env::var("AGENT_FW_RULESETS").ok().and_then(|text| text.parse().ok());
    let rulesets: u32 = rulesets.unwrap_or(rounds(RULESETS));
    let mut chance = Chance::new(4120);
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agents = (Listener::bind(AGENT)?, Listener::bind(AGENT + 1)?);
        let sources: Vec<IpAddr> = (0..SOURCES)
            .map(|n| {
                address(&if n % 4 == 3 { format!("2001:db8::{n}") } else { format!("192.0.2.{n}") })
            })
            .collect();
        sources.iter().try_for_each(|source| peer.add_address(*source))?;
        let (mut through, mut stopped, mut unanswered) = (0, 0, 0);
        for round in 0..rulesets {
            let ruleset = ruleset(&mut chance);
            feed(["nft", "-f", "-"], &ruleset).with_context(|| ruleset.clone())?;
            let met = connect_all(&peer, &sources)?;
            for (source, outcome) in sources.iter().zip(met) {
                let question = ProbeRequest {
                    source: *source,
                    mac: None,
                    destination: Some(peer.host_address(*source, AGENT).ip()),
                    port: Port(AGENT),
                    interface: Some(peer.interface()),
                };
                let road = trace::ask(&ResolvedProbe::of(&question)?, SideEffects::Refused)?;
                let connects = road.connects().context("that is known")?;
                let is_answer_stopped = road.stopped_answer().is_some();
                // The handshake is what is asked about; an echo can be late on a busy machine.
                let has_connected = matches!(outcome, Outcome::Talked | Outcome::Mute);
                ensure!(
                    connects == has_connected,
                    "ruleset {round}: {source}: {outcome}, but {road:?}\n{ruleset}"
                );
                *(if connects { &mut through } else { &mut stopped }) += 1;
                unanswered += u32::from(is_answer_stopped);
            }
        }
        println!(
            "{rulesets} rulesets, {through} sources through, {stopped} stopped, {unanswered} of them \
             on the way back: no disagreement"
        );
        ensure!(through > rulesets && stopped > rulesets, "too little variety");
        // Among the few of an emulated machine there may be none that stops an answer.
        ensure!(unanswered > 0 || is_emulated(), "no answer was stopped");
        Ok(())
    })
}

/// Real connections from all of the sources at once.
fn connect_all(peer: &Peer, sources: &[IpAddr]) -> Result<Vec<Outcome>> {
    std::thread::scope(|scope| {
        let connecting: Vec<_> = sources
            .iter()
            .map(|source| {
                let agent = peer.host_address(*source, AGENT);
                scope.spawn(move || peer.enter(|| connect(*source, agent, PATIENCE))?)
            })
            .collect();
        let ended = connecting.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.map(|outcome| outcome.ok().context("a connection panicked")?).collect()
    })
}
