//! Whether a condition holds, as far as that is certain.

/// Whether a condition holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Truth {
    /// It certainly does not.
    No,
    Maybe,
    /// It certainly does.
    Yes,
}

impl Truth {
    pub(super) fn certain(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    pub(super) fn of(holds: Option<bool>) -> Self {
        holds.map_or(Self::Maybe, Self::certain)
    }

    /// The opposite, where that is asked for.
    pub(super) fn inverted(self, is_inverted: bool) -> Self {
        match self {
            Self::No if is_inverted => Self::Yes,
            Self::Yes if is_inverted => Self::No,
            same => same,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        self.min(other)
    }
}

/// Whether bytes, of which some are not known, are these; as many as are compared.
pub(super) fn equal(bytes: &[Option<u8>], value: &[u8]) -> Truth {
    let mut all = if bytes.len() >= value.len() { Truth::Yes } else { Truth::Maybe };
    for (byte, wanted) in bytes.iter().zip(value) {
        all = all.and(Truth::of(byte.map(|byte| byte == *wanted)));
    }
    all
}
