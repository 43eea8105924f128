//! `agent-fw metrics`, read as a Prometheus server would.

use crate::scene::{AGENT, expect, from, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use prometheus_parse::{Scrape, Value};
use std::time::{SystemTime, UNIX_EPOCH};

tests![
    metrics_say_what_status_says_and_a_parser_reads_them,
    metrics_tell_drift_and_that_nothing_is_closed,
    metrics_tell_when_the_last_packet_came_where_a_program_saw_it,
    a_hostile_file_name_stays_inside_its_label,
];

/// All values of a metric, with their labels as `name=value`, sorted.
struct Metrics(Scrape);

impl Metrics {
    fn read() -> Result<Self> {
        let text = agent_fw(["metrics"])?.success()?;
        let lines = text.lines().map(|line| Ok(line.to_owned()));
        let scrape = Scrape::parse(lines).context("Prometheus cannot read it")?;
        // Whatever the parser passed over would be lost.
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        ensure!(samples.count() == scrape.samples.len(), "not all of it was read:\n{text}");
        Ok(Self(scrape))
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let sample = self.0.samples.iter().find(|sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(label) == Some(*value);
            sample.metric == name && labels.iter().all(has)
        });
        let samples = || format!("{:#?}", self.0.samples);
        match sample.with_context(|| format!("no {name} {labels:?} in {}", samples()))?.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Ok(value),
            ref other => anyhow::bail!("{name} is {other:?}"),
        }
    }

    fn demand(&self, name: &str, labels: &[(&str, &str)], expected: f64) -> Result<()> {
        let found = self.get(name, labels)?;
        let same = (found - expected).abs() < f64::EPSILON;
        ensure!(same, "{name} {labels:?} is {found}, should be {expected}");
        Ok(())
    }
}

fn metrics_say_what_status_says_and_a_parser_reads_them() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1", "--allow-from", "region:gb-1"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        let (said, _) = status()?;
        let metrics = Metrics::read()?;
        metrics.demand("agent_fw_installed", &[], 1.0)?;
        metrics.demand("agent_fw_closed", &[], 1.0)?;
        metrics.demand("agent_fw_drift", &[], 0.0)?;
        let hash = said["policy"].as_str().context("a hash")?;
        let labels = [("policy", hash), ("kernel_policy", hash), ("backend", "nft")];
        metrics.demand("agent_fw_policy_info", &labels, 1.0)?;
        for entry in said["admitted"].as_array().context("a list")? {
            let labels = [("by", entry["by"].as_str().context("a text")?), ("backend", "nft")];
            let (packets, bytes) = (entry["packets"].as_f64(), entry["bytes"].as_f64());
            let packets = packets.context("a number")?;
            metrics.demand("agent_fw_admitted_packets_total", &labels, packets)?;
            let bytes = bytes.context("a number")?;
            metrics.demand("agent_fw_admitted_bytes_total", &labels, bytes)?;
        }
        let by_us = [("by", "region us-1")];
        ensure!(metrics.get("agent_fw_admitted_packets_total", &by_us)? >= 4.0);
        metrics.demand("agent_fw_refused_packets_total", &[("at", "input")], 1.0)?;
        metrics.demand("agent_fw_refused_bytes_total", &[("at", "input")], 60.0)?;
        let age = now()? - metrics.get("agent_fw_policy_written_seconds", &[])?;
        ensure!((0.0..600.0).contains(&age), "the policy is {age} s old");
        Ok(())
    })
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn metrics_tell_drift_and_that_nothing_is_closed() -> Result<()> {
    Lab::run(|_| {
        let expect = |installed, closed, drift| {
            let metrics = Metrics::read()?;
            metrics.demand("agent_fw_installed", &[], installed)?;
            metrics.demand("agent_fw_closed", &[], closed)?;
            metrics.demand("agent_fw_drift", &[], drift)
        };
        expect(0.0, 0.0, 0.0)?;
        install(&["--allow-from", "region:us-1"])?;
        expect(1.0, 1.0, 0.0)?;
        run(["nft", "flush", "ruleset"])?;
        expect(1.0, 0.0, 1.0)?;
        agent_fw(["apply"])?.success()?;
        expect(1.0, 1.0, 0.0)?;
        install(&["--allow-from", "any"])?;
        expect(1.0, 0.0, 0.0)?;
        // A policy that cannot be read is no reason for silence.
        std::fs::write("/etc/agent-fw/policy.toml", "allow_form = 1\n")?;
        expect(1.0, 0.0, 1.0)
    })
}

fn metrics_tell_when_the_last_packet_came_where_a_program_saw_it() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let words = ["--backend", "both", "--interface", "manager0"];
        install(&[&["--allow-from", "region:us-1"][..], &words].concat())?;
        let before = now()?;
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Talked);
        let metrics = Metrics::read()?;
        let last = metrics.get("agent_fw_last_admitted_seconds", &[("by", "region us-1")])?;
        // The two clocks may differ by what their steps are.
        ensure!(before - 1.0 < last && last < now()? + 1.0, "{before} < {last} < {}", now()?);
        let labels = [("by", "region us-1"), ("backend", "xdp")];
        ensure!(metrics.get("agent_fw_admitted_packets_total", &labels)? >= 4.0);
        Ok(())
    })
}

fn a_hostile_file_name_stays_inside_its_label() -> Result<()> {
    Lab::run(|_| {
        let file = "/run/a\" 7\nagent_fw_closed 1\\.list";
        std::fs::write(file, "192.0.2.0/28\n")?;
        install(&["--allow-from", &format!("file:{file}"), "--otherwise", "continue"])?;
        let metrics = Metrics::read()?;
        metrics.demand("agent_fw_closed", &[], 0.0)?;
        let closed = metrics.0.samples.iter().filter(|sample| sample.metric == "agent_fw_closed");
        ensure!(closed.count() == 1);
        Ok(())
    })
}
