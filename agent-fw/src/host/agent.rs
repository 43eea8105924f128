//! The security agent on this host: its process, and who listens on its port.

use crate::policy::Port;
use std::fs;
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

/// The local addresses, as the kernel writes them, of TCP sockets that listen on this port in this
/// network namespace.
pub fn listeners(port: Port) -> Vec<String> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let texts = tables.iter().filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| listening(&text, port)).collect()
}

/// A line is: number, local address and port, remote ones, state, and more.
fn listening(table: &str, port: Port) -> Vec<String> {
    const LISTENS: &str = "0A";
    let listens = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (address, number) = words.next()?.rsplit_once(':')?;
        let state = words.nth(1)?;
        let is_it = u16::from_str_radix(number, 16) == Ok(port.0) && state == LISTENS;
        is_it.then(|| address.to_owned())
    };
    table.lines().skip(1).filter_map(listens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_on_the_port_count() {
        let table = "  sl  local_address rem_address   st\n\
             0: 00000000:1016 00000000:0000 0A 0\n\
             1: 0100007F:1016 0100007F:C350 01 0\n\
             2: 00000000:0016 00000000:0000 0A 0\n";
        assert_eq!(listening(table, Port(4118)), ["00000000"]);
        assert_eq!(listening("", Port(4118)), Vec::<String>::new());
    }
}
