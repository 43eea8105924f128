//! Chance that can be repeated: the same from the same seed, on every machine.

/// A small generator (xorshift64*).
pub(crate) struct Chance(u64);

impl Chance {
    /// From `AGENT_FW_SEED`, or from the seed given. It is printed.
    pub(crate) fn new(seed: u64) -> Self {
        let given = std::env::var("AGENT_FW_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = given.unwrap_or(seed);
        println!("AGENT_FW_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    /// Once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
