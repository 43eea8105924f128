//! `agent-fw doctor`: each check sees what is there, and says what to do.

use crate::agent_tls::{TODAY, TlsServer};
use crate::scene::{PATIENCE, address, check, doctor, install};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Wire, agent_fw, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;

/// The checks of what gets out.
const CHECKS: [&str; 2] = ["outbound TCP 443", "outbound UDP 53 (DNS)"];

tests![
    doctor_is_content_with_a_host_on_which_all_is_well,
    doctor_names_what_is_wrong_and_what_to_do,
    doctor_asks_about_outbound_443_and_sends_nothing,
    doctor_names_the_agents_own_iptables_rules,
    doctor_warns_of_the_obsolete_block,
    doctor_tells_of_an_interface_what_matters_to_xdp,
];

/// The checks that came out so.
fn checks<'a>(value: &'a Value, health: &str) -> Vec<(&'a str, &'a str)> {
    let all = value["checks"].as_array().into_iter().flatten();
    let of_health = all.filter(|check| check["health"] == health);
    of_health
        .filter_map(|check| Some((check["check"].as_str()?, check["seen"].as_str()?)))
        .collect()
}

fn doctor_is_content_with_a_host_on_which_all_is_well() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = TlsServer::start(&TODAY)?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        install(&["--allow-from", "region:us-1"])?;
        let (value, code) = doctor()?;
        ensure!(code == Some(0) && value["well"] == true, "{value:#}");
        let good = checks(&value, "good");
        for (name, part) in [
            ("the policy is enforced", "the kernel has policy"),
            ("the agent and its port", "something listens"),
            ("TLS on the agent's port", "TLS 1.2"),
            ("outbound TCP 443", "let it out"),
            ("admitted sources", "region us-1: 34.205.5.1 and 1 more, by manager0: reaches"),
            ("sources that are not admitted", "198.51.100.7 and 4 more, by manager0: dropped"),
        ] {
            let is_it = |(known, seen): &(&str, &str)| *known == name && seen.contains(part);
            ensure!(good.iter().any(is_it), "{name}: {part} is not in {value:#}");
        }
        let plain = agent_fw(["doctor"])?;
        ensure!(plain.code == Some(0), "{plain}");
        ensure!(plain.stdout.lines().all(|line| line.chars().count() <= 80), "{plain}");
        Ok(())
    })
}

fn doctor_names_what_is_wrong_and_what_to_do() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let (value, code) = doctor()?;
        ensure!(code == Some(1), "{value:#}");
        ensure!(
            checks(&value, "bad").iter().any(|(_, seen)| seen.contains("no policy")),
            "{value:#}"
        );
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        install(&["--allow-from", "region:us-1"])?;
        // Nothing listens; another firewall drops one of the subnets; the table was changed.
        feed(
            ["nft", "-f", "-"],
            "table inet host {\nchain input {\n\
             type filter hook input priority 0;\nip saddr 18.97.19.0/27 drop\n}\n}\n",
        )?;
        run(["nft", "add", "rule", "inet", "agent_fw", "gate", "udp", "dport", "53", "drop"])?;
        let (value, code) = doctor()?;
        ensure!(code == Some(1), "{value:#}");
        let bad = checks(&value, "bad");
        for part in ["nothing listens on TCP 4118", "ip saddr 18.97.19.0/27 drop", "kernel differs"]
        {
            ensure!(bad.iter().any(|(_, seen)| seen.contains(part)), "{part}: {value:#}");
        }
        ensure!(bad.len() == 3, "{value:#}");
        let advised = |check: &&Value| check["health"] == "bad" && check["advice"].is_string();
        let all = value["checks"].as_array().context("checks")?;
        ensure!(all.iter().filter(advised).count() == 3, "advice is missing: {value:#}");
        Ok(())
    })
}

