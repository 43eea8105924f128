//! How much of the Internet a policy admits. A port that half of it may reach is not closed, however
//! that is written.

use super::{AddressSet, MacMatch, Notation, Ordinal, Policy, Range, RangeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A single range with more addresses than this needs consent: a /8, and a /16 of IPv6.
const WIDE_V4: u128 = 1 << 24;
const WIDE_V6: u128 = 1 << 112;
/// Half of IPv4's addresses, and of those of IPv6 that are in use, [`GLOBAL`].
const HALF_V4: u128 = 1 << 31;
const HALF_V6: u128 = 1 << 124;
/// 2000::/3, where all global unicast addresses of IPv6 are (RFC 4291).
const GLOBAL: [u128; 2] = [0x2000 << 112, (0x4000 << 112) - 1];

impl Policy {
    /// Whether more than half of the addresses of a version of IP are admitted by address alone.
    pub fn admits_most(&self) -> bool {
        self.by_address().is_most()
    }

    /// The ranges that are so wide that somebody has to consent, as they are written shortest.
    pub fn wide_ranges(&self) -> Vec<String> {
        let AddressSet { v4, v6 } = self.by_address();
        let v4 = v4.ranges().iter().filter(|range| size_v4(**range) > WIDE_V4);
        let v6 = v6.ranges().iter().filter(|range| size_v6(range) > WIDE_V6);
        v4.map(Notation::notation).chain(v6.map(Notation::notation)).collect()
    }

    /// The addresses that are admitted whatever MAC address a packet comes from.
    fn by_address(&self) -> AddressSet {
        let any = self.admissions.iter().filter(|admission| admission.macs == MacMatch::Any);
        any.fold(AddressSet::default(), |all, admission| all.union(&admission.addresses))
    }
}

impl AddressSet {
    /// Whether these are more than half of the addresses of a version of IP.
    pub(super) fn is_most(&self) -> bool {
        let global: RangeSet<Ipv6Addr> =
            Range::new(Ipv6Addr::from(GLOBAL[0]), Ipv6Addr::from(GLOBAL[1])).into_iter().collect();
        let v4 = self.v4.ranges().iter().copied().map(size_v4).fold(0, u128::saturating_add);
        let v6 = self.v6.intersection(&global);
        let v6 = v6.ranges().iter().map(size_v6).fold(0, u128::saturating_add);
        v4 > HALF_V4 || v6 > HALF_V6
    }
}

fn size_v4(range: Range<Ipv4Addr>) -> u128 {
    u128::from(range.last().bits() - range.first().bits()) + 1
}

/// One less for all of IPv6, which has more addresses than the number can say.
fn size_v6(range: &Range<Ipv6Addr>) -> u128 {
    (range.last().bits() - range.first().bits()).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::super::{AddressRange, Admission, DefaultAction, MacAddr, Port};
    use super::*;

    fn policy(prefixes: &[&str], macs: MacMatch) -> Policy {
        let range = |text: &&str| match text.parse().expect("a prefix") {
            ipnet::IpNet::V4(prefix) => AddressRange::from(prefix),
            ipnet::IpNet::V6(prefix) => AddressRange::from(prefix),
        };
        let addresses = prefixes.iter().map(range).collect();
        Policy::new(
            Range::single(Port::AGENT).into(),
            DefaultAction::Drop,
            [Admission { macs, addresses }],
        )
    }

    #[test]
    fn more_than_half_of_a_version_is_most_of_it_however_it_is_written() {
        for (prefixes, most) in [
            (&["0.0.0.0/0"][..], true),
            (&["0.0.0.0/1"], false),
            (&["0.0.0.0/1", "128.0.0.0/32"], true),
            (&["0.0.0.0/2", "64.0.0.0/2", "192.0.0.0/8"], true),
            (&["::/0"], true),
            (&["2000::/4"], false),
            (&["2000::/4", "3000::/64"], true),
            // Nobody has these.
            (&["8000::/1"], false),
            (&["34.205.5.0/27"], false),
        ] {
            let policy = policy(prefixes, MacMatch::Any);
            assert_eq!((policy.admits_most(), policy.closes()), (most, !most), "{prefixes:?}");
        }
    }

    #[test]
    fn one_wide_range_needs_consent_and_the_next_narrower_does_not() {
        for (prefixes, wide) in [
            (&["10.0.0.0/8"][..], &[][..]),
            (&["10.0.0.0/8", "11.0.0.0/32"], &["10.0.0.0-11.0.0.0"]),
            (&["10.0.0.0/7"], &["10.0.0.0/7"]),
            (&["2001::/16"], &[]),
            (&["2000::/15"], &["2000::/15"]),
        ] {
            assert_eq!(policy(prefixes, MacMatch::Any).wide_ranges(), wide, "{prefixes:?}");
        }
    }

    #[test]
    fn sources_that_are_bound_to_mac_addresses_are_exempt() {
        let mac = Range::single(MacAddr([2, 0, 0, 0, 0, 1]));
        let bound = policy(&["0.0.0.0/0", "::/0"], MacMatch::Only(mac.into()));
        assert!(!bound.admits_most() && bound.wide_ranges().is_empty() && bound.closes());
    }
}
