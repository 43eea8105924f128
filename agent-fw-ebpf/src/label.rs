//! Labels: which list of the policy's a source stands on, for admission and for counting.

/// The index of a list of sources. A label belongs to one admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Label(u16);

impl Label {
    /// How many labels a policy can have.
    pub const MAX: u16 = 4094;

    /// The label of this index, where that is below [`Label::MAX`].
    #[must_use]
    pub const fn new(index: u16) -> Option<Self> {
        if index < Self::MAX { Some(Self(index)) } else { None }
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0
    }
}
