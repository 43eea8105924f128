//! The registers of nf_tables, in which a rule keeps what it has read.

use crate::netlink::nfnetlink::{find, number};
use std::collections::BTreeMap;

/// The register that an expression writes; none, where it writes none.
pub(super) fn written(name: &str, data: &[u8]) -> Option<u32> {
    // The attributes `NFTA_…_DREG`.
    let kind = match name {
        "immediate" | "meta" | "payload" | "ct" | "fib" | "rt" | "exthdr" | "numgen" | "osf"
        | "xfrm" => 1,
        "bitwise" | "byteorder" | "hash" | "socket" | "tunnel" => 2,
        "lookup" => 3,
        _ => return None,
    };
    find(data, kind).and_then(number)
}

/// The number of a register's first four bytes: those of the old kind, of 16, are 1 to 4
/// (`NFT_REG_1`), and `NFT_REG32_00` is 8.
pub(super) fn word(register: u32) -> u32 {
    if (1..=4).contains(&register) { 8 + (register - 1) * 4 } else { register }
}

/// What is known of registers, by their first four bytes.
#[derive(Clone, Debug)]
pub(super) struct Registers<V>(BTreeMap<u32, V>);

impl<V> Default for Registers<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> Registers<V> {
    pub(super) fn get(&self, register: u32) -> Option<&V> {
        self.0.get(&word(register))
    }

    /// A register gets a value; `None`: one of which nothing is known.
    pub(super) fn set(&mut self, register: u32, value: Option<V>) {
        let first = word(register);
        // What is written to a register of 16 bytes may take all of them.
        let words = if first == register { 1 } else { 4 };
        self.0.retain(|word, _| !(first..first + words).contains(word));
        self.0.extend(value.map(|value| (first, value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_has_two_numbers_and_what_it_held_goes_with_what_is_written() {
        let mut registers = Registers::default();
        registers.set(1, Some("port"));
        registers.set(9, Some("protocol"));
        assert_eq!((registers.get(8), registers.get(9)), (Some(&"port"), Some(&"protocol")));
        registers.set(1, None);
        assert_eq!((registers.get(1), registers.get(9)), (None, None));
    }
}
