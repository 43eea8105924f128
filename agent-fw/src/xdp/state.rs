//! What is attached, and what it has counted.

use crate::host::interface::{Interface, XdpPlace};
use crate::policy::PolicyHash;
use std::time::Duration;

/// An interface that agent-fw's program is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// Where the program runs.
    pub place: XdpPlace,
    /// The kernel's number of the program.
    pub program: u32,
    /// The policy that it enforces, where that is known.
    pub policy: Option<PolicyHash>,
    /// Whether it counts on the gate behind it.
    pub gate: bool,
}

/// What the programs of all interfaces have counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Packets that were dropped.
    pub refused: u64,
    /// Packets of other sources that were left to the host's other rules.
    pub left: u64,
    /// Packets that were passed on undecided, by reason.
    pub undecided: Vec<(String, u64)>,
    /// Packets of admitted sources.
    pub admitted: Vec<Admitted>,
}

/// Packets that a list or region admitted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The list or region.
    pub by: String,
    /// How many.
    pub packets: u64,
    /// How long ago the last one came.
    pub last: Option<Duration>,
}
