//! Whether what a rule asks of the destination address can be true of a packet to this host.

use crate::model::{AddressRange, AddressSet, Range};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The addresses from the one to the other, as packets have them.
pub(super) fn between(first: &[u8], last: &[u8]) -> Option<AddressRange> {
    let v4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let v6 = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from);
    match (v4(first), v4(last)) {
        (Some(first), Some(last)) => Range::new(first, last).map(AddressRange::V4),
        _ => Range::new(v6(first)?, v6(last)?).map(AddressRange::V6),
    }
}

/// The part of the destination address that these bytes of the network's header are, as a mask: of
/// IPv4 or IPv6, from its beginning.
pub(super) fn part(offset: Option<u32>, length: Option<u32>) -> Option<Vec<u8>> {
    let size = match offset? {
        16 => 4,
        24 => 16,
        _ => return None,
    };
    let length = usize::try_from(length?).ok().filter(|length| *length <= size)?;
    Some((0..size).map(|place| if place < length { u8::MAX } else { 0 }).collect())
}

/// The addresses of which only the bits of this mask are compared, and have this value.
pub(super) fn masked(value: &[u8], mask: &[u8]) -> Option<AddressRange> {
    if value.len() > mask.len() {
        return None;
    }
    // Where a part is compared, that part alone is there.
    let missing = mask.len() - value.len();
    let value = &[value, &vec![0; missing]].concat();
    // Bits that do not stand in front are those of no range.
    let bits: Vec<bool> =
        mask.iter().flat_map(|byte| (0..8).map(move |bit| byte & (0x80 >> bit) != 0)).collect();
    if bits.windows(2).any(|pair| !pair[0] && pair[1]) {
        return None;
    }
    let last: Vec<u8> = value.iter().zip(mask).map(|(value, mask)| value | !mask).collect();
    between(value, &last)
}

/// The addresses that the sorted keys of a set are, or that lie between its bounds.
pub(super) fn of_keys(keys: &[(Vec<u8>, bool)]) -> Option<AddressSet> {
    let is_interval = keys.iter().any(|(_, is_end)| *is_end);
    let mut ranges = Vec::new();
    for (place, (key, _)) in keys.iter().enumerate().filter(|(_, (_, is_end))| !is_end) {
        let next = keys[place..].iter().map(|(next, _)| next).find(|next| *next > key);
        let last = match next {
            _ if !is_interval => key.clone(),
            None => vec![u8::MAX; key.len()],
            Some(next) => before(next),
        };
        ranges.push(between(key, &last)?);
    }
    Some(ranges.into_iter().collect())
}

/// The number before, in as many bytes.
fn before(number: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_addresses_or_bounds_of_ranges() {
        let address = |last| vec![192, 0, 2, last];
        let one = |key: &[(Vec<u8>, bool)], last| {
            of_keys(key).expect("addresses").contains(Ipv4Addr::new(192, 0, 2, last).into())
        };
        let single = [(address(1), false), (address(9), false)];
        assert!(one(&single, 1) && one(&single, 9) && !one(&single, 5));
        let ranges =
            [(address(1), false), (address(5), false), (address(5), true), (address(9), true)];
        assert!(one(&ranges, 1) && one(&ranges, 4) && one(&ranges, 8) && !one(&ranges, 9));
        assert!(one(&[(vec![0; 4], true), (address(7), false)], 200));
    }

    #[test]
    fn a_mask_makes_a_range_where_its_bits_stand_in_front() {
        let network = masked(&[192, 0, 2, 0], &[255, 255, 255, 0]);
        assert_eq!(network, between(&[192, 0, 2, 0], &[192, 0, 2, 255]));
        assert_eq!(masked(&[0, 0, 2, 0], &[0, 0, 255, 0]), None);
        assert_eq!(masked(&[192, 0, 2], &part(Some(16), Some(3)).expect("a part")), network);
        assert_eq!(part(Some(12), Some(4)), None);
    }
}
