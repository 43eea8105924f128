//! The TCP sockets of this network namespace that listen, as the kernel's diagnostics list them.

use super::message::{attributes, dump_sockets, get_socket, number};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};

/// A socket that listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listener {
    /// Its port.
    pub(crate) port: u16,
    /// Whether a rule with TPROXY can hand it packets (`IP_TRANSPARENT`). `true` also where the
    /// kernel does not tell: before 5.14.
    pub(crate) is_transparent: bool,
    /// Its address; unspecified, where it takes what is for any.
    pub(crate) address: IpAddr,
    /// The interface that it is bound to.
    pub(crate) interface: Option<u32>,
    /// Whether it takes packets of IPv6 alone.
    pub(crate) is_v6_only: bool,
}

/// Of linux/sock_diag.h and linux/inet_diag.h: `struct inet_diag_req_v2`, `struct inet_diag_msg`.
const REQUEST_BYTES: usize = 56;
const ANSWER_BYTES: usize = 72;
/// `INET_DIAG_SOCKOPT`, and in its first byte the bit that C gives `transparent`.
const OPTIONS: u16 = 22;
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 0x20 } else { 0x04 };

/// All of them.
pub(crate) fn list() -> nix::Result<Vec<Listener>> {
    /// `TCP_LISTEN`.
    const LISTENS: u32 = 10;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; REQUEST_BYTES];
        request[0] = u8::try_from(family).unwrap_or_default();
        request[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
        request[4..8].copy_from_slice(&(1_u32 << LISTENS).to_ne_bytes());
        found.extend(dump_sockets(&request)?.iter().filter_map(|body| parse(body)));
    }
    Ok(found)
}

/// The socket that a connection would be for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// Whether it listens.
    pub(crate) listens: bool,
    /// The interface that it is bound to.
    pub(crate) interface: Option<u32>,
    /// Its cgroup's number, where the kernel tells (5.8).
    pub(crate) cgroup: Option<u64>,
}

/// The socket that the kernel would give a TCP packet to, which comes from `remote` to `own` by this
/// interface; none, where nobody has one.
pub(crate) fn target(
    remote: SocketAddr,
    own: SocketAddr,
    interface: u32,
) -> nix::Result<Option<Target>> {
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = vec![0; REQUEST_BYTES];
    request[0] = u8::try_from(family).unwrap_or_default();
    request[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[8..10].copy_from_slice(&own.port().to_be_bytes());
    request[10..12].copy_from_slice(&remote.port().to_be_bytes());
    for (place, address) in [(12, own.ip()), (28, remote.ip())] {
        match address {
            IpAddr::V4(v4) => request[place..place + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => request[place..place + 16].copy_from_slice(&v6.octets()),
        }
    }
    request[44..48].copy_from_slice(&interface.to_ne_bytes());
    // `INET_DIAG_NOCOOKIE`: whichever it is.
    request[48..56].fill(u8::MAX);
    match get_socket(&request) {
        Ok(found) => Ok(found.first().and_then(|body| parse_target(body))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn parse_target(body: &[u8]) -> Option<Target> {
    /// `TCP_LISTEN`; `INET_DIAG_CGROUP_ID`.
    const LISTENS: u8 = 10;
    const CGROUP: u16 = 21;
    let interface = number(body.get(40..)?)?;
    let mut all = attributes(body.get(ANSWER_BYTES..)?);
    let cgroup = all.find(|(kind, _)| *kind == CGROUP).map(|(_, value)| value);
    let cgroup = cgroup.and_then(|value| Some(u64::from_ne_bytes(*value.first_chunk()?)));
    let interface = (interface != 0).then_some(interface);
    Some(Target { listens: *body.get(1)? == LISTENS, interface, cgroup })
}

fn parse(body: &[u8]) -> Option<Listener> {
    /// `INET_DIAG_SKV6ONLY`.
    const V6_ONLY: u16 = 11;
    let is_v4 = i32::from(*body.first()?) == libc::AF_INET;
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let own = body.get(8..)?;
    let address = if is_v4 {
        IpAddr::from(*own.first_chunk::<4>()?)
    } else {
        IpAddr::from(*own.first_chunk::<16>()?).to_canonical()
    };
    let interface = number(body.get(40..)?).filter(|index| *index != 0);
    let rest = body.get(ANSWER_BYTES..)?;
    let first = |wanted| {
        let value = attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        value.and_then(<[u8]>::first).copied()
    };
    let is_transparent = first(OPTIONS).is_none_or(|bits| bits & TRANSPARENT != 0);
    let is_v6_only = first(V6_ONLY).is_some_and(|value| value != 0);
    Some(Listener { port, is_transparent, address, interface, is_v6_only })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_socket_that_listens_is_listed_and_is_not_transparent() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("bound").port();
        let listed = list().expect("the kernel lists them");
        let found = listed.iter().filter(|listener| listener.port == port).collect::<Vec<_>>();
        assert!(matches!(found[..], [Listener { is_transparent: false, .. }]), "{found:?}");
    }

    #[test]
    fn a_socket_is_found_at_its_address_and_nowhere_else() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let own = socket.local_addr().expect("bound");
        let remote = "127.0.0.9:50000".parse().expect("an address");
        let at = |own| target(remote, own, 1).expect("the kernel looks");
        assert!(at(own).is_some_and(|target| target.listens && target.interface.is_none()));
        assert_eq!(at(SocketAddr::new([127, 0, 0, 2].into(), own.port())), None);
    }
}
