//! The policy: which sources reach the agent's port, in a form that is equal when it means the same.
//!
//! [`Policy::decide`] is the specification. Every backend is tested against it.

mod address;
mod breadth;
pub mod firewall;
mod origin;
mod packet;
pub mod packet_set;
mod policy_hash;
mod range;
pub mod rule;
mod table_name;

pub use address::{
    Address, AddressRange, AddressSet, Family, MacAddr, MacAddrError, MacMatch, Notation,
};
pub use origin::{LabelIndex, Origin, OriginMap, RangeMap};
pub use packet::{Packet, Port, Transport};
pub use policy_hash::PolicyHash;
pub(crate) use policy_hash::digest;
pub use range::{Ordinal, Range, RangeSet};
pub use table_name::TableName;

use serde::{Deserialize, Serialize};
use std::fmt;

/// What becomes of a packet to the agent's port whose source is not admitted.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAction {
    /// It is dropped: the port is closed to everyone else.
    #[default]
    Drop,
    /// The host's other rules decide.
    Continue,
}

impl fmt::Display for DefaultAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "drop",
            Self::Continue => "continue",
        })
    }
}

/// Sources that are admitted: a packet must match both parts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Admission {
    /// The MAC addresses it may come from.
    pub macs: MacMatch,
    /// The IP addresses it may come from.
    pub addresses: AddressSet,
}

/// What a policy says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Not to the agent's port, or from this host itself: none of our business.
    Untouched,
    /// From an admitted source. This ends our own evaluation; other firewalls still have their say.
    Accept,
    /// From another source: it ends here.
    Drop,
    /// From another source, left to the host's other rules.
    Continue,
}

/// Who may reach the agent's port.
///
/// Canonical: equal policies are equal values. The addresses of different admissions are disjoint,
/// no two admissions have the same MAC addresses, and they are sorted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    ports: RangeSet<Port>,
    others: DefaultAction,
    admissions: Vec<Admission>,
}

impl Policy {
    /// The policy that admits to `ports` what any of `admissions` matches.
    pub fn new(
        ports: RangeSet<Port>,
        others: DefaultAction,
        admissions: impl IntoIterator<Item = Admission>,
    ) -> Self {
        let admissions = merge(admissions.into_iter().fold(Vec::new(), partition));
        let everyone = admissions.iter().any(|a| a.macs == MacMatch::Any && a.addresses.is_all());
        // Where nobody is left over, what would become of the others distinguishes nothing.
        let others = if everyone { DefaultAction::Drop } else { others };
        Self { ports, others, admissions }
    }

    /// The ports that the policy is about.
    pub fn ports(&self) -> &RangeSet<Port> {
        &self.ports
    }

    /// What becomes of packets from other sources.
    pub fn others(&self) -> DefaultAction {
        self.others
    }

    /// The admitted sources.
    pub fn admissions(&self) -> &[Admission] {
        &self.admissions
    }

    /// Whether every source is admitted, so that the policy restricts nothing.
    pub fn admits_everyone(&self) -> bool {
        self.admissions.iter().any(|a| a.macs == MacMatch::Any && a.addresses.is_all())
    }

    /// Whether some source is dropped.
    pub fn drops_others(&self) -> bool {
        self.others == DefaultAction::Drop && !self.admits_everyone()
    }

    /// Whether no other source reaches the port: the promise "closed".
    pub fn closes(&self) -> bool {
        self.others == DefaultAction::Drop && !self.admits_most()
    }

    /// What becomes of `packet`. This is the specification that every backend must meet.
    pub fn decide(&self, packet: &Packet) -> Verdict {
        let Transport::Tcp(port) = packet.transport else { return Verdict::Untouched };
        if packet.loopback || !self.ports.contains(port) {
            return Verdict::Untouched;
        }
        let admitted = |admission: &Admission| {
            admission.macs.matches(packet.mac) && admission.addresses.contains(packet.source)
        };
        match self.others {
            _ if self.admissions.iter().any(admitted) => Verdict::Accept,
            DefaultAction::Drop => Verdict::Drop,
            DefaultAction::Continue => Verdict::Continue,
        }
    }

    /// A digest of the policy: equal for equal policies, on every machine and in every version
    /// that has the same form of hash.
    pub fn hash(&self) -> PolicyHash {
        policy_hash::hash(self)
    }
}

/// Adds an admission to parts whose addresses are disjoint, and keeps them so: an address that is
/// in both gets the MAC addresses of both.
fn partition(parts: Vec<Admission>, added: Admission) -> Vec<Admission> {
    let mut result = Vec::with_capacity(parts.len() + 1);
    let mut rest = added.addresses;
    for part in parts {
        let both = part.addresses.intersection(&rest);
        if both.is_empty() {
            result.push(part);
            continue;
        }
        rest = rest.difference(&both);
        let only = part.addresses.difference(&both);
        result.push(Admission { macs: part.macs.union(&added.macs), addresses: both });
        result.push(Admission { macs: part.macs, addresses: only });
    }
    result.push(Admission { macs: added.macs, addresses: rest });
    result
}

