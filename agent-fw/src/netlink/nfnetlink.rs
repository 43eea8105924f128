//! Messages to and from nf_tables, of every table of the host: as bytes, since what other firewalls
//! have there is more than any library names.

use crate::netlink::message::{attribute, attributes, messages};
use crate::netlink::no_nf_tables::cannot_open;
use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// The kernel sends at most 32 KiB at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// `struct nlmsghdr`, `struct nfgenmsg`.
const HEADER_BYTES: usize = 16;
const FAMILY_BYTES: usize = 4;
/// `NFNL_SUBSYS_NFTABLES`, and the beginning and the end of a batch.
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFNLGRP_NFTRACE`, as a bit of the groups that a socket may hear.
const TRACE_GROUP: u32 = 1 << (9 - 1);
/// `SOL_NETLINK`'s buffer: events of a packet are a hundred bytes each.
const TRACE_BUFFER: usize = 4 << 20;

/// Types of messages, of linux/netfilter/nf_tables.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    GetSet = 10,
    GetSetElements = 13,
    Trace = 17,
    GetFlowtable = 23,
}

/// A message: the family that it is about, and its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) family: u8,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn find(&self, wanted: u16) -> Option<&[u8]> {
        find(&self.body, wanted)
    }

    pub(crate) fn text(&self, wanted: u16) -> Option<String> {
        self.find(wanted).map(text)
    }

    pub(crate) fn number(&self, wanted: u16) -> Option<u32> {
        number(self.find(wanted)?)
    }
}

/// The attribute of this type in a run of attributes.
pub(crate) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number as nf_tables has them: the highest byte first.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

pub(crate) fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

/// A text as an attribute.
pub(crate) fn named(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// A number as an attribute.
pub(crate) fn numbered(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// `NLA_F_NESTED` of linux/netlink.h.
const NESTED: u16 = 1 << 15;

/// Attributes in an attribute.
pub(crate) fn nested(kind: u16, inside: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &inside.concat())
}

/// A connection to the nf_tables of this network namespace.
pub(crate) struct Connection {
    socket: OwnedFd,
    sequence: u32,
}

impl Connection {
    pub(crate) fn open() -> anyhow::Result<Self> {
        Self::with_groups(0)
    }

    /// One that hears of every step of the packets that are traced.
    pub(crate) fn to_hear_traces() -> anyhow::Result<Self> {
        let connection = Self::with_groups(TRACE_GROUP)?;
        let socket = &connection.socket;
        setsockopt(socket, sockopt::RcvBufForce, &TRACE_BUFFER)
            .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &TRACE_BUFFER))
            .context("cannot enlarge the buffer for traces")?;
        Ok(connection)
    }

    fn with_groups(groups: u32) -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(cannot_open)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .context("cannot bind a netlink socket")?;
        Ok(Self { socket, sequence: 1 })
    }

    fn send(&self, bytes: &[u8]) -> nix::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()).map(drop)
    }

    /// Everything of a kind.
    pub(crate) fn dump(
        &mut self,
        kind: Kind,
        family: u8,
        body: &[u8],
    ) -> anyhow::Result<Vec<Message>> {
        self.list(number_of(kind), family, body)
    }

    /// Everything that this message of some part of netfilter's asks for.
    pub(crate) fn list(
        &mut self,
        kind: u16,
        family: u8,
        body: &[u8],
    ) -> anyhow::Result<Vec<Message>> {
        self.sequence += 1;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        self.send(&message(kind, flags, self.sequence, family, 0, body))?;
        let mut found = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .context("cannot list what netfilter has")?;
            for (of, sequence, bytes) in messages(&buffer[..length]) {
                match i32::from(of) {
                    _ if sequence != self.sequence => {}
                    libc::NLMSG_DONE => return Ok(found),
                    libc::NLMSG_ERROR => match errno(bytes) {
                        0 => return Ok(found),
                        code => return Err(Errno::from_raw(code).into()),
                    },
                    _ => found.extend(parse(bytes)),
                }
            }
        }
    }

    /// Asks another part of netfilter for one thing, and waits until it is done.
    pub(crate) fn order(
        &mut self,
        kind: u16,
        flags: i32,
        family: u8,
        body: &[u8],
    ) -> nix::Result<()> {
        self.sequence += 1;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
        self.send(&message(kind, flags, self.sequence, family, 0, body))?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (of, sequence, bytes) in messages(&buffer[..length]) {
                if i32::from(of) == libc::NLMSG_ERROR && sequence == self.sequence {
                    return match errno(bytes) {
                        0 => Ok(()),
                        code => Err(Errno::from_raw(code)),
                    };
                }
            }
        }
    }

    /// Asks for one object, by its whole type: what follows the family.
    pub(crate) fn get(&mut self, kind: u16, family: u8, body: &[u8]) -> nix::Result<Vec<u8>> {
        self.sequence += 1;
        self.send(&message(kind, libc::NLM_F_REQUEST, self.sequence, family, 0, body))?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (of, sequence, bytes) in messages(&buffer[..length]) {
                match i32::from(of) {
                    _ if sequence != self.sequence => {}
                    libc::NLMSG_ERROR => return Err(Errno::from_raw(errno(bytes))),
                    _ => return Ok(parse(bytes).map(|message| message.body).unwrap_or_default()),
                }
            }
        }
    }

    /// Carries out all of it or nothing. Fails with the kernel's word on the first that it refuses.
    pub(crate) fn transact(&mut self, parts: &[(Kind, u8, Vec<u8>)]) -> nix::Result<()> {
        let first = self.sequence + 1;
        let begin = libc::NLM_F_REQUEST;
        let mut bytes = message(BATCH_BEGIN, begin, first, 0, NFTABLES, &[]);
        let mut last = first;
        for (kind, family, body) in parts {
            last += 1;
            let mut flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
            if matches!(kind, Kind::NewTable | Kind::NewChain | Kind::NewRule) {
                flags |= libc::NLM_F_CREATE;
            }
            if *kind == Kind::NewRule {
                flags |= libc::NLM_F_APPEND;
            }
            bytes.extend(message(number_of(*kind), flags, last, *family, 0, body));
        }
        bytes.extend(message(BATCH_END, begin, last + 1, 0, NFTABLES, &[]));
        self.sequence = last + 1;
        self.send(&bytes)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut missing = parts.len();
        let mut refusal = None;
        while missing > 0 {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => break,
                received => received?,
            };
            for (of, sequence, bytes) in messages(&buffer[..length]) {
                if i32::from(of) == libc::NLMSG_ERROR && (first..=last + 1).contains(&sequence) {
                    missing = missing.saturating_sub(1);
                    let code = errno(bytes);
                    refusal = refusal.or((code != 0).then(|| Errno::from_raw(code)));
                }
            }
        }
        match refusal {
            Some(errno) => Err(errno),
            None if missing > 0 => Err(Errno::EIO),
            None => Ok(()),
        }
    }

    /// The next events, or none when none comes before the deadline.
    pub(crate) fn hear(&mut self, deadline: Instant) -> anyhow::Result<Vec<Message>> {
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, timeout)? == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; RECEIVE_BYTES];
        let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::ENOBUFS) => return Err(anyhow!("too many packets are traced on this host")),
            received => received.context("cannot read the packet's trace")?,
        };
        let traces = messages(&buffer[..length]).filter(|(of, ..)| *of == number_of(Kind::Trace));
        Ok(traces.filter_map(|(_, _, bytes)| parse(bytes)).collect())
    }
}

fn number_of(kind: Kind) -> u16 {
    NFTABLES << 8 | kind as u16
}

fn message(
    kind: u16,
    flags: i32,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + FAMILY_BYTES + body.len()).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn parse(bytes: &[u8]) -> Option<Message> {
    let body = bytes.get(FAMILY_BYTES..)?.to_vec();
    Some(Message { family: *bytes.first()?, body })
}

fn errno(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(libc::EIO, |code| -i32::from_ne_bytes(*code))
}
