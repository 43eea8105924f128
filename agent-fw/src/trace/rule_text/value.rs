//! Values that rules compare, as nftables writes them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A key of a set, and whether it is the end of an interval.
pub(super) type Key = (Vec<u8>, bool);

/// What a register holds: its name, and how its values are written.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) words: String,
    pub(super) form: Form,
    /// The bits that were kept of it; `None` for all.
    pub(super) mask: Option<Vec<u8>>,
}

/// How the values of a field are written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    V4,
    V6,
    Port,
    Name,
    State,
    Protocol,
    Family,
    Mac,
    HostNumber,
    Hex,
}

impl Loaded {
    /// A value as nft writes it.
    pub(super) fn write(&self, value: &[u8]) -> String {
        let hex = || value.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        let written = match self.form {
            Form::V4 => self.prefix(value, 4).and_then(|(bytes, length)| {
                let address = Ipv4Addr::from(bytes.first_chunk::<4>().copied()?);
                Some(if length == 32 { address.to_string() } else { format!("{address}/{length}") })
            }),
            Form::V6 => self.prefix(value, 16).and_then(|(bytes, length)| {
                let address = Ipv6Addr::from(bytes.first_chunk::<16>().copied()?);
                Some(if length == 128 {
                    address.to_string()
                } else {
                    format!("{address}/{length}")
                })
            }),
            Form::Port => value.first_chunk().map(|two| u16::from_be_bytes(*two).to_string()),
            Form::Name => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                let star = if value.last() == Some(&0) { "" } else { "*" };
                Some(format!("\"{}{star}\"", String::from_utf8_lossy(name).escape_debug()))
            }
            Form::State => host_number(value).map(states),
            Form::Protocol => match value {
                [1] => Some("icmp".to_owned()),
                [6] => Some("tcp".to_owned()),
                [17] => Some("udp".to_owned()),
                [58] => Some("ipv6-icmp".to_owned()),
                [other] => Some(other.to_string()),
                _ => None,
            },
            Form::Family => match value {
                [2] => Some("ipv4".to_owned()),
                [10] => Some("ipv6".to_owned()),
                _ => None,
            },
            Form::Mac => value.first_chunk().map(|mac| crate::model::MacAddr(*mac).to_string()),
            Form::HostNumber => match value {
                [a, b] => Some(u16::from_ne_bytes([*a, *b]).to_string()),
                _ => host_number(value).map(|number| number.to_string()),
            },
            Form::Hex => None,
        };
        written.unwrap_or_else(hex)
    }

    /// The address with zeros to its full width, and the length of the prefix that is compared.
    fn prefix(&self, value: &[u8], width: usize) -> Option<(Vec<u8>, usize)> {
        let mut bytes = value.to_vec();
        bytes.resize(width, 0);
        let length = match &self.mask {
            None => 8 * value.len(),
            Some(mask) => {
                let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
                usize::try_from(ones).ok()?
            }
        };
        Some((bytes, length))
    }

    /// The elements of a set in braces.
    pub(super) fn members(&self, keys: &[Key]) -> String {
        let mut members: Vec<String> = Vec::new();
        for (key, is_end) in keys {
            match members.last_mut() {
                Some(before) if *is_end => {
                    let last = self.write(&before_of(key));
                    if *before != last {
                        *before = format!("{before}-{last}");
                    }
                }
                _ if *is_end => {}
                _ => members.push(self.write(key)),
            }
        }
        format!("{{ {} }}", members.join(", "))
    }
}

/// The value before this one, as bytes with the highest first.
fn before_of(key: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    bytes
}

pub(super) fn host_number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

pub(super) fn states(bits: u32) -> String {
    let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, n)| *n).collect();
    set.join(",")
}
