//! The netlink socket: transactions with every acknowledgement read, and dumps.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "mnl has socket options only as raw pointers, and libc flags only as int"
)]

use super::encode::Transaction;
use super::generation::BATCH_BEGIN_BYTES;
use crate::netlink::no_nf_tables::NoNfTables;
use mnl::mnl_sys;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendmsg, setsockopt, sockopt};
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What went wrong in talking to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The process may not change nf_tables.
    #[error("the kernel refuses access to nf_tables: CAP_NET_ADMIN is needed (run as root)")]
    NotPermitted,
    /// Another process owns the table.
    #[error(
        "another process owns the table inet agent_fw, and it alone may change it: if `agent-fw \
         guard` runs in another place than this one, stop it"
    )]
    Owned,
    /// The kernel has no nf_tables.
    #[error("{}", NoNfTables)]
    NotSupported,
    /// The kernel refused part of a transaction, and so all of it.
    #[error("the kernel refused {part}: {errno}{}", .explanation.as_ref().map_or_else(String::new, |text| format!(" ({text})")))]
    Refused {
        /// The part: a set, an element, a rule.
        part: String,
        /// Why.
        errno: Errno,
        /// The kernel's own words, where it has some.
        explanation: Option<String>,
    },
    /// The ruleset is no longer of the generation that a transaction was made for.
    #[error("somebody else changed the ruleset meanwhile; nothing was changed")]
    Overtaken,
    /// The ruleset changed while it was read, again and again.
    #[error("the ruleset kept changing while it was read; try again")]
    KeptChanging,
    /// A system call failed.
    #[error("netlink: {doing}: {errno}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        errno: Errno,
    },
    /// The kernel's answer makes no sense to us.
    #[error("netlink: unexpected answer of the kernel: {0}")]
    Unexpected(String),
}

impl NetlinkError {
    /// Whether the kernel does not know tables that have an owner, or that outlive it. Before 5.12 it
    /// answers flags of tables that it does not know with EINVAL, since then with EOPNOTSUPP.
    pub(super) fn is_ownership_unknown(&self) -> bool {
        match self {
            Self::NotSupported | Self::Refused { errno: Errno::EOPNOTSUPP, .. } => true,
            Self::Refused { errno: Errno::EINVAL, part, .. } => part.starts_with("table "),
            _ => false,
        }
    }

    /// Whether the kernel may have done what was asked for all the same: its answer was lost.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::System { .. } | Self::Unexpected(_))
    }

    pub(super) fn doing(doing: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted,
            Errno::EPROTONOSUPPORT => Self::NotSupported,
            errno => Self::System { doing, errno },
        }
    }
}

/// The kernel sends at most 32 KiB of a dump at once; acknowledgements are smaller.
const RECEIVE_BYTES: usize = 64 * 1024;
/// An acknowledgement of 36 bytes occupies this much of the receive buffer, with room to spare.
const ACKNOWLEDGEMENT_BYTES: usize = 2048;

/// The sequence numbers of requests have this bit; those of transactions begin at 1.
const REQUEST: u32 = 1 << 31;

/// A buffer aligned as netlink messages are.
#[repr(align(8))]
struct Buffer([u8; RECEIVE_BYTES]);

/// A socket to nf_tables.
pub(super) struct Socket {
    netlink: mnl::Socket,
    buffer: Box<Buffer>,
    sequence: u32,
}

