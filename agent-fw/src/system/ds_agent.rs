//! The security agent on this host: its process, and who listens on its port.

use super::sockets::{self, Protocol};
use crate::model::Port;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

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
