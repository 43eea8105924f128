//! What an XDP or tc program does with a frame: the kernel runs it once, on the frame alone.

use crate::netlink::bpf::Program;
use crate::netlink::link::Interface;
use std::io;

/// What a program can do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It drops it, or fails.
    Drops,
    /// It lets it pass.
    Passes,
    /// It sends it out again, or elsewhere.
    SendsAway,
}

impl Driver {
    /// Whether the packet certainly goes no further.
    pub(super) fn ends(&self) -> bool {
        matches!(self.action, Ok(Action::Drops | Action::SendsAway))
    }
}

/// What a tc program can do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TcAction {
    /// It drops it, or takes it away.
    Ends,
    /// It leaves it to what comes next.
    Passes,
}

/// An XDP program, and what it does with the packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Where it runs.
    pub place: String,
    /// Its number.
    pub program: u32,
    /// What it does, or why that is not known.
    pub action: Result<Action, String>,
}

/// What the XDP program of this number does with a frame that comes in by this interface.
pub(super) fn ask(program: u32, frame: &[u8], interface: u32) -> io::Result<Action> {
    // `XDP_PASS`; `XDP_TX`, `XDP_REDIRECT`.
    Ok(match Program::of(program)?.run_xdp(frame, interface)? {
        2 => Action::Passes,
        3 | 4 => Action::SendsAway,
        _ => Action::Drops,
    })
}

/// What the tc program of this number does with a frame that comes in by this interface.
pub(super) fn ask_classifier(program: u32, frame: &[u8], interface: u32) -> io::Result<TcAction> {
    // `TC_ACT_SHOT`, `TC_ACT_STOLEN`, `TC_ACT_QUEUED`, `TC_ACT_REDIRECT`, `TC_ACT_TRAP`.
    Ok(match Program::of(program)?.run_tc(frame, interface)? {
        2 | 4 | 5 | 7 | 8 => TcAction::Ends,
        _ => TcAction::Passes,
    })
}

/// What the interface's XDP program does with the frame.
pub(super) fn of_interface(interface: &Interface, frame: &[u8]) -> Option<Driver> {
    let attached = interface.xdp?;
    let action = if interface.is_ethernet {
        ask(attached.program, frame, interface.index).map_err(|error| error.to_string())
    } else {
        Err(format!("{} is no Ethernet", interface.name))
    };
    Some(Driver { place: attached.place.to_string(), program: attached.program, action })
}
