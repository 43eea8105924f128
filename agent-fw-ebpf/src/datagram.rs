//! What both versions of IP come down to: two addresses and a TCP port.

use crate::packet::Wire;
use crate::{PassReason, tcp};

/// An IP datagram that carries TCP, or may.
#[derive(Clone, Copy)]
pub(crate) struct Datagram<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    /// The TCP port that it is for, or why that could not be read.
    pub(crate) port: Result<Port, PassReason>,
}

/// A TCP port, as the frame's bytes have it.
#[derive(Clone, Copy)]
pub(crate) struct Port {
    pub(crate) number: u16,
    /// Whether the bytes are the datagram's. If not, they are the link's padding, and the kernel will
    /// drop the datagram: it matters only if they say that it is for the agent.
    pub(crate) is_inside: bool,
}

/// What IP says is its payload: the bytes between two offsets into the frame.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) at: usize,
    /// What follows is the link's padding.
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
        load: impl FnOnce(usize) -> Result<T, PassReason>,
    ) -> Result<T, PassReason> {
        if self.at + size_of::<T>() > self.end {
            return Err(self.missing());
        }
        load(self.at).map_err(|_| self.missing())
    }

    /// The TCP port that the payload is for, where TCP's header is next.
    #[inline(always)]
    pub(crate) fn port(
        &self,
        load: impl FnOnce(usize) -> Result<tcp::Ports, PassReason>,
    ) -> Result<Port, PassReason> {
        let is_inside = self.at + size_of::<tcp::Ports>() <= self.end;
        if self.first_fragment && !is_inside {
            return Err(PassReason::ShortFirstFragment);
        }
        let ports = load(self.at).map_err(|_| self.missing())?;
        Ok(Port { number: ports.destination(), is_inside })
    }

    /// Why a header cannot be read that the frame or the datagram ends before.
    #[inline(always)]
    fn missing(&self) -> PassReason {
        if self.first_fragment { PassReason::ShortFirstFragment } else { PassReason::Truncated }
    }
}
