//! Lists of random prefixes, the same on every machine.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Any number would do; this one makes runs comparable.
const SEED: u64 = 4118;

/// The lengths that are drawn, each as often as the others: a block of 256 addresses down to a
/// single one.
const LENGTHS: [u32; 9] = [24, 25, 26, 27, 28, 29, 30, 31, 32];

/// A list file of so many random IPv4 prefixes, one a line. Of a million about one in a hundred
/// lies inside another.
#[must_use]
pub fn list(lines: usize) -> String {
    let mut random = SplitMix64(SEED);
    let mut text = String::new();
    for _ in 0..lines {
        let (address, length) = random.prefix();
        // Writing to a String does not fail.
        let _ = writeln!(text, "{address}/{length}");
    }
    text
}

/// The generator `SplitMix64` of Steele, Lea and Flood (2014): good enough to spread prefixes,
/// and short enough to need no crate.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn prefix(&mut self) -> (Ipv4Addr, u32) {
        let [a, b, c, d, choice, ..] = self.next().to_be_bytes();
        let length = LENGTHS[usize::from(choice) % LENGTHS.len()];
        let mask = u32::MAX << (u32::BITS - length);
        let address = Ipv4Addr::new(a, b, c, d);
        (Ipv4Addr::from(u32::from(address) & mask), length)
    }
}

#[cfg(test)]
mod tests {
    use super::{LENGTHS, SplitMix64, list};

    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut random = SplitMix64(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_list_has_its_lines_and_every_length() {
        let list = list(1000);
        assert_eq!(list.lines().count(), 1000);
        for length in LENGTHS {
            assert!(list.lines().any(|line| line.ends_with(&format!("/{length}"))), "{length}");
        }
    }

    #[test]
    fn a_shorter_list_is_the_beginning_of_a_longer_one() {
        assert!(list(100).starts_with(&list(10)));
    }
}
