//! What a person is advised to do is done here, word for word: afterwards the port is closed, and the
//! advice is no longer given.

use crate::scene::{AGENT, UNLISTED, expect, from, install, status};
use crate::tests;
use crate::xdp::flags;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;

tests![
    the_advice_where_an_interface_is_unguarded_closes_the_port,
    the_advice_where_a_rule_sends_the_port_to_a_container_closes_the_port,
    the_advice_where_a_rule_rewrites_ports_behind_a_lone_program_closes_the_port,
    the_advice_where_a_lone_program_would_cut_others_off_restores_the_policy,
    the_advice_where_an_interface_is_missing_closes_the_port,
    the_advice_where_the_table_is_gone_closes_the_port,
];

/// Does what a text says: the line that it has set in a file, and the commands that it has run. How many
/// these were.
fn follow(text: &str) -> Result<usize> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((_, edit)) = text.split_once("set `") {
        let (line, rest) = edit.split_once("` in ").context("in which file?")?;
        let file = rest.split(' ').next().context("in which file?")?;
        let key = line.split(' ').next().context("which key?")?;
        let before = fs::read_to_string(file)?;
        let others = before.lines().filter(|other| !other.starts_with(&format!("{key} =")));
        let after: Vec<&str> = std::iter::once(line).chain(others).collect();
        fs::write(file, after.join("\n") + "\n")?;
    }
    let commands: Vec<&str> = text.split("run `agent-fw ").skip(1).collect();
    for command in &commands {
        let (words, _) = command.split_once('`').context("where does it end?")?;
        agent_fw(words.split(' '))?.success()?;
    }
    Ok(commands.len())
}

/// Demands that `status` gives an advice that has these words, and what it says.
fn advised(words: &str) -> Result<String> {
    let said = agent_fw(["status"])?;
    let text = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(text.contains(words) && text.contains("run `agent-fw "), "{words}: {said}");
    Ok(text)
}

/// Does what `status` advises, once; it advises nothing more, and the port is closed.
fn follow_status(words: &str) -> Result<()> {
    let advice = advised(words)?;
    ensure!(follow(&advice)? == 1, "one command: {advice}");
    let said = agent_fw(["status"])?.success()?;
    ensure!(!said.contains("run `agent-fw"), "still advised: {said}");
    let (json, _) = status()?;
    ensure!(json["closed"] == true, "{json:#}");
    agent_fw(["verify"])?.success().map(drop)
}

fn the_advice_where_an_interface_is_unguarded_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let (manager, branch) = (lab.peer("manager")?, lab.peer("branch")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        expect(&branch, Outcome::Talked, &UNLISTED[..1])?;
        // Every command gives it.
        let doctor = agent_fw(["doctor"])?.stdout;
        let doctor = doctor.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(doctor.contains("set `backend = \"both\"` in"), "{doctor}");
        follow_status("branch0")?;
        for peer in [&manager, &branch] {
            expect(peer, Outcome::Silent, &UNLISTED[..1])?;
            expect(peer, Outcome::Talked, &["34.205.5.1"])?;
        }
        Ok(())
    })
}

fn the_advice_where_a_rule_sends_the_port_to_a_container_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let (manager, container) = (lab.peer("manager")?, lab.peer("container")?);
        lab.forward()?;
        let rules = format!(
            "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat;
               ip daddr {} tcp dport {AGENT} dnat to {}:{AGENT}\n}}\n}}",
            manager.host_v4(),
            container.v4()
        );
        feed(["nft", "-f", "-"], &rules)?;
        let _published = container.enter(|| Listener::bind(AGENT))??;
        install(&["--allow-from", "region:us-1"])?;
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Talked, "it is so");
        follow_status("set `early_drop = true`")?;
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Silent, "not closed");
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Talked, "closed to all");
        Ok(())
    })
}

fn the_advice_where_a_rule_rewrites_ports_behind_a_lone_program_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let rules = "table ip x { chain p { type nat hook prerouting priority dstnat;
                       tcp dport 8444 redirect to :4118\n}\n}";
        feed(["nft", "-f", "-"], rules)?;
        ensure!(from(&manager, UNLISTED[0], 8444)? == Outcome::Talked, "it is so");
        follow_status("set `backend = \"both\"`")?;
        ensure!(from(&manager, UNLISTED[0], 8444)? == Outcome::Silent, "not closed");
        ensure!(from(&manager, "34.205.5.1", 8444)? == Outcome::Talked, "closed to all");
        Ok(())
    })
}

fn the_advice_where_a_lone_program_would_cut_others_off_restores_the_policy() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        lab.host().set_sysctl("net/ipv4/ip_forward", "1")?;
        follow_status("cuts others off")?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}

fn the_advice_where_an_interface_is_missing_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        manager.unplug()?;
        let doctors = || Ok::<_, anyhow::Error>(agent_fw(["doctor"])?.stdout);
        ensure!(doctors()?.contains("run `agent-fw apply --boot`"), "{}", doctors()?);
        follow(&advised("the table then holds until it comes")?)?;
        ensure!(!doctors()?.contains("apply --boot"), "still advised: {}", doctors()?);
        manager.plug_in()?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        follow_status("manager0 has no XDP program")?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        // One that has another name now is not missing.
        for line in ["set manager0 down", "set manager0 name lan0", "set lan0 up"] {
            run(["ip", "link"].into_iter().chain(line.split(' ')))?;
        }
        ensure!(!doctors()?.contains("manager0 is not there"), "{}", doctors()?);
        Ok(())
    })
}

fn the_advice_where_the_table_is_gone_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        run(["nft", "flush", "ruleset"])?;
        expect(&manager, Outcome::Talked, &UNLISTED[..1])?;
        follow_status("nothing is enforced")?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])
    })
}
