//! The stamp on the table: which policy it enforces, and which version compiled it.

use crate::model::{Policy, PolicyHash};
use std::fmt;

/// What the comment of the gate's first rule says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The version of agent-fw.
    pub version: String,
    /// The policy's hash.
    pub policy: PolicyHash,
}

impl Stamp {
    /// The stamp of this program on `policy`.
    pub fn of(policy: &Policy) -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), policy: policy.hash() }
    }

    /// Reads the stamp from a rule's comment.
    pub fn parse(comment: &str) -> Option<Self> {
        let (version, policy) = comment.strip_prefix("agent-fw ")?.split_once(" policy ")?;
        Some(Self { version: version.to_owned(), policy: policy.parse().ok()? })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent-fw {} policy {}", self.version, self.policy)
    }
}
