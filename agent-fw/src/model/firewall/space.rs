//! The packets that rules mean, as blocks: products of what each field may be. What some rules leave
//! over of another's packets is found by cutting blocks out of blocks.

use super::criteria::{Criteria, Place, Protocols, match_flags};
use super::packet::ICMPV6;
use crate::model::Family;
use crate::model::rule::Icmp;
use crate::model::{AddressRange, AddressSet, MacMatch, Ordinal, Port, Range, RangeSet};
use std::collections::BTreeSet;

/// Of a set of what is in a field, the numbers.
fn numbers<T: Ordinal<Bits: Into<u128>>>(set: &RangeSet<T>) -> RangeSet<u128> {
    let number = |value: T| value.bits().into();
    let ranges = set.ranges().iter();
    ranges.filter_map(|range| Range::new(number(range.first()), number(range.last()))).collect()
}

/// The bytes for which this holds.
fn bytes(holds: impl Fn(u8) -> bool) -> RangeSet<u128> {
    let bytes = (0..=u8::MAX).filter(|byte| holds(*byte));
    bytes.map(|byte| Range::single(byte.into())).collect()
}

/// All numbers up to this one.
fn up_to(last: u16) -> RangeSet<u128> {
    Range::new(0, last.into()).into_iter().collect()
}

/// The ICMP messages that are meant: type and code in one number.
fn messages(icmp: Icmp) -> RangeSet<u128> {
    let first = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(0)]);
    let last = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(u8::MAX)]);
    let named = Range::new(first.into(), last.into()).into_iter().collect();
    if icmp.not { up_to(u16::MAX).difference(&named) } else { named }
}

/// Packets that differ in more than in what their fields have: by the version of IP (`None` is
/// ARP), and whether they came in an Ethernet frame.
pub(super) type Kind = (Option<Family>, bool);

const KINDS: [Kind; 5] = [
    (Some(Family::V4), true),
    (Some(Family::V4), false),
    (Some(Family::V6), true),
    (Some(Family::V6), false),
    (None, true),
];

/// Protocol, flags, ICMP message, and of source and destination: address, port, MAC address.
const FIELDS: usize = 9;
/// The places of some of them.
const FROM: usize = 3;
const TO: usize = 4;
const TO_PORT: usize = 6;

/// Packets of a kind, by what each field may have. What a packet has no field for may be anything.
#[derive(Clone)]
pub(super) struct Block([RangeSet<u128>; FIELDS]);

impl Block {
    /// The packets from some addresses to a port of others, with these TCP flags.
    pub(super) fn to_service(
        protocol: u8,
        flags: u8,
        from: &AddressSet,
        (at, port): (&AddressSet, Port),
        family: Family,
    ) -> Self {
        let addresses = |of: &AddressSet| match family {
            Family::V4 => numbers(&of.v4),
            Family::V6 => numbers(&of.v6),
        };
        let only = |number: u128| RangeSet::from(Range::single(number));
        Self([
            only(protocol.into()),
            only(flags.into()),
            up_to(u16::MAX),
            addresses(from),
            addresses(at),
            up_to(u16::MAX),
            only(port.0.into()),
            RangeSet::all(),
            RangeSet::all(),
        ])
    }

    /// The packets of a protocol from anywhere to anywhere, with these TCP flags.
    pub(super) fn of_protocol(protocol: u8, flags: u8, family: Family) -> Self {
        let all = AddressSet::all();
        let mut block = Self::to_service(protocol, flags, &all, (&all, Port(0)), family);
        block.0[TO_PORT] = up_to(u16::MAX);
        block
    }

    /// The addresses that these packets come from.
    pub(super) fn sources(&self, family: Family) -> AddressSet {
        addresses(&self.0[FROM], family)
    }

    /// The addresses that these packets go to.
    pub(super) fn destinations(&self, family: Family) -> AddressSet {
        addresses(&self.0[TO], family)
    }

    /// The ports that these packets go to.
    pub(super) fn ports(&self) -> &RangeSet<u128> {
        &self.0[TO_PORT]
    }

