//! What a rule matches, in a form that two rules can be compared by, field by field.

use super::packet::{Datagram, ICMPV6, Packet, Payload, Transport};
use crate::nft::Family;
use crate::policy::{AddressSet, MacMatch, Ordinal, Port, RangeSet};
use crate::rule::{Icmp, TcpFlags};
use std::collections::BTreeSet;

/// What a rule matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Criteria {
    /// Whether it matches ARP: only a rule that names ARP, and nothing else, does.
    pub arp: bool,
    /// The protocols above IP.
    pub protocols: Protocols,
    /// Whether `ICMPv6` is left out: no Deny touches it that does not name it.
    pub spares_icmpv6: bool,
    /// Where the packet comes from.
    pub source: Place,
    /// Where it goes.
    pub destination: Place,
    /// The TCP flags.
    pub tcp_flags: Option<TcpFlags>,
    /// The ICMP message.
    pub icmp: Option<Icmp>,
}

/// One end of a packet's way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The IP addresses; of a version that the rule is not about, none.
    pub addresses: AddressSet,
    /// The MAC addresses.
    pub macs: MacMatch,
    /// The TCP or UDP ports; `None` if it is not about ports.
    pub ports: Option<RangeSet<Port>>,
}

/// Protocols, by their numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Protocols {
    /// These.
    Only(BTreeSet<u8>),
    /// All but these.
    AllBut(BTreeSet<u8>),
}

impl Protocols {
    /// Whether this one is among them.
    pub fn contains(&self, number: u8) -> bool {
        match self {
            Self::Only(numbers) => numbers.contains(&number),
            Self::AllBut(numbers) => !numbers.contains(&number),
        }
    }
}

impl Criteria {
    /// Whether the packet is meant.
    pub fn match_packet(&self, packet: &Packet) -> bool {
        self.source.macs.matches(packet.macs.map(|(source, _)| source))
            && self.destination.macs.matches(packet.macs.map(|(_, destination)| destination))
            && match &packet.payload {
                Payload::Arp => self.arp,
                Payload::Ip(datagram) => self.match_datagram(datagram),
            }
    }

    fn match_datagram(&self, datagram: &Datagram) -> bool {
        let Datagram { source, destination, transport, .. } = datagram;
        let is_spared = self.spares_icmpv6 && datagram.is_icmpv6();
        !is_spared
            && self.source.addresses.contains(*source)
            && self.destination.addresses.contains(*destination)
            && self.protocols.contains(transport.protocol())
            && self.match_transport(*transport)
    }

    fn match_transport(&self, transport: Transport) -> bool {
        let is_at = |place: &Place, port| place.ports.as_ref().is_none_or(|p| p.contains(port));
        match transport {
            Transport::Tcp(from, to, flags) => {
                is_at(&self.source, from)
                    && is_at(&self.destination, to)
                    && self.tcp_flags.is_none_or(|wanted| match_flags(wanted, flags))
            }
            Transport::Udp(from, to) => is_at(&self.source, from) && is_at(&self.destination, to),
            Transport::Icmp(_, kind, code) => {
                self.icmp.is_none_or(|wanted| match_icmp(wanted, kind, code))
            }
            // The fields of other protocols' headers are none of a rule's that names such a
            // protocol.
            Transport::Other(_) => true,
        }
    }

    /// Whether packets of this version of IP are meant.
    pub fn is_about(&self, family: Family) -> bool {
        let has = |place: &Place| match family {
            Family::V4 => !place.addresses.v4.is_empty(),
            Family::V6 => !place.addresses.v6.is_empty(),
        };
        has(&self.source) && has(&self.destination)
    }

    /// Whether no packet is meant.
    pub fn is_empty(&self) -> bool {
        let none = |place: &Place| {
            place.macs.is_empty() || place.ports.as_ref().is_some_and(RangeSet::is_empty)
        };
        none(&self.source)
            || none(&self.destination)
            || !(self.arp || self.is_about(Family::V4) || self.is_about(Family::V6))
    }

    /// Whether every packet is meant that `other` means, as far as each field tells by itself.
    pub fn cover(&self, other: &Self) -> bool {
        let family = |family| !other.is_about(family) || self.cover_of_family(other, family);
        (self.arp || !other.arp)
            && family(Family::V4)
            && family(Family::V6)
            && [(&self.source, &other.source), (&self.destination, &other.destination)]
                .into_iter()
                .all(|(place, other)| place.cover(other))
            && self.cover_flags(other)
            && self.cover_icmp(other)
    }

    fn cover_of_family(&self, other: &Self, family: Family) -> bool {
        let is_within = |place: &Place, other: &Place| match family {
            Family::V4 => is_subset(&other.addresses.v4, &place.addresses.v4),
            Family::V6 => is_subset(&other.addresses.v6, &place.addresses.v6),
        };
        let has = |criteria: &Self, number| {
            let spared = criteria.spares_icmpv6 && family == Family::V6 && number == ICMPV6;
            !spared && criteria.protocols.contains(number)
        };
        // What becomes of ICMPv6 is only a question where a rule names it.
        let names_icmpv6 = other.protocols == Protocols::Only(BTreeSet::from([ICMPV6]));
        let matters = |number| names_icmpv6 || family != Family::V6 || number != ICMPV6;
        is_within(&self.source, &other.source)
            && is_within(&self.destination, &other.destination)
            && (0..=u8::MAX).all(|n| has(self, n) || !has(other, n) || !matters(n))
    }

    fn cover_flags(&self, other: &Self) -> bool {
        let means = |criteria: &Self, flags| {
            criteria.tcp_flags.is_none_or(|wanted| match_flags(wanted, flags))
        };
        (0..=u8::MAX).all(|flags| means(self, flags) || !means(other, flags))
    }

    fn cover_icmp(&self, other: &Self) -> bool {
        let means = |criteria: &Self, kind, code| {
            criteria.icmp.is_none_or(|wanted| match_icmp(wanted, kind, code))
        };
        self.icmp.is_none()
            || (0..=u8::MAX).all(|kind| {
                (0..=u8::MAX).all(|code| means(self, kind, code) || !means(other, kind, code))
            })
    }
}

impl Place {
    fn cover(&self, other: &Self) -> bool {
        let macs = match (&self.macs, &other.macs) {
            (MacMatch::Any, _) => true,
            (MacMatch::Only(_), MacMatch::Any) => false,
            (MacMatch::Only(macs), MacMatch::Only(others)) => is_subset(others, macs),
        };
        let ports = match (&self.ports, &other.ports) {
            (None, _) => true,
            (Some(ports), None) => ports.is_all(),
            (Some(ports), Some(others)) => is_subset(others, ports),
        };
        macs && ports
    }
}

fn is_subset<T: Ordinal>(inner: &RangeSet<T>, outer: &RangeSet<T>) -> bool {
    inner.difference(outer).is_empty()
}

fn match_flags(TcpFlags { mask, value, not }: TcpFlags, flags: u8) -> bool {
    (flags & mask == value) != not
}

fn match_icmp(wanted: Icmp, kind: u8, code: u8) -> bool {
    let is_it = wanted.kind == kind && wanted.code.is_none_or(|wanted| wanted == code);
    is_it != wanted.not
}
