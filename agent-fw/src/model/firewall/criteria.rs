//! What a rule matches, field by field.

use super::packet::{Datagram, Packet, Payload, Transport};
use crate::model::Family;
use crate::model::rule::{Icmp, TcpFlags};
use crate::model::{AddressSet, MacMatch, Port, RangeSet};
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
}

pub(super) fn match_flags(TcpFlags { mask, value, not }: TcpFlags, flags: u8) -> bool {
    (flags & mask == value) != not
}

fn match_icmp(wanted: Icmp, kind: u8, code: u8) -> bool {
    let is_it = wanted.kind == kind && wanted.code.is_none_or(|wanted| wanted == code);
    is_it != wanted.not
}
