//! What is attached, and what it has counted.

use crate::input::options::XdpMode;
use crate::model::PolicyHash;
use crate::netlink::link::{Interface, XdpPlace};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Where on an interface a program is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP, in one of its modes.
    Xdp(XdpPlace),
    /// The tc hook, right behind XDP, with TCX.
    Tcx,
    /// The same below clsact, on kernels before 6.6.
    Clsact,
}

impl Hook {
    /// The hook in a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp(_) => "xdp",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// XDP's mode.
    pub fn mode(self) -> Option<XdpPlace> {
        match self {
            Self::Xdp(place) => Some(place),
            Self::Tcx | Self::Clsact => None,
        }
    }

    /// Whether a policy that asks for this mode is enforced here: behind another's XDP program
    /// there is no mode.
    pub fn serves(self, mode: XdpMode) -> bool {
        self.mode().is_none_or(|place| place == place_of(mode))
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp(place) => write!(f, "{place} XDP"),
            Self::Tcx => f.write_str("the tc hook (TCX)"),
            Self::Clsact => f.write_str("the tc hook (clsact)"),
        }
    }
}

pub(super) fn place_of(mode: XdpMode) -> XdpPlace {
    match mode {
        XdpMode::Native => XdpPlace::Native,
        XdpMode::Generic => XdpPlace::Generic,
    }
}

/// The mode in which a program is put where one runs.
#[cfg_attr(not(feature = "xdp"), expect(dead_code, reason = "nothing is attached"))]
pub(super) fn mode_of(place: XdpPlace) -> XdpMode {
    match place {
        XdpPlace::Generic => XdpMode::Generic,
        _ => XdpMode::Native,
    }
}

/// An interface that agent-fw's program is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// Where the program is.
    pub hook: Hook,
    /// The kernel's number of the program.
    pub program: u32,
    /// Another's XDP program, because of which it is at the tc hook, by name.
    pub behind: Option<String>,
    /// Programs at the same hook that come before it, and could let a packet pass it.
    pub ahead: usize,
    /// The policy that it enforces, where that is known.
    pub policy: Option<PolicyHash>,
    /// Whether it counts on the gate behind it.
    pub gate: bool,
    /// Whether a pin of this network namespace holds it there.
    pub is_pinned: bool,
    /// What it takes for this host's frames and should not, or the other way round, in words. Only one
    /// that counts on the gate asks.
    pub mistake: Option<String>,
}

/// What the program of one interface has counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfInterface {
    /// The interface.
    pub name: String,
    /// Packets of admitted sources.
    pub admitted: u64,
    /// Packets that were dropped.
    pub refused: u64,
    /// Packets of other sources that were left to the host's other rules.
    pub left: u64,
    /// Packets that were passed on undecided.
    pub undecided: u64,
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
    /// The same by interface.
    pub interfaces: Vec<OfInterface>,
}

/// A packet that was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedPacket {
    /// When, to a tick of the kernel's timer.
    pub time: SystemTime,
    /// Its source.
    pub source: IpAddr,
    /// Its destination: this host.
    pub destination: IpAddr,
    /// The MAC address that it came from: the sender's, or the last router's.
    pub source_mac: String,
    /// The interface that it came in by.
    pub interface: String,
    /// Whether its port could not be read, as in a first fragment that ends before it.
    pub hidden_port: bool,
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
