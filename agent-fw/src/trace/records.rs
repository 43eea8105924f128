//! What the table of the trace writes down of a packet's connection.

/// What the table writes down of a packet that has come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Records {
    /// Its connection's mark, zones and labels.
    Everything,
    /// Nothing: this kernel has no words for that.
    Unavailable,
    /// Nothing: nobody tracks connections.
    Untracked,
}

/// What is read of a connection in the table, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recorded {
    /// Whether NAT changes its destination.
    Status,
    /// The port that the first packet was to.
    AskedPort,
    /// The port that its answer comes from.
    OwnPort,
    Mark,
    OriginalZone,
    ReplyZone,
    /// One of the four words that the labels are.
    Labels(u32),
}

impl Recorded {
    pub(super) const ALL: [Self; 10] = [
        Self::Status,
        Self::AskedPort,
        Self::OwnPort,
        Self::Mark,
        Self::OriginalZone,
        Self::ReplyZone,
        Self::Labels(0),
        Self::Labels(1),
        Self::Labels(2),
        Self::Labels(3),
    ];
}
