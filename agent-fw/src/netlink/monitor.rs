//! Changes of nf_tables and of interfaces, as the kernel announces them. Nothing is polled.

use crate::model::TableName;
use crate::netlink::message::{attributes, messages, text};
use crate::netlink::no_nf_tables::cannot_open;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

/// `NFNLGRP_NFTABLES` and `RTNLGRP_LINK`, as bits of the groups that a socket may hear.
const TABLES: u32 = 1 << (7 - 1);
const LINKS: u32 = 1;
/// `NFNL_SUBSYS_NFTABLES`, and `NFT_MSG_NEWGEN`, which ends what one transaction has changed.
const NFTABLES: u16 = 10;
const GENERATION: u16 = NFTABLES << 8 | 15;
/// `NFTA_TABLE_NAME`, which has the same number in messages about a table's parts.
const TABLE_NAME: u16 = 1;
/// `NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`.
const PROCESS: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// `struct nfgenmsg`, before the attributes.
const FAMILY: usize = 4;
const RECEIVE_BYTES: usize = 64 * 1024;

/// What has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// agent-fw's table, or a part of it.
    Table(By),
    /// An interface came, went, or changed.
    Links,
    /// More than could be heard of.
    Unknown,
}

/// Who has changed a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct By {
    /// The process's name, at most fifteen bytes of it.
    pub name: String,
    /// Its number, as the first namespace of processes has it.
    pub process: u32,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name.escape_debug(), self.process)
    }
}

/// An ear for changes in this network namespace.
pub struct Changes {
    tables: OwnedFd,
    links: OwnedFd,
    /// Whether the transaction that is being told of has changed agent-fw's table.
    touched: bool,
}

impl Changes {
    /// Listens from now on.
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            tables: hear(SockProtocol::NetlinkNetFilter, TABLES)?,
            links: hear(SockProtocol::NetlinkRoute, LINKS)?,
            touched: false,
        })
    }

    /// Waits for changes that may concern agent-fw, for as long as `patience`, or for ever without.
    /// Those of others end the waiting, too, with none, and so does something at `also`.
    pub fn wait(
        &mut self,
        patience: Option<Duration>,
        also: &impl AsFd,
    ) -> anyhow::Result<Vec<Change>> {
        let timeout = patience.map_or(PollTimeout::NONE, |patience| {
            PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)
        });
        let mut ready = [self.tables.as_fd(), self.links.as_fd(), also.as_fd()]
            .map(|socket| PollFd::new(socket, PollFlags::POLLIN));
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => self.heard(),
            Err(errno) => Err(errno).context("cannot wait for changes"),
        }
    }

    /// What there has been, without waiting.
    pub fn heard(&mut self) -> anyhow::Result<Vec<Change>> {
        let mut changes = Vec::new();
        self.read_tables(&mut changes)?;
        if drain(&self.links)? {
            changes.push(Change::Links);
        }
        Ok(changes)
    }

    fn read_tables(&mut self, changes: &mut Vec<Change>) -> anyhow::Result<()> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            match recv(self.tables.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => changes.extend(self.take_in(&buffer[..length])),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::ENOBUFS) => changes.push(Change::Unknown),
                Err(errno) => return Err(errno).context("cannot hear of changes of nf_tables"),
            }
        }
    }

    /// What these messages tell. A transaction's come in any number of pieces.
    fn take_in(&mut self, bytes: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (kind, _, body) in messages(bytes) {
            let body = body.get(FAMILY..).unwrap_or_default();
            let find = |wanted: u16| {
                attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
            };
            if kind == GENERATION {
                let process = find(PROCESS).and_then(|value| value.first_chunk());
                let process = process.map_or(0, |number| u32::from_be_bytes(*number));
                let name = find(PROCESS_NAME).map(text).unwrap_or_default();
                if std::mem::take(&mut self.touched) {
                    changes.push(Change::Table(By { name, process }));
                }
            } else if kind >> 8 == NFTABLES {
                let name = find(TABLE_NAME).map(text);
                let is = |table: TableName| name.as_deref() == Some(table.name());
                self.touched |= TableName::ALL.into_iter().any(is);
            }
        }
        changes
    }
}

fn hear(protocol: SockProtocol, groups: u32) -> anyhow::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .map_err(cannot_open)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))
        .context("cannot hear of changes over netlink")?;
    Ok(socket)
}

/// Reads what there is and throws it away; whether there was something.
fn drain(socket: &OwnedFd) -> anyhow::Result<bool> {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut something = false;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::ENOBUFS) => something = true,
            Err(Errno::EAGAIN) => return Ok(something),
            Err(errno) => return Err(errno).context("cannot hear of changes of interfaces"),
        }
    }
}
