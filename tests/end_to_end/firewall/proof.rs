//! `verify` of whole firewall policies: what it says of the kernel is true, of every change by hand.

use super::counterexample::{agree, prove, widen};
use super::kernel::{Stage, clear, seen};
use super::random::{PORTS, REMOTE, crowd, remote, rules, small};
use super::specification::Trial;
use crate::chance::Chance;
use crate::tests;
use agent_fw::model::firewall::Firewall;
use agent_fw::model::rule::Direction;
use agent_fw::nft::{Nftables, Ruleset};
use agent_fw::verify::{Actual, Counterexample};
use agent_fw_lab::{Lab, output, run};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;

tests![
    every_change_of_a_firewall_policys_table_is_proved_with_a_packet_that_behaves_so,
    nothing_is_said_against_what_random_firewall_policies_compile_to,
];

/// How many changes are tried. `AGENT_FW_MUTATIONS` sets it.
const CHANGES: usize = 120;
/// Random policies that are proved.
const POLICIES: usize = 60;

fn enforce(firewall: &Firewall) -> Result<()> {
    let images: Vec<_> = firewall.tables(false).into_iter().map(Ruleset::into_image).collect();
    Nftables::open()?.replace(&images).context("the kernel refuses a policy")
}

fn random_policy(chance: &mut Chance) -> Result<Firewall> {
    let mut rules = rules(chance);
    if chance.once_in(4) {
        crowd(chance, &mut rules);
    }
    let firewall = Firewall::new(&rules)?;
    let denied = [Direction::Incoming, Direction::Outgoing][chance.below(2)];
    Ok(if chance.once_in(3) { firewall.denying(denied) } else { firewall })
}

fn nothing_is_said_against_what_random_firewall_policies_compile_to() -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut chance = Chance::new(clock.as_secs());
    Lab::run(|_| {
        for _ in 0..POLICIES {
            let firewall = random_policy(&mut chance)?;
            enforce(&firewall)?;
            let found = prove(&firewall)?;
            ensure!(found.is_none(), "{found:#?} by {firewall:#?}");
        }
        Ok(())
    })
}

/// The table as `nft --handle` lists it, rule by rule: chain, text and handle.
pub(super) fn listing() -> Result<Vec<[String; 3]>> {
    let text = run(["nft", "--handle", "list", "table", "inet", "agent_fw_policy"])?;
    let mut chain = String::new();
    let mut rules = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("\tchain ") {
            rest.split_whitespace().next().unwrap_or_default().clone_into(&mut chain);
        } else if let Some((rule, handle)) = line.trim().split_once(" # handle ")
            && !chain.is_empty()
            && !rule.ends_with('{')
        {
            rules.push([chain.clone(), rule.to_owned(), handle.to_owned()]);
        }
    }
    Ok(rules)
}

/// The sets of the table, by what is in them.
fn sets() -> Result<Vec<(String, String)>> {
    let text = run(["nft", "list", "table", "inet", "agent_fw_policy"])?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let named = lines.windows(2).filter_map(|pair| {
        let name = pair[0].strip_prefix("set ")?.strip_suffix(" {")?;
        Some((name.to_owned(), pair[1].strip_prefix("type ")?.to_owned()))
    });
    Ok(named.collect())
}

