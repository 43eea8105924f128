//! What an interface's driver has switched on, as the kernel's ethtool family tells it (since Linux
//! 5.6).

use crate::netlink::generic;
use crate::netlink::message::{attribute, attributes, text};
use anyhow::Context as _;
use std::collections::BTreeSet;

/// `ETHTOOL_MSG_FEATURES_GET` of linux/ethtool_netlink.h.
const GET_FEATURES: u8 = 11;

/// The features that are on, by their names: `rx-lro`.
pub fn features(index: u32) -> anyhow::Result<BTreeSet<String>> {
    /// `ETHTOOL_A_FEATURES_HEADER`, `ETHTOOL_A_HEADER_DEV_INDEX`, `ETHTOOL_A_FEATURES_ACTIVE`.
    const HEADER: u16 = 1;
    const DEVICE: u16 = 1;
    const ACTIVE: u16 = 4;
    let family =
        generic::family("ethtool").context("this kernel tells nothing of features (ethtool)")?;
    // `NLA_F_NESTED` is asked for here.
    let header = attribute(HEADER | 1 << 15, &attribute(DEVICE, &index.to_ne_bytes()));
    let found = generic::get(family, GET_FEATURES, &header)
        .context("this driver's features cannot be read")?;
    let body = found.into_iter().next().unwrap_or_default();
    let active = attributes(&body).find(|(kind, _)| *kind == ACTIVE).map(|(_, value)| value);
    Ok(bits(active.unwrap_or_default()))
}

/// The names in a set of bits that lists only those that are set.
fn bits(set: &[u8]) -> BTreeSet<String> {
    /// `ETHTOOL_A_BITSET_BITS`, `ETHTOOL_A_BITSET_BIT_NAME`.
    const BITS: u16 = 3;
    const NAME: u16 = 2;
    let bits = attributes(set).filter(|(kind, _)| *kind == BITS);
    let each = bits.flat_map(|(_, bits)| attributes(bits));
    let name = |bit| attributes(bit).find(|(kind, _)| *kind == NAME).map(|(_, value)| text(value));
    each.filter_map(|(_, bit)| name(bit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_no_lro() {
        let features = features(1).expect("read");
        assert!(features.contains("rx-checksum") || features.contains("loopback"), "{features:?}");
        assert!(!features.contains("rx-lro"), "{features:?}");
    }

    #[test]
    fn names_of_bits_are_read() {
        let bit =
            |name: &[u8]| attribute(1, &[attribute(1, &[7, 0, 0, 0]), attribute(2, name)].concat());
        let list = attribute(3, &[bit(b"rx-lro\0"), bit(b"rx-gro\0")].concat());
        let set = [attribute(1, &[]), attribute(2, &[64, 0, 0, 0]), list].concat();
        assert_eq!(bits(&set), BTreeSet::from(["rx-gro".to_owned(), "rx-lro".to_owned()]));
        assert_eq!(bits(&[]), BTreeSet::new());
    }
}
