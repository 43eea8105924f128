//! The registers of nf_tables, as far as their contents are certain.

use super::truth::{self, Truth};

/// Four of 16 bytes, or sixteen of 4 bytes, which are the same ones.
const BYTES: usize = 64;

pub(super) struct Registers([Option<u8>; BYTES]);

impl Registers {
    pub(super) fn new() -> Self {
        Self([None; BYTES])
    }

    /// The kernel fills up with zeros to four bytes.
    pub(super) fn load(&mut self, register: Option<u32>, bytes: &[Option<u8>]) {
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        let bytes = bytes.iter().copied().chain(std::iter::repeat_n(Some(0), padding));
        for (place, byte) in self.at_mut(register).iter_mut().zip(bytes) {
            *place = byte;
        }
    }

    /// Something that is not known, of at most 16 bytes.
    pub(super) fn forget(&mut self, register: Option<u32>) {
        self.at_mut(register).iter_mut().take(16).for_each(|byte| *byte = None);
    }

    /// Something that is not known, of any length.
    pub(super) fn forget_from(&mut self, register: u32) {
        self.at_mut(Some(register)).fill(None);
    }

    pub(super) fn forget_all(&mut self) {
        self.0.fill(None);
    }

    pub(super) fn read(&self, register: Option<u32>, length: usize) -> Vec<Option<u8>> {
        let place = register.and_then(place).unwrap_or(BYTES);
        let mut bytes: Vec<_> = self.0.iter().skip(place).take(length).copied().collect();
        bytes.resize(length, None);
        bytes
    }

    /// Numbers of `enum nft_cmp_ops`.
    pub(super) fn compare(&self, register: Option<u32>, operation: u32, value: &[u8]) -> Truth {
        let bytes = self.read(register, value.len());
        let order =
            || Some(bytes.iter().copied().collect::<Option<Vec<u8>>>()?.as_slice().cmp(value));
        match operation {
            0 => truth::equal(&bytes, value),
            1 => truth::equal(&bytes, value).inverted(true),
            2 => Truth::of(order().map(std::cmp::Ordering::is_lt)),
            3 => Truth::of(order().map(std::cmp::Ordering::is_le)),
            4 => Truth::of(order().map(std::cmp::Ordering::is_gt)),
            5 => Truth::of(order().map(std::cmp::Ordering::is_ge)),
            _ => Truth::Maybe,
        }
    }

    fn at_mut(&mut self, register: Option<u32>) -> &mut [Option<u8>] {
        let place = register.and_then(place).unwrap_or(BYTES);
        &mut self.0[place.min(BYTES)..]
    }
}

/// Where a register begins: `NFT_REG_1` and on, `NFT_REG32_00` and on.
fn place(register: u32) -> Option<usize> {
    let place = match register {
        1..=4 => (register - 1) * 16,
        8..=23 => (register - 8) * 4,
        _ => return None,
    };
    usize::try_from(place).ok()
}
