//! ICMP echo, without the program `ping`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, send, socket,
};

use crate::outcome::Outcome;
use crate::packet::checksum;
use crate::wait::ready;

/// Tells the echoes of this process's pings apart: a raw socket hears those of all.
static NEXT_IDENTIFIER: AtomicU16 = AtomicU16::new(1);

/// What differs between the ICMP of IPv4 and that of IPv6.
struct Dialect {
    family: AddressFamily,
    protocol: SockProtocol,
    request: u8,
    reply: u8,
}

const ICMP: Dialect =
    Dialect { family: AddressFamily::Inet, protocol: SockProtocol::Icmp, request: 8, reply: 0 };
const ICMPV6: Dialect = Dialect {
    family: AddressFamily::Inet6,
    protocol: SockProtocol::IcmpV6,
    request: 128,
    reply: 129,
};

/// Sends an echo request from an address of this namespace and waits for the reply.
pub fn ping(from: IpAddr, to: IpAddr, timeout: Duration) -> Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let dialect = if from.is_ipv4() { ICMP } else { ICMPV6 };
    let socket = socket(dialect.family, SockType::Raw, SockFlag::SOCK_CLOEXEC, dialect.protocol)
        .context("cannot make a raw ICMP socket")?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))
        .with_context(|| format!("{from} is no address of this namespace"))?;
    let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let request = echo_request(dialect.request, identifier);
    let asked = connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))
        .and_then(|()| send(socket.as_raw_fd(), &request, MsgFlags::empty()));
    if let Err(errno) = asked {
        return outcome_of(errno).with_context(|| format!("cannot ping {to} from {from}"));
    }

    let mut buffer = [0; 2048];
    while ready(&socket, PollFlags::POLLIN, deadline).context("cannot wait")? {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                let message = message(from, &buffer[..length]);
                if message.first() == Some(&dialect.reply)
                    && message.get(4..6) == Some(&identifier[..])
                {
                    return Ok(Outcome::Talked);
                }
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) => return outcome_of(errno).context("cannot receive"),
        }
    }
    Ok(Outcome::Silent)
}

fn outcome_of(errno: Errno) -> nix::Result<Outcome> {
    Outcome::of_errno(errno).ok_or(errno)
}

/// Type, code, checksum, identifier, sequence number; over IPv6 the kernel puts
/// in its own checksum, which covers the pseudo header too.
fn echo_request(kind: u8, identifier: [u8; 2]) -> [u8; 8] {
    let mut request = [kind, 0, 0, 0, identifier[0], identifier[1], 0, 1];
    let [high, low] = checksum(&request).to_be_bytes();
    request[2] = high;
    request[3] = low;
    request
}

/// A raw IPv4 socket gives the datagram with its header, an IPv6 one without.
fn message(family: IpAddr, datagram: &[u8]) -> &[u8] {
    let header = match (family, datagram.first()) {
        (IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    datagram.get(header..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::ping;
    use crate::filter::filter_input;
    use crate::lab::Lab;
    use crate::outcome::Outcome;

    #[test]
    fn a_ping_is_answered_or_lost_and_neighbours_find_each_other_anew() {
        const TIMEOUT: Duration = Duration::from_millis(700);
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let pairs: [(IpAddr, IpAddr); 2] = [
                (manager.v4().into(), manager.host_v4().into()),
                (manager.v6().into(), manager.host_v6().into()),
            ];
            for (from, to) in pairs {
                assert_eq!(manager.enter(|| ping(from, to, TIMEOUT))??, Outcome::Talked, "{to}");
                manager.forget_neighbours()?;
                assert_eq!(manager.enter(|| ping(from, to, TIMEOUT))??, Outcome::Talked, "{to}");
                assert_eq!(ping(to, from, TIMEOUT)?, Outcome::Talked, "from the host to {from}");
            }
            filter_input("icmp type echo-request drop; icmpv6 type echo-request drop")?;
            for (from, to) in pairs {
                assert_eq!(manager.enter(|| ping(from, to, TIMEOUT))??, Outcome::Silent, "{to}");
            }
            Ok(())
        })
        .unwrap();
    }
}
