//! Random firewall policies and packets of a small world, in which they meet often.

use crate::chance::Chance;
use agent_fw::model::firewall::TCP;
use agent_fw::model::rule::{
    Action, Addresses, Direction, Endpoint, FrameType, Icmp, Match, Priority, Protocol, Rule,
    TcpFlags,
};
use agent_fw::model::{AddressRange, MacAddr, Origin, Port, Range, RangeSet};
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Hosts behind the peer, by number.
pub(super) const REMOTE: u8 = 16;
/// Addresses of the host itself, by number.
pub(super) const LOCAL: u8 = 2;
/// Ports that rules and packets have.
pub(super) const PORTS: [u16; 8] = [22, 53, 80, 443, 4118, 8080, 40_000, 65_535];
/// Protocols without ports.
pub(super) const OTHERS: [u8; 2] = [2, 253];

/// The address of a host behind the peer.
pub(super) fn remote(number: u8, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(192, 0, 2, 1 + number).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + u16::from(number)).into()
    }
}

/// An address of the host.
pub(super) fn local(number: u8, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(10, 119, 0, 1 + number).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0, 0, 1 + u16::from(number)).into()
    }
}

/// A neighbour's MAC address.
pub(super) fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0x41, 0x18, 0, 0, number])
}

pub(super) fn small(chance: &mut Chance, bound: u8) -> u8 {
    u8::try_from(chance.below(bound.into())).unwrap_or(0)
}

/// Rules of a policy. Every one of them can be part of it.
pub(super) fn rules(chance: &mut Chance) -> Vec<Rule> {
    let count = 1 + chance.below(8);
    (0..count).map(|number| rule(chance, number)).collect()
}

/// Adds addresses of another world to the lists of some rules, as many as have the lists looked up in
/// other ways: by one hash or several, or in a tree of sets.
pub(super) fn crowd(chance: &mut Chance, rules: &mut [Rule]) {
    for rule in rules {
        for end in [&mut rule.source, &mut rule.destination] {
            let (Match::Is(addresses) | Match::Not(addresses)) = &mut end.addresses else {
                continue;
            };
            let count = *chance.pick(&[0, 0, 3, 40, 3000]);
            let others = (0..count).map(|number: u16| {
                let length = *chance.pick(&[20, 24, 27, 32]);
                let [high, low] = number.to_be_bytes();
                if number.is_multiple_of(3) {
                    let bits = 0x2001_0db9_u128 << 96 | u128::from(number) << 64;
                    let net = Ipv6Net::new_assert(bits.into(), 4 * length - 16);
                    return net.trunc().into();
                }
                Ipv4Net::new_assert(Ipv4Addr::new(172, high, low, low), length).trunc().into()
            });
            addresses.0.push((Origin::Address, others.collect()));
        }
    }
}

fn rule(chance: &mut Chance, number: usize) -> Rule {
    let action = *chance.pick(&[
        Action::Bypass,
        Action::LogOnly,
        Action::ForceAllow,
        Action::Deny,
        Action::Deny,
        Action::Allow,
        Action::Allow,
    ]);
    let priority = match action {
        Action::Allow => 0,
        Action::LogOnly => 4,
        _ => small(chance, 5),
    };
    let incoming = chance.once_in(2);
    let frame_type = frame_type(chance);
    let is_arp = matches!(frame_type, Match::Is(FrameType::Arp | FrameType::Other(0x0806)))
        || frame_type == Match::Not(FrameType::Ip);
    let protocol = if is_arp { Match::Any } else { protocol(chance) };
    let mut rule = Rule {
        name: format!("rule {number}"),
        action,
        priority: Priority::new(priority).expect("at most 4"),
        direction: if incoming { Direction::Incoming } else { Direction::Outgoing },
        frame_type,
        protocol,
        source: Endpoint::ANY,
        destination: Endpoint::ANY,
        tcp_flags: None,
        icmp: None,
        schedule: None,
        context: None,
    };
    if incoming && chance.once_in(4) {
        let macs = [0; 2].map(|_| Range::single(mac(small(chance, 4)))).into_iter().collect();
        rule.source.macs = turned(chance, macs);
    }
    if incoming && chance.once_in(12) {
        rule.destination.macs = turned(chance, Range::single(MacAddr([0xff; 6])).into());
    }
    if !is_arp {
        narrow(chance, &mut rule);
    }
    rule
}

