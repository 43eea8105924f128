//! Sources of a policy to try: one of each admitted prefix, and some that are not admitted.

use crate::input::Catalogue;
use crate::model::{
    Admission, MacAddr, MacMatch, Ordinal, Origin, OriginMap, Packet, Policy, Port, Range,
    RangeSet, Transport, Verdict,
};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A source to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sample {
    pub(super) source: IpAddr,
    /// The MAC address that the policy asks for.
    pub(super) mac: Option<MacAddr>,
}

/// One source of each prefix that is admitted. Ranges are taken apart into prefixes; subnets that
/// a region publishes are tried one by one, also where they touch.
pub(super) fn admitted<'a>(
    policy: &'a Policy,
    ledger: &OriginMap,
    catalogue: &Catalogue,
) -> impl Iterator<Item = Sample> + 'a {
    let regions = ledger.labels().iter().filter_map(|label| match label {
        Origin::Region(name) => catalogue.get(name).ok(),
        _ => None,
    });
    let subnets: Vec<IpNet> = regions.flat_map(|region| region.subnets.clone()).collect();
    let (own, mut seen) = (own_addresses(), BTreeSet::new());
    let all = policy.admissions().iter().flat_map(move |admission| {
        let is_here = |subnet: &&IpNet| admission.addresses.contains(subnet.network());
        let published: Vec<IpNet> = subnets.iter().filter(is_here).copied().collect();
        let mac = mac_of(admission);
        let prefixes = published.into_iter().chain(prefixes(admission));
        prefixes.map(move |prefix| (prefix, mac))
    });
    all.filter_map(move |(prefix, mac)| {
        let source = source_in(prefix, &own)?;
        seen.insert((source, mac)).then_some(Sample { source, mac })
    })
}

/// One source of each admitted range, of at most so many of each family.
pub(super) fn few(policy: &Policy, most: usize) -> Vec<Sample> {
    let own = own_addresses();
    let of = |admission: &Admission| {
        let first = |prefixes: Option<IpNet>| prefixes.and_then(|prefix| source_in(prefix, &own));
        let (v4, v6) = (&admission.addresses.v4, &admission.addresses.v6);
        let v4 = v4.ranges().iter().take(most).map(|range| in_v4(*range).next());
        let v6 = v6.ranges().iter().take(most).map(|range| in_v6(*range).next());
        let mac = mac_of(admission);
        let sources: Vec<IpAddr> = v4.chain(v6).filter_map(first).collect();
        sources.into_iter().map(move |source| Sample { source, mac })
    };
    policy.admissions().iter().flat_map(of).collect()
}

/// A source that is not admitted; `None` where there is none.
pub(super) fn stranger(policy: &Policy) -> Option<Sample> {
    // For documentation (RFC 5737): nobody's. Another where that one is admitted.
    let strangers = ["198.51.100.7", "203.0.113.7", "192.0.2.7", "9.9.9.9"];
    let all = strangers.iter().filter_map(|text| text.parse().ok());
    all.map(|source| Sample { source, mac: None }).find(|sample| is_refused(policy, sample))
}

/// The addresses right before and behind each admitted range that are not admitted.
pub(super) fn neighbours(policy: &Policy) -> impl Iterator<Item = Sample> + '_ {
    let all = policy.admissions().iter().flat_map(|admission| {
        let v4 = around(&admission.addresses.v4).map(IpAddr::V4);
        let v6 = around(&admission.addresses.v6).map(IpAddr::V6);
        v4.chain(v6)
    });
    let (own, mut seen) = (own_addresses(), BTreeSet::new());
    let new = all.filter(move |source| is_usual(*source, &own) && seen.insert(*source));
    let samples = new.map(|source| Sample { source, mac: None });
    samples.filter(|sample| is_refused(policy, sample))
}

/// What the policy says of a packet to its port.
pub(super) fn decide(policy: &Policy, source: IpAddr, mac: Option<MacAddr>) -> Verdict {
    let port = policy.ports().ranges().first().map_or(Port::AGENT, Range::first);
    policy.decide(&Packet { loopback: false, source, mac, transport: Transport::Tcp(port) })
}

fn is_refused(policy: &Policy, sample: &Sample) -> bool {
    decide(policy, sample.source, sample.mac) == Verdict::Drop
}

fn mac_of(admission: &Admission) -> Option<MacAddr> {
    match &admission.macs {
        MacMatch::Any => None,
        MacMatch::Only(macs) => macs.ranges().first().map(Range::first),
    }
}

fn around<T: Ordinal>(set: &RangeSet<T>) -> impl Iterator<Item = T> + '_ {
    set.ranges().iter().flat_map(|range| [range.first().previous(), range.last().next()]).flatten()
}

fn prefixes(admission: &Admission) -> impl Iterator<Item = IpNet> + '_ {
    let v4 = admission.addresses.v4.ranges().iter().copied().flat_map(in_v4);
    v4.chain(admission.addresses.v6.ranges().iter().copied().flat_map(in_v6))
}

