//! A packet that the kernel decides otherwise than the policy, in words and as JSON.

use crate::model::Verdict;
use crate::model::firewall::{self, ICMP, ICMPV6, TCP, UDP};
use crate::model::packet_set::{Connection, State};
use crate::netlink::link;
use crate::verify::{Actual, Counterexample, Expected, PacketDirection, Sample, Sender};
use serde_json::{Value, json};

/// The packet in words.
pub(super) fn describe(packet: &Sample, interfaces: &[link::Interface]) -> String {
    let interface = interface(packet, interfaces);
    let mac = match packet.mac {
        Some(mac) => format!(", MAC address {mac}"),
        None if packet.sender == Sender::Own => ", from this host itself".to_owned(),
        None if packet.sender == Sender::OtherAfterOwn => {
            ", right after a packet of this host's own from there".to_owned()
        }
        None if packet.is_without_mac && packet.is_local() => ", without a MAC address".to_owned(),
        None => String::new(),
    };
    let mac_to = packet.mac_to.map_or_else(String::new, |mac| format!(", MAC address {mac}"));
    let Some(ends) = packet.addresses else {
        return match packet.way {
            PacketDirection::Outgoing => format!("ARP, by interface {interface}"),
            _ => format!("ARP{mac}, to this host{mac_to}, by interface {interface}"),
        };
    };
    let has_ports = !matches!(packet.protocol, ICMP | ICMPV6);
    let from_port = packet.source_port.filter(|_| has_ports);
    let from_port = from_port.map_or_else(String::new, |port| format!(" port {port}"));
    let from = match packet.way {
        PacketDirection::Outgoing if ends.is_any_source => format!("this host{from_port}"),
        _ => format!("{}{from_port}{mac}", ends.source),
    };
    let to = match packet.way {
        PacketDirection::Incoming if ends.is_any_destination => "this host".to_owned(),
        PacketDirection::Forwarded if ends.is_any_destination => "another host".to_owned(),
        _ => ends.destination.to_string(),
    };
    let port = packet.port;
    let to = match to.as_str() {
        _ if !has_ports => to,
        "this host" | "another host" => format!("{to}'s port {port}"),
        _ => format!("{to} port {port}"),
    };
    let vrf = if packet.is_by_vrf { ", a VRF's own device" } else { "" };
    let to = match packet.destination_type {
        Some(3) => format!("{to}, by broadcast"),
        Some(_) => format!("{to}, by multicast"),
        None => to,
    };
    let connection = packet.connection.map_or_else(String::new, |of| format!(", {}", words(of)));
    let protocol = protocol(packet);
    format!("{protocol} from {from}, to {to}{mac_to}, by interface {interface}{vrf}{connection}")
}

fn protocol(packet: &Sample) -> String {
    let message = packet.source_port.map(u16::to_be_bytes);
    let message =
        message.map_or_else(String::new, |[kind, code]| format!(" type {kind} code {code}"));
    match packet.protocol {
        TCP => match packet.flags {
            Some(flags) => format!("TCP with flags {flags:#04x}"),
            None => "TCP".to_owned(),
        },
        UDP => "UDP".to_owned(),
        ICMP => format!("ICMP{message}"),
        ICMPV6 => format!("ICMPv6{message}"),
        other => format!("protocol {other}"),
    }
}

fn words(connection: Connection) -> &'static str {
    match (connection.state, connection.is_reply) {
        (State::Invalid, _) => "which fits no connection",
        (State::Untracked, _) => "which is not tracked",
        (State::New, _) if !connection.is_known => "which opens a connection",
        (State::New, _) => "of a connection without an answer so far",
        (_, true) if connection.is_labelled => "an answer on a connection that a Bypass let begin",
        (State::Established, true) => "an answer on a connection",
        (State::Established, false) => "of a connection that has gone both ways",
        (State::Related, true) => "about a connection, against its direction",
        (State::Related, false) => "about a connection",
    }
}

fn interface(packet: &Sample, interfaces: &[link::Interface]) -> String {
    let Some(index) = packet.interface else { return "any but lo".to_owned() };
    let known = interfaces.iter().find(|interface| interface.index == index);
    known.map_or_else(|| format!("number {index}"), |interface| interface.name.clone())
}

/// The counterexample for programs.
pub(super) fn to_json(found: &Counterexample, interfaces: &[link::Interface]) -> Value {
    let Counterexample { packet, due, deed } = found;
    let ends = packet.addresses;
    let is_icmp = matches!(packet.protocol, ICMP | ICMPV6);
    let message = packet.source_port.filter(|_| is_icmp).map(u16::to_be_bytes);
    json!({
        "direction": match packet.way {
            PacketDirection::Incoming => "incoming",
            PacketDirection::Outgoing => "outgoing",
            PacketDirection::Forwarded => "forwarded",
        },
        "interface": packet.interface.map(|_| interface(packet, interfaces)),
        "to_this_host": packet.is_local(),
        "protocol": ends.map(|_| packet.protocol),
        "port": packet.port.0,
        "source": packet.source(),
        "any_source": ends.map(|ends| ends.is_any_source),
        "destination": ends.map(|ends| ends.destination),
        "any_destination": ends.map(|ends| ends.is_any_destination),
        "source_port": packet.source_port.filter(|_| !is_icmp),
        "tcp_flags": packet.flags.filter(|_| packet.protocol == TCP),
        "icmp_type": message.map(|[kind, _]| kind),
        "icmp_code": message.map(|[_, code]| code),
        "connection": packet.connection.map(|connection| json!({
            "state": match connection.state {
                State::Invalid => "invalid",
                State::Untracked => "untracked",
                State::New => "new",
                State::Related => "related",
                State::Established => "established",
            },
            "reply": connection.is_reply,
            "known": connection.is_known,
            "opened_by_bypass": connection.is_labelled,
        })),
        "mac": packet.mac.map(|mac| mac.to_string()),
        "destination_mac": packet.mac_to.map(|mac| mac.to_string()),
        "without_mac": packet.is_without_mac,
        "by_vrf": packet.is_by_vrf,
        "policy": due_in_words(*due),
        "kernel": deed_in_words(deed),
        "kernel_drops": match deed {
            Actual::Drops => Some(true),
            Actual::Unknown(_) => None,
            _ => Some(false),
        },
    })
}

/// What the policy says, in words.
pub(super) fn due_in_words(due: Expected) -> &'static str {
    match due {
        Expected::Port(Verdict::Untouched) | Expected::Nothing => "leaves it alone",
        Expected::Port(Verdict::Accept) => "admits it",
        Expected::Port(Verdict::Drop) | Expected::Firewall(firewall::Verdict::Drop) => "drops it",
        Expected::Port(Verdict::Continue) => "leaves it to other rules",
        Expected::Firewall(firewall::Verdict::Pass) => "lets it pass",
        Expected::Firewall(firewall::Verdict::Bypass) => "lets it pass, by a Bypass",
    }
}

/// What the kernel does, in words.
pub(super) fn deed_in_words(deed: &Actual) -> String {
    match deed {
        Actual::Drops => "drops it".to_owned(),
        Actual::Passes => "lets it pass".to_owned(),
        Actual::PassesRewritten => {
            "lets it pass, where another rule at `input` has given it this port".to_owned()
        }
        Actual::PassesUnlabelled => {
            "lets it pass, and does not note that a Bypass did, so that answers pass".to_owned()
        }
        Actual::PassesLabelled => {
            "lets it pass, and notes that a Bypass did, so that answers are dropped".to_owned()
        }
        Actual::Unknown(what) => format!("not known: it comes to {what}"),
    }
}
