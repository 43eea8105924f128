//! The TCP sockets of this network namespace that listen, as the kernel's diagnostics list them.

use super::message::{attributes, dump_sockets};

/// A socket that listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listener {
    /// Its port.
    pub(crate) port: u16,
    /// Whether a rule with TPROXY can hand it packets (`IP_TRANSPARENT`). `true` also where the
    /// kernel does not tell: before 5.14.
    pub(crate) is_transparent: bool,
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

fn parse(body: &[u8]) -> Option<Listener> {
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let options = attributes(body.get(ANSWER_BYTES..)?).find(|(kind, _)| *kind == OPTIONS);
    let first = options.and_then(|(_, value)| value.first());
    Some(Listener { port, is_transparent: first.is_none_or(|bits| bits & TRANSPARENT != 0) })
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
}
