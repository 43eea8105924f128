//! Flows: packets between two ends that connection tracking sees as one connection.

use super::random::{LOCAL, OTHERS, PORTS, REMOTE, local, mac, remote, small};
use crate::chance::Chance;
use agent_fw::model::firewall::{Datagram, ICMP, ICMPV6, Packet, Payload, TCP, Transport, UDP};
use agent_fw::model::rule::Direction;
use agent_fw::model::{MacAddr, Port};
use agent_fw_lab::packet::{self, Ethernet, Ipv4, Ipv6, Raw, Tcp, TcpFlags, Udp, checksum};
use std::net::IpAddr;

/// What of a flow decides how connection tracking meets its first packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// TCP, beginning with these flags.
    Tcp(u8),
    Udp,
    /// An echo request of ICMP, with this code.
    Echo(u8),
    /// Another ICMP message: type and code.
    Icmp(u8, u8),
    Other(u8),
}

/// Packets between two ends that connection tracking sees as one connection.
#[derive(Clone, Debug)]
pub(super) struct FlowPlan {
    /// Which way its first packet goes.
    pub(super) direction: Direction,
    pub(super) is_v4: bool,
    pub(super) remote: IpAddr,
    pub(super) local: IpAddr,
    pub(super) remote_port: u16,
    pub(super) local_port: u16,
    /// The neighbour that its incoming frames come from, and whether they are broadcast.
    pub(super) mac: MacAddr,
    pub(super) is_broadcast: bool,
    pub(super) kind: Kind,
}

pub(super) fn flow(chance: &mut Chance) -> FlowPlan {
    let is_v4 = chance.once_in(2);
    let kind = match chance.below(10) {
        // Of the flags that can begin a connection, those that begin none, and absurd ones.
        0..=4 => Kind::Tcp(
            *chance.pick(&[0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x12, 0x04, 0x11, 0x00, 0x3f]),
        ),
        5 | 6 => Kind::Udp,
        7 => Kind::Echo(small(chance, 2)),
        8 if is_v4 => Kind::Icmp(*chance.pick(&[0, 3]), small(chance, 2)),
        8 => Kind::Icmp(*chance.pick(&[129, 1, 135]), small(chance, 2)),
        _ => Kind::Other(*chance.pick(&OTHERS)),
    };
    FlowPlan {
        direction: if chance.once_in(2) { Direction::Incoming } else { Direction::Outgoing },
        is_v4,
        remote: remote(small(chance, REMOTE), is_v4),
        local: local(small(chance, LOCAL), is_v4),
        remote_port: *chance.pick(&PORTS),
        local_port: *chance.pick(&PORTS),
        mac: mac(small(chance, 4)),
        is_broadcast: chance.once_in(10),
        kind,
    }
}

impl FlowPlan {
    /// What tells its connection from others, whichever way a packet goes.
    pub(super) fn key(&self, number: u16) -> (IpAddr, IpAddr, u8, u16, u16) {
        let (protocol, ports) = match self.kind {
            Kind::Tcp(_) => (TCP, (self.remote_port, self.local_port)),
            Kind::Udp => (UDP, (self.remote_port, self.local_port)),
            // Each has an identifier of its own.
            Kind::Echo(_) | Kind::Icmp(..) => (self.icmp(), (number, 0)),
            Kind::Other(number) => (number, (0, 0)),
        };
        (self.remote, self.local, protocol, ports.0, ports.1)
    }

    /// The number of this version's ICMP.
    pub(super) fn icmp(&self) -> u8 {
        if self.is_v4 { ICMP } else { ICMPV6 }
    }
}

/// Which packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    First,
    /// What answers the first.
    Answer,
    /// An ICMP error about the first.
    Error,
    /// One more in the direction of the first.
    Third,
}

impl Step {
    pub(super) fn goes_back(self) -> bool {
        matches!(self, Self::Answer | Self::Error)
    }
}

impl FlowPlan {
    /// Whether its first packet is one that has an answer.
    pub(super) fn has_answer(&self) -> bool {
        match self.kind {
            Kind::Tcp(flags) => flags == 0x02 || flags == 0x10,
            Kind::Udp | Kind::Echo(_) | Kind::Other(_) => true,
            Kind::Icmp(..) => false,
        }
    }

    /// The flags of TCP: a connection that begins, or one that is picked up in its midst.
    fn flags(first: u8, step: Step) -> u8 {
        match (first, step) {
            (_, Step::First) => first,
            (0x02, Step::Answer | Step::Error) => 0x12,
            _ => 0x10,
        }
    }

    /// Whether connection tracking lets a connection begin with this packet.
    pub(super) fn opens(&self, step: Step) -> bool {
        match self.kind {
            // A SYN, or (`nf_conntrack_tcp_loose`) a segment in the midst of a connection.
            Kind::Tcp(first) => [0x02, 0x10, 0x18].contains(&Self::flags(first, step)),
            Kind::Echo(_) => step != Step::Answer,
            Kind::Udp | Kind::Other(_) => true,
            Kind::Icmp(..) => false,
        }
    }

