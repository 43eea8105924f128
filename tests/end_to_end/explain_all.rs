//! `agent-fw explain --all`: no admitted prefix is left out, by no interface.

use crate::scene::{doctor, install};
use crate::tests;
use agent_fw_lab::{Lab, agent_fw, feed, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

tests![
    explain_all_tries_every_listed_range_and_a_stranger,
    explain_all_and_doctor_leave_no_prefix_out,
    explain_all_asks_by_every_interface_with_a_route,
];

fn explain_all_tries_every_listed_range_and_a_stranger() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let nothing = agent_fw(["explain", "--all"])?;
        ensure!(nothing.code == Some(2) && nothing.stderr.contains("no policy"), "{nothing}");
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        install(&["--allow-from", "region:us-1"])?;
        let all = agent_fw(["explain", "--all", "--json"])?;
        let value: Value = serde_json::from_str(&all.stdout)?;
        ensure!(all.code == Some(0) && value["as_promised"] == true, "{all}");
        let answers = value["answers"].as_array().context("answers")?;
        let admitted = answers.iter().filter(|answer| answer["admitted"] == true).count();
        ensure!(answers.len() == 3 && admitted == 2, "{value:#}");
        feed(
            ["nft", "-f", "-"],
            "table inet host {\nchain input {\n\
             type filter hook input priority 0;\nip saddr 18.97.19.0/27 drop\n}\n}\n",
        )?;
        let all = agent_fw(["explain", "--all"])?;
        let words = all.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(all.code == Some(1) && words.contains("ip saddr 18.97.19.0/27 drop"), "{all}");
        Ok(())
    })
}

/// What `explain --all` says of each source, and its exit code.
fn explain_all() -> Result<(Vec<Value>, Option<i32>)> {
    let all = agent_fw(["explain", "--all", "--json"])?;
    let value: Value =
        serde_json::from_str(&all.stdout).with_context(|| format!("no JSON: {all}"))?;
    Ok((value["answers"].as_array().cloned().context("answers")?, all.code))
}

fn explain_all_and_doctor_leave_no_prefix_out() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        let prefixes: String = (0..200).map(|n| format!("34.205.{n}.0/25\n")).collect();
        std::fs::write("/run/prefixes", prefixes)?;
        install(&["--allow-from", "file:/run/prefixes"])?;
        let (answers, code) = explain_all()?;
        ensure!(answers.len() == 201 && code == Some(0), "{} answers, {code:?}", answers.len());
        // One that only a test of all of them finds.
        feed(
            ["nft", "-f", "-"],
            "table inet host {\nchain input {\n\
             type filter hook input priority 0;\nip saddr 34.205.173.0/25 drop\n}\n}\n",
        )?;
        let (answers, code) = explain_all()?;
        let stopped = answers.iter().filter(|answer| answer["as_promised"] == false);
        let stopped: Vec<_> = stopped.filter_map(|answer| answer["source"].as_str()).collect();
        ensure!(stopped == ["34.205.173.1"] && code == Some(1), "{stopped:?}");
        let (value, _) = doctor()?;
        let said = value.to_string();
        ensure!(said.contains("34.205.0.1 and 198 more, by manager0: reaches"), "{value:#}");
        ensure!(said.contains("34.205.173.1, by manager0: dropped by rule"), "{value:#}");
        // The neighbours on either side of each, and a stranger.
        ensure!(said.contains("198.51.100.7 and 400 more, by manager0: dropped"), "{value:#}");
        Ok(())
    })
}

fn explain_all_asks_by_every_interface_with_a_route() -> Result<()> {
    Lab::run(|lab| {
        let (peer, other) = (lab.peer("manager")?, lab.peer("other")?);
        for (peer, metric) in [(&peer, "10"), (&other, "20")] {
            let gateway = peer.v4().to_string();
            run(["ip", "route", "add", "default", "via", &gateway, "metric", metric])?;
        }
        install(&["--allow-from", "region:us-1"])?;
        let by = |answers: &[Value], interface: &str, reaches: bool| {
            let of =
                |answer: &&Value| answer["interface"] == interface && answer["reaches"] == reaches;
            answers.iter().filter(of).count()
        };
        let (answers, code) = explain_all()?;
        let counted =
            ["manager0", "other0"].map(|name| [true, false].map(|r| by(&answers, name, r)));
        ensure!(counted == [[2, 1], [2, 1]] && code == Some(0), "{counted:?}");
        let to = |name: &str| {
            let found = answers.iter().find(|answer| answer["interface"] == name);
            found.and_then(|answer| answer["destination"].as_str()).map(str::to_owned)
        };
        ensure!(to("other0") == Some(other.host_v4().to_string()), "{:?}", to("other0"));
        // No answer would go out there: what is stopped is shown, and breaks no promise.
        feed(
            ["nft", "-f", "-"],
            "table inet host {\nchain input {\n\
             type filter hook input priority 0;\niifname other0 drop\n}\n}\n",
        )?;
        let (answers, code) = explain_all()?;
        ensure!(by(&answers, "other0", true) == 0 && code == Some(0), "{answers:?}");
        // Where it would, it does.
        run(["nft", "add", "rule", "inet", "host", "input", "iifname", "manager0", "drop"])?;
        let (_, code) = explain_all()?;
        ensure!(code == Some(1));
        Ok(())
    })
}
