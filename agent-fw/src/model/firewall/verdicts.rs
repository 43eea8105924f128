//! What becomes of many packets at once: [`Firewall::decide`] for sets of packets.

use super::meant::icmpv6;
use super::{Firewall, Flow, Rule};
use crate::model::packet_set::{
    Condition, Connection, Cube, Field, INCOMING, LOCAL, LOOPBACK, OUTGOING, PacketSet, State, only,
};
use crate::model::rule::{Action, Direction};
use crate::model::{AddressSet, Range, RangeSet};
use std::net::Ipv6Addr;

/// What becomes of packets.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    /// Those that Bypass lets pass.
    pub bypass: PacketSet,
    /// Those that pass otherwise.
    pub pass: PacketSet,
    /// Those that are dropped.
    pub drop: PacketSet,
    /// Those of which it would take too long to tell.
    pub undecided: PacketSet,
}

impl Connection {
    /// What a firewall policy looks at of it.
    pub const fn flow(&self) -> Flow {
        match self.state {
            State::Invalid => Flow::Invalid,
            _ if self.is_reply => Flow::Back { opened_by_bypass: self.is_labelled },
            _ => Flow::Forth,
        }
    }
}

impl Direction {
    /// As a field of packets.
    pub const fn number(self) -> u128 {
        match self {
            Self::Incoming => INCOMING,
            Self::Outgoing => OUTGOING,
        }
    }
}

impl Firewall {
    /// What becomes of these packets. What would take more cubes than `most` to tell is left
    /// undecided.
    pub fn decide_all(&self, packets: PacketSet, most: usize) -> Verdicts {
        let [own, mut rest] = packets.divide(&loopback());
        let mut pass: Vec<Cube> = own.into_iter().collect();
        let (mut bypass, mut drop) = (Vec::new(), Vec::new());
        let mut bound = 0;
        for rule in self.rules().iter().filter(|rule| rule.action != Action::LogOnly) {
            let [meant, others] = rest.divide(&self.decided_by(rule));
            match rule.action {
                Action::Bypass => bypass.extend(meant),
                Action::ForceAllow | Action::Allow => pass.extend(meant),
                Action::Deny | Action::LogOnly => drop.extend(meant),
            }
            rest = others.compacted(&mut bound);
            if rest.cubes().len() > most {
                break;
            }
        }
        let is_decided = rest.cubes().len() <= most;
        let (undecided, rest) =
            if is_decided { (PacketSet::default(), rest) } else { (rest, PacketSet::default()) };
        let [refused, others] = rest.divide(&self.refused_without_rule());
        pass.extend(others);
        drop.extend(refused);
        let [bypass, pass, drop] = [bypass, pass, drop].map(PacketSet::from_iter);
        Verdicts { bypass, pass, drop, undecided }
    }

    /// What is dropped of the packets that no rule is about.
    fn refused_without_rule(&self) -> PacketSet {
        let mut refused = PacketSet::default();
        let passing = Connection::numbers(|connection| is_reply(*connection));
        for direction in [Direction::Incoming, Direction::Outgoing] {
            let way = only(direction.number());
            if self.restricts(direction) {
                let others = Field::Connection.all().difference(&passing);
                let ip = Cube::everything().limited(Field::Direction, &way);
                let ip = ip.and_then(|ip| ip.limited(Field::Connection, &others));
                let ip: PacketSet = ip.into_iter().collect();
                refused = refused.union(ip.difference(&icmpv6()));
            }
            if self.restricts_arp(direction) {
                refused = refused
                    .union(Cube::arp().limited(Field::Direction, &way).into_iter().collect());
            }
        }
        refused
    }