    /// Whether connection tracking leaves it alone: neighbour discovery.
    pub(super) fn is_untracked(&self) -> bool {
        matches!(self.kind, Kind::Icmp(135, _)) && !self.is_v4
    }

    pub(super) fn transport(&self, direction: Direction, step: Step) -> Transport {
        let (from, to) = self.ports(direction);
        match self.kind {
            Kind::Tcp(first) => Transport::Tcp(Port(from), Port(to), Self::flags(first, step)),
            // Host unreachable.
            Kind::Udp if step == Step::Error => Transport::Icmp(ICMP, 3, 1),
            Kind::Udp => Transport::Udp(Port(from), Port(to)),
            Kind::Echo(code) => Transport::Icmp(self.icmp(), self.echo(step), code),
            Kind::Icmp(kind, code) => Transport::Icmp(self.icmp(), kind, code),
            Kind::Other(number) => Transport::Other(number),
        }
    }

    fn ports(&self, direction: Direction) -> (u16, u16) {
        match direction {
            Direction::Incoming => (self.remote_port, self.local_port),
            Direction::Outgoing => (self.local_port, self.remote_port),
        }
    }

    /// The type of an echo, and of its answer.
    fn echo(&self, step: Step) -> u8 {
        match (self.is_v4, step == Step::Answer) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        }
    }

    /// The packet as it is sent: a frame that comes in, or an IP packet that goes out.
    pub(super) fn bytes(&self, flow: u16, number: u16, step: Step, packet: &Packet) -> Vec<u8> {
        let Payload::Ip(Datagram { source, destination, transport, .. }) = &packet.payload else {
            unreachable!("a flow's packets are IP");
        };
        let inside = self.inside(flow, step, *transport, *source, *destination);
        let lab = |mac: MacAddr| agent_fw_lab::MacAddr(mac.0);
        let (from, to) = packet.macs.unwrap_or((MacAddr([0; 6]), MacAddr([0; 6])));
        let ethernet = Ethernet::new(lab(from), lab(to));
        let mut bytes = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = Ipv4 { identification: number, ..Ipv4::new(*source, *destination) };
                around(ethernet / ip, inside)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut bytes = around(ethernet / Ipv6::new(*source, *destination), inside);
                // The flow label, which no checksum covers.
                bytes[14 + 2..14 + 4].copy_from_slice(&number.to_be_bytes());
                bytes
            }
            _ => unreachable!("both addresses are of one version"),
        };
        if packet.direction == Direction::Outgoing {
            bytes.drain(..14);
        }
        bytes
    }

    fn inside(
        &self,
        flow: u16,
        step: Step,
        transport: Transport,
        source: IpAddr,
        destination: IpAddr,
    ) -> packet::Layer {
        match transport {
            Transport::Tcp(from, to, flags) => {
                // Each end counts from a number of its own.
                let (sequence, acknowledgement) = match (step, flags) {
                    (Step::First, 0x02) => (1000, 0),
                    (Step::Answer | Step::Error, 0x12) => (5000, 1001),
                    (Step::Third, _) if Self::begins(self.kind) => (1001, 5001),
                    (Step::Answer | Step::Error, _) => (5000, 1000),
                    _ => (1000, 5000),
                };
                let flags = TcpFlags(flags);
                Tcp { sequence, acknowledgement, flags, ..Tcp::syn(from.0, to.0) }.into()
            }
            Transport::Udp(from, to) => Udp::new(from.0, to.0).into(),
            Transport::Other(protocol) => Raw { protocol, bytes: vec![0; 8] }.into(),
            Transport::Icmp(protocol, kind, code) => {
                let body = if step == Step::Error {
                    // What it is about: the packet that went the other way.
                    let (from, to) = self.ports(self.direction);
                    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination)
                    else {
                        unreachable!("errors are of IPv4");
                    };
                    (Ipv4::new(destination, source) / Udp::new(from, to)).bytes()
                } else {
                    [flow.to_be_bytes().as_slice(), &[0; 14]].concat()
                };
                let bytes =
                    icmp(protocol, kind, code, step == Step::Error, &body, source, destination);
                Raw { protocol, bytes }.into()
            }
        }
    }

    fn begins(kind: Kind) -> bool {
        kind == Kind::Tcp(0x02)
    }
}

fn around(outside: packet::Packet, inside: packet::Layer) -> Vec<u8> {
    (outside / inside).bytes()
}

/// An ICMP message with its checksum.
fn icmp(
    protocol: u8,
    kind: u8,
    code: u8,
    is_error: bool,
    body: &[u8],
    source: IpAddr,
    destination: IpAddr,
) -> Vec<u8> {
    let unused: &[u8] = if is_error { &[0; 4] } else { &[] };
    let mut bytes = [&[kind, code, 0, 0], unused, body].concat();
    let mut covered = Vec::new();
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        covered.extend(source.octets());
        covered.extend(destination.octets());
        covered.extend(u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        covered.extend([0, 0, 0, ICMPV6]);
    }
    debug_assert!(covered.is_empty() || protocol == ICMPV6);
    covered.extend(&bytes);
    let sum = checksum(&covered).to_be_bytes();
    bytes[2..4].copy_from_slice(&sum);
    bytes
}
