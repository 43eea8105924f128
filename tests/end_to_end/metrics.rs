//! `agent-fw metrics`, read as a Prometheus server would.

use crate::scene::{AGENT, expect, from, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, command, feed, run};
use anyhow::{Context as _, Result, ensure};
use prometheus_parse::{Scrape, Value};
use std::time::{SystemTime, UNIX_EPOCH};

tests![
    metrics_say_what_status_says_and_a_parser_reads_them,
    metrics_tell_drift_and_that_nothing_is_closed,
    metrics_tell_when_the_last_packet_came_where_a_program_saw_it,
    a_hostile_file_name_stays_inside_its_label,
    a_heartbeat_that_fails_to_come_is_told_and_whether_it_was_refused_here,
    where_no_heartbeat_is_expected_none_is_missed,
    whether_sources_get_through_is_a_metric_that_feigns_no_contact,
    what_agent_fw_itself_sends_is_in_no_counter_that_is_shown,
    what_rules_beyond_the_agents_port_met_is_a_metric,
    prometheus_own_tool_finds_nothing_wrong_with_the_metrics,
    the_dashboard_asks_for_metrics_that_there_are,
    the_alerts_are_read_by_prometheus_and_ask_for_metrics_that_there_are,
    what_keeps_the_policy_and_what_was_found_out_are_metrics,
    a_file_of_metrics_is_whole_and_its_directory_is_not_made,
];

/// All values of a metric, with their labels as `name=value`, sorted.
struct Metrics(Scrape);

impl Metrics {
    fn read() -> Result<Self> {
        Self::read_with(&[])
    }

    fn read_with(words: &[&str]) -> Result<Self> {
        let text = agent_fw(["metrics"].iter().chain(words))?.success()?;
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

/// `status --check`, as it is after so many more minutes on the kernel's clocks; with its exit code.
fn check_after(minutes: u32) -> Result<(serde_json::Value, Option<i32>)> {
    let seconds = (minutes * 60).to_string();
    let clocks = ["--boottime", &seconds, "--monotonic", &seconds];
    let mut check = command([&["unshare", "--time", "--fork"][..], &clocks].concat());
    let output = check.arg(agent_fw_path()).args(["status", "--check", "--json"]).output()?;
    let said = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((said, output.status.code()))
}

fn a_heartbeat_that_fails_to_come_is_told_and_whether_it_was_refused_here() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let manager_initiated = ["--direction", "manager-initiated"];
        install(&[&["--allow-from", "region:us-1"], &manager_initiated[..]].concat())?;
        let expect_state = |minutes, state: &str, code| -> Result<serde_json::Value> {
            let (said, exit) = check_after(minutes)?;
            let heartbeat = &said["heartbeat"];
            ensure!(heartbeat["state"] == state, "after {minutes} min: {heartbeat}");
            ensure!(exit == Some(code), "after {minutes} min: {exit:?}");
            Ok(said)
        };
        expect_state(0, "too-early", 0)?;
        expect_state(19, "too-early", 0)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let said = expect_state(24, "heard", 0)?;
        let between = &said["admitted"][0]["last_between_seconds_ago"];
        let [from, to] = [0, 1].map(|at| between[at].as_u64().unwrap_or_default());
        ensure!((290..=310).contains(&from) && to <= 2, "{between}");
        expect_state(40, "heard", 0)?;
        expect_state(45, "never-arrived", 1)?;
        crate::scene::expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        expect_state(50, "refused-here", 1)?;
        expect_state(80, "never-arrived", 1)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        expect_state(85, "heard", 0)?;
        // An update is no contact.
        let regions = ["--allow-from", "region:us-1", "--allow-from", "region:gb-1"];
        install(&[&regions[..], &manager_initiated].concat())?;
        expect_state(110, "never-arrived", 1)?;
        Ok(())
    })
}

fn where_no_heartbeat_is_expected_none_is_missed() -> Result<()> {
    Lab::run(|_| {
        // In bidirectional mode the agent usually opens the connection: that none comes in tells
        // nothing.
        for (words, state) in [
            (&["--allow-from", "region:us-1"][..], "not-judged"),
            (&["--direction", "agent-initiated"], "not-expected"),
        ] {
            install(words)?;
            for minutes in [0, 60] {
                let (said, code) = check_after(minutes)?;
                let heartbeat = &said["heartbeat"];
                ensure!(heartbeat["state"] == state && code == Some(0), "{heartbeat}");
            }
        }
        run(["nft", "flush", "ruleset"])?;
        ensure!(check_after(120)?.1 == Some(1), "a drift is told as ever");
        Ok(())
    })
}

