//! `--open-host-firewall`: the exception in another firewall is complete, lasts, follows the
//! policy, and is taken back exactly.

use crate::neighbour::{
    Neighbour, firewalld_rules, iptables_rules, load_ruleset, put_up_iptables, put_up_ruleset,
    put_up_ufw, reload_firewalld, reload_iptables, ruleset, ufw_rules,
};
use crate::scene::{AGENT, address, connect_from};
use crate::tests;
use agent_fw_lab::{
    Finished, Firewalld, Lab, Listener, Outcome, Peer, agent_fw, kill_agent_fw_after, run,
};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::Duration;

tests![
    an_exception_in_firewalld_with_nftables_lasts_and_is_taken_back,
    an_exception_in_firewalld_with_iptables_lasts_and_is_taken_back,
    an_exception_in_ufw_lasts_and_is_taken_back,
    an_exception_in_iptables_nft_lasts_and_is_taken_back,
    an_exception_in_iptables_legacy_lasts_and_is_taken_back,
    an_exception_in_a_hand_written_ruleset_lasts_and_is_taken_back,
    two_firewalls_one_behind_the_other_are_both_opened,
    a_mac_address_is_let_through_where_the_firewall_can_tell_it,
    what_was_there_before_is_not_taken_back,
    what_has_gone_since_is_said,
    an_exception_that_cannot_be_completed_leaves_nothing,
    an_exception_that_does_not_help_is_taken_back,
    a_firewall_is_never_opened_to_everyone_where_the_policy_leaves_others_to_it,
    a_kill_at_any_moment_leaves_nothing_that_uninstall_does_not_find,
];

/// A prefix, a range that is no prefix, and a prefix of IPv6.
const ALLOWED: [&str; 6] = [
    "--allow-from",
    "34.205.5.0/27",
    "--allow-from",
    "18.97.19.3-18.97.19.9",
    "--allow-from",
    "2001:db8:41::/48",
];
/// Sources of all of these, the last of the range among them.
const INSIDE: [&str; 4] = ["34.205.5.1", "18.97.19.3", "18.97.19.9", "2001:db8:41::7"];
/// Sources beside them.
const OUTSIDE: [&str; 3] = ["34.205.5.33", "18.97.19.10", "2001:db8:42::7"];
/// A source that another policy admits.
const LATER: &str = "192.0.2.7";
/// Where exceptions are written down.
const RECORD: &str = "/var/lib/agent-fw/exceptions";

fn open(flags: &[&str]) -> Result<String> {
    Ok(flat(&try_open(flags)?.success()?))
}

fn try_open(flags: &[&str]) -> Result<Finished> {
    agent_fw(["install", "--no-boot", "--replace", "--open-host-firewall"].iter().chain(flags))
}

fn manager(lab: &Lab) -> Result<Peer> {
    let peer = lab.peer("manager")?;
    for source in INSIDE.iter().chain(&OUTSIDE).chain([&LATER]) {
        peer.add_address(address(source))?;
    }
    // Where the rest of the world is.
    run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
    run(["ip", "-6", "route", "add", "default", "via", &peer.v6().to_string()])?;
    Ok(peer)
}

/// What was said, without the breaks between lines.
fn flat(said: &str) -> String {
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Demands that a connection from each of these gets through, or that none does.
fn expect(peer: &Peer, when: &str, gets_through: bool, sources: &[&str]) -> Result<()> {
    for source in sources {
        let outcome = connect_from(peer, address(source), AGENT)?;
        ensure!((outcome == Outcome::Talked) == gets_through, "{when}: {source} is {outcome}");
    }
    Ok(())
}

/// The whole life of an exception.
fn life(neighbour: &Neighbour) -> Result<()> {
    let Neighbour { put_up, rules, reload, keeps } = neighbour;
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        let _up = put_up(lab)?;
        let before = rules()?;
        expect(&peer, "before", false, &INSIDE)?;

        let said = open(&ALLOWED)?;
        ensure!(said.contains("exception made: ") && said.contains("open: tried"), "{said}");
        expect(&peer, &said, true, &INSIDE)?;
        expect(&peer, &said, false, &OUTSIDE)?;
        ensure!(rules()? != before, "nothing was changed: {said}");
        let again = open(&ALLOWED)?;
        ensure!(!again.contains("exception made"), "{again}");

        reload()?;
        if !keeps {
            expect(&peer, "reloaded", false, &INSIDE)?;
            let said = agent_fw(["apply"])?.success()?;
            ensure!(said.contains("exception made: "), "{said}");
        }
        expect(&peer, "reloaded", true, &INSIDE)?;
        expect(&peer, "reloaded", false, &OUTSIDE)?;

        // Another policy, of which the sources are many.
        let many: String = (0..80).map(|n| format!("198.51.100.{}\n", n * 2)).collect();
        std::fs::write("/etc/many", format!("{many}{LATER}\n2001:db8:42::/48\n"))?;
        let others = ["--allow-from", "file:/etc/many"];
        let said =
            agent_fw(["install", "--no-boot", "--replace"].iter().chain(&others))?.success()?;
        ensure!(said.contains("exception taken back: "), "{said}");
        expect(&peer, &said, true, &[LATER, "2001:db8:42::7"])?;
        expect(&peer, &said, false, &INSIDE)?;
        expect(&peer, &said, false, &OUTSIDE[..2])?;
        // The list changes, and is applied.
        std::fs::write("/etc/many", "34.205.5.1\n")?;
        agent_fw(["apply", "--allow-shrink"])?.success()?;
        expect(&peer, "applied", true, &INSIDE[..1])?;
        expect(&peer, "applied", false, &[LATER])?;

        let said = agent_fw(["uninstall"])?.success()?;
        ensure!(said.contains("exception taken back: "), "{said}");
        expect(&peer, "uninstalled", false, &INSIDE)?;
        expect(&peer, "uninstalled", false, &[LATER])?;
        let after = rules()?;
        ensure!(after == before, "left behind.\nbefore:\n{before}\nafter:\n{after}");
        ensure!(!Path::new(RECORD).exists(), "the record stays");
        reload()?;
        expect(&peer, "uninstalled and reloaded", false, &INSIDE)
    })
}

