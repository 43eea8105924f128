//! The generation of the ruleset: by its number, a transaction is tied to what was read before it.

/// Which state the ruleset of a network namespace is in, everybody's tables taken together: each
/// transaction that is committed makes another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(pub(super) u32);

/// `NFNL_BATCH_GENID` of linux/netfilter/nfnetlink.h.
const BATCH_GENERATION: u16 = 1;
/// A netlink header, and the one of netfilter: all that the message has which begins a batch.
pub(super) const BATCH_BEGIN_BYTES: usize = 20;

impl Generation {
    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The one that the next transaction makes. None has the number 0, which would match any.
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1).max(1))
    }

    /// The message that begins a batch, with this generation as its condition: an attribute, of
    /// which libnftnl knows nothing.
    pub(super) fn condition(self, begin: &[u8]) -> Vec<u8> {
        let mut message = begin.to_vec();
        message.extend(8_u16.to_ne_bytes());
        message.extend(BATCH_GENERATION.to_ne_bytes());
        message.extend(self.0.to_be_bytes());
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_generation_is_followed_by_the_one_that_matches_any() {
        assert_eq!(Generation(7).next(), Generation(8));
        assert_eq!(Generation(u32::MAX).next(), Generation(1));
    }
}
