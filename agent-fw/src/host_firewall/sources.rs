//! What a policy admits, in the terms of other firewalls: prefixes and MAC addresses.

use crate::model::{AddressSet, MacAddr, MacMatch, Ordinal as _, Policy, Range, RangeSet};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MAC addresses that are listed one by one. A policy with more of them, as by `not`, is taken as
/// one that admits any.
const MOST_MACS: u64 = 256;

/// The sources of an exception.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sources {
    /// Any source.
    Everyone,
    /// A packet from any of these.
    Listed {
        /// Addresses: sorted, disjoint.
        prefixes: Vec<IpNet>,
        /// MAC addresses.
        macs: Vec<MacAddr>,
    },
}

impl Sources {
    /// All that a policy admits. Where a packet must have both an address and a MAC address, its
    /// address is enough here: the rest is agent-fw's own to check.
    pub fn of(policy: &Policy) -> Self {
        let mut addresses = AddressSet::default();
        let mut macs: RangeSet<MacAddr> = RangeSet::default();
        for admission in policy.admissions() {
            match &admission.macs {
                MacMatch::Only(only) if admission.addresses.is_all() => macs = macs.union(only),
                _ => addresses = addresses.union(&admission.addresses),
            }
        }
        let width = |range: &Range<MacAddr>| range.last().bits() - range.first().bits() + 1;
        if addresses.is_all() || macs.ranges().iter().map(width).sum::<u64>() > MOST_MACS {
            return Self::Everyone;
        }
        let each = |range: &Range<MacAddr>| {
            let (first, last) = (range.first(), range.last());
            std::iter::successors(Some(first), |mac| mac.next()).take_while(move |mac| *mac <= last)
        };
        let macs = macs.ranges().iter().flat_map(each).collect();
        Self::Listed { prefixes: prefixes(&addresses), macs }
    }

    /// One address, and what is beside it in the range that the policy admits.
    pub fn around(policy: &Policy, source: IpAddr) -> Self {
        let within = |addresses: &AddressSet| {
            let mut found = AddressSet::default();
            match source {
                IpAddr::V4(source) => found.v4 = range_with(&addresses.v4, source),
                IpAddr::V6(source) => found.v6 = range_with(&addresses.v6, source),
            }
            (!found.is_empty()).then_some(found)
        };
        let found = policy.admissions().iter().find_map(|admission| within(&admission.addresses));
        let prefixes = found.map_or_else(|| vec![source.into()], |found| prefixes(&found));
        Self::Listed { prefixes, macs: Vec::new() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Everyone => 1,
            Self::Listed { prefixes, macs } => prefixes.len() + macs.len(),
        }
    }

    /// The prefixes of one version of IP, as firewalls write them.
    pub(super) fn addresses(&self, is_v4: bool) -> Vec<String> {
        let Self::Listed { prefixes, .. } = self else { return Vec::new() };
        let of_version = prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == is_v4);
        of_version.map(text).collect()
    }

    /// The MAC addresses.
    pub(super) fn macs(&self) -> &[MacAddr] {
        match self {
            Self::Everyone => &[],
            Self::Listed { macs, .. } => macs,
        }
    }
}

/// A prefix; one that is a single address without its length.
fn text(prefix: &IpNet) -> String {
    let is_host = prefix.prefix_len() == prefix.max_prefix_len();
    if is_host { prefix.addr().to_string() } else { prefix.to_string() }
}

fn range_with<T: crate::model::Ordinal>(set: &RangeSet<T>, value: T) -> RangeSet<T> {
    set.ranges().iter().filter(|range| range.contains(value)).copied().collect()
}

fn prefixes(addresses: &AddressSet) -> Vec<IpNet> {
    let v4 = addresses.v4.ranges().iter().flat_map(|range: &Range<Ipv4Addr>| {
        Ipv4Subnets::new(range.first(), range.last(), 0).map(IpNet::V4)
    });
    let v6 = addresses.v6.ranges().iter().flat_map(|range: &Range<Ipv6Addr>| {
        Ipv6Subnets::new(range.first(), range.last(), 0).map(IpNet::V6)
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressRange, Admission, DefaultAction, Port};

    fn policy(admissions: Vec<Admission>) -> Policy {
        Policy::new(
            [Range::single(Port(4118))].into_iter().collect(),
            DefaultAction::Drop,
            admissions,
        )
    }

    fn addresses(texts: &[&str]) -> AddressSet {
        let range = |text: &&str| match text.parse().expect("a prefix") {
            IpNet::V4(prefix) => AddressRange::from(prefix),
            IpNet::V6(prefix) => AddressRange::from(prefix),
        };
        texts.iter().map(range).collect()
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn ranges_become_prefixes_and_single_addresses() {
        let addresses = addresses(&["192.0.2.1/32", "192.0.2.2/31", "2001:db8::/32"]);
        let sources = Sources::of(&policy(vec![Admission { macs: MacMatch::Any, addresses }]));
        assert_eq!(sources.addresses(true), ["192.0.2.1", "192.0.2.2/31"]);
        assert_eq!(sources.addresses(false), ["2001:db8::/32"]);
        assert_eq!(sources.count(), 3);
    }

    #[test]
    fn mac_addresses_stand_alone_only_where_any_address_is_admitted() {
        let few = Range::new(mac(1), mac(2)).expect("a range");
        let only = MacMatch::Only([few].into_iter().collect());
        let admission = Admission { macs: only.clone(), addresses: AddressSet::all() };
        assert_eq!(Sources::of(&policy(vec![admission])).macs(), [mac(1), mac(2)]);
        let both = Admission { macs: only, addresses: addresses(&["192.0.2.0/24"]) };
        let sources = Sources::of(&policy(vec![both]));
        assert_eq!((sources.addresses(true).len(), sources.macs().len()), (1, 0));
        let all_but_one = Range::new(mac(2), MacAddr([0xff; 6])).expect("a range");
        let macs = MacMatch::Only([all_but_one].into_iter().collect());
        let most = Admission { macs, addresses: AddressSet::all() };
        assert_eq!(Sources::of(&policy(vec![most])), Sources::Everyone);
    }

    #[test]
    fn around_an_address_is_the_range_that_admits_it() {
        let addresses = addresses(&["192.0.2.0/24", "198.51.100.0/24"]);
        let policy = policy(vec![Admission { macs: MacMatch::Any, addresses }]);
        let source = "198.51.100.9".parse().expect("an address");
        assert_eq!(Sources::around(&policy, source).addresses(true), ["198.51.100.0/24"]);
    }
}
