//! Real TCP: a listener that echoes, and conversations with it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect as start_connecting,
    getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};

use crate::outcome::Outcome;
use crate::wait::ready;

/// How long an echo may take on a connection that stands. A busy machine is slow; waiting
/// costs time only where a test fails anyway.
const ECHO_PATIENCE: Duration = Duration::from_secs(5);

/// After this long without a byte the listener gives a connection up, so that no thread
/// stays for ever.
const IDLE: Duration = Duration::from_mins(1);

/// Connects from an address of this namespace to `to`, says something and hears the echo.
/// `timeout` bounds the handshake: what is dropped is [`Outcome::Silent`] after it.
///
/// An error means that the attempt could not be made, e.g. because `from` is no address here.
pub fn connect(from: IpAddr, to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    let mut conversation = match dial(from, to, timeout)? {
        Ok(stream) => Conversation::new(stream)?,
        Err(outcome) => return Ok(outcome),
    };
    match conversation.say(ECHO_PATIENCE)? {
        Outcome::Silent => Ok(Outcome::Mute),
        outcome => Ok(outcome),
    }
}

/// A connection that is kept open, to see whether it goes on.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    said: u64,
    heard: Vec<u8>,
}

impl Conversation {
    /// Opens a connection from an address of this namespace; an error unless it stands.
    pub fn open(from: IpAddr, to: SocketAddr, timeout: Duration) -> Result<Self> {
        match dial(from, to, timeout)? {
            Ok(stream) => Self::new(stream),
            Err(outcome) => bail!("no connection from {from} to {to}: {outcome}"),
        }
    }

    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        close_by_reset(&stream)?;
        Ok(Self { stream, said: 0, heard: Vec::new() })
    }

    /// Says one more thing and waits for its echo. [`Outcome::Silent`] if it does not come in
    /// time; the conversation can go on afterwards, since TCP repeats what was lost.
    pub fn say(&mut self, timeout: Duration) -> Result<Outcome> {
        self.said += 1;
        let deadline = Instant::now() + timeout;
        match self.stream.write_all(&self.said.to_be_bytes()) {
            Ok(()) => self.hear(deadline),
            Err(error) => outcome_of(error).context("cannot send"),
        }
    }

    /// Waits for the echo of the last thing that was said; echoes of earlier ones, late,
    /// come before it.
    fn hear(&mut self, deadline: Instant) -> Result<Outcome> {
        let wanted = usize::try_from(self.said * 8).context("too much was said")?;
        while self.heard.len() < wanted {
            if !ready(&self.stream, PollFlags::POLLIN, deadline).context("cannot wait")? {
                return Ok(Outcome::Silent);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Outcome::Refused),
                Ok(length) => self.heard.extend_from_slice(&buffer[..length]),
                Err(error) => return outcome_of(error).context("cannot receive"),
            }
        }
        let expected: Vec<u8> = (1..=self.said).flat_map(u64::to_be_bytes).collect();
        if self.heard != expected {
            bail!("the echo differs from what was said");
        }
        Ok(Outcome::Talked)
    }
}

/// A connection, or what came instead of one.
fn dial(
    from: IpAddr,
    to: SocketAddr,
    timeout: Duration,
) -> Result<std::result::Result<TcpStream, Outcome>> {
    let deadline = Instant::now() + timeout;
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(family, SockType::Stream, flags, None).context("cannot make a TCP socket")?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))
        .with_context(|| format!("{from} is no address of this namespace"))?;
    let errno = match start_connecting(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => {
            if !ready(&socket, PollFlags::POLLOUT, deadline).context("cannot wait")? {
                return Ok(Err(Outcome::Silent));
            }
            let code =
                getsockopt(&socket, sockopt::SocketError).context("cannot ask the socket")?;
            Errno::from_raw(code)
        }
        Ok(()) => Errno::from_raw(0),
        Err(errno) => errno,
    };
    if errno != Errno::from_raw(0) {
        let outcome = Outcome::of_errno(errno).ok_or(errno);
        return outcome.map(Err).with_context(|| format!("cannot connect from {from} to {to}"));
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).context("cannot make the socket blocking")?;
    Ok(Ok(stream))
}

fn outcome_of(error: std::io::Error) -> std::io::Result<Outcome> {
    Outcome::of_io_error(&error).ok_or(error)
}

/// Lets closing send a RST and forget the connection. Otherwise one whose packets a firewall
/// drops would stay for minutes, repeating its FIN, and keep the namespace alive.
fn close_by_reset(socket: &impl AsFd) -> Result<()> {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(socket, sockopt::Linger, &at_once).context("cannot set SO_LINGER")
}

