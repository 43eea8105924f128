//! The rules that the vendor's engine has of its own, and a whole firewall policy with it. No list of
//! the vendor's shows them; there they are two settings, on by default: "Force Allow DHCP DNS" and
//! "Force Allow ICMP type3 code4".

use super::{Action, Direction, Endpoint, FrameType, Icmp, Match, Priority, Protocol, Rule};
use crate::model::{Port, Range};

/// The rules, all of them Force Allow with the highest priority: no Deny of a policy's drops what
/// they match, and in a direction that nothing restricts they change nothing. The answers to what
/// they let out pass a restrictive direction as all answers do; a Deny of incoming packets drops
/// those, too.
///
/// DHCP and ICMP type 3 code 4 belong to IPv4. The vendor names no rule for DHCP of IPv6 (546, 547),
/// and so there is none here; what ICMP type 3 code 4 is to IPv6 is `ICMPv6`, which passes anyway.
pub fn engine_rules() -> [Rule; 4] {
    let ipv4 = FrameType::Ipv4;
    let outgoing =
        |name, frame_type, protocol| rule(Direction::Outgoing, name, frame_type, protocol);
    let incoming = |name, protocol| rule(Direction::Incoming, name, ipv4, protocol);
    [
        Rule {
            destination: port(53),
            ..outgoing("engine: outgoing DNS", FrameType::Ip, Protocol::TcpUdp)
        },
        Rule {
            source: port(68),
            destination: port(67),
            ..outgoing("engine: outgoing DHCP", ipv4, Protocol::Udp)
        },
        Rule {
            source: port(67),
            destination: port(68),
            ..incoming("engine: incoming DHCP", Protocol::Udp)
        },
        Rule {
            icmp: Some(Icmp { kind: 3, code: Some(4), not: false }),
            ..incoming("engine: ICMP type3 code4", Protocol::Icmp)
        },
    ]
}

fn rule(direction: Direction, name: &str, frame_type: FrameType, protocol: Protocol) -> Rule {
    Rule {
        name: name.to_owned(),
        action: Action::ForceAllow,
        priority: Priority::HIGHEST,
        direction,
        frame_type: Match::Is(frame_type),
        protocol: Match::Is(protocol),
        source: Endpoint::ANY,
        destination: Endpoint::ANY,
        tcp_flags: None,
        icmp: None,
        schedule: None,
        context: None,
    }
}

fn port(number: u16) -> Endpoint {
    Endpoint { ports: Match::Is(Range::single(Port(number)).into()), ..Endpoint::ANY }
}
