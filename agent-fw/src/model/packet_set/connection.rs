//! What connection tracking knows of a packet.

use super::field::only;
use crate::model::{Range, RangeSet};

/// What a packet is to connection tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// What it is to its connection.
    pub state: State,
    /// Whether it goes against the direction in which its connection was opened.
    pub is_reply: bool,
    /// Whether its connection was known before it came: a packet before it has passed every hook.
    pub is_known: bool,
    /// Whether Bypass let the packet through that opened its connection, and a label says so.
    pub is_labelled: bool,
}

/// What a packet is to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It fits none and opens none.
    Invalid,
    /// It is not tracked.
    Untracked,
    /// It opens one, or comes after the packet that did and before any answer.
    New,
    /// It belongs to one that another one has brought about, or is an ICMP error about one.
    Related,
    /// It belongs to one that has gone both ways.
    Established,
}

impl State {
    const ALL: [Self; 5] =
        [Self::Invalid, Self::Untracked, Self::New, Self::Related, Self::Established];
}

/// The number of the last of them.
pub(super) const LAST: u128 = 13;

impl Connection {
    /// The first packet of a connection.
    pub const OPENS: Self =
        Self { state: State::New, is_reply: false, is_known: false, is_labelled: false };
    /// A packet that goes back.
    pub const REPLY: Self =
        Self { state: State::Established, is_reply: true, is_known: true, is_labelled: false };

    /// All that there can be, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        let flags = |bits: u8| [bits & 4 != 0, bits & 2 != 0, bits & 1 != 0];
        let of_state = move |state| {
            (0..8).map(flags).map(move |[is_known, is_reply, is_labelled]| Self {
                state,
                is_reply,
                is_known,
                is_labelled,
            })
        };
        State::ALL.into_iter().flat_map(of_state).filter(|connection| connection.is_possible())
    }

    fn is_possible(self) -> bool {
        let Self { state, is_reply, is_known, is_labelled } = self;
        // The label is set when the first packet passes; it goes the way of the connection.
        let is_sound = is_known || !is_reply && !is_labelled;
        is_sound
            && match state {
                State::Invalid | State::Untracked => !is_known,
                State::New => !is_reply,
                State::Related => true,
                State::Established => is_known,
            }
    }

    /// Whether there is a connection that it belongs to.
    pub const fn is_tracked(&self) -> bool {
        !matches!(self.state, State::Invalid | State::Untracked)
    }

    /// The numbers of those for which this holds.
    pub fn numbers(holds: impl Fn(&Self) -> bool) -> RangeSet<u128> {
        let numbered = (0..).zip(Self::all()).filter(|(_, connection)| holds(connection));
        numbered.map(|(number, _)| Range::single(number)).collect()
    }

    /// The number of this one alone.
    pub fn number(self) -> RangeSet<u128> {
        let place = (0..).zip(Self::all()).find(|(_, connection)| *connection == self);
        place.map_or_else(RangeSet::default, |(number, _)| only(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_a_number() {
        assert_eq!(Connection::all().count(), usize::try_from(LAST).expect("few") + 1);
        let unknown = |connection: &Connection| connection.number().is_empty();
        assert!(!Connection::all().any(|connection| unknown(&connection)));
        assert!(!unknown(&Connection::OPENS) && !unknown(&Connection::REPLY));
    }
}
