//! What both versions of IP come down to: two addresses and a TCP port.

use crate::packet::Wire;
use crate::{Undecided, tcp};

/// An IP datagram that carries TCP, or may.
#[derive(Clone, Copy)]
pub(crate) struct Datagram<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    /// The TCP port that it is for, or why that could not be read.
    pub(crate) port: Result<u16, Undecided>,
}

/// What IP says is its payload: the bytes between two offsets into the frame.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) at: usize,
    /// What follows is the link's padding, whatever it looks like.
    pub(crate) end: usize,
    /// Whether the rest of the payload comes in other frames.
    pub(crate) first_fragment: bool,
}

/// The end of a payload whose length IP's header cannot say.
pub(crate) const UNBOUNDED: usize = u32::MAX as usize;

impl Payload {
    /// The header at the payload's start, as `load` finds it.
    #[inline(always)]
    pub(crate) fn header<T: Wire>(
        &self,
        load: impl FnOnce(usize) -> Result<T, Undecided>,
    ) -> Result<T, Undecided> {
        let missing =
            if self.first_fragment { Undecided::ShortFirstFragment } else { Undecided::Truncated };
        if self.at + size_of::<T>() > self.end {
            return Err(missing);
        }
        load(self.at).map_err(|_| missing)
    }

    /// The TCP port that the payload is for, where TCP's header is next.
    #[inline(always)]
    pub(crate) fn port(
        &self,
        load: impl FnOnce(usize) -> Result<tcp::Ports, Undecided>,
    ) -> Result<u16, Undecided> {
        self.header(load).map(tcp::Ports::destination)
    }
}
