//! `closed` is said only where it is so, and everywhere the same.

use crate::scene::{AGENT, expect, install, status, try_install};
use crate::tests;
use crate::xdp::flags;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;

tests![
    an_interface_without_a_program_is_named_wherever_closed_is_shown,
    what_stands_on_a_guarded_interface_is_no_gap,
    half_of_the_internet_is_not_closed_however_it_is_written,
    a_wide_range_needs_consent_which_is_kept,
    host_bits_under_a_short_prefix_are_an_error,
    an_older_versions_wide_policy_stays_in_force_with_a_warning,
    nobody_named_is_refused_where_nobody_can_be_asked,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";

/// What every command says of the promise: `closed` or not.
fn said_everywhere() -> Result<Vec<(&'static str, bool)>> {
    let (json, _) = status()?;
    let metrics = agent_fw(["metrics"])?.success()?;
    let verify: serde_json::Value =
        serde_json::from_str(&agent_fw(["verify", "--json"])?.stdout).context("verify")?;
    Ok(vec![
        ("status", agent_fw(["status"])?.stdout.contains("\nclosed:")),
        ("status --json", json["closed"] == true),
        ("status --check", agent_fw(["status", "--check"])?.code == Some(0)),
        ("metrics", metrics.contains("agent_fw_closed 1")),
        ("verify --json", verify["closed"] == true),
        ("doctor", {
            let (health, seen) = crate::scene::check("the policy is enforced")?;
            health == "good" && !seen.contains("not closed")
        }),
    ])
}

fn all_say(expected: bool, situation: &str) -> Result<()> {
    for (who, closed) in said_everywhere()? {
        ensure!(closed == expected, "{situation}: {who} says closed: {closed}");
    }
    Ok(())
}

fn an_interface_without_a_program_is_named_wherever_closed_is_shown() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        all_say(true, "one interface")?;
        let branch = lab.peer("branch")?;
        expect(&branch, Outcome::Talked, &["198.51.100.7"])?;
        all_say(false, "a second interface")?;
        let (json, code) = status()?;
        ensure!(code == Some(0) && json["agree"] == true, "the kernel has what was asked for");
        let reason = &json["not_closed"][0];
        ensure!(reason["id"] == "unguarded-interfaces", "{json:#}");
        ensure!(reason["what"].as_str().is_some_and(|what| what.contains("branch0")), "{json:#}");
        let said = install(&flags("xdp", "manager0", &["--log"][..0]))?;
        ensure!(said.contains("not closed:") && said.contains("branch0"), "{said}");
        // What cannot bring a packet is no gap.
        run(["ip", "link", "set", "branch0", "down"])?;
        all_say(true, "the second interface is down")?;
        run(["ip", "link", "set", "branch0", "up"])?;
        install(&flags("both", "manager0", &[]))?;
        all_say(true, "with the table")?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn what_stands_on_a_guarded_interface_is_no_gap() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        run(["ip", "link", "add", "br0", "type", "bridge"])?;
        run(["ip", "link", "set", "br0", "up"])?;
        all_say(true, "an empty bridge, with the table")
    })
}

fn half_of_the_internet_is_not_closed_however_it_is_written() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::write("/run/half.list", "0.0.0.0/1\n128.0.0.0-191.255.255.255\n")?;
        for source in ["0.0.0.0/0", "0.0.0.0-255.255.255.255", "file:/run/half.list", "::/0"] {
            let words = ["--allow-from", source, "--allow-wide"];
            let said = install(&words)?;
            ensure!(!said.contains("\nclosed:") && said.contains("not closed:"), "{said}");
            for (who, closed) in said_everywhere()? {
                // What is meant is no alarm.
                ensure!(closed == (who == "status --check"), "{source}: {who}");
            }
            agent_fw(["uninstall"])?.success()?;
        }
        install(&[
            "--allow-from",
            "0.0.0.0/0",
            "--allow-mac",
            "02:00:00:00:00:77",
            "--allow-wide",
        ])?;
        all_say(true, "bound to a MAC address")?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn a_wide_range_needs_consent_which_is_kept() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "10.0.0.0/8"])?;
        for wide in ["10.0.0.0/7", "10.0.0.0-11.0.0.0", "2000::/15"] {
            let refused = try_install(&["--allow-from", wide])?;
            ensure!(refused.code == Some(2), "{wide}: {refused}");
            ensure!(refused.stderr.contains("--allow-wide"), "{refused}");
            ensure!(status()?.1 == Some(0), "{wide}: something was changed");
        }
        install(&["--allow-from", "10.0.0.0/7", "--allow-wide"])?;
        run(["nft", "flush", "ruleset"])?;
        agent_fw(["apply", "--boot"])?.success()?;
        agent_fw(["apply"])?.success()?;
        // A policy that is written by hand says it, too.
        fs::write(POLICY, "allow_from = [\"10.0.0.0/7\"]\n")?;
        let refused = agent_fw(["apply"])?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("allow_wide"), "{refused}");
        fs::write(POLICY, "allow_from = [\"10.0.0.0/7\"]\nallow_wide = true\n")?;
        agent_fw(["apply"])?.success().map(drop)
    })
}

fn host_bits_under_a_short_prefix_are_an_error() -> Result<()> {
    Lab::run(|_| {
        for slip in ["34.205.5.0/0", "34.205.5.0/7", "2001:db8::/3"] {
            let refused = try_install(&["--allow-from", slip, "--allow-wide"])?;
            ensure!(refused.code == Some(2), "{slip}: {refused}");
            ensure!(refused.stderr.contains("no bits set beyond"), "{refused}");
        }
        install(&["--allow-from", "34.205.5.7/27"]).map(drop)
    })
}

fn an_older_versions_wide_policy_stays_in_force_with_a_warning() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "10.0.0.0/7", "--allow-wide"])?;
        let text = fs::read_to_string(POLICY)?;
        let keys = ["allow_wide", "trust_file_modes"];
        let older = text.lines().filter(|line| !keys.iter().any(|key| line.contains(key)));
        fs::write(POLICY, older.collect::<Vec<_>>().join("\n") + "\n")?;
        run(["nft", "flush", "ruleset"])?;
        let said = agent_fw(["apply", "--boot"])?;
        ensure!(said.code == Some(0) && said.stderr.contains("allow_wide = true"), "{said}");
        let shown = agent_fw(["status"])?;
        ensure!(shown.code == Some(0), "{shown}");
        ensure!(shown.to_string().contains("allow_wide = true"), "{shown}");
        let doctor = agent_fw(["doctor"])?;
        ensure!(doctor.to_string().contains("allow_wide = true"), "{doctor}");
        Ok(())
    })
}

fn nobody_named_is_refused_where_nobody_can_be_asked() -> Result<()> {
    Lab::run(|_| {
        for words in [&[][..], &["--log"], &["--relay", "10.0.0.0/8"], &["--early-drop"]] {
            let refused = agent_fw([&["install", "--no-boot"], words].concat())?;
            ensure!(refused.code == Some(2), "{words:?}: {refused}");
            ensure!(refused.stderr.contains("--allow-from any"), "{refused}");
            ensure!(run(["nft", "list", "ruleset"])?.is_empty() && !fs::exists(POLICY)?);
        }
        install(&["--allow-from", "any"])?;
        install(&["--direction", "agent-initiated"])?;
        Ok(())
    })
}
