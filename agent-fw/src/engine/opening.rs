//! What a policy would open that the last good one restricts. A file that was cut off, or a line
//! that was lost, reads like a policy that wants it so.

use crate::configuration::{Compiled, Configuration};
use crate::model::rule::Direction;
use crate::model::{Policy, Port};
use std::fmt;

/// Something that would no longer be restricted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// A TCP port that is closed to all but some sources.
    Port(Port),
    /// A direction in which what no rule admits is dropped.
    Direction(Direction),
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "TCP port {port}"),
            Self::Direction(Direction::Incoming) => f.write_str("incoming connections"),
            Self::Direction(Direction::Outgoing) => f.write_str("outgoing connections"),
        }
    }
}

/// A policy, with what it was compiled from.
pub type Known = (Configuration, Compiled);

/// What `before` restricts and `after` does not.
pub fn openings(before: &Known, after: &Known) -> Vec<Opening> {
    let closed = closed_ports(after);
    let ports = closed_ports(before).into_iter().filter(|port| !closed.contains(port));
    let closes = |known: &Known, direction| {
        known.1.firewall.as_ref().is_some_and(|firewall| firewall.closes(direction))
    };
    let directions = [Direction::Incoming, Direction::Outgoing]
        .into_iter()
        .filter(|&direction| closes(before, direction) && !closes(after, direction));
    ports.map(Opening::Port).chain(directions.map(Opening::Direction)).collect()
}

/// The ports that are closed to all but some sources, as [`judge`](super::judge) judges a policy.
fn closed_ports((configuration, compiled): &Known) -> Vec<Port> {
    let gate = Policy::closes(&compiled.lowered.policy).then_some(Port(configuration.port));
    let relay = compiled.relay.as_ref().is_some_and(Policy::closes).then_some(Port::RELAY);
    gate.into_iter().chain(relay).collect()
}
