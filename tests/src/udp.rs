//! UDP: an echo, and a question to it.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::outcome::Outcome;

/// Sends a datagram from an address of this namespace and waits for its echo.
pub fn ask(from: IpAddr, to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    const QUESTION: &[u8] = b"are you there?";
    let socket = UdpSocket::bind((from, 0))
        .with_context(|| format!("{from} is no address of this namespace"))?;
    socket.set_read_timeout(Some(timeout)).context("cannot set a timeout")?;
    let mut answer = [0; 64];
    let exchanged = socket
        .connect(to)
        .and_then(|()| socket.send(QUESTION))
        .and_then(|_| socket.recv(&mut answer));
    match exchanged {
        Ok(length) => {
            ensure!(&answer[..length] == QUESTION, "the echo differs from what was sent");
            Ok(Outcome::Talked)
        }
        Err(error) => Outcome::of_io_error(&error)
            .ok_or(error)
            .with_context(|| format!("cannot ask {to} from {from}")),
    }
}

/// A socket of this namespace, at an address and port that another one may have been closed at just
/// now: a process that another thread has just forked keeps that alive until it executes its
/// program.
pub fn bind_udp(address: impl Into<IpAddr>, port: u16) -> Result<UdpSocket> {
    let (address, deadline) = (address.into(), Instant::now() + RELEASE);
    loop {
        match UdpSocket::bind((address, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            bound => {
                return bound.with_context(|| format!("cannot bind UDP {address} port {port}"));
            }
        }
    }
}

/// How often the echo looks whether it should end.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// How long a socket may outlive its closing; see [`wait_until_free`].
const RELEASE: Duration = Duration::from_secs(5);

/// A UDP server on one port, for IPv4 and IPv6, that echoes datagrams. It ends when dropped.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Listens on every address of this namespace.
    pub fn bind(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen on UDP port {port}"))?;
        socket.set_read_timeout(Some(HEARTBEAT)).context("cannot set a timeout")?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                echo(&socket, &stop);
                drop(socket);
                wait_until_free(port);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic in there has already been printed, and must not become an abort here.
            let _ = thread.join();
        }
    }
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::SeqCst) {
        // Errors are the timeout, or ICMP about earlier answers; neither ends the server.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Waits until nobody holds the port. A process that another thread has just forked has a
/// copy of every descriptor, and keeps the socket alive until it executes its program.
fn wait_until_free(port: u16) {
    let deadline = Instant::now() + RELEASE;
    let local = format!(":{port:04X} ");
    let held =
        || fs::read_to_string("/proc/thread-self/net/udp6").is_ok_and(|s| s.contains(&local));
    while held() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::{UdpEcho, ask};
    use crate::filter::filter_input;
    use crate::lab::Lab;
    use crate::outcome::Outcome;

    #[test]
    fn a_datagram_is_echoed_refused_or_lost() {
        const TIMEOUT: Duration = Duration::from_millis(700);
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let echo = UdpEcho::bind(4118)?;
            let sources = [IpAddr::from(manager.v4()), manager.v6().into()];
            let attempt = |source| {
                manager.enter(|| ask(source, manager.host_address(source, 4118), TIMEOUT))?
            };
            for source in sources {
                assert_eq!(attempt(source)?, Outcome::Talked, "from {source}");
            }
            drop(echo);
            for source in sources {
                assert_eq!(attempt(source)?, Outcome::Refused, "from {source}");
            }
            filter_input("udp dport 4118 drop")?;
            for source in sources {
                assert_eq!(attempt(source)?, Outcome::Silent, "from {source}");
            }
            Ok(())
        })
        .unwrap();
    }
}
