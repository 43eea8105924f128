//! The policy's hash: how a kernel's table is recognised as the one that was compiled.

use super::{DefaultAction, MacMatch, Policy, Range, RangeSet};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// The first 128 bits of a SHA-256 over a policy's canonical form.
///
/// 128 bits tell policies apart; they are not meant to withstand somebody who may write to the
/// host's nf_tables, since such a one needs no collision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyHash([u8; 16]);

impl PolicyHash {
    /// No policy's: what stands where it is not known which one is enforced.
    pub const UNKNOWN: Self = Self([0; 16]);
}

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a policy's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected 32 hexadecimal digits")]
pub struct PolicyHashError;

impl FromStr for PolicyHash {
    type Err = PolicyHashError;

    fn from_str(text: &str) -> Result<Self, PolicyHashError> {
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(PolicyHashError);
        }
        u128::from_str_radix(text, 16)
            .map(|bits| Self(bits.to_be_bytes()))
            .map_err(|_| PolicyHashError)
    }
}

/// Hashes the canonical form. Every list is preceded by its length, so that no two policies have
/// the same bytes.
pub(super) fn hash(policy: &Policy) -> PolicyHash {
    let mut sha = Sha256::new();
    sha.update(b"agent-fw policy 1\n");
    sha.update([match policy.others {
        DefaultAction::Drop => 0,
        DefaultAction::Continue => 1,
    }]);
    update(&mut sha, &policy.ports, |port| port.0.to_be_bytes());
    sha.update((policy.admissions.len() as u64).to_be_bytes());
    for admission in &policy.admissions {
        match &admission.macs {
            MacMatch::Any => sha.update([0]),
            MacMatch::Only(macs) => {
                sha.update([1]);
                update(&mut sha, macs, |mac| mac.0);
            }
        }
        update(&mut sha, &admission.addresses.v4, |address| address.octets());
        update(&mut sha, &admission.addresses.v6, |address| address.octets());
    }
    let digest = sha.finalize();
    let mut bits = [0; 16];
    bits.copy_from_slice(&digest[..16]);
    PolicyHash(bits)
}

fn update<T: super::Ordinal, const N: usize>(
    sha: &mut Sha256,
    set: &RangeSet<T>,
    bytes: impl Fn(T) -> [u8; N],
) {
    sha.update((set.ranges().len() as u64).to_be_bytes());
    // In blocks: a million small updates cost more than the hashing itself.
    let mut block = Vec::with_capacity(8192);
    for chunk in set.ranges().chunks(8192 / (2 * N)) {
        block.clear();
        for range in chunk {
            let (first, last): ([u8; N], [u8; N]) = edges(range, &bytes);
            block.extend_from_slice(&first);
            block.extend_from_slice(&last);
        }
        sha.update(&block);
    }
}

fn edges<T: super::Ordinal, const N: usize>(
    range: &Range<T>,
    bytes: impl Fn(T) -> [u8; N],
) -> ([u8; N], [u8; N]) {
    (bytes(range.first()), bytes(range.last()))
}

/// A short digest of a text, in hexadecimal.
pub(crate) fn digest(text: &str) -> String {
    Sha256::digest(text)[..8].iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressSet, Admission, Port};

    #[test]
    fn the_form_of_the_hash_does_not_change_unnoticed() {
        let everyone = Admission { macs: MacMatch::Any, addresses: AddressSet::all() };
        let policy =
            Policy::new(Range::single(Port::AGENT).into(), DefaultAction::Drop, [everyone]);
        assert_eq!(policy.hash().to_string(), "b7d622806ad4cf717230dbe43436f45d");
        assert_eq!(policy.hash().to_string().parse(), Ok(policy.hash()));
    }
}
