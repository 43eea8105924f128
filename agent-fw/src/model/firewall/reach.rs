//! Whether anybody at all reaches a service of this host.

use super::{Firewall, TCP, Verdicts};
use crate::model::packet_set::{
    Connection, Cube, ETHERNET, Field, INCOMING, LOOPBACK, NO, OUTGOING, PacketSet, only,
};
use crate::model::{AddressSet, Port};

/// A port of this host, at some of its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// The number of TCP or UDP.
    pub protocol: u8,
    /// The port.
    pub port: Port,
    /// The addresses.
    pub at: AddressSet,
}

/// TCP's flags of the packet that opens a connection, and of its answer.
pub(super) const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// Where a policy cuts what is asked about into more parts than these, it is not looked into
/// further: it would take for ever.
pub(super) const MOST: usize = 4096;

/// The packets that open a connection to this host or from it: by a protocol, with TCP's flag if it
/// is that one.
pub(super) fn opening(direction: u128, protocol: u8, ends: Cube) -> Option<Cube> {
    let flags = if protocol == TCP { only(SYN.into()) } else { Field::TcpFlags.all() };
    // What goes over loopback is not filtered.
    let there = match direction {
        INCOMING => Field::InputInterface,
        _ => Field::OutputInterface,
    };
    ends.limited(Field::Direction, &only(direction))?
        .limited(there, &there.all_but(LOOPBACK))?
        .limited(Field::Protocol, &only(protocol.into()))?
        .limited(Field::TcpFlags, &flags)?
        .limited(Field::Connection, &Connection::OPENS.number())
}

/// The answer to these packets, which has no MAC addresses yet.
fn answers(asked: Cube, protocol: u8, opened_by_bypass: bool) -> Option<Cube> {
    let flags = if protocol == TCP { only(SYN_ACK.into()) } else { Field::TcpFlags.all() };
    let connection = Connection { is_labelled: opened_by_bypass, ..Connection::REPLY };
    asked
        .keeping(&[Field::Protocol, Field::SourcePort, Field::DestinationPort])
        .reversed()
        .limited(Field::Direction, &only(OUTGOING))?
        .limited(Field::OutputInterface, &Field::OutputInterface.all_but(LOOPBACK))?
        .limited(Field::Hardware, &only(NO))?
        .limited(Field::TcpFlags, &flags)?
        .limited(Field::Connection, &connection.number())
}