/// A TCP server on one port, for IPv4 and IPv6, that echoes what it hears. It ends when
/// dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<TcpListener>,
    guests: Arc<Guests>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on every address of this namespace.
    pub fn bind(port: u16) -> Result<Self> {
        let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen on port {port}"))?;
        Ok(Self::at(socket))
    }

    /// Listens on every IPv6 address of this namespace, and on none of IPv4.
    pub fn bind_v6_only(port: u16) -> Result<Self> {
        Self::with(port, |socket| Ok(setsockopt(socket, sockopt::Ipv6V6Only, &true)?))
    }

    /// Listens on every address, for what comes in by this interface.
    pub fn bind_to_device(port: u16, interface: &str) -> Result<Self> {
        Self::with(port, |socket| {
            Ok(setsockopt(socket, sockopt::BindToDevice, &OsString::from(interface))?)
        })
    }

    fn with(port: u16, set: impl Fn(&OwnedFd) -> Result<()>) -> Result<Self> {
        let kind = (AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let socket = socket(kind.0, kind.1, kind.2, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        set(&socket)?;
        let every = SockaddrStorage::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
        bind(socket.as_raw_fd(), &every).with_context(|| format!("cannot bind port {port}"))?;
        listen(&socket, Backlog::MAXCONN)?;
        Ok(Self::at(TcpListener::from(socket)))
    }

    fn at(socket: TcpListener) -> Self {
        let socket = Arc::new(socket);
        let guests = Arc::new(Guests::default());
        let thread = thread::spawn({
            let (socket, guests) = (Arc::clone(&socket), Arc::clone(&guests));
            move || serve(&socket, &guests)
        });
        Self { socket, guests, thread: Some(thread) }
    }

    /// From now on it takes what a rule with TPROXY hands it.
    pub fn become_transparent(&self) -> Result<()> {
        setsockopt(&*self.socket, sockopt::IpTransparent, &true).context("IP_TRANSPARENT")
    }

    /// Who has connected so far, in order.
    #[must_use]
    pub fn accepted(&self) -> Vec<SocketAddr> {
        self.guests.book().accepted.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // On Linux this wakes the thread that is waiting in accept().
        let stopped = shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        debug_assert!(stopped.is_ok(), "shutdown of a listening socket: {stopped:?}");
        self.guests.close();
        if let Some(thread) = self.thread.take() {
            // A panic in there has already been printed, and must not become an abort here.
            let _ = thread.join();
        }
    }
}

/// The connections of a listener.
#[derive(Debug, Default)]
struct Guests(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    accepted: Vec<SocketAddr>,
    open: HashMap<usize, TcpStream>,
    closed: bool,
}

impl Guests {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection and keeps a handle to end it by; `None` when it is too late.
    fn enter(&self, stream: &TcpStream, from: SocketAddr) -> Option<usize> {
        let handle = stream.try_clone().ok()?;
        let mut book = self.book();
        if book.closed {
            return None;
        }
        let number = book.accepted.len();
        book.accepted.push(canonical(from));
        book.open.insert(number, handle);
        Some(number)
    }

    fn leave(&self, number: usize) {
        self.book().open.remove(&number);
    }

    fn close(&self) {
        let mut book = self.book();
        book.closed = true;
        for stream in book.open.values() {
            // The other side may have gone already; either way it is closed now.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A dual-stack socket shows IPv4 addresses mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn serve(socket: &TcpListener, guests: &Guests) {
    thread::scope(|scope| {
        loop {
            match socket.accept() {
                Ok((stream, from)) => {
                    if let Some(number) = guests.enter(&stream, from) {
                        scope.spawn(move || {
                            echo(stream);
                            guests.leave(number);
                        });
                    }
                }
                // A guest that left before it was let in.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // EINVAL: the listener was shut down.
                Err(_) => break,
            }
        }
    });
}

/// Echoes until the other side or the listener ends it; network errors end it too.
fn echo(mut stream: TcpStream) {
    let prepared = close_by_reset(&stream).is_ok()
        && stream.set_nodelay(true).is_ok()
        && stream.set_read_timeout(Some(IDLE)).is_ok()
        && stream.set_write_timeout(Some(IDLE)).is_ok();
    if !prepared {
        return;
    }
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::{Duration, Instant};

    use super::{Conversation, Listener, connect};
    use crate::filter::{allow_input, filter_input};
    use crate::lab::Lab;
    use crate::mac::MacAddr;
    use crate::outcome::Outcome;

    const TIMEOUT: Duration = Duration::from_millis(700);

    #[test]
    fn a_peer_talks_from_every_address_that_it_was_given() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let listener = Listener::bind(4118)?;
            let sources: [IpAddr; 3] =
                ["34.205.5.1".parse()?, "198.51.100.7".parse()?, "2001:db8::7".parse()?];
            for source in sources {
                manager.add_address(source)?;
                let agent = manager.host_address(source, 4118);
                let outcome = manager.enter(|| connect(source, agent, TIMEOUT))??;
                assert_eq!(outcome, Outcome::Talked, "from {source}");
            }
            let seen: Vec<IpAddr> = listener.accepted().iter().map(SocketAddr::ip).collect();
            assert_eq!(seen, sources);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_source_that_the_peer_does_not_have_is_an_error_and_not_silence() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let source: IpAddr = "34.205.5.1".parse()?;
            let agent = manager.host_address(source, 4118);
            assert!(manager.enter(|| connect(source, agent, TIMEOUT))?.is_err());
            manager.add_address(source)?;
            manager.remove_address(source)?;
            assert!(manager.enter(|| connect(source, agent, TIMEOUT))?.is_err());
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn refused_unreachable_and_silent_are_told_apart() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            for source in [IpAddr::from(manager.v4()), manager.v6().into()] {
                let try_port = |port| {
                    let to = manager.host_address(source, port);
                    manager.enter(|| connect(source, to, TIMEOUT))?
                };
                assert_eq!(try_port(4119)?, Outcome::Refused);
                filter_input("tcp dport 4118 drop")?;
                assert_eq!(try_port(4118)?, Outcome::Silent);
                // Not by ICMP: the kernel takes that for final only from a later SYN on.
                filter_input("tcp dport 4118 reject with tcp reset")?;
                assert_eq!(try_port(4118)?, Outcome::Refused);
                allow_input()?;
                assert_eq!(try_port(4118)?, Outcome::Talked);
            }
            let nowhere = "203.0.113.1:4118".parse()?;
            let source = manager.v4().into();
            lab.forward()?;
            assert_eq!(manager.enter(|| connect(source, nowhere, TIMEOUT))??, Outcome::Unreachable);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_connection_whose_packets_are_dropped_after_the_handshake_is_mute() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            filter_input("tcp dport 4118 tcp flags & psh == psh drop")?;
            let source = manager.v4().into();
            let agent = manager.host_address(source, 4118);
            let outcome = manager.enter(|| connect(source, agent, TIMEOUT))??;
            assert_eq!(outcome, Outcome::Mute);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_conversation_goes_on_after_a_silence() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            let source = manager.v6().into();
            let agent = manager.host_address(source, 4118);
            let mut talk = manager.enter(|| Conversation::open(source, agent, TIMEOUT))??;
            assert_eq!(talk.say(Duration::from_secs(5))?, Outcome::Talked);
            filter_input("tcp dport 4118 drop")?;
            assert_eq!(talk.say(Duration::from_millis(300))?, Outcome::Silent);
            allow_input()?;
            assert_eq!(talk.say(Duration::from_secs(10))?, Outcome::Talked);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn dropping_a_listener_ends_it_at_once_with_conversations_open() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let listener = Listener::bind(4118)?;
            let source = manager.v4().into();
            let agent = manager.host_address(source, 4118);
            let mut talk = manager.enter(|| Conversation::open(source, agent, TIMEOUT))??;
            assert_eq!(talk.say(Duration::from_secs(5))?, Outcome::Talked);
            let started = Instant::now();
            drop(listener);
            assert!(started.elapsed() < Duration::from_secs(5));
            assert_eq!(talk.say(Duration::from_secs(5))?, Outcome::Refused);
            assert_eq!(manager.enter(|| connect(source, agent, TIMEOUT))??, Outcome::Refused);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_host_forwards_between_peers_when_told_to() {
        Lab::run(|lab| {
            let (manager, other) = (lab.peer("manager")?, lab.peer("other")?);
            let _listener = other.enter(|| Listener::bind(4118))??;
            let attempt = |from, to| {
                manager.enter(move || connect(from, SocketAddr::new(to, 4118), TIMEOUT))?
            };
            assert_eq!(attempt(manager.v4().into(), other.v4().into())?, Outcome::Silent);
            lab.forward()?;
            assert_eq!(attempt(manager.v4().into(), other.v4().into())?, Outcome::Talked);
            assert_eq!(attempt(manager.v6().into(), other.v6().into())?, Outcome::Talked);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_peer_is_known_by_the_mac_address_that_it_was_given_last() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _listener = Listener::bind(4118)?;
            let mac: MacAddr = "02:00:5e:00:00:07".parse()?;
            filter_input(&format!("tcp dport 4118 ether saddr != {mac} drop"))?;
            let source = manager.v4().into();
            let agent = manager.host_address(source, 4118);
            assert_eq!(manager.enter(|| connect(source, agent, TIMEOUT))??, Outcome::Silent);
            manager.set_mac(mac)?;
            assert_eq!(manager.mac()?, mac);
            assert_eq!(manager.enter(|| connect(source, agent, TIMEOUT))??, Outcome::Talked);
            Ok(())
        })
        .unwrap();
    }
}