fn what_agent_fw_itself_sends_is_in_no_counter_that_is_shown() -> Result<()> {
    let rules = crate::firewall::rules("06-allow-arp-and-watch")?;
    for words in [
        &["--allow-from", "34.205.5.0/27"][..],
        &["--allow-from", "34.205.5.0/27", "--early-drop"],
        &["--allow-from", "34.205.5.0/27", "--backend", "both", "--interface", "manager0"],
        &["--allow-from", "34.205.5.0/27", "--rules", &rules, "--policy"],
    ] {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
            run(["ip", "route", "add", "198.51.100.0/24", "via", &manager.v4().to_string()])?;
            install(words)?;
            let shown = || -> Result<[String; 2]> {
                let (mut said, _) = status()?;
                // When a packet came last is another matter.
                said["admitted"].as_array_mut().into_iter().flatten().for_each(|by| {
                    by["last_between_seconds_ago"].take();
                });
                said["xdp"].take();
                let metrics = agent_fw(["metrics"])?.success()?;
                let counts = |line: &&str| line.contains("packets_total");
                let metrics: Vec<&str> = metrics.lines().filter(counts).collect();
                Ok([format!("{said:#}"), metrics.join("\n")])
            };
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            let before = shown()?;
            for _ in 0..3 {
                agent_fw(["explain", "--from", "34.205.5.1"])?.success()?;
                agent_fw(["explain", "--from", "198.51.100.7"])?;
                agent_fw(["explain", "--all"])?;
                agent_fw(["doctor"])?;
                agent_fw(["metrics", "--probe"])?;
            }
            let after = shown()?;
            ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
            // Others' packets are counted as ever.
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            ensure!(shown()? != before, "a stranger's packet is not counted");
            Ok(())
        })
        .with_context(|| words.join(" "))?;
    }
    Ok(())
}

fn whether_sources_get_through_is_a_metric_that_feigns_no_contact() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        for backend in [&[][..], &["--backend", "both", "--interface", "manager0"]] {
            let words = ["--allow-from", "34.205.5.0/27", "--direction", "manager-initiated"];
            install(&[&words[..], backend].concat())?;
            check_after(0)?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            let (said, _) = check_after(0)?;
            ensure!(said["heartbeat"]["state"] == "heard", "{}", said["heartbeat"]);
            let by = [("by", "listed addresses"), ("source", "34.205.5.1")];
            let read = |words: &[&str]| Metrics::read_with(words);
            ensure!(read(&[])?.get("agent_fw_open", &by).is_err(), "it was not asked for");
            read(&["--probe"])?.demand("agent_fw_open", &by, 1.0)?;
            // Another firewall stands in the way.
            run(["nft", "add", "table", "inet", "theirs"])?;
            let hook = "{ type filter hook input priority 0; }";
            run(["nft", "add", "chain", "inet", "theirs", "input", hook])?;
            run(["nft", "add", "rule", "inet", "theirs", "input", "tcp", "dport", "4118", "drop"])?;
            read(&["--probe"])?.demand("agent_fw_open", &by, 0.0)?;
            run(["nft", "delete", "table", "inet", "theirs"])?;
            // Nor do others that ask.
            for asked in
                [&["doctor"][..], &["explain", "--all"], &["explain", "--from", "34.205.5.1"]]
            {
                agent_fw(asked)?;
            }
            let again = [&["install", "--no-boot", "--replace"], &words[..], backend].concat();
            agent_fw(again)?.success()?;
            let (said, _) = check_after(24)?;
            ensure!(said["heartbeat"]["state"] == "never-arrived", "{}", said["heartbeat"]);
            agent_fw(["uninstall", "--yes"])?.success()?;
        }
        Ok(())
    })
}

fn prometheus_own_tool_finds_nothing_wrong_with_the_metrics() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let file = "/run/a \" of, {commas}\\.list";
        std::fs::write(file, "34.205.5.0/27\n")?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        let sources = format!("file:{file}");
        let words =
            ["--allow-from", &sources, "--relay", "192.0.2.0/24", "--default-deny-outbound"];
        install(&[&words[..], &["--backend", "both", "--interface", "manager0"]].concat())?;
        agent_fw(["metrics", "--probe"])?.success()?;
        let text = agent_fw(["metrics", "--probe"])?.success()?;
        ensure!(text.contains("agent_fw_open{") && text.contains("agent_fw_rule_"), "{text}");
        let check = ["promtool", "check", "metrics"];
        feed(check, &format!("{text}\n"))?;
        // It would find something.
        let broken = text.replace("agent_fw_closed 1", "agent_fw_closed one");
        ensure!(feed(check, &format!("{broken}\n")).is_err(), "it reads anything");
        Ok(())
    })
}