impl Firewall {
    /// Whether some source of these, by some port and from some MAC address, opens a connection to
    /// a service, and is answered. That of a neighbour on Ethernet: other packets have no MAC address.
    pub fn serves(&self, service: &Service, from: &AddressSet) -> bool {
        let Service { protocol, port, at } = service;
        let to = Cube::between(from, at);
        let to = to.limited(Field::DestinationPort, &only(port.0.into()));
        let asked = to
            .and_then(|to| to.limited(Field::Hardware, &only(ETHERNET)))
            .and_then(|to| opening(INCOMING, *protocol, to));
        let asked: PacketSet = asked.into_iter().collect();
        let Verdicts { bypass, pass, .. } = self.decide_all(asked, MOST);
        let is_answered = |(opened, by_bypass): (PacketSet, bool)| {
            let answers = opened.into_iter().filter_map(|cube| answers(cube, *protocol, by_bypass));
            let Verdicts { bypass, pass, .. } = self.decide_all(answers.collect(), MOST);
            !bypass.is_empty() || !pass.is_empty()
        };
        [(bypass, true), (pass, false)].into_iter().any(is_answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::firewall::{Datagram, Flow, Packet, Payload, Rule, Transport, UDP, Verdict};
    use crate::model::rule::{Action, Direction, Priority};
    use crate::model::{MacAddr, MacMatch, Range, RangeSet};
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    /// A world of four sources, in which every packet can be tried: rules name four ports and two MAC
    /// addresses, and one more of each stands for all others.
    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }
    const HERE: u8 = 100;
    const MACS: [MacAddr; 3] =
        [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 3])];
    const PORTS: [u16; 5] = [1, 2, 3, 4, 5];
    const SERVED: Port = Port(22);

    fn set<T: crate::model::Ordinal>(values: impl IntoIterator<Item = T>) -> RangeSet<T> {
        values.into_iter().map(Range::single).collect()
    }

    fn subset<T: Copy>(of: &[T], mask: u8) -> Vec<T> {
        let chosen = of.iter().enumerate().filter(|(place, _)| mask & (1 << place) != 0);
        chosen.map(|(_, value)| *value).collect()
    }

    prop_compose! {
        fn any_rule()(
            action in prop::sample::select(vec![
                Action::Bypass, Action::ForceAllow, Action::Deny, Action::Allow, Action::LogOnly,
            ]),
            priority in 0..=4_u8,
            incoming in any::<bool>(),
            (far, far_ports, macs) in (0..16_u8, prop::option::of(0..16_u8), prop::option::of(0..4_u8)),
            protocol in prop::option::of(prop::sample::select(vec![TCP, UDP])),
            flags in prop::option::of(any::<bool>()),
        ) -> Rule {
            use crate::model::firewall::{Criteria, Place, Protocols};
            let v4 = set(subset(&[0, 1, 2, 3].map(address), far));
            let ports = far_ports.map(|mask| set(subset(&PORTS.map(Port), mask)));
            let macs = macs.filter(|_| incoming).map_or(MacMatch::Any, |mask| {
                MacMatch::Only(set(subset(&MACS, mask)))
            });
            let far = Place { addresses: AddressSet { v4, v6: RangeSet::default() }, macs, ports };
            let near =
                Place { addresses: AddressSet::all(), macs: MacMatch::Any, ports: None };
            let (source, destination) = if incoming { (far, near) } else { (near, far) };
            // A rule about flags is about TCP.
            let protocol = if flags.is_some() { Some(TCP) } else { protocol };
            let tcp_flags = flags.map(|not| crate::model::rule::TcpFlags { mask: SYN, value: SYN, not });
            let all = Protocols::AllBut(std::collections::BTreeSet::new());
            let protocols = protocol.map_or(all, |of| Protocols::Only([of].into()));
            let criteria = Criteria {
                arp: false, protocols, spares_icmpv6: false, source, destination, tcp_flags, icmp: None,
            };
            let priority = match action {
                Action::Allow => Priority::new(0),
                Action::LogOnly => Some(Priority::HIGHEST),
                _ => Priority::new(priority),
            };
            Rule {
                name: String::new(),
                action,
                priority: priority.expect("valid"),
                direction: if incoming { Direction::Incoming } else { Direction::Outgoing },
                criteria,
            }
        }
    }

    /// Whether a source reaches the service by the specification, packet by packet.
    fn is_served(firewall: &Firewall, protocol: u8) -> bool {
        let sources = [0, 1, 2, 3].map(address);
        let every = sources.into_iter().flat_map(|source| {
            PORTS.into_iter().flat_map(move |port| MACS.map(move |mac| (source, port, mac)))
        });
        let packet = |direction, from: (IpAddr, Port), to: (IpAddr, Port), flags, macs, flow| {
            let transport = match protocol {
                TCP => Transport::Tcp(from.1, to.1, flags),
                _ => Transport::Udp(from.1, to.1),
            };
            let datagram = Datagram { source: from.0, destination: to.0, transport, flow };
            Packet { direction, loopback: false, macs, payload: Payload::Ip(datagram) }
        };
        every.into_iter().any(|(source, port, mac)| {
            let (there, here) = ((source.into(), Port(port)), (address(HERE).into(), SERVED));
            let macs = Some((mac, MacAddr([2, 0, 0, 0, 0, 9])));
            let question = packet(Direction::Incoming, there, here, SYN, macs, Flow::Forth);
            let opened = firewall.decide(&question);
            let flow = Flow::Back { opened_by_bypass: opened == Verdict::Bypass };
            let answer = packet(Direction::Outgoing, here, there, SYN_ACK, None, flow);
            opened != Verdict::Drop && firewall.decide(&answer) != Verdict::Drop
        })
    }

    proptest! {
        #[test]
        fn a_service_is_reached_where_some_packet_and_its_answer_pass(
            rules in prop::collection::vec(any_rule(), 0..6),
            protocol in prop::sample::select(vec![TCP, UDP]),
        ) {
            let mut rules = rules;
            rules.sort_by_key(Rule::rank);
            let firewall = Firewall { rules, ..Firewall::default() };
            let v4 = set([0, 1, 2, 3].map(address));
            let from = AddressSet { v4, v6: RangeSet::default() };
            let at = AddressSet { v4: set([address(HERE)]), v6: RangeSet::default() };
            let service = Service { protocol, port: SERVED, at };
            prop_assert_eq!(firewall.serves(&service, &from), is_served(&firewall, protocol));
        }
    }
}
