//! What came of trying to reach a port.

use std::fmt;

use nix::errno::Errno;

/// What came of trying to reach a port, as the one who tried sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Bytes went there and came back.
    Talked,
    /// The other side said no: a RST, or for UDP "port unreachable".
    Refused,
    /// Somebody on the way said no, by ICMP, or there is no neighbour of that address.
    Unreachable,
    /// No answer in time: what a dropped packet looks like.
    Silent,
    /// The TCP handshake succeeded, and then no byte came back.
    Mute,
}

impl Outcome {
    /// The outcome that an error of `connect`, `send` or `recv` stands for; `None` where the
    /// fault is this side's own and says nothing about the network.
    pub(crate) fn of_errno(errno: Errno) -> Option<Self> {
        match errno {
            Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE => Some(Self::Refused),
            Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES => Some(Self::Unreachable),
            Errno::ETIMEDOUT | Errno::EAGAIN => Some(Self::Silent),
            _ => None,
        }
    }

    /// Like [`Self::of_errno`], from an error of the standard library.
    pub(crate) fn of_io_error(error: &std::io::Error) -> Option<Self> {
        error.raw_os_error().and_then(|code| Self::of_errno(Errno::from_raw(code)))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Talked => "talked",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Mute => "mute",
        })
    }
}
