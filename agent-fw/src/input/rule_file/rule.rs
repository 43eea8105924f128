//! A rule, field by field.

use super::endpoint;
use super::header::{any_flags, icmp, tcp_flags};
use super::lists::Lists;
use super::reader::{Kind, Reader};
use crate::model::Origin;
use crate::model::rule::{Direction, FrameType, Match, Priority, Protocol, Rule};
use serde::Deserialize;

/// Fields that change nothing about which packets a rule matches, or what it does with them.
const WITHOUT_EFFECT: &[&str] =
    &["ID", "description", "alertEnabled", "logDisabled", "includePacketData"];

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Frame {
    Any,
    Ip,
    Arp,
    Revarp,
    Ipv4,
    Ipv6,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Any,
    Icmp,
    Igmp,
    Ggp,
    Tcp,
    Pup,
    Udp,
    Idp,
    Nd,
    Raw,
    TcpUdp,
    Icmpv6,
    Other,
}

/// Reads a rule. If it is none, a fault was said.
pub(super) fn read(reader: &mut Reader<'_>, lists: &Lists, label: &Origin) -> Option<Rule> {
    reader.skip(WITHOUT_EFFECT);
    let name = name(reader);
    let action = reader.required("action", Reader::choice);
    let priority = priority(reader);
    let direction: Option<Direction> = reader.required("direction", Reader::choice);
    let frame_type = frame_type(reader);
    let has_protocol = frame_type.as_ref().is_none_or(Match::may_be_ip);
    let protocol = protocol(reader, has_protocol);
    let source = endpoint::read(reader, "source", lists, label);
    let destination = endpoint::read(reader, "destination", lists, label);
    let any_flags = any_flags(reader);
    let tcp_flags = tcp_flags(reader, protocol.as_ref(), any_flags);
    let icmp = icmp(reader, protocol.as_ref(), any_flags);
    let schedule = reader.reference("scheduleID");
    let context = reader.reference("contextID");
    Some(Rule {
        name: name?,
        action: action?,
        priority: priority?,
        direction: direction?,
        frame_type: frame_type?,
        protocol: protocol?,
        source,
        destination,
        tcp_flags,
        icmp,
        schedule,
        context,
    })
}

/// Names are printed, and must not speak to the terminal.
fn name(reader: &mut Reader<'_>) -> Option<String> {
    let name = reader.required("name", Reader::text)?;
    if name.chars().any(char::is_control) {
        reader.fault("name", "expected a name without control characters");
        return None;
    }
    Some(name)
}

/// The vendor's form has it as a text, a person would write a number.
fn priority(reader: &mut Reader<'_>) -> Option<Priority> {
    let text = reader.required("priority", Reader::text);
    reader.ask("priority", || Kind::Digit(4));
    let text = text?;
    let priority = text.parse().ok().and_then(Priority::new);
    if priority.is_none() {
        let said = format!("`{}`: expected a priority from 0 to 4", text.escape_debug());
        reader.fault("priority", &said);
    }
    priority
}

fn frame_type(reader: &mut Reader<'_>) -> Option<Match<FrameType>> {
    let word = reader.required("frameType", Reader::choice)?;
    let number = number(reader, "frame", word == Frame::Other);
    let not = reader.flag("frameNot");
    let frame_type = match word {
        Frame::Any => None,
        Frame::Ip => Some(FrameType::Ip),
        Frame::Arp => Some(FrameType::Arp),
        Frame::Revarp => Some(FrameType::RevArp),
        Frame::Ipv4 => Some(FrameType::Ipv4),
        Frame::Ipv6 => Some(FrameType::Ipv6),
        Frame::Other => Some(FrameType::Other(number?)),
    };
    turned(reader, "frameNot", frame_type, not)
}

/// The protocol: it must be named by a rule about frames that have one.
fn protocol(reader: &mut Reader<'_>, is_needed: bool) -> Option<Match<Protocol>> {
    let word = if is_needed && !reader.describes() {
        reader.required("protocol", Reader::choice)?
    } else {
        reader.or_else("protocol", Word::Any, Reader::choice)?
    };
    let number = number(reader, "protocol", word == Word::Other);
    let not = reader.flag("protocolNot");
    let protocol = match word {
        Word::Any => None,
        Word::Icmp => Some(Protocol::Icmp),
        Word::Igmp => Some(Protocol::Other(2)),
        Word::Ggp => Some(Protocol::Other(3)),
        Word::Tcp => Some(Protocol::Tcp),
        Word::Pup => Some(Protocol::Other(12)),
        Word::Udp => Some(Protocol::Udp),
        Word::Idp => Some(Protocol::Other(22)),
        Word::Nd => Some(Protocol::Other(77)),
        Word::Raw => Some(Protocol::Other(255)),
        Word::TcpUdp => Some(Protocol::TcpUdp),
        Word::Icmpv6 => Some(Protocol::Icmpv6),
        Word::Other => Some(Protocol::Other(number?)),
    };
    turned(reader, "protocolNot", protocol, not)
}

/// The number that belongs to the word `other`, and to no other.
fn number<N: TryFrom<u64>>(reader: &mut Reader<'_>, of: &str, other: bool) -> Option<N> {
    let name = format!("{of}Number");
    if other {
        return reader.required(&name, Reader::number);
    }
    if reader.describes() {
        return reader.number(&name);
    }
    // The vendor writes numbers of its own beside the other words.
    reader.skip(&[&name]);
    None
}

fn turned<T>(reader: &mut Reader<'_>, name: &str, value: Option<T>, not: bool) -> Option<Match<T>> {
    match value {
        Some(value) if not => Some(Match::Not(value)),
        Some(value) => Some(Match::Is(value)),
        None if not => {
            reader.fault(name, "not any: no packet could match; leave it out");
            None
        }
        None => Some(Match::Any),
    }
}