    /// The packets that a rule decides about, if they come to it.
    fn decided_by(&self, rule: &Rule) -> PacketSet {
        let meant =
            rule.criteria.packets().limited(Field::Direction, &only(rule.direction.number()));
        if rule.action != Action::Allow {
            return meant;
        }
        let valid = Connection::numbers(|connection| connection.flow() != Flow::Invalid);
        let stateful: RangeSet<u128> =
            self.inspected().of(rule).map(|number| Range::single(number.into())).collect();
        let replies = Connection::numbers(|connection| is_reply(*connection));
        let ip = meant.intersection(&Cube::everything().into());
        let arp = meant.intersection(&Cube::arp().into());
        let others = Field::Protocol.all().difference(&stateful);
        let solicited =
            ip.clone().limited(Field::Protocol, &stateful).limited(Field::Connection, &replies);
        let valid = ip.limited(Field::Protocol, &others).limited(Field::Connection, &valid);
        valid.union(solicited).union(arp)
    }
}

/// Whether it belongs to the answers to what passed with state.
fn is_reply(connection: Connection) -> bool {
    connection.flow() == Flow::Back { opened_by_bypass: false }
}

/// What this host sends to itself: over loopback, from an address of its own. Link-local addresses
/// are not looked up as this host's, and ARP goes no further than a link.
pub(crate) fn loopback() -> PacketSet {
    let by = |cube: Cube, direction: u128, interface| {
        cube.limited(Field::Direction, &only(direction))?.limited(interface, &only(LOOPBACK))
    };
    let out =
        [Cube::everything(), Cube::arp()].map(|cube| by(cube, OUTGOING, Field::OutputInterface));
    let back =
        [Cube::everything(), Cube::arp()].map(|cube| by(cube, INCOMING, Field::InputInterface));
    let [ip, arp] = back;
    let own = ip.clone().and_then(|ip| ip.limited(Field::SourceType, &only(LOCAL)));
    let link_local = ip.and_then(|ip| ip.met(&Condition::Source(link_local())));
    out.into_iter().chain([arp, own, link_local]).flatten().collect()
}