/// Unites parts that have the same MAC addresses, leaves out what matches nothing, and sorts.
fn merge(parts: Vec<Admission>) -> Vec<Admission> {
    let mut merged: Vec<Admission> = Vec::with_capacity(parts.len());
    for part in parts {
        if part.macs.is_empty() || part.addresses.is_empty() {
            continue;
        }
        match merged.iter_mut().find(|other| other.macs == part.macs) {
            Some(other) => other.addresses = other.addresses.union(&part.addresses),
            None => merged.push(part),
        }
    }
    merged.sort_unstable_by(|a, b| a.macs.cmp(&b.macs));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    /// A small world, in which sources overlap often: 16 IPv4 and 16 IPv6 addresses, 4 MAC addresses.
    fn v4(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }
    fn v6(last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())
    }
    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn any_range() -> impl Strategy<Value = AddressRange> {
        (0..16_u8, 0..16_u8, any::<bool>()).prop_map(|(a, b, six)| {
            let (a, b) = (a.min(b), a.max(b));
            if six {
                AddressRange::V6(Range::new(v6(a), v6(b)).expect("ordered"))
            } else {
                AddressRange::V4(Range::new(v4(a), v4(b)).expect("ordered"))
            }
        })
    }

    fn any_macs() -> impl Strategy<Value = MacMatch> {
        prop_oneof![
            Just(MacMatch::Any),
            prop::collection::vec(0..4_u8, 0..3).prop_map(|macs| {
                MacMatch::Only(macs.into_iter().map(|last| Range::single(mac(last))).collect())
            }),
        ]
    }

    fn any_admission() -> impl Strategy<Value = Admission> {
        let addresses = prop_oneof![
            8 => prop::collection::vec(any_range(), 0..4).prop_map(|r| r.into_iter().collect()),
            1 => Just(AddressSet::all()),
        ];
        (any_macs(), addresses).prop_map(|(macs, addresses)| Admission { macs, addresses })
    }

    fn any_packet() -> impl Strategy<Value = Packet> {
        (any::<bool>(), 0..16_u8, any::<bool>(), prop::option::of(0..4_u8), 4116..4120_u16)
            .prop_map(|(loopback, last, six, mac_last, port)| Packet {
                loopback,
                source: if six { IpAddr::V6(v6(last)) } else { IpAddr::V4(v4(last)) },
                mac: mac_last.map(mac),
                transport: if port == 4116 { Transport::Other } else { Transport::Tcp(Port(port)) },
            })
    }

    fn any_others() -> impl Strategy<Value = DefaultAction> {
        prop_oneof![Just(DefaultAction::Drop), Just(DefaultAction::Continue)]
    }

    fn policy(others: DefaultAction, admissions: &[Admission]) -> Policy {
        Policy::new(Range::single(Port::AGENT).into(), others, admissions.iter().cloned())
    }

    proptest! {
        #[test]
        fn a_packet_is_admitted_when_any_admission_as_written_matches_it(
            others in any_others(),
            admissions in prop::collection::vec(any_admission(), 0..4),
            packet in any_packet(),
        ) {
            let matched = admissions.iter().any(|admission| {
                admission.addresses.contains(packet.source) && admission.macs.matches(packet.mac)
            });
            let expected = match (packet.transport, others) {
                _ if packet.loopback => Verdict::Untouched,
                (Transport::Tcp(Port::AGENT), _) if matched => Verdict::Accept,
                (Transport::Tcp(Port::AGENT), DefaultAction::Drop) => Verdict::Drop,
                (Transport::Tcp(Port::AGENT), DefaultAction::Continue) => Verdict::Continue,
                _ => Verdict::Untouched,
            };
            prop_assert_eq!(policy(others, &admissions).decide(&packet), expected);
        }

        #[test]
        fn the_order_and_repetition_of_admissions_do_not_change_the_value(
            others in any_others(),
            admissions in prop::collection::vec(any_admission(), 0..4),
        ) {
            let forward = policy(others, &admissions);
            let mut again: Vec<_> = admissions.clone();
            again.reverse();
            again.extend(admissions);
            let backward = policy(others, &again);
            prop_assert_eq!(forward.hash(), backward.hash());
            prop_assert_eq!(forward, backward);
        }

        #[test]
        fn a_policy_rebuilt_from_its_own_parts_is_the_same(
            others in any_others(),
            admissions in prop::collection::vec(any_admission(), 0..4),
        ) {
            let first = policy(others, &admissions);
            prop_assert_eq!(policy(first.others(), first.admissions()), first);
        }

        #[test]
        fn policies_with_equal_hashes_are_equal(
            a in prop::collection::vec(any_admission(), 0..3),
            b in prop::collection::vec(any_admission(), 0..3),
        ) {
            let (a, b) = (policy(DefaultAction::Drop, &a), policy(DefaultAction::Drop, &b));
            prop_assert_eq!(a.hash() == b.hash(), a == b);
        }
    }
}