impl Socket {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let netlink = mnl::Socket::new(mnl::Bus::Netfilter).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            NetlinkError::doing("opening a socket")(errno)
        })?;
        #[allow(clippy::large_stack_arrays, reason = "made once, on a stack of megabytes")]
        let buffer = Box::new(Buffer([0; RECEIVE_BYTES]));
        let opened = Self { netlink, buffer, sequence: 0 };
        // Errors then name the attribute at fault, and do not quote the whole message.
        opened.set_option(mnl_sys::libc::NETLINK_EXT_ACK)?;
        opened.set_option(mnl_sys::libc::NETLINK_CAP_ACK)?;
        Ok(opened)
    }

    fn set_option(&self, option: i32) -> Result<(), NetlinkError> {
        let mut on: i32 = 1;
        // SAFETY: the socket is open for as long as `self.netlink` lives, and the option's value is
        // an int of which the length is given; the kernel copies it before the call returns.
        let result = unsafe {
            mnl_sys::mnl_socket_setsockopt(
                self.netlink.as_raw_socket(),
                option,
                (&raw mut on).cast(),
                4,
            )
        };
        Errno::result(result).map_err(NetlinkError::doing("setting a socket option")).map(drop)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.netlink`, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.netlink.as_raw_fd()) }
    }

    /// Sends a transaction and reads all its acknowledgements.
    pub(super) fn transact(&mut self, transaction: Transaction<'_>) -> Result<(), NetlinkError> {
        let Transaction { batch, parts, generation } = transaction;
        let batch = batch.finalize();
        let mut pages: Vec<&[u8]> = batch.iter().collect();
        let begin;
        if let Some(generation) = generation {
            let (plain, rest) = pages[0].split_at(BATCH_BEGIN_BYTES);
            begin = generation.condition(plain);
            pages.splice(..1, [&begin[..], rest]);
        }
        let pages: Vec<IoSlice<'_>> = pages.into_iter().map(IoSlice::new).collect();
        let bytes: usize = pages.iter().map(|page| page.len()).sum();
        let expected = batch.sequence_numbers();
        self.make_room(bytes, expected.len())?;
        // The kernel takes a transaction only from one message, however large.
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendmsg(self.netlink.as_raw_fd(), &pages, &[], MsgFlags::empty(), Some(&kernel))
            .map_err(NetlinkError::doing("sending the transaction"))?;
        if sent != bytes {
            return Err(NetlinkError::Unexpected(format!("{sent} of {bytes} bytes were taken")));
        }
        // The kernel has worked the transaction off by now, and its answers wait to be read.
        let mut refusal = None;
        let mut answered = 0;
        let mut lost = None;
        while answered < expected.len() {
            let answers = match self.receive_waiting() {
                Ok(None) => break,
                Ok(Some(answers)) => answers,
                // Some found no room. The others are read all the same: one of them may say that
                // the transaction is refused, and none may be taken for the answer to a request.
                Err(error @ NetlinkError::System { errno: Errno::ENOBUFS, .. }) => {
                    lost = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for answer in answers {
                answered += usize::from(expected.contains(&answer.sequence));
                if answer.errno != 0 && refusal.is_none() {
                    refusal = Some(answer);
                }
            }
        }
        match (refusal, lost) {
            (Some(answer), _) => Err(refused(&answer, &batch, &parts, &expected)),
            (None, Some(lost)) => Err(lost),
            _ if answered < expected.len() => Err(NetlinkError::Unexpected(format!(
                "{answered} of {} acknowledgements came",
                expected.len()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes the socket's buffers large enough for a transaction and its acknowledgements.
    fn make_room(&self, bytes: usize, acknowledgements: usize) -> Result<(), NetlinkError> {
        let socket = self.descriptor();
        let doing = NetlinkError::doing("enlarging the socket's buffer");
        let (send, receive) =
            (bytes + RECEIVE_BYTES, RECEIVE_BYTES + acknowledgements * ACKNOWLEDGEMENT_BYTES);
        // Beyond the system's limit only the real root may go, not a user namespace's.
        setsockopt(&socket, sockopt::SndBufForce, &send)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &send))
            .map_err(&doing)?;
        setsockopt(&socket, sockopt::RcvBufForce, &receive)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &receive))
            .map_err(&doing)
    }

    /// Reads answers that have come, or `None` when there are none.
    fn receive_waiting(&mut self) -> Result<Option<Vec<Answer>>, NetlinkError> {
        let received = recv(self.netlink.as_raw_fd(), &mut self.buffer.0, MsgFlags::MSG_DONTWAIT);
        let length = match received {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(NetlinkError::doing("reading an acknowledgement")(errno)),
        };
        let mut answers = Vec::new();
        for message in mnl::NlMessages::new(&self.buffer.0[..length]) {
            let message = message.map_err(|error| NetlinkError::Unexpected(error.to_string()))?;
            answers.extend(Answer::parse(message));
        }
        Ok(Some(answers))
    }

    /// Sends a request and hands each message of the answer to `read`. `request` writes the
    /// message for a sequence number. Tells whether the answer is of one moment.
    pub(super) fn dump(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        mut read: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1) | REQUEST;
        let sequence = self.sequence;
        let message = request(sequence);
        let kernel = NetlinkAddr::new(0, 0);
        let pages = [IoSlice::new(&message)];
        sendmsg(self.netlink.as_raw_fd(), &pages, &[], MsgFlags::empty(), Some(&kernel))
            .map_err(NetlinkError::doing("sending a request"))?;
        let mut consistent = true;
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut self.buffer.0, MsgFlags::empty())
                .map_err(NetlinkError::doing("reading an answer"))?;
            for message in mnl::NlMessages::new(&self.buffer.0[..length]) {
                let message =
                    message.map_err(|error| NetlinkError::Unexpected(error.to_string()))?;
                let header = Header::parse(message);
                if header.sequence != sequence {
                    continue;
                }
                consistent &= header.flags & mnl_sys::libc::NLM_F_DUMP_INTR as u16 == 0;
                match i32::from(header.kind) {
                    mnl_sys::libc::NLMSG_DONE => return Ok(Dump::of(consistent)),
                    mnl_sys::libc::NLMSG_ERROR => return finish(message, consistent),
                    _ => read(message)?,
                }
            }
        }
    }
}

/// How a dump ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dump {
    /// All of it was read, as of one moment.
    Consistent,
    /// The ruleset changed meanwhile.
    Torn,
    /// What was asked for does not exist.
    Absent,
}

impl Dump {
    fn of(consistent: bool) -> Self {
        if consistent { Self::Consistent } else { Self::Torn }
    }
}

fn finish(message: &[u8], consistent: bool) -> Result<Dump, NetlinkError> {
    match Answer::parse(message).map_or(0, |answer| answer.errno) {
        0 => Ok(Dump::of(consistent)),
        libc::ENOENT => Ok(Dump::Absent),
        libc::EINTR => Ok(Dump::Torn),
        // nfnetlink knows nobody who answers for nf_tables.
        libc::EINVAL => Err(NetlinkError::NotSupported),
        errno => Err(NetlinkError::doing("reading the ruleset")(Errno::from_raw(errno))),
    }
}

/// What went wrong in a transaction, in words that name the part.
fn refused(
    answer: &Answer,
    batch: &nftnl::FinalizedBatch,
    parts: &super::encode::Parts<'_>,
    expected: &std::ops::Range<u32>,
) -> NetlinkError {
    let errno = Errno::from_raw(answer.errno);
    if errno == Errno::ERESTART {
        return NetlinkError::Overtaken;
    }
    if errno == Errno::EOPNOTSUPP && !expected.contains(&answer.sequence) {
        return NetlinkError::NotSupported;
    }
    let message = batch.iter().flat_map(mnl::NlMessages::new).flatten().find(|message| {
        let header = Header::parse(message);
        header.sequence == answer.sequence && expected.contains(&header.sequence)
    });
    let element = message
        .zip(answer.attribute)
        .and_then(|(message, offset)| super::encode::element_at(message, offset));
    // The batch's own begin and end are acknowledged too where the kernel does that (6.10).
    let before = (expected.len() - parts.len().min(expected.len())) / 2;
    let index = answer.sequence.checked_sub(expected.start).map(|place| place as usize);
    let index = index.and_then(|place| place.checked_sub(before));
    // Who may change nothing is stopped before the first part.
    if errno == Errno::EPERM {
        return if index.is_some() { NetlinkError::Owned } else { NetlinkError::NotPermitted };
    }
    let part = index.map_or_else(|| "the transaction".to_owned(), |at| parts.name(at, element));
    NetlinkError::Refused { part, errno, explanation: answer.explanation.clone() }
}

/// The fields of a message's header that matter here.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    /// Reads the header: u32 length, u16 type, u16 flags, u32 sequence, u32 port.
    pub(super) fn parse(message: &[u8]) -> Self {
        let two = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        let sequence = [message[8], message[9], message[10], message[11]];
        Self { kind: two(4), flags: two(6), sequence: u32::from_ne_bytes(sequence) }
    }
}

/// An acknowledgement or an error.
#[derive(Clone, Debug)]
struct Answer {
    sequence: u32,
    /// Zero for an acknowledgement.
    errno: i32,
    /// The kernel's words.
    explanation: Option<String>,
    /// Where in the message the attribute at fault begins.
    attribute: Option<usize>,
}

/// `NLMSGERR_ATTR_MSG`: the kernel's words.
const ATTRIBUTE_TEXT: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: the offset of the attribute at fault.
const ATTRIBUTE_OFFSET: u16 = 2;

impl Answer {
    /// Reads a message of type `NLMSG_ERROR`: header, i32 error, the header of what it answers,
    /// attributes.
    fn parse(message: &[u8]) -> Option<Self> {
        let header = Header::parse(message);
        if i32::from(header.kind) != mnl_sys::libc::NLMSG_ERROR {
            return None;
        }
        let errno = -i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
        let mut answer =
            Self { sequence: header.sequence, errno, explanation: None, attribute: None };
        for (kind, value) in
            crate::nft::kernel::uapi::attributes(message.get(36..).unwrap_or_default())
        {
            match kind {
                ATTRIBUTE_TEXT => {
                    let text = value.strip_suffix(&[0]).unwrap_or(value);
                    answer.explanation = Some(String::from_utf8_lossy(text).into_owned());
                }
                ATTRIBUTE_OFFSET => {
                    answer.attribute =
                        value.try_into().ok().map(|bytes| u32::from_ne_bytes(bytes) as usize);
                }
                _ => {}
            }
        }
        Some(answer)
    }
}