    /// The answers to these packets, with these TCP flags. They have no MAC addresses yet.
    pub(super) fn into_answer(self, flags: u8) -> Self {
        let Self([protocol, _, icmp, from, to, from_port, to_port, ..]) = self;
        let flags = RangeSet::from(Range::single(flags.into()));
        let macs = RangeSet::all;
        Self([protocol, flags, icmp, to, from, to_port, from_port, macs(), macs()])
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|field| self.0[field].intersection(&other.0[field])))
    }

    /// The packets of a kind that are meant.
    pub(super) fn of(criteria: &Criteria, (family, is_framed): Kind) -> Self {
        let macs = |place: &Place| match &place.macs {
            MacMatch::Any => RangeSet::all(),
            MacMatch::Only(macs) if is_framed => numbers(macs),
            MacMatch::Only(_) => RangeSet::default(),
        };
        let ports = |place: &Place| place.ports.as_ref().map_or_else(|| up_to(u16::MAX), numbers);
        let addresses = |place: &Place| match family {
            Some(Family::V4) => numbers(&place.addresses.v4),
            Some(Family::V6) => numbers(&place.addresses.v6),
            None if criteria.arp => RangeSet::all(),
            None => RangeSet::default(),
        };
        let is_spared = |number| criteria.spares_icmpv6 && is_icmpv6(family, number);
        let Criteria { protocols, source, destination, tcp_flags, icmp, .. } = criteria;
        Self([
            bytes(|number| protocols.contains(number) && !is_spared(number)),
            bytes(|flags| tcp_flags.is_none_or(|wanted| match_flags(wanted, flags))),
            icmp.map_or_else(|| up_to(u16::MAX), messages),
            addresses(source),
            addresses(destination),
            ports(source),
            ports(destination),
            macs(source),
            macs(destination),
        ])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().any(RangeSet::is_empty)
    }

    /// What is in this block and not in the other, in blocks.
    pub(super) fn minus(self, other: &Self) -> Vec<Self> {
        let common = self.intersection(other);
        if common.is_empty() {
            return vec![self];
        }
        let mut parts = Vec::new();
        let mut rest = self;
        for (field, common) in common.0.into_iter().enumerate() {
            let outside = rest.0[field].difference(&common);
            if !outside.is_empty() {
                let mut part = rest.clone();
                part.0[field] = outside;
                parts.push(part);
            }
            rest.0[field] = common;
        }
        parts
    }
}

/// The addresses of a version of IP that have these numbers.
fn addresses(numbers: &RangeSet<u128>, family: Family) -> AddressSet {
    let ranges = numbers.ranges().iter();
    let number_v4 = |number: u128| u32::try_from(number).unwrap_or(u32::MAX).into();
    let v4 = |range: &Range<u128>| Range::new(number_v4(range.first()), number_v4(range.last()));
    let v6 = |range: &Range<u128>| Range::new(range.first().into(), range.last().into());
    match family {
        Family::V4 => ranges.filter_map(v4).map(AddressRange::V4).collect(),
        Family::V6 => ranges.filter_map(v6).map(AddressRange::V6).collect(),
    }
}

fn is_icmpv6(family: Option<Family>, number: u8) -> bool {
    family == Some(Family::V6) && number == ICMPV6
}

/// More blocks than these are not cut up further: it could take for ever.
const MOST: usize = 64;

/// All packets that a rule means.
pub(super) struct Space([Block; KINDS.len()]);

impl Space {
    pub(super) fn of(criteria: &Criteria) -> Self {
        Self(KINDS.map(|kind| Block::of(criteria, kind)))
    }

    /// The packets about which a rule is asked. What becomes of `ICMPv6` is only a question where
    /// the rule names it, or keeps it from a Deny that does.
    pub(super) fn in_question(criteria: &Criteria, is_icmpv6_denied: bool) -> Self {
        let names_icmpv6 = criteria.protocols == Protocols::Only(BTreeSet::from([ICMPV6]));
        let spares_icmpv6 = criteria.spares_icmpv6 || !(names_icmpv6 || is_icmpv6_denied);
        Self::of(&Criteria { spares_icmpv6, ..criteria.clone() })
    }

    /// Whether these, together, leave nothing of it over. `false` also where that would take too
    /// long to find out.
    pub(super) fn is_covered(&self, others: &[&Self]) -> bool {
        self.0.iter().enumerate().all(|(kind, block)| {
            let mut rest = if block.is_empty() { vec![] } else { vec![block.clone()] };
            for other in others {
                rest = rest.into_iter().flat_map(|block| block.minus(&other.0[kind])).collect();
                if rest.len() > MOST {
                    return false;
                }
            }
            rest.is_empty()
        })
    }
}
