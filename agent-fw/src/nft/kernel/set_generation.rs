//! Two names for each set, so that a new one can be made ready beside the one in use.
//!
//! A set of intervals that is made in the same transaction as the rule that looks into it is empty
//! for a few microseconds when that rule is already in force: the kernel (seen on 6.18) publishes
//! the set's lookup array at the end of a commit, the rules at its beginning. A packet in between
//! would be dropped. So an update first makes the new sets, under names of the other epoch, to
//! which no rule refers yet; the transaction that follows exchanges all rules at one instant.

/// Which of a set's two names is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum SetGeneration {
    /// The plain name.
    #[default]
    Even,
    /// The name with a suffix, which no name that the compiler makes ends with.
    Odd,
}

const SUFFIX: &str = ".b";

impl SetGeneration {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }

    /// The name in the kernel of the set that the compiler calls `name`.
    pub(super) fn name_of(self, name: &str) -> String {
        match self {
            Self::Even => name.to_owned(),
            Self::Odd => format!("{name}{SUFFIX}"),
        }
    }

    /// The compiler's name of a set, from the kernel's, and the epoch that it belongs to.
    pub(super) fn split(name: &str) -> (&str, Self) {
        name.strip_suffix(SUFFIX).map_or((name, Self::Even), |name| (name, Self::Odd))
    }
}
