//! A `policy.toml` that was cut off, at whatever place, opens nothing; one without its last line is
//! told from a whole one.

use crate::scene::{AGENT, check, expect, install, status, stays_closed};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;

tests![
    a_policy_that_was_cut_off_at_any_line_opens_nothing,
    a_policy_that_was_cut_off_at_any_byte_is_refused_or_admits_no_more,
    a_policy_without_its_last_line_is_accepted_with_a_warning,
    a_key_that_was_cut_off_is_missed_and_one_that_was_taken_away_is_not,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";

fn a_policy_that_was_cut_off_at_any_line_opens_nothing() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _listening = [4119, 4122].map(Listener::bind);
        let words = ["--allow-from", "region:us-1", "--port", "4119", "--relay", "10.0.0.0/8"];
        install(&[&words[..], &["--default-deny-outbound"]].concat())?;
        let whole = fs::read_to_string(POLICY)?;
        let (lines, mut refused) = (whole.lines().count(), 0);
        for left in 0..lines {
            let cut: String = whole.split_inclusive('\n').take(left).collect();
            fs::write(POLICY, &cut)?;
            let applied = agent_fw(["apply"])?;
            refused += usize::from(applied.code != Some(0));
            agent_fw(["apply", "--boot"])?;
            if left % 7 == 0 {
                stays_closed(&manager, &[4119, 4122]).with_context(|| format!("{left} lines"))?;
            }
            // What this host sends out is still refused: its chain is there.
            let chain = ["nft", "list", "chain", "inet", "agent_fw_policy", "outgoing"];
            ensure!(run(chain)?.contains("refused_outgoing"), "{left} lines: outbound is open");
            let gate = run(["nft", "list", "chain", "inet", "agent_fw", "gate"])?;
            ensure!(gate.contains("4119"), "{left} lines: {gate}");
        }
        println!("{refused} of {lines} were refused");
        ensure!(refused > lines / 2, "{refused} of {lines}");
        fs::write(POLICY, &whole)?;
        agent_fw(["apply"])?.success()?;
        ensure!(status()?.1 == Some(0));
        Ok(())
    })
}

/// The rules in force, in some order, without what was counted: sets have one of two names.
fn in_force() -> Result<Vec<String>> {
    let listed = run(["nft", "--stateless", "list", "ruleset"])?;
    let mut lines: Vec<String> = listed.lines().map(|line| line.replace(".b", "")).collect();
    lines.sort_unstable();
    Ok(lines)
}

fn a_policy_that_was_cut_off_at_any_byte_is_refused_or_admits_no_more() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _listening = [AGENT, 41180, 4122].map(Listener::bind);
        install(&["--allow-from", "34.205.5.0/27", "--port", "41180", "--relay", "10.0.0.0/8"])?;
        let whole = fs::read_to_string(POLICY)?;
        let before = in_force()?;
        let mut accepted = 0;
        for (end, _) in whole.char_indices() {
            let line = whole[..end].lines().last().unwrap_or_default();
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            fs::write(POLICY, &whole[..end])?;
            let applied = agent_fw(["apply"])?;
            if applied.code != Some(0) {
                ensure!(in_force()? == before, "refused, and changed: {}", &whole[..end]);
                continue;
            }
            accepted += 1;
            ensure!(applied.stderr.contains("no last line"), "{applied}");
            if accepted % 8 == 1 {
                stays_closed(&manager, &[41180, 4122]).with_context(|| whole[..end].to_owned())?;
            }
            ensure!(in_force()? == before, "accepted, and not the same: {}", &whole[..end]);
        }
        println!("{accepted} were accepted");
        ensure!(accepted >= 10, "{accepted} were accepted");
        let seen = crate::scene::from(&manager, "34.205.5.1", 41180)?;
        ensure!(seen == Outcome::Talked, "{seen}");
        agent_fw(["uninstall", "--yes"])?.success()?;
        let seen = crate::scene::from(&manager, "198.51.100.7", 41180)?;
        ensure!(seen == Outcome::Talked, "it would have arrived: {seen}");
        Ok(())
    })
}

fn a_policy_without_its_last_line_is_accepted_with_a_warning() -> Result<()> {
    const SAID: &str = "no last line";
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        ensure!(!agent_fw(["apply"])?.to_string().contains(SAID), "it has its last line");
        let by_hand = "allow_from = [\"region:us-1\"]\n";
        let whole = fs::read_to_string(POLICY)?;
        let digest = whole.lines().last().context("a last line")?;
        for (text, lacks_end) in [
            (by_hand.to_owned(), true),
            (whole.replace(digest, ""), true),
            (whole.replace(digest, &digest[..digest.len() - 1]), true),
            (format!("{whole}# and more\n"), true),
            (format!("{by_hand}# End of policy\n"), false),
            (format!("{by_hand}# End of policy"), false),
            // Changed by hand, and whole.
            (whole.replace("log = false", "log = true"), false),
        ] {
            fs::write(POLICY, &text)?;
            for command in [&["apply"][..], &["apply", "--boot"], &["status"], &["doctor"]] {
                let finished = agent_fw(command)?;
                let said = finished.to_string().replace('\n', " ").contains(SAID);
                ensure!(said == lacks_end, "{command:?}, of {text}: {finished}");
                ensure!(command == ["doctor"] || finished.code == Some(0), "{finished}");
            }
            let name = "policy.toml is whole";
            ensure!(check(name).is_ok_and(|(health, _)| health == "note") == lacks_end);
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        }
        // What agent-fw writes has it again.
        fs::write(POLICY, by_hand)?;
        install(&["--allow-from", "region:us-1"])?;
        ensure!(!agent_fw(["status"])?.to_string().contains(SAID));
        Ok(())
    })
}

fn a_key_that_was_cut_off_is_missed_and_one_that_was_taken_away_is_not() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let mac = ["--allow-mac", "02:00:00:00:00:77"];
        install(&[&["--allow-from", "198.51.100.0/24"][..], &mac].concat())?;
        let by_hand = "allow_from = [\"198.51.100.0/24\"]\n";
        fs::write(POLICY, by_hand)?;
        let refused = agent_fw(["apply"])?;
        ensure!(refused.code == Some(1) && refused.stderr.contains("`allow_mac`"), "{refused}");
        ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        fs::write(POLICY, format!("{by_hand}# End of policy\n"))?;
        agent_fw(["apply"])?.success()?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        ensure!(status()?.1 == Some(0));
        Ok(())
    })
}