/// A change by hand, in words, and what `nft` carries out.
fn change(chance: &mut Chance) -> Result<Option<(&'static str, String)>> {
    const TABLE: &str = "inet agent_fw_policy";
    let rules = listing()?;
    let [chain, text, handle] = chance.pick(&rules).clone();
    let verdict = ["accept", "drop"][chance.below(2)];
    let port = *chance.pick(&PORTS);
    let far = remote(small(chance, REMOTE), true);
    let (end, far_v6) = (["saddr", "daddr"][chance.below(2)], remote(small(chance, REMOTE), false));
    Ok(Some(match chance.below(9) {
        0 | 1 => ("a rule is deleted", format!("delete rule {TABLE} {chain} handle {handle}")),
        2 => {
            let what = match chance.below(7) {
                0 => format!("ip {end} {far}"),
                1 => format!("ip6 {end} {far_v6}"),
                2 => format!("tcp dport {port}"),
                3 => format!("udp sport {port}"),
                4 => "tcp flags & (syn | ack) == syn".to_owned(),
                5 => format!("icmp type {}", chance.pick(&["echo-request", "echo-reply"])),
                _ => format!("ct state {}", chance.pick(&["new", "established", "invalid"])),
            };
            ("a rule is inserted", format!("insert rule {TABLE} {chain} {what} {verdict}"))
        }
        3 => {
            let direction = ["original", "reply"][chance.below(2)];
            let rule = format!("insert rule {TABLE} {chain} ct direction {direction} {verdict}");
            ("a rule about the direction is inserted", rule)
        }
        4 => {
            let Some((front, old)) = text.rsplit_once(' ') else { return Ok(None) };
            let new = match old {
                "accept" => "drop",
                "drop" => "accept",
                _ => return Ok(None),
            };
            let script = format!("replace rule {TABLE} {chain} handle {handle} {front} {new}");
            ("a verdict is replaced", script)
        }
        5 | 6 => {
            let sets = sets()?;
            let Some((set, of)) = (!sets.is_empty()).then(|| chance.pick(&sets).clone()) else {
                return Ok(None);
            };
            let element = match of.as_str() {
                "inet_service" => port.to_string(),
                "ipv4_addr" => far.to_string(),
                "ipv6_addr" => far_v6.to_string(),
                _ => "02:41:18:00:00:03".to_owned(),
            };
            ("an element is added", format!("add element {TABLE} {set} {{ {element} }}"))
        }
        7 => {
            let sets = sets()?;
            let Some((set, _)) = (!sets.is_empty()).then(|| chance.pick(&sets).clone()) else {
                return Ok(None);
            };
            ("a set is emptied", format!("flush set {TABLE} {set}"))
        }
        _ => {
            let script = format!(
                "replace rule {TABLE} {chain} handle {handle} {}",
                text.replace(&format!("dport {port}"), "dport 1")
            );
            ("a port is replaced", script)
        }
    }))
}

fn every_change_of_a_firewall_policys_table_is_proved_with_a_packet_that_behaves_so() -> Result<()>
{
    let changes = std::env::var("AGENT_FW_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let changes = changes.unwrap_or(CHANGES);
    let mut chance = Chance::new(16);
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let mut stage = Stage::set(&peer)?;
        widen(&peer)?;
        let (mut tally, mut done): (BTreeMap<_, [usize; 4]>, usize) = (BTreeMap::new(), 0);
        while done < changes {
            let firewall = random_policy(&mut chance)?;
            enforce(&firewall)?;
            let Some((words, script)) = change(&mut chance)? else { continue };
            if output(["nft", &script])?.code != Some(0) {
                continue;
            }
            done += 1;
            let found = prove(&firewall)?;
            let [silent, claimed, unsent, unknown] = tally.entry(words).or_default();
            match &found {
                None => {
                    *silent += 1;
                    clear()?;
                    let mut trial = Trial::new(&firewall, &peer);
                    trial.run(&mut chance, &mut stage)?;
                    let silence = || format!("verify is silent: {script}");
                    trial.compare(&seen()?, &[]).with_context(silence)?;
                }
                Some(Counterexample { deed: Actual::Unknown(_), .. }) => *unknown += 1,
                Some(found) => {
                    let claim = agree(&mut stage, &peer, &firewall, found);
                    let claim = claim.with_context(|| format!("{script}\n{firewall:#?}"))?;
                    *(if claim.is_some() { claimed } else { unsent }) += 1;
                }
            }
        }
        println!("[silent, seen, not sent, not known]: {tally:#?}");
        let seen: usize = tally.values().map(|[_, seen, ..]| seen).sum();
        ensure!(seen > changes / 4 && tally.len() > 5, "too few were seen");
        Ok(())
    })
}
