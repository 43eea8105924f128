//! Whether a session that stands goes on under a policy.

use super::live::{LiveSessions, Session};
use super::opening::Known;
use super::risk::Name;
use crate::configuration::Configuration;
use crate::model;
use crate::model::firewall::{Datagram, Firewall, Flow, Packet, Payload, Transport, Verdict};
use crate::model::rule::Direction;
use crate::model::{MacAddr, MacMatch, Port};
use crate::system::sockets::Protocol;
use crate::trace::Opener;
use std::net::SocketAddr;

/// Whether this host's port is one of those that the command names the sources of.
pub(super) fn is_restricted_on_purpose(
    configuration: &Configuration,
    protocol: Protocol,
    port: Port,
) -> bool {
    let is_relays = port == Port::RELAY && configuration.restricts_relay();
    protocol == Protocol::Tcp && (port.0 == configuration.port || is_relays)
}

/// The MAC addresses of a session's incoming packets, where a rule asks for them.
fn macs(
    session: &Session,
    after: &Firewall,
    before: Option<&Firewall>,
) -> Option<(MacAddr, MacAddr)> {
    let mut rules = after.rules().iter().chain(before.into_iter().flat_map(Firewall::rules));
    let asks = rules.any(|rule| {
        [&rule.criteria.source, &rule.criteria.destination]
            .into_iter()
            .any(|place| place.macs != MacMatch::Any)
    });
    asks.then(|| session.macs()).flatten()
}

/// TCP's flags of the packets of a session that stands: ACK alone, with data, and at its end.
const FLAGS: [u8; 3] = [0x10, 0x18, 0x11];

/// A session, and what has to be known to judge it.
pub(super) struct Judge<'a> {
    session: &'a Session,
    macs: Option<(MacAddr, MacAddr)>,
    live: &'a LiveSessions,
}

impl<'a> Judge<'a> {
    pub(super) fn of(
        session: &'a Session,
        live: &'a LiveSessions,
        after: &Firewall,
        before: Option<&Firewall>,
    ) -> Self {
        Self { session, macs: macs(session, after, before), live }
    }

    /// What the session is called.
    pub(super) fn name(&self, opener: Opener) -> Name {
        let Session { protocol, local, remote, .. } = *self.session;
        let asked = match opener {
            Opener::Here => remote,
            Opener::There => local,
        };
        Name { opener, protocol, port: Port(asked.port()) }
    }

    /// Whether the session is with a port that the command names the sources of, and with none of
    /// these: to end it is what they are named for. A session with one of them, such as the manager's,
    /// is asked about as any other.
    pub(super) fn is_purpose(&self, (configuration, compiled): &Known) -> bool {
        let Session { protocol, local, remote, .. } = *self.session;
        let port = Port(local.port());
        if !is_restricted_on_purpose(configuration, protocol, port) {
            return false;
        }
        if port.0 == configuration.port {
            let transport = model::Transport::Tcp(port);
            let mac = self.macs.map(|(mac, _)| mac);
            let packet = model::Packet { loopback: false, source: remote.ip(), mac, transport };
            return compiled.lowered.policy.decide(&packet) == model::Verdict::Drop;
        }
        let incoming = self.packet(Direction::Incoming, FLAGS[0], Flow::Forth);
        let decided = compiled.firewall.as_ref().map(|firewall| firewall.decide(&incoming));
        decided == Some(Verdict::Drop)
    }

    /// Whether all packets of the session pass, both ways.
    pub(super) fn survives(&self, firewall: &Firewall, opener: Opener) -> bool {
        let (there, back) = match opener {
            Opener::There => (Direction::Incoming, Direction::Outgoing),
            Opener::Here => (Direction::Outgoing, Direction::Incoming),
        };
        let entry = self.session.entry;
        // What connection tracking neither knows nor is told ([`LiveSessions::keep`]) is to it what the next
        // packet is, if it takes up sessions in their middle.
        let is_taken_up = self.session.protocol == Protocol::Udp || self.live.is_picked_up;
        let is_known = entry.is_some() || self.session.to_keep().is_some() || is_taken_up;
        let flow = |flow| if is_known { flow } else { Flow::Invalid };
        FLAGS.into_iter().all(|flags| {
            let forth = firewall.decide(&self.packet(there, flags, flow(Flow::Forth)));
            let by_bypass = entry.map_or(forth == Verdict::Bypass, |entry| entry.opened_by_bypass);
            let opened_by_bypass = by_bypass && firewall.labels();
            let answer = self.packet(back, flags, flow(Flow::Back { opened_by_bypass }));
            forth != Verdict::Drop && firewall.decide(&answer) != Verdict::Drop
        })
    }

    fn packet(&self, direction: Direction, flags: u8, flow: Flow) -> Packet {
        let Session { protocol, local, remote, .. } = *self.session;
        let (from, to) = match direction {
            Direction::Incoming => (remote, local),
            Direction::Outgoing => (local, remote),
        };
        let port = |at: SocketAddr| Port(at.port());
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp(port(from), port(to), flags),
            Protocol::Udp => Transport::Udp(port(from), port(to)),
        };
        let macs = self.macs.filter(|_| direction == Direction::Incoming);
        let datagram = Datagram { source: from.ip(), destination: to.ip(), transport, flow };
        Packet { direction, loopback: false, macs, payload: Payload::Ip(datagram) }
    }
}