fn an_exception_in_firewalld_with_nftables_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour {
        put_up: |lab| Ok(Box::new(Firewalld::start(lab, "nftables")?)),
        rules: firewalld_rules,
        reload: reload_firewalld,
        keeps: true,
    })
}

fn an_exception_in_firewalld_with_iptables_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour {
        put_up: |lab| Ok(Box::new(Firewalld::start(lab, "iptables")?)),
        rules: firewalld_rules,
        reload: reload_firewalld,
        keeps: true,
    })
}

fn an_exception_in_ufw_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour {
        put_up: put_up_ufw,
        rules: ufw_rules,
        reload: || run(["ufw", "reload"]).map(drop),
        keeps: true,
    })
}

fn an_exception_in_iptables_nft_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour {
        put_up: |_| put_up_iptables("nft"),
        rules: || iptables_rules("nft"),
        reload: || reload_iptables("nft"),
        keeps: false,
    })
}

fn an_exception_in_iptables_legacy_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour {
        put_up: |_| put_up_iptables("legacy"),
        rules: || iptables_rules("legacy"),
        reload: || reload_iptables("legacy"),
        keeps: false,
    })
}

fn an_exception_in_a_hand_written_ruleset_lasts_and_is_taken_back() -> Result<()> {
    life(&Neighbour { put_up: put_up_ruleset, rules: ruleset, reload: load_ruleset, keeps: false })
}

fn two_firewalls_one_behind_the_other_are_both_opened() -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        put_up_ruleset(lab)?;
        put_up_iptables("nft")?;
        let rules = || -> Result<String> { Ok(ruleset()? + &iptables_rules("nft")?) };
        let before = rules()?;
        let said = open(&ALLOWED)?;
        ensure!(said.contains("iptables") && said.contains("inet host input"), "{said}");
        expect(&peer, &said, true, &INSIDE)?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(rules()? == before, "left behind: {}", rules()?);
        expect(&peer, "uninstalled", false, &INSIDE)
    })
}

fn a_mac_address_is_let_through_where_the_firewall_can_tell_it() -> Result<()> {
    for kind in ["nft", "legacy", "ruleset", "ufw"] {
        Lab::run(|lab| {
            let (peer, other) = (manager(lab)?, lab.peer("other")?);
            let _agent = Listener::bind(AGENT)?;
            match kind {
                "ruleset" => put_up_ruleset(lab)?,
                "ufw" => put_up_ufw(lab)?,
                kind => put_up_iptables(kind)?,
            };
            let mac =
                run(["ip", "netns", "exec", "manager", "cat", "/sys/class/net/eth0/address"])?;
            let said = open(&["--allow-mac", mac.trim()])?;
            expect(&peer, &said, true, &INSIDE)?;
            // Where the other firewall cannot tell, agent-fw alone keeps the port closed.
            ensure!(said.contains("cannot tell these sources apart") == (kind == "ufw"), "{said}");
            let outcome = connect_from(&other, other.v4().into(), AGENT)?;
            ensure!(outcome != Outcome::Talked, "{kind}: another MAC address: {outcome}");
            agent_fw(["uninstall"])?.success()?;
            expect(&peer, "uninstalled", false, &INSIDE)
        })
        .with_context(|| kind.to_owned())?;
    }
    Ok(())
}

fn what_was_there_before_is_not_taken_back() -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        put_up_ufw(lab)?;
        run("ufw allow proto tcp from 34.205.5.0/27 to any port 4118".split(' '))?;
        let before = ufw_rules()?;
        expect(&peer, "before", true, &INSIDE[..1])?;
        let said = open(&ALLOWED)?;
        ensure!(
            said.contains("exception there already: a rule of ufw: allow proto tcp from 34"),
            "{said}"
        );
        expect(&peer, &said, true, &INSIDE)?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(ufw_rules()? == before, "{}", ufw_rules()?);
        expect(&peer, "uninstalled", true, &INSIDE[..1])?;
        expect(&peer, "uninstalled", false, &INSIDE[1..])
    })
}

