//! The TCP and UDP sockets of this network namespace, as the kernel lists them below `/proc/net`.

use crate::model::Port;
use anyhow::{Context as _, anyhow};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// A protocol that has ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A socket that packets may be exchanged with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Socket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its own address. `::` stands for every address of both versions of IP: whether the socket is
    /// for IPv6 alone is not told.
    pub local: SocketAddr,
    /// The other end; nothing, where it takes packets from anywhere: it listens, or is a UDP socket
    /// that is not connected.
    pub remote: Option<SocketAddr>,
    /// Its number, which no other socket has meanwhile.
    pub inode: u64,
}

impl Socket {
    /// Its own port.
    pub fn port(&self) -> Port {
        Port(self.local.port())
    }
}

/// Every socket that listens, or has a connection that can still carry data.
pub fn list() -> anyhow::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (protocol, name) in [
        (Protocol::Tcp, "tcp"),
        (Protocol::Tcp, "tcp6"),
        (Protocol::Udp, "udp"),
        (Protocol::Udp, "udp6"),
    ] {
        let path = format!("/proc/thread-self/net/{name}");
        let table = match fs::read_to_string(&path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            read => read.with_context(|| format!("cannot read {path}"))?,
        };
        for line in table.lines().skip(1) {
            sockets.extend(parse(protocol, line).with_context(|| format!("{path}: {line}"))?);
        }
    }
    // A table may change while it is read, and then has a socket twice.
    sockets.sort_unstable();
    sockets.dedup();
    Ok(sockets)
}

/// The ports that sockets get which are not given one.
pub fn ephemeral_ports() -> anyhow::Result<RangeInclusive<u16>> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(anyhow!("{PATH} is not a range: {text}")),
    }
}

/// States of include/net/tcp_states.h, of sockets that can still carry data: `TCP_ESTABLISHED`, and
/// those of which one direction is closed (`TCP_FIN_WAIT1`, `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`).
const CONNECTED: u8 = 1;
const HALF_CLOSED: [u8; 3] = [4, 5, 8];
/// `TCP_CLOSE`, as which UDP sockets are shown that are not connected; `TCP_LISTEN`.
const UNCONNECTED: u8 = 7;
const LISTENS: u8 = 10;

/// A line is: number, local address and port, remote ones, state, queues, timer, retransmissions,
/// user, timeout, inode, and more. Nothing, for a socket that carries nothing.
fn parse(protocol: Protocol, line: &str) -> anyhow::Result<Option<Socket>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, _, _, _, _, inode, ..] = *words.as_slice() else {
        return Err(anyhow!("too few words"));
    };
    let state = u8::from_str_radix(state, 16)?;
    let local = address_and_port(local).context("the local address")?;
    let remote = address_and_port(remote).context("the remote address")?;
    let inode: u64 = inode.parse().context("the inode")?;
    let remote = match (protocol, state) {
        (Protocol::Tcp, LISTENS) | (Protocol::Udp, UNCONNECTED) => None,
        (_, CONNECTED) => Some(remote),
        // Without an inode, no process has it any more.
        (Protocol::Tcp, state) if HALF_CLOSED.contains(&state) && inode != 0 => Some(remote),
        _ => return Ok(None),
    };
    Ok(Some(Socket { protocol, local, remote, inode }))
}

fn address_and_port(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // A socket for IPv6 shows IPv4 addresses mapped into it.
    Some(SocketAddr::new(address_of(address)?.to_canonical(), port))
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

    /// A line as the kernel prints it.
    fn line(local: &str, remote: &str, state: &str, inode: u64) -> String {
        format!(
            "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 \
             {inode} 1 0000000000000000 100 0 0 10 0"
        )
    }

    fn v4(address: u32, port: u16) -> String {
        format!("{:08X}:{port:04X}", address.to_be())
    }

    #[test]
    fn sockets_that_carry_something_are_read_and_others_are_not() {
        let (here, there) = (v4(0xc000_0202, 22), v4(0xc000_0207, 40_000));
        let read = |protocol, state, inode| {
            parse(protocol, &line(&here, &there, state, inode)).expect("a socket")
        };
        let remote = |socket: Option<Socket>| socket.map(|socket| socket.remote);
        let there = Some("192.0.2.7:40000".parse().expect("an address"));
        assert_eq!(remote(read(Protocol::Tcp, "0A", 7)), Some(None));
        assert_eq!(remote(read(Protocol::Udp, "07", 7)), Some(None));
        for state in ["01", "08"] {
            assert_eq!(remote(read(Protocol::Tcp, state, 7)), Some(there));
        }
        assert_eq!(remote(read(Protocol::Udp, "01", 7)), Some(there));
        // TIME_WAIT, and what a process has closed.
        assert_eq!(read(Protocol::Tcp, "06", 0), None);
        assert_eq!(read(Protocol::Tcp, "05", 0), None);
        let socket = read(Protocol::Tcp, "01", 7).expect("a socket");
        assert_eq!((socket.port(), socket.inode), (Port(22), 7));
    }

    #[test]
    fn a_line_that_is_cut_off_is_an_error_and_no_socket_less() {
        let whole = line(&v4(1, 22), &v4(0, 0), "0A", 7);
        assert!(parse(Protocol::Tcp, &whole).is_ok());
        for cut in [&whole[..20], &whole[..40], &whole.replace("0A", "XY")] {
            assert!(parse(Protocol::Tcp, cut).is_err(), "{cut}");
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        let words = |words: [u32; 4]| words.map(|word| format!("{:08X}", word.to_be())).concat();
        let read = |text: &str| address_and_port(&format!("{text}:0016")).map(|at| at.to_string());
        assert_eq!(read(&words([0x2001_0db8, 0, 0, 7])).as_deref(), Some("[2001:db8::7]:22"));
        // ::ffff:127.0.0.1
        assert_eq!(read(&words([0, 0, 0xffff, 0x7f00_0001])).as_deref(), Some("127.0.0.1:22"));
        assert_eq!(read("0100"), None);
    }

    #[test]
    fn this_process_finds_its_own_sockets() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
        let local = listener.local_addr().expect("bound");
        let stream = std::net::TcpStream::connect(local).expect("connected");
        let found = list().expect("listed");
        let has = |local, remote| {
            found.iter().any(|socket| socket.local == local && socket.remote == remote)
        };
        assert!(has(local, None));
        assert!(has(stream.local_addr().expect("bound"), Some(local)));
        assert!(ephemeral_ports().expect("a range").contains(&local.port()));
    }
}