fn doctor_asks_about_outbound_443_and_sends_nothing() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _outside = peer.enter(|| Listener::bind(443))??;
        peer.add_address(address("198.51.100.7"))?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        let outside = (address("198.51.100.7"), 443).into();
        for name in CHECKS {
            let (health, seen) = check(name)?;
            ensure!(health == "good", "{name}: {seen}");
        }
        let v4 = |frame: &[u8]| (frame.get(12..14) == Some(&[8, 0])).then_some(());
        ensure!(wire.find(Duration::from_millis(200), v4)?.is_none(), "a packet left the host");
        ensure!(connect(peer.host_v4().into(), outside, PATIENCE)? == Outcome::Talked);
        feed(
            ["nft", "-f", "-"],
            "table inet host {\nchain output {\n\
             type filter hook output priority 0; policy drop;\n\
             ct state established accept\nudp dport 53 accept\n}\n}\n",
        )?;
        let (health, seen) = check(CHECKS[1])?;
        ensure!(health == "good", "{seen}");
        let (health, seen) = check(CHECKS[0])?;
        ensure!(health == "bad" && seen.contains("the policy of chain inet host output"), "{seen}");
        ensure!(connect(peer.host_v4().into(), outside, PATIENCE)? == Outcome::Silent);
        // A rule that does not trace is named, too.
        run(["nft", "delete", "table", "inet", "host"])?;
        ensure!(connect(peer.host_v4().into(), outside, PATIENCE)? == Outcome::Talked);
        let rule = "-A OUTPUT -p tcp -m tcp --dport 443 -j DROP";
        run(["iptables-legacy"].into_iter().chain(rule.split(' ')))?;
        let (health, seen) = check(CHECKS[0])?;
        ensure!(health == "bad" && seen.contains(&format!("rule `{rule}` in table")), "{seen}");
        ensure!(check(CHECKS[1])?.0 == "good");
        Ok(())
    })
}

fn doctor_names_the_agents_own_iptables_rules() -> Result<()> {
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
        Lab::run(|_| {
            install(&["--allow-from", "region:us-1"])?;
            let name = "the agent's own iptables rules";
            let (_, seen) = check(name)?;
            ensure!(seen.contains("no such rule is there"), "{seen}");
            let rule = "-I INPUT -p tcp --dport 4118 -j ACCEPT";
            run([program].into_iter().chain(rule.split(' ')))?;
            let rule = "-I INPUT -s 192.0.2.0/24 -p tcp --dport 4118 -j ACCEPT";
            if program != "ip6tables-nft" {
                run([program].into_iter().chain(rule.split(' ')))?;
            }
            let (health, seen) = check(name)?;
            let named = format!("--dport 4118 -j ACCEPT` ({program}-save)");
            ensure!(health == "note" && seen.contains(&named), "{seen}");
            ensure!(!seen.contains("192.0.2.0"), "a rule of the user's is no agent's: {seen}");
            Ok(())
        })
        .context(program)?;
    }
    Ok(())
}

fn doctor_warns_of_the_obsolete_block() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        ensure!(check("the obsolete block")?.0 == "good");
        install(&["--allow-from", "54.221.192.0/20"])?;
        let (health, seen) = check("the obsolete block")?;
        ensure!(health == "bad" && seen.contains("54.221.196.0/24"), "{seen}");
        Ok(())
    })
}

fn doctor_tells_of_an_interface_what_matters_to_xdp() -> Result<()> {
    Lab::run(|lab| {
        let _peer = lab.peer("manager")?;
        install(&["--allow-from", "region:us-1", "--backend", "both", "--interface", "manager0"])?;
        let (health, seen) = check("an interface")?;
        let mtu = run(["cat", "/sys/class/net/manager0/mtu"])?;
        for part in [
            "manager0: up",
            &format!("MTU {}", mtu.trim()),
            "LRO off",
            "native XDP",
            "no tc program",
        ] {
            ensure!(seen.contains(part), "{part} is not in: {seen}");
        }
        ensure!(health == "good", "{seen}");
        run(["tc", "qdisc", "add", "dev", "manager0", "clsact"])?;
        let filter = "tc filter add dev manager0 ingress prio 9 protocol ip u32 \
                      match ip dst 192.0.2.99/32 flowid 1:1";
        run(filter.split_whitespace())?;
        let (_, seen) = check("an interface")?;
        ensure!(seen.contains("tc filter u32 of priority 9"), "{seen}");
        run(["ip", "link", "set", "manager0", "down"])?;
        let (health, seen) = check("an interface")?;
        ensure!(health == "note" && seen.contains("manager0: down"), "{seen}");
        Ok(())
    })
}
