//! Refused packets, told as they come.

use crate::scene::{AGENT, LISTED, expect, install};
use crate::xdp::flags;
use crate::{foreign, tests};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, command};
use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

tests![
    watch_tells_of_refused_packets_and_of_no_others,
    watch_tells_of_refused_packets_at_the_tc_hook,
    ctrl_c_ends_watch_and_it_says_how_many_there_were,
    watch_without_a_program_says_what_to_do,
];

/// `agent-fw watch` with these flags, once it watches.
fn watch(flags: &[&str]) -> Result<Child> {
    let mut child = command([agent_fw_lab::agent_fw_path()])
        .arg("watch")
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let mut said = BufReader::with_capacity(1, child.stderr.take().context("no stderr")?);
    said.read_line(&mut line)?;
    ensure!(line.contains("watching"), "{line}");
    child.stderr = Some(said.into_inner());
    Ok(child)
}

fn refused_one(peer: &Peer) -> Result<()> {
    expect(peer, Outcome::Talked, &LISTED[..1])?;
    expect(peer, Outcome::Silent, &["198.51.100.7"])
}

fn watch_tells_of_refused_packets_and_of_no_others() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        // Before anybody watches: not told of.
        refused_one(&manager)?;
        let watching = watch(&["--json", "--count", "1"])?;
        let second = agent_fw(["watch", "--count", "1"])?;
        ensure!(second.code == Some(3) && second.stderr.contains("another"), "{second}");
        // An update in between changes nothing.
        install(&flags("xdp", "manager0", &["--allow-from", "192.0.2.0/24"]))?;
        expect(&manager, Outcome::Silent, &["2001:db8:2::1"])?;
        let output = watching.wait_with_output()?;
        ensure!(output.status.success());
        let told: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(told["source"] == "2001:db8:2::1", "{told:#}");
        ensure!(told["destination"] == manager.host_v6().to_string(), "{told:#}");
        ensure!(told["source_mac"] == manager.mac()?.to_string(), "{told:#}");
        ensure!(told["interface"] == "manager0" && told["hidden_port"] == false, "{told:#}");
        Ok(())
    })
}

fn watch_tells_of_refused_packets_at_the_tc_hook() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Skb)?;
        install(&flags("xdp", "manager0", &[]))?;
        let watching = watch(&["--count", "1"])?;
        refused_one(&manager)?;
        let output = watching.wait_with_output()?;
        let line = String::from_utf8(output.stdout)?;
        let mac = manager.mac()?;
        ensure!(line.contains(&format!("from {mac}")), "{line}");
        ensure!(line.contains("manager0 198.51.100.7 -> "), "{line}");
        Ok(())
    })
}

fn ctrl_c_ends_watch_and_it_says_how_many_there_were() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let watching = watch(&[])?;
        refused_one(&manager)?;
        kill(Pid::from_raw(i32::try_from(watching.id())?), Signal::SIGINT)?;
        let output = watching.wait_with_output()?;
        ensure!(output.status.success(), "{:?}", output.status);
        let (lines, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(lines.lines().count() >= 1 && said.contains(" refused"), "{lines}{said}");
        let quiet = agent_fw(["watch", "--for", "1"])?;
        ensure!(quiet.code == Some(0) && quiet.stdout.is_empty(), "{quiet}");
        ensure!(quiet.stderr.contains("0 told of 0 refused"), "{quiet}");
        Ok(())
    })
}

fn watch_without_a_program_says_what_to_do() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        install(&["--allow-from", "region:us-1"])?;
        let tried = agent_fw(["watch"])?;
        ensure!(tried.code == Some(2) && tried.stderr.contains("--backend both"), "{tried}");
        Ok(())
    })
}
