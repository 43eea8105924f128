//! What the tests have in common: words for what they do and see.

use agent_fw_lab::{Finished, Outcome, Peer, agent_fw, agent_fw_path, command, connect};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The agent's port.
pub(crate) const AGENT: u16 = 4118;

/// How long a packet that must not come is waited for. Shorter than a second, after which a SYN
/// is sent again.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);

/// How long a packet is waited for that must come, however slow the machine: a SYN is sent again
/// meanwhile.
pub(crate) const AMPLE: Duration = Duration::from_secs(10);

/// Addresses of region us-1, the first and the last of each subnet.
pub(crate) const LISTED: [&str; 4] = ["34.205.5.0", "34.205.5.31", "18.97.19.0", "18.97.19.31"];
/// Their neighbours, which are not in the region.
pub(crate) const UNLISTED: [&str; 4] =
    ["34.205.4.255", "34.205.5.32", "18.97.18.255", "18.97.19.32"];

/// Whether this kernel is that version of Linux, or a newer one.
pub(crate) fn is_linux(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// An address from its text.
pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("a test's address is an address")
}

/// Ports that a stranger must not reach, whatever is left of the policy.
pub(crate) fn stays_closed(peer: &Peer, ports: &[u16]) -> Result<()> {
    for port in ports {
        let seen = from(peer, "198.51.100.7", *port)?;
        ensure!(seen == Outcome::Silent, "port {port}: {seen}");
    }
    Ok(())
}

/// `agent-fw install` with these flags, which must succeed.
pub(crate) fn install(flags: &[&str]) -> Result<String> {
    try_install(flags)?.success()
}

/// `agent-fw install` with these flags, however it ends; of any source, where they name none.
/// Untested: the packets that test what is open are counted as a source's.
pub(crate) fn try_install(flags: &[&str]) -> Result<Finished> {
    const NAMING: [&str; 4] = ["--allow-from", "--allow-mac", "--rules", "agent-initiated"];
    let names = flags.iter().any(|flag| NAMING.contains(flag));
    let any: &[&str] = if names { &[] } else { &["--allow-from", "any"] };
    agent_fw(["install", "--no-boot", "--untested", "--replace"].iter().chain(flags).chain(any))
}

/// What becomes of a connection from `source`, an address that the peer is given for it.
pub(crate) fn from(peer: &Peer, source: &str, port: u16) -> Result<Outcome> {
    let source = address(source);
    peer.add_address(source)?;
    let outcome = connect_from(peer, source, port);
    peer.remove_address(source)?;
    outcome
}

/// What becomes of a connection from an address that the peer has.
pub(crate) fn connect_from(peer: &Peer, source: IpAddr, port: u16) -> Result<Outcome> {
    let agent = peer.host_address(source, port);
    peer.enter(|| connect(source, agent, PATIENCE))?
}

/// Demands that connections to the agent from these sources end so.
pub(crate) fn expect(peer: &Peer, outcome: Outcome, sources: &[&str]) -> Result<()> {
    for source in sources {
        let seen = from(peer, source, AGENT)?;
        ensure!(seen == outcome, "from {source}: {seen}, should be {outcome}");
    }
    Ok(())
}

/// What `agent-fw status --json` says, and its exit code.
pub(crate) fn status() -> Result<(Value, Option<i32>)> {
    let finished = agent_fw(["status", "--json"])?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("the status is no JSON: {finished}"))?;
    Ok((value, finished.code))
}

/// Packets that were admitted by what these words name.
pub(crate) fn admitted(status: &Value, by: &str) -> u64 {
    let all = status["admitted"].as_array().into_iter().flatten();
    all.filter(|entry| entry["by"] == by).filter_map(|entry| entry["packets"].as_u64()).sum()
}

/// What doctor says, and its exit code.
pub(crate) fn doctor() -> Result<(Value, Option<i32>)> {
    let finished = agent_fw(["doctor", "--json"])?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("doctor's answer is no JSON: {finished}"))?;
    Ok((value, finished.code))
}

/// Doctor's check of this name: how it came out, and what was seen.
pub(crate) fn check(name: &str) -> Result<(String, String)> {
    let (value, _) = doctor()?;
    let all = value["checks"].as_array().context("checks")?;
    let check = all.iter().find(|check| check["check"] == name).context(name.to_owned())?;
    let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    Ok((word("health"), word("seen")))
}

/// What the guard says.
pub(crate) const SAID: &str = "/run/guard.said";

/// A guard that runs. Dropping it ends it.
pub(crate) struct Guard(pub(crate) Child);

impl Guard {
    pub(crate) fn start() -> Result<Self> {
        Self::start_by(command([agent_fw_path()]))
    }

    /// With the rights that its unit leaves it.
    pub(crate) fn start_as_unit() -> Result<Self> {
        let rights = "--bounding-set=-all,+net_admin,+bpf,+perfmon";
        let mut command = command(["setpriv", rights]);
        command.arg(agent_fw_path());
        Self::start_by(command)
    }

    /// With this command, to which `guard` is added.
    pub(crate) fn start_by(mut guard: Command) -> Result<Self> {
        let said = File::create(SAID)?;
        let guard = guard.arg("guard").stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let guard = Self(guard.spawn().context("cannot start the guard")?);
        until("the guard stands", || Ok(fs::read_to_string(SAID)?.contains("on guard")))?;
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until it is so; how long that took.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(start.elapsed())
}