/// fe80::/10.
fn link_local() -> AddressSet {
    let [first, last] = [0xfe80 << 112, (0xfec0 << 112) - 1].map(Ipv6Addr::from_bits);
    AddressSet { v6: Range::new(first, last).into_iter().collect(), v4: RangeSet::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::firewall::{
        Datagram, ICMP, ICMPV6, Packet, Payload, Stateful, Transport, Verdict,
    };
    use crate::model::packet_set::{ETHERNET, NO};
    use crate::model::rule::{
        self, Addresses, Endpoint, FrameType, Icmp, Match, Priority, Protocol, TcpFlags,
    };
    use crate::model::{MacAddr, Origin, Port};
    use proptest::prelude::*;
    use proptest::sample::select;
    use std::net::{IpAddr, Ipv4Addr};

    fn address(last: u8, is_v4: bool) -> IpAddr {
        if is_v4 {
            Ipv4Addr::new(192, 0, 2, last).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
        }
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn turned<T: Clone + std::fmt::Debug>(
        of: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Match<T>> {
        (of, 0..3_u8).prop_map(|(value, way)| match way {
            0 => Match::Any,
            1 => Match::Is(value),
            _ => Match::Not(value),
        })
    }

    fn addresses() -> impl Strategy<Value = Addresses> {
        prop::collection::vec((0..4_u8, any::<bool>()), 0..4).prop_map(|ends| {
            let range = |(last, is_v4)| match address(last, is_v4) {
                IpAddr::V4(one) => crate::model::AddressRange::V4(Range::single(one)),
                IpAddr::V6(one) => crate::model::AddressRange::V6(Range::single(one)),
            };
            Addresses(vec![(Origin::Address, ends.into_iter().map(range).collect())])
        })
    }

    fn ports() -> impl Strategy<Value = RangeSet<Port>> {
        prop::collection::vec(1..4_u16, 0..3)
            .prop_map(|ports| ports.into_iter().map(|port| Range::single(Port(port))).collect())
    }

    prop_compose! {
        fn endpoint(is_incoming: bool, has_ports: bool)(
            addresses in turned(addresses()),
            ports in turned(ports()),
            macs in turned((0..3_u8).prop_map(|last| Range::single(mac(last)).into())),
        ) -> Endpoint {
            Endpoint {
                addresses,
                macs: if is_incoming { macs } else { Match::Any },
                ports: if has_ports { ports } else { Match::Any },
            }
        }
    }

    fn any_rule() -> impl Strategy<Value = rule::Rule> {
        let protocols = vec![
            Match::Any,
            Match::Is(Protocol::Tcp),
            Match::Is(Protocol::Udp),
            Match::Is(Protocol::TcpUdp),
            Match::Is(Protocol::Icmp),
            Match::Is(Protocol::Icmpv6),
            Match::Not(Protocol::Tcp),
            Match::Not(Protocol::Icmpv6),
            Match::Is(Protocol::Other(47)),
        ];
        (any::<bool>(), select(protocols)).prop_flat_map(|(is_incoming, protocol)| {
            use Protocol::{Icmp as Icmp4, Icmpv6, Tcp, TcpUdp, Udp};
            let has_ports = matches!(protocol, Match::Is(Tcp | Udp | TcpUdp));
            let ends = (endpoint(is_incoming, has_ports), endpoint(is_incoming, has_ports));
            let actions = vec![
                Action::Bypass,
                Action::ForceAllow,
                Action::Deny,
                Action::Allow,
                Action::LogOnly,
            ];
            let flags = (select(vec![0x3f, 0x12]), select(vec![2_u8, 0x12]), any::<bool>());
            let icmp = (select(vec![3_u8, 8]), prop::option::of(0..2_u8), any::<bool>());
            let frames = vec![
                Match::Any,
                Match::Is(FrameType::Ip),
                Match::Is(FrameType::Ipv4),
                Match::Is(FrameType::Arp),
                Match::Not(FrameType::Ip),
            ];
            (
                select(actions),
                0..=4_u8,
                select(frames),
                ends,
                prop::option::of(flags),
                prop::option::of(icmp),
            )
                .prop_map(move |(action, priority, frame_type, ends, flags, icmp)| {
                    let flags = flags.filter(|_| matches!(protocol, Match::Is(Tcp | TcpUdp)));
                    let icmp = icmp.filter(|_| matches!(protocol, Match::Is(Icmp4 | Icmpv6)));
                    rule::Rule {
                        name: String::new(),
                        action,
                        priority: Priority::new(match action {
                            Action::Allow => 0,
                            Action::LogOnly => 4,
                            _ => priority,
                        })
                        .expect("at most 4"),
                        direction: if is_incoming {
                            Direction::Incoming
                        } else {
                            Direction::Outgoing
                        },
                        frame_type,
                        protocol: protocol.clone(),
                        source: ends.0,
                        destination: ends.1,
                        tcp_flags: flags.map(|(mask, value, not)| TcpFlags { mask, value, not }),
                        icmp: icmp.map(|(kind, code, not)| Icmp { kind, code, not }),
                        schedule: None,
                        context: None,
                    }
                })
        })
    }

    prop_compose! {
        fn any_transport()(
            which in 0..5_u8, a in 1..4_u16, b in 1..4_u16,
            flags in select(vec![2_u8, 0x12, 0x10]), kind in select(vec![3_u8, 8]), code in 0..3_u8,
        ) -> Transport {
            match which {
                0 => Transport::Tcp(Port(a), Port(b), flags),
                1 => Transport::Udp(Port(a), Port(b)),
                2 => Transport::Icmp(ICMP, kind, code),
                3 => Transport::Icmp(ICMPV6, kind, code),
                _ => Transport::Other(47),
            }
        }
    }

    prop_compose! {
        /// A packet, and what connection tracking knows of it.
        fn any_packet()(
            is_incoming in any::<bool>(), loopback in prop::bool::weighted(0.1),
            macs in prop::option::of((0..4_u8, 0..4_u8)), is_arp in prop::bool::weighted(0.15),
            (source, destination, is_v4) in (0..5_u8, 0..5_u8, any::<bool>()),
            transport in any_transport(), connection in select(Connection::all().collect::<Vec<_>>()),
        ) -> (Packet, Connection) {
            let datagram = Datagram {
                source: address(source, is_v4),
                destination: address(destination, is_v4),
                transport,
                flow: connection.flow(),
            };
            let packet = Packet {
                direction: if is_incoming { Direction::Incoming } else { Direction::Outgoing },
                loopback,
                macs: macs.filter(|_| is_incoming).map(|(from, to)| (mac(from), mac(to))),
                payload: if is_arp { Payload::Arp } else { Payload::Ip(datagram) },
            };
            (packet, connection)
        }
    }

    /// The set of one packet.
    fn set_of(packet: &Packet, connection: Connection) -> PacketSet {
        let interface = if packet.loopback { LOOPBACK } else { 2 };
        let own = if packet.loopback { LOCAL } else { 1 };
        let (there, here) = match packet.direction {
            Direction::Incoming => (interface, NO),
            Direction::Outgoing => (NO, interface),
        };
        let mut fields = vec![
            (Field::Direction, packet.direction.number()),
            (Field::InputInterface, there),
            (Field::OutputInterface, here),
            (Field::SourceType, own),
            (Field::Hardware, if packet.macs.is_some() { ETHERNET } else { NO }),
        ];
        if let Some((from, to)) = packet.macs {
            let number = |mac: MacAddr| u128::from(crate::model::Ordinal::bits(mac));
            fields.extend([(Field::SourceMac, number(from)), (Field::DestinationMac, number(to))]);
        }
        let cube = match &packet.payload {
            Payload::Arp => Cube::arp(),
            Payload::Ip(Datagram { source, destination, transport, .. }) => {
                fields.push((Field::Protocol, transport.protocol().into()));
                fields.extend(match *transport {
                    Transport::Tcp(from, to, flags) => vec![
                        (Field::SourcePort, from.0.into()),
                        (Field::DestinationPort, to.0.into()),
                        (Field::TcpFlags, flags.into()),
                    ],
                    Transport::Udp(from, to) => vec![
                        (Field::SourcePort, from.0.into()),
                        (Field::DestinationPort, to.0.into()),
                    ],
                    Transport::Icmp(_, kind, code) => {
                        vec![(Field::SourcePort, u16::from_be_bytes([kind, code]).into())]
                    }
                    Transport::Other(_) => vec![],
                });
                let number = connection.number().ranges().first().map_or(0, Range::first);
                fields.push((Field::Connection, number));
                let one = |address: &IpAddr| match *address {
                    IpAddr::V4(one) => {
                        AddressSet { v4: Range::single(one).into(), ..AddressSet::default() }
                    }
                    IpAddr::V6(one) => {
                        AddressSet { v6: Range::single(one).into(), ..AddressSet::default() }
                    }
                };
                Cube::between(&one(source), &one(destination))
            }
        };
        let limit = |cube: Cube, (field, value)| cube.limited(field, &only(value));
        fields.into_iter().try_fold(cube, limit).into_iter().collect()
    }

    proptest! {
        #[test]
        fn many_packets_are_decided_as_each_of_them_is(
            rules in prop::collection::vec(any_rule(), 0..7),
            denied in prop::option::of(any::<bool>()),
            (udp, icmp) in any::<(bool, bool)>(),
            packets in prop::collection::vec(any_packet(), 24),
        ) {
            // Rules that cannot be part of a policy are left out.
            let rules: Vec<_> = rules.iter().filter(|rule| Firewall::new([*rule]).is_ok()).collect();
            let firewall = Firewall::new(rules).expect("valid");
            let mut firewall = firewall.stateful(Stateful { udp, icmp });
            firewall = match denied {
                None => firewall,
                Some(true) => firewall.denying(Direction::Incoming),
                Some(false) => firewall.denying(Direction::Outgoing),
            };
            let all: PacketSet = [Cube::everything(), Cube::arp()].into_iter().collect();
            let verdicts = firewall.decide_all(all, usize::MAX);
            let sets = [&verdicts.bypass, &verdicts.pass, &verdicts.drop];
            for (packet, connection) in &packets {
                let one = set_of(packet, *connection);
                let due = match firewall.decide(packet) {
                    Verdict::Bypass => [true, false, false],
                    Verdict::Pass => [false, true, false],
                    Verdict::Drop => [false, false, true],
                };
                let found = sets.map(|set| !set.intersection(&one).is_empty());
                prop_assert_eq!(found, due, "{:?} {:?}", packet, connection);
            }
        }
    }
}