fn the_alerts_are_read_by_prometheus_and_ask_for_metrics_that_there_are() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        agent_fw(["install", "--no-boot", "--allow-from", "34.205.5.0/27"])?.success()?;
        let alerts = agent_fw(["metrics", "--alerts"])?.success()?;
        std::fs::write("/run/alerts.yml", &alerts)?;
        let said = run(["promtool", "check", "rules", "/run/alerts.yml"])?;
        ensure!(said.contains("7 rules found"), "{said}");
        // It would find something.
        std::fs::write("/run/broken.yml", alerts.replace("== 0", "== nothing("))?;
        ensure!(run(["promtool", "check", "rules", "/run/broken.yml"]).is_err());
        // Somebody has come since somebody looked.
        agent_fw(["metrics"])?.success()?;
        let _agent = Listener::bind(AGENT)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let there = agent_fw(["metrics", "--probe"])?.success()?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let names = alerts.lines().filter(|line| line.contains("expr:"));
        let names = names.flat_map(|line| line.split(|c: char| !is_part(c)));
        let names: Vec<&str> = names.filter(|word| word.starts_with("agent_fw_")).collect();
        ensure!(names.len() >= 10, "{names:?}");
        for name in names {
            let line = format!("\n# TYPE {name} ");
            ensure!(there.contains(&line), "no metric {name}: {there}");
        }
        Ok(())
    })
}

fn what_keeps_the_policy_and_what_was_found_out_are_metrics() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        agent_fw(["install", "--no-boot", "--allow-from", "34.205.5.0/27"])?.success()?;
        let demand = |name: &str, value: f64| Metrics::read()?.demand(name, &[], value);
        demand("agent_fw_closed_wanted", 1.0)?;
        demand("agent_fw_boot_unit", 0.0)?;
        demand("agent_fw_guard_standing", 0.0)?;
        demand("agent_fw_on_trial", 0.0)?;
        demand("agent_fw_heartbeat_wanted", 0.0)?;
        demand("agent_fw_last_test_sources", 1.0)?;
        demand("agent_fw_last_test_stopped_sources", 0.0)?;
        run(["nft", "add", "table", "inet", "theirs"])?;
        let chain =
            "add chain inet theirs input { type filter hook input priority 0; policy drop; }";
        run(["nft", chain])?;
        agent_fw(["install", "--no-boot", "--allow-from", "34.205.5.0/27"])?.success()?;
        demand("agent_fw_last_test_stopped_sources", 1.0)?;
        let said = agent_fw(["status"])?.success()?;
        ensure!(
            said.starts_with("closed, but 1 of 1 sources tested did not get through"),
            "{said}"
        );
        let mut guard = agent_fw_lab::command([agent_fw_lab::agent_fw_path()]);
        let guard = guard.arg("guard").stdout(std::process::Stdio::null());
        let mut guard = guard.stderr(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let stands = demand("agent_fw_guard_standing", 1.0);
        guard.kill()?;
        guard.wait()?;
        stands?;
        demand("agent_fw_guard_standing", 0.0)?;
        agent_fw(["set", "--direction", "manager-initiated", "--untested"])?.success()?;
        demand("agent_fw_heartbeat_wanted", 1.0)
    })
}

fn what_rules_beyond_the_agents_port_met_is_a_metric() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(4122)?;
        install(&["--relay", "192.0.2.0/24"])?;
        let name = "agent_fw_rule_packets_total";
        // The parser of these tests stops at a comma in a label.
        let labels = [
            ("table", "inet agent_fw_policy"),
            ("direction", "incoming"),
            ("action", "Force Allow"),
        ];
        Metrics::read()?.demand(name, &labels, 0.0)?;
        ensure!(from(&peer, "192.0.2.7", 4122)? == Outcome::Talked);
        ensure!(Metrics::read()?.get(name, &labels)? >= 4.0);
        Ok(())
    })
}

fn the_dashboard_asks_for_metrics_that_there_are() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"])?;
        Metrics::read()?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        let metrics = Metrics::read_with(&["--probe"])?;
        let dashboard = agent_fw(["metrics", "--dashboard"])?.success()?;
        let dashboard: serde_json::Value = serde_json::from_str(&dashboard)?;
        let panels = dashboard["panels"].as_array().context("no panels")?;
        let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter());
        let mut asked = 0;
        for target in targets.flatten() {
            let asks = target["expr"].as_str().context("no expression")?;
            let words = asks.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.starts_with("agent_fw_")) {
                metrics.get(name, &[])?;
                asked += 1;
            }
        }
        ensure!(asked >= 9, "the dashboard asks for {asked} metrics");
        Ok(())
    })
}

fn a_file_of_metrics_is_whole_and_its_directory_is_not_made() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let file = "/run/agent-fw.prom";
        agent_fw(["metrics", "--output", file])?.success()?;
        let text = std::fs::read_to_string(file)?;
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
        ensure!(scrape.samples.iter().any(|sample| sample.metric == "agent_fw_closed"), "{text}");
        let refused = agent_fw(["metrics", "--output", "/run/nowhere/agent-fw.prom"])?;
        ensure!(refused.code == Some(2), "{refused:?}");
        ensure!(!std::path::Path::new("/run/nowhere").exists(), "it was made");
        Ok(())
    })
}
