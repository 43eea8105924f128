//! The security agent on this host: its process, and who listens on its port.

use crate::policy::Port;
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
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let texts = tables.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| listening(&text, port)).collect()
}

/// A line is: number, local address and port, remote ones, state, and more.
fn listening(table: &str, port: Port) -> Vec<IpAddr> {
    const LISTENS: &str = "0A";
    let listens = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (address, number) = words.next()?.rsplit_once(':')?;
        let state = words.nth(1)?;
        let is_it = u16::from_str_radix(number, 16) == Ok(port.0) && state == LISTENS;
        if is_it { address_of(address) } else { None }
    };
    table.lines().skip(1).filter_map(listens).collect()
}

/// The kernel prints each word of an address as this machine reads it.
fn address_of(text: &str) -> Option<IpAddr> {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let word = |word: &[u8; 8]| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok();
    let words: Option<Vec<[u8; 4]>> =
        words.iter().map(|digits| word(digits).map(u32::to_ne_bytes)).collect();
    match words.filter(|_| rest.is_empty())?.as_slice() {
        [v4] => Some(IpAddr::from(*v4)),
        [a, b, c, d] => <[u8; 16]>::try_from([*a, *b, *c, *d].concat()).ok().map(IpAddr::from),
        _ => None,
    }
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

    #[test]
    fn only_sockets_that_listen_on_the_port_count() {
        let table = "  sl  local_address rem_address   st\n\
             0: 00000000:1016 00000000:0000 0A 0\n\
             1: 0100007F:1016 0100007F:C350 01 0\n\
             2: 00000000:0016 00000000:0000 0A 0\n";
        assert_eq!(listening(table, Port(4118)), [IpAddr::from([0, 0, 0, 0])]);
        assert_eq!(listening("", Port(4118)), Vec::<IpAddr>::new());
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        let v6 = [0x2001_0db8_u32, 0, 0, 7].map(|word| format!("{:08X}", word.to_be())).concat();
        assert_eq!(address_of(&v6), "2001:db8::7".parse().ok());
        let v4 = format!("{:08X}", 0x7f00_0001_u32.to_be());
        assert_eq!(address_of(&v4), "127.0.0.1".parse().ok());
        assert_eq!(address_of("0100"), None);
    }
}