/// Limits a rule to some addresses, ports, flags or messages.
fn narrow(chance: &mut Chance, rule: &mut Rule) {
    let (ours, theirs) = match rule.direction {
        Direction::Incoming => (&mut rule.destination, &mut rule.source),
        Direction::Outgoing => (&mut rule.source, &mut rule.destination),
    };
    if chance.once_in(3) {
        theirs.addresses = addresses(chance, REMOTE, remote);
    }
    if chance.once_in(8) {
        ours.addresses = addresses(chance, LOCAL, local);
    }
    match rule.protocol {
        Match::Is(Protocol::Tcp | Protocol::Udp | Protocol::TcpUdp) => {
            if chance.once_in(2) {
                rule.destination.ports = ports(chance);
            }
            if chance.once_in(4) {
                rule.source.ports = ports(chance);
            }
        }
        Match::Is(Protocol::Icmp) if chance.once_in(2) => {
            rule.icmp = Some(icmp(chance, &[8, 0, 3]));
        }
        Match::Is(Protocol::Icmpv6) if chance.once_in(2) => {
            rule.icmp = Some(icmp(chance, &[128, 129, 135, 1]));
        }
        _ => {}
    }
    let has_flags = matches!(rule.protocol, Match::Is(Protocol::Tcp | Protocol::TcpUdp));
    if has_flags && chance.once_in(3) {
        let mask = *chance.pick(&[0x3f, 0x12, 0x02, 0x3f]);
        let value = *chance.pick(&[0x02, 0x10, 0x12, 0x04, 0x18]) & mask;
        rule.tcp_flags = Some(TcpFlags { mask, value, not: chance.once_in(3) });
    }
}

fn frame_type(chance: &mut Chance) -> Match<FrameType> {
    let of = *chance.pick(&[
        FrameType::Ip,
        FrameType::Ip,
        FrameType::Ipv4,
        FrameType::Ipv6,
        FrameType::Arp,
        FrameType::RevArp,
        FrameType::Other(0x0800),
        FrameType::Other(0x88b5),
    ]);
    match chance.below(10) {
        0 | 1 => Match::Any,
        2 => Match::Not(of),
        3 => Match::Is(of),
        4 => Match::Is(FrameType::Arp),
        _ => Match::Is(FrameType::Ip),
    }
}

fn protocol(chance: &mut Chance) -> Match<Protocol> {
    let of = *chance.pick(&[
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::TcpUdp,
        Protocol::Icmp,
        Protocol::Icmpv6,
        Protocol::Other(OTHERS[0]),
        Protocol::Other(TCP),
    ]);
    match chance.below(6) {
        0 | 1 => Match::Any,
        2 => Match::Not(of),
        _ => Match::Is(of),
    }
}

fn turned<T>(chance: &mut Chance, value: T) -> Match<T> {
    if chance.once_in(4) { Match::Not(value) } else { Match::Is(value) }
}

fn addresses(chance: &mut Chance, count: u8, address: fn(u8, bool) -> IpAddr) -> Match<Addresses> {
    let ranges = 1 + chance.below(3);
    let set = (0..ranges).map(|_| {
        let (a, b) = (small(chance, count), small(chance, count));
        let is_v4 = chance.once_in(2);
        match (address(a.min(b), is_v4), address(a.max(b), is_v4)) {
            (IpAddr::V4(a), IpAddr::V4(b)) => AddressRange::V4(Range::new(a, b).expect("ordered")),
            (IpAddr::V6(a), IpAddr::V6(b)) => AddressRange::V6(Range::new(a, b).expect("ordered")),
            _ => unreachable!("both are of one version"),
        }
    });
    let set = set.collect();
    turned(chance, Addresses(vec![(Origin::Address, set)]))
}

fn ports(chance: &mut Chance) -> Match<RangeSet<Port>> {
    let ranges = 1 + chance.below(3);
    let set = (0..ranges).map(|_| {
        let (a, b) = (*chance.pick(&PORTS), *chance.pick(&PORTS));
        let last = if chance.once_in(2) { a } else { a.max(b) };
        Range::new(Port(a), Port(last)).expect("ordered")
    });
    let set = set.collect();
    turned(chance, set)
}

fn icmp(chance: &mut Chance, kinds: &[u8]) -> Icmp {
    let kind = *chance.pick(kinds);
    let code = chance.once_in(2).then(|| small(chance, 2));
    Icmp { kind, code, not: chance.once_in(4) }
}