fn what_has_gone_since_is_said() -> Result<()> {
    Lab::run(|lab| {
        let _peer = manager(lab)?;
        put_up_iptables("nft")?;
        open(&ALLOWED)?;
        let gone = "-D INPUT -p tcp -s 34.205.5.0/27 --dport 4118 -m comment --comment agent-fw -j";
        run(["iptables-nft"].into_iter().chain(gone.split(' ')).chain(["ACCEPT"]))?;
        let said = agent_fw(["uninstall"])?.success()?;
        ensure!(said.contains("exception gone already: "), "{said}");
        ensure!(said.contains("exception taken back: "), "{said}");
        ensure!(!iptables_rules("nft")?.contains("4118"), "{}", iptables_rules("nft")?);
        Ok(())
    })
}

fn an_exception_that_cannot_be_completed_leaves_nothing() -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        put_up_ruleset(lab)?;
        // Somebody else's rule has the name of agent-fw's second step.
        let theirs = "add rule inet host input ip6 saddr 2001:db8::/64 accept comment agent-fw-v6";
        run(["nft"].into_iter().chain(theirs.split(' ')))?;
        let before = ruleset()?;
        let finished = try_open(&ALLOWED)?;
        ensure!(finished.code == Some(3), "{finished}");
        ensure!(flat(&finished.stderr).contains("no firewall was opened"), "{finished}");
        ensure!(flat(&finished.stderr).contains("is there already"), "{finished}");
        ensure!(ruleset()? == before, "{}", ruleset()?);
        ensure!(!Path::new(RECORD).exists(), "the record stays");
        ensure!(agent_fw(["verify"])?.code == Some(0), "the policy is not in force");
        expect(&peer, "failed", false, &INSIDE)?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(ruleset()? == before, "{}", ruleset()?);
        Ok(())
    })
}

fn an_exception_that_does_not_help_is_taken_back() -> Result<()> {
    Lab::run(|lab| {
        let _peer = manager(lab)?;
        // iptables-legacy does not trace: the exception goes where rules usually are.
        let rules = || iptables_rules("legacy");
        run("iptables-legacy -t raw -A PREROUTING -p tcp --dport 4118 -j DROP".split(' '))?;
        let finished = try_open(&ALLOWED)?;
        ensure!(finished.code == Some(3), "{finished}");
        ensure!(flat(&finished.stderr).contains("does not help"), "{finished}");
        ensure!(finished.stdout.contains("exception taken back"), "{finished}");
        ensure!(!rules()?.contains("agent-fw"), "{}", rules()?);
        ensure!(!Path::new(RECORD).exists(), "the record stays");
        Ok(())
    })
}

fn a_firewall_is_never_opened_to_everyone_where_the_policy_leaves_others_to_it() -> Result<()> {
    Lab::run(|lab| {
        let peer = manager(lab)?;
        let _agent = Listener::bind(AGENT)?;
        put_up_ufw(lab)?;
        let before = ufw_rules()?;
        let many: String = (0..80).map(|n| format!("198.51.100.{}\n", n * 2)).collect();
        std::fs::write("/etc/many", format!("{many}34.205.5.1\n"))?;
        let flags = ["--allow-from", "file:/etc/many", "--otherwise", "continue"];
        let finished = try_open(&flags)?;
        ensure!(finished.code == Some(3), "{finished}");
        ensure!(flat(&finished.stderr).contains("would let in everyone"), "{finished}");
        ensure!(ufw_rules()? == before, "{}", ufw_rules()?);
        expect(&peer, "refused", false, &OUTSIDE)?;
        // Where others are dropped, it is: agent-fw keeps them out.
        let said = open(&flags[..2])?;
        ensure!(said.contains("cannot tell these sources apart"), "{said}");
        expect(&peer, &said, true, &INSIDE[..1])?;
        expect(&peer, &said, false, &OUTSIDE)
    })
}

fn a_kill_at_any_moment_leaves_nothing_that_uninstall_does_not_find() -> Result<()> {
    Lab::run(|lab| {
        let _peer = manager(lab)?;
        put_up_ufw(lab)?;
        let before = ufw_rules()?;
        let mut left_something = 0;
        for round in 0..12_u64 {
            let flags = ["install", "--no-boot", "--replace", "--open-host-firewall"];
            let argv = flags.iter().chain(&ALLOWED);
            kill_agent_fw_after(Duration::from_millis(60 + round * 130), argv)?;
            let finished = agent_fw(["uninstall"])?;
            ensure!(finished.code == Some(0), "round {round}: {finished}");
            left_something += i32::from(finished.stdout.contains("exception taken back"));
            ensure!(ufw_rules()? == before, "round {round}: {finished}\n{}", ufw_rules()?);
        }
        ensure!(left_something > 3, "the kills came too early: {left_something} of 12");
        Ok(())
    })
}
