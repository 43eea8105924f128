//! The security agent on this host: its process, and who listens on its port.

use super::sockets::{self, Protocol};
use crate::model::Port;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The agent's process.
const PROCESS: &str = "ds_agent";
/// While this file is there, the agent adds no iptables rules of its own.
pub const LEAVE_IPTABLES: &str = "/etc/do_not_open_ports_on_iptables";

/// The numbers of the agent's processes.
pub fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| is_agent(*number))
        .collect();
    found.sort_unstable();
    found
}

fn is_agent(process: u32) -> bool {
    let name = Path::new("/proc").join(process.to_string()).join("comm");
    fs::read_to_string(name).is_ok_and(|name| name.trim() == PROCESS)
}

/// The agent's own program that tells about it.
const QUERY: &str = "/opt/ds_agent/dsa_query";
/// It answers at once, if the agent does.
const PATIENCE: Duration = Duration::from_secs(5);

/// The host of the manager that the agent talks to; `None` where there is no agent, or it does not
/// tell.
pub fn manager() -> Option<String> {
    let mut query = Command::new(QUERY)
        .args(["-c", "GetAgentStatus"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + PATIENCE;
    while matches!(query.try_wait(), Ok(None)) {
        if Instant::now() >= deadline {
            drop(query.kill());
            drop(query.wait());
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    // A status is a few hundred lines.
    query.stdout.take()?.take(1 << 20).read_to_string(&mut said).ok()?;
    manager_of(&said)
}

/// The host in the line `AgentStatus.dsmUrl: https://HOST:443/`.
fn manager_of(status: &str) -> Option<String> {
    let url = status.lines().find_map(|line| line.trim().strip_prefix("AgentStatus.dsmUrl:"))?;
    let url = url.trim();
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!host.is_empty() && host.len() <= 253 && host.chars().all(is_plain)).then_some(host)
}

/// The port on which an agent that is a relay listens, too.
const RELAY: Port = Port(4122);

/// The rules of iptables that open the agent's ports to every address, as the agent adds them: each
/// with the program that shows it. Nothing is loaded into the kernel for this.
pub fn own_rules(port: Port) -> Vec<(&'static str, String)> {
    let programs = [
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
    ];
    let mut found = Vec::new();
    for program in programs {
        let saved = super::program::call(program).output().ok();
        let text = saved.map(|saved| String::from_utf8_lossy(&saved.stdout).into_owned());
        let rules = text.iter().flat_map(|text| opening(text, &[port, RELAY]));
        found.extend(rules.map(|rule| (program, rule.to_owned())));
    }
    found
}

/// Rules of the chain INPUT that accept TCP to one of these ports and ask for nothing else.
fn opening<'a>(saved: &'a str, ports: &[Port]) -> Vec<&'a str> {
    let opens = |rule: &&str| {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let [rest @ .., "-j", "ACCEPT"] = words.as_slice() else { return false };
        let Some(rest) = rest.strip_prefix(&["-A", "INPUT", "-p", "tcp"]) else { return false };
        let rest = rest.strip_prefix(&["-m", "tcp"]).unwrap_or(rest);
        matches!(rest, ["--dport", port] if ports.iter().any(|of| of.to_string() == **port))
    };
    saved.lines().filter(opens).collect()
}

/// The local addresses of TCP sockets that listen on this port in this network namespace.
pub fn listeners(port: Port) -> Vec<IpAddr> {
    let all = sockets::list().unwrap_or_default().into_iter();
    let listening = all.filter(|socket| {
        socket.protocol == Protocol::Tcp && socket.remote.is_none() && socket.port() == port
    });
    listening.map(|socket| socket.local.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_managers_host_is_read_from_the_agents_status() {
        let host = "agents-003.workload.de-1.cloudone.trendmicro.com";
        for url in [
            format!("AgentStatus.dsmUrl: https://{host}:443/"),
            format!("AgentStatus.agentState: green\r\nAgentStatus.dsmUrl: https://{host}\r\n"),
            format!("  AgentStatus.dsmUrl:{host}"),
        ] {
            assert_eq!(manager_of(&url).as_deref(), Some(host), "{url}");
        }
        for none in ["", "AgentStatus.dsmUrl:", "AgentStatus.dsmUrl: https://\u{1b}[2J/"] {
            assert_eq!(manager_of(none), None, "{none}");
        }
    }

    #[test]
    fn only_rules_that_open_a_port_to_every_address_are_the_agents() {
        let saved = "*filter\n:INPUT DROP [0:0]\n\
             -A INPUT -p tcp -m tcp --dport 4118 -j ACCEPT\n\
             -A INPUT -s 192.0.2.0/24 -p tcp -m tcp --dport 4118 -j ACCEPT\n\
             -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
             -A OUTPUT -p tcp -m tcp --dport 4118 -j ACCEPT\n\
             -A INPUT -p tcp -m tcp --dport 4122 -j ACCEPT\nCOMMIT\n";
        let found = opening(saved, &[Port(4118), RELAY]);
        let of = |port: u16| format!("-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT");
        assert_eq!(found, [of(4118), of(4122)]);
    }
}