fn in_v4(range: Range<Ipv4Addr>) -> impl Iterator<Item = IpNet> {
    Ipv4Subnets::new(range.first(), range.last(), 0).map(IpNet::V4)
}

fn in_v6(range: Range<Ipv6Addr>) -> impl Iterator<Item = IpNet> {
    Ipv6Subnets::new(range.first(), range.last(), 0).map(IpNet::V6)
}

/// An address that can come in from outside: in a prefix as large as all addresses, one for
/// documentation; neither a network's own address nor its last one, where there are others.
fn source_in(prefix: IpNet, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let nobodys: [IpAddr; 2] = [
        Ipv4Addr::new(198, 51, 100, 7).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
    ];
    let candidates = nobodys.into_iter().filter(|address| prefix.contains(address));
    // In IPv6, too, a network's own address is a router's (RFC 4291, section 2.6.1).
    let is_large = prefix.max_prefix_len() - prefix.prefix_len() > 1;
    let hosts = || prefix.hosts().skip(usize::from(is_large && prefix.network().is_ipv6()));
    // Behind this host's own ones, and behind 0.0.0.0/8.
    let first = hosts().take(16).chain(hosts().nth(1 << 24));
    candidates.chain(first).find(|address| is_usual(*address, own))
}

/// Whether an address can be another host's, to which this one has a way.
fn is_usual(address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    let is_of_hosts = match address {
        // RFC 1122, section 3.2.1.3; RFC 1112, section 4.
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_unicast_link_local(),
    };
    is_of_hosts && !address.is_loopback() && !address.is_multicast() && !own.contains(&address)
}

fn own_addresses() -> BTreeSet<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return BTreeSet::new() };
    let addresses = all.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressRange, AddressSet, DefaultAction};

    fn policy(prefixes: &[&str]) -> Policy {
        let range = |text: &&str| match text.parse().expect("a prefix") {
            IpNet::V4(prefix) => AddressRange::from(prefix),
            IpNet::V6(prefix) => AddressRange::from(prefix),
        };
        let addresses: AddressSet = prefixes.iter().map(range).collect();
        let admission = Admission { macs: MacMatch::Any, addresses };
        Policy::new(Range::single(Port::AGENT).into(), DefaultAction::Drop, [admission])
    }

    fn tried(policy: &Policy, ledger: &OriginMap) -> Vec<String> {
        let catalogue = Catalogue::published().expect("the catalogue is good");
        admitted(policy, ledger, &catalogue).map(|sample| sample.source.to_string()).collect()
    }

    #[test]
    fn each_prefix_of_a_range_is_tried_and_no_address_that_nobody_can_have() {
        let of = |prefixes: &[&str]| tried(&policy(prefixes), &OriginMap::default());
        assert_eq!(of(&["192.0.2.0/24", "9.9.9.9/32"]), ["9.9.9.9", "192.0.2.1"]);
        // 10.0.0.0-10.0.2.255 is two prefixes.
        assert_eq!(of(&["10.0.0.0/23", "10.0.2.0/24"]), ["10.0.0.1", "10.0.2.1"]);
        assert_eq!(of(&["0.0.0.0/0"]), ["198.51.100.7"]);
        assert_eq!(of(&["0.0.0.0/2"]), ["1.0.0.1"]);
        assert_eq!(of(&["127.0.0.0/8", "224.0.0.0/4"]), [""; 0]);
        assert_eq!(of(&["2001:db8:1::/64"]), ["2001:db8:1::1"]);
    }

    #[test]
    fn subnets_that_touch_are_tried_one_by_one_where_a_region_publishes_them() {
        let mut catalogue = Catalogue::published().expect("the catalogue is good");
        let text = "[test-1]\nplace = \"x\"\nsubnets = [\"10.0.0.0/25\", \"10.0.0.128/25\"]\n\
                    domain = \"x\"\nas_of = \"2026-01-01\"\nsource = \"x\"\n";
        catalogue.override_with("a file", text).expect("a region");
        let region = catalogue.get("test-1").expect("there").addresses();
        let ledger = OriginMap::new([(Origin::Region("test-1".to_owned()), region)]);
        let policy = policy(&["10.0.0.0/24"]);
        let all: Vec<_> = admitted(&policy, &ledger, &catalogue).map(|s| s.source).collect();
        assert_eq!(
            all,
            ["10.0.0.1", "10.0.0.129"].map(|text| text.parse::<IpAddr>().expect("one"))
        );
    }

    #[test]
    fn neighbours_are_those_that_are_refused() {
        let policy = policy(&["10.0.0.0/24", "10.0.2.0/24", "10.0.1.0/32", "2001:db8::/64"]);
        let all: Vec<String> = neighbours(&policy).map(|s| s.source.to_string()).collect();
        let v6 = ["2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:0:1::"];
        assert_eq!(all[..4], ["9.255.255.255", "10.0.1.1", "10.0.1.255", "10.0.3.0"]);
        assert_eq!(all[4..], v6);
    }
}
