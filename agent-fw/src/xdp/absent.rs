//! XDP in a build without the feature `xdp`: there is nothing, and nothing can be attached.

#[path = "alone.rs"]
mod alone;
#[path = "state.rs"]
mod state;

pub use alone::{Objection, objections};
pub use state::{Admitted, Attachment, Counters, Hook, OfInterface, RefusedPacket};

use crate::input::options::XdpMode;
use crate::model::PolicyHash;
use crate::model::rule::AgentPolicy;
use crate::netlink::link::Interface;

/// This agent-fw has no XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this agent-fw was built without XDP (feature `xdp`); choose --backend nft")]
pub struct XdpError;

/// The interfaces that a policy is to be enforced at: there can be none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Targets {}

impl Targets {
    /// Always fails.
    pub fn of(_: Vec<Interface>) -> Result<Self, XdpError> {
        Err(XdpError)
    }

    /// Never called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// Never called.
    pub fn are_served_by(&self, _: &[Attachment], _: XdpMode, _: PolicyHash, _: bool) -> bool {
        match *self {}
    }
}

/// Programs that are loaded: there can be none.
#[must_use]
pub enum Prepared {}

impl Prepared {
    /// Never called.
    pub fn leaves_a_gap(&self) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn attach(self) -> Result<Change, XdpError> {
        match self {}
    }

    /// Never called.
    pub fn abandon(self) -> Result<(), XdpError> {
        match self {}
    }
}

/// A change of what is attached: there can be none.
#[must_use]
pub enum Change {}

impl Change {
    /// Never called.
    pub fn undo(self) -> Result<(), XdpError> {
        match self {}
    }

    /// Never called.
    pub fn settle(self) -> Result<(), XdpError> {
        match self {}
    }
}

/// The refused packets: there can be none.
pub enum Watch {}

impl Watch {
    /// Always fails.
    pub fn open() -> Result<Option<Self>, XdpError> {
        Err(XdpError)
    }

    /// Never called.
    pub fn take(&mut self) -> Option<RefusedPacket> {
        match *self {}
    }
}

impl std::os::fd::AsFd for Watch {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match *self {}
    }
}

/// None.
pub const fn object() -> Option<&'static [u8]> {
    None
}

/// Never called, for want of targets.
pub fn prepare(
    _: &AgentPolicy,
    _: bool,
    targets: Targets,
    _: XdpMode,
) -> Result<Prepared, XdpError> {
    match targets {}
}

/// None.
pub fn attachments() -> Result<Vec<Attachment>, XdpError> {
    Ok(Vec::new())
}

/// None.
pub fn counters() -> Result<Option<Counters>, XdpError> {
    Ok(None)
}

/// Does nothing.
pub fn remove() -> Result<(), XdpError> {
    Ok(())
}
