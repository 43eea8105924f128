//! Counters tell whose they are: with real packets, whatever rules are called and wherever they stand.

use crate::scene::{from, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Outcome, agent_fw};
use anyhow::{Context as _, Result, ensure};
use std::fs;

tests![rules_that_swap_places_keep_their_counts_whatever_they_are_called];

/// The packets that a rule has met, as the status and the metrics tell.
fn counted(rule: &str) -> Result<[u64; 2]> {
    let (said, _) = status()?;
    let all = said["firewall"].as_array().cloned().unwrap_or_default();
    let shown = all.iter().find(|counter| counter["rule"] == rule).context(rule.to_owned())?;
    let metrics = agent_fw(["metrics"])?.success()?;
    let label = format!("rule=\"{rule}\"");
    let of_rule =
        |line: &&str| line.starts_with("agent_fw_rule_packets_total") && line.contains(&label);
    let line = metrics.lines().find(of_rule).with_context(|| format!("no metric of {rule}"))?;
    let metric = line.rsplit(' ').next().context("a value")?.parse::<f64>()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    Ok([shown["packets"].as_u64().unwrap_or_default(), metric as u64])
}

fn rules_that_swap_places_keep_their_counts_whatever_they_are_called() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let rule = |name: &str, port: u16| {
            format!(
                "{{\"name\": \"{name}\", \"action\": \"deny\", \"priority\": \"2\", \
                  \"direction\": \"incoming\", \"frameType\": \"ip\", \"protocol\": \"tcp\", \
                  \"destinationPortType\": \"multiple\", \"destinationPortMultiple\": [\"{port}\"]}}"
            )
        };
        let (web, bastion) = (rule("ウェブ", 8080), rule("踏み台", 2222));
        let words = ["--allow-from", "region:us-1", "--rules", "/run/rules.json", "--policy"];
        fs::write("/run/rules.json", format!("[{web}, {bastion}]"))?;
        install(&words)?;
        let knock = |port, times| -> Result<()> {
            for _ in 0..times {
                ensure!(from(&peer, "198.51.100.7", port)? == Outcome::Silent, "{port}");
            }
            Ok(())
        };
        knock(8080, 3)?;
        knock(2222, 1)?;
        let before = (counted("ウェブ")?, counted("踏み台")?);
        ensure!(before == ([3, 3], [1, 1]), "{before:?}");
        fs::write("/run/rules.json", format!("[{bastion}, {web}]"))?;
        agent_fw(["apply"])?.success()?;
        let after = (counted("ウェブ")?, counted("踏み台")?);
        ensure!(after == before, "{before:?}, then {after:?}");
        knock(2222, 2)?;
        let last = (counted("ウェブ")?, counted("踏み台")?);
        ensure!(last == ([3, 3], [3, 3]), "{last:?}");
        Ok(())
    })
}
