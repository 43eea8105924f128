//! What a rule looks at in the headers of TCP and ICMP.
//!
//! `anyFlags` is written by every rule, and stands for both: any TCP flags, any ICMP message. What it
//! or the protocol does not ask for has no effect, as for the vendor; what would mean something else
//! than it says is a fault.

use super::reader::Reader;
use crate::model::rule::{Icmp, Match, Protocol, TcpFlags};

/// Names under which the vendor's clients write a field.
pub(super) type Names = [&'static str; 3];

pub(super) const FLAGS: Names = ["tcpFlags", "TCPFlags", "tcpflags"];
pub(super) const FLAGS_NOT: Names = ["tcpNot", "tcpnot", "TCPNot"];
pub(super) const KIND: Names = ["icmpType", "icmptype", "ICMPType"];
pub(super) const CODE: Names = ["icmpCode", "icmpcode", "ICMPCode"];
pub(super) const MESSAGE_NOT: Names = ["icmpNot", "icmpnot", "ICMPNot"];

/// Flags by their names, in the order of their bits.
const BITS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];

/// What a rule says about flags and messages as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AnyFlags {
    /// Nothing.
    Unsaid,
    /// Any of them.
    Any,
    /// Those that are named.
    Named,
}

pub(super) fn any_flags(reader: &mut Reader<'_>) -> AnyFlags {
    let is_said = reader.has("anyFlags");
    match reader.flag("anyFlags") {
        true => AnyFlags::Any,
        false if is_said => AnyFlags::Named,
        false => AnyFlags::Unsaid,
    }
}

/// Whether the fields of a header have an effect, or why not.
fn effect(
    protocol: Option<&Match<Protocol>>,
    any_flags: AnyFlags,
    of: &[Protocol],
    what: &str,
) -> Result<(), String> {
    match protocol {
        Some(Match::Is(other)) if !of.contains(other) => {
            Err(format!("the protocol is {other}, which has no {what}; it is ignored"))
        }
        _ if any_flags == AnyFlags::Any => Err("anyFlags is true; it is ignored".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn tcp_flags(
    reader: &mut Reader<'_>,
    protocol: Option<&Match<Protocol>>,
    any_flags: AnyFlags,
) -> Option<TcpFlags> {
    const OF: [Protocol; 2] = [Protocol::Tcp, Protocol::TcpUdp];
    let effect = effect(protocol, any_flags, &OF, "TCP flags");
    let (not_name, not) = named(reader, FLAGS_NOT, |reader, name| Some(reader.flag(name)));
    let (name, flags) = named(reader, FLAGS, Reader::texts);
    let flags = flags.filter(|flags| !flags.is_empty());
    if let Err(why) = effect {
        let is_not = not == Some(true);
        [(flags.is_some(), name), (is_not, not_name)]
            .into_iter()
            .filter(|(is_there, _)| *is_there)
            .for_each(|(_, name)| reader.idle(name, &why));
        return None;
    }
    let mut value = 0;
    for flag in flags.iter().flatten() {
        match BITS.iter().position(|name| flag.eq_ignore_ascii_case(name)) {
            Some(bit) => value |= 1 << bit,
            None => reader.fault(name, &format!("`{}` is no flag", flag.escape_debug())),
        }
    }
    let is_not = not == Some(true);
    if flags.is_none() && is_not {
        reader.fault(not_name, "expected flags in tcpflags that it turns round; name them");
    } else if flags.is_none() && any_flags == AnyFlags::Named && is_of(protocol, &OF) {
        reader.fault("anyFlags", "expected flags in tcpflags, or anyFlags true");
    }
    flags.map(|_| TcpFlags { mask: 0x3f, value, not: is_not })
}

pub(super) fn icmp(
    reader: &mut Reader<'_>,
    protocol: Option<&Match<Protocol>>,
    any_flags: AnyFlags,
) -> Option<Icmp> {
    const OF: [Protocol; 2] = [Protocol::Icmp, Protocol::Icmpv6];
    let effect = effect(protocol, any_flags, &OF, "ICMP type");
    let (not_name, not) = named(reader, MESSAGE_NOT, |reader, name| Some(reader.flag(name)));
    let (kind_name, kind) = named(reader, KIND, Reader::number);
    let (code_name, code) = named(reader, CODE, Reader::number);
    let is_not = not == Some(true);
    if let Err(why) = effect {
        [(kind.is_some(), kind_name), (code.is_some(), code_name), (is_not, not_name)]
            .into_iter()
            .filter(|(is_there, _)| *is_there)
            .for_each(|(_, name)| reader.idle(name, &why));
        return None;
    }
    if kind.is_none() && code.is_some() {
        reader.fault(code_name, "expected an ICMPType that it is a code of; name it");
    } else if kind.is_none() && is_not {
        reader.fault(not_name, "expected an ICMPType that it turns round; name it");
    } else if kind.is_none() && any_flags == AnyFlags::Named && is_of(protocol, &OF) {
        reader.fault("anyFlags", "expected an ICMPType, or anyFlags true");
    }
    kind.map(|kind| Icmp { kind, code, not: is_not })
}

fn is_of(protocol: Option<&Match<Protocol>>, of: &[Protocol]) -> bool {
    matches!(protocol, Some(Match::Is(protocol)) if of.contains(protocol))
}

/// The field under the one of its names under which it is written.
fn named<'f, T>(
    reader: &mut Reader<'f>,
    names: Names,
    take: impl Fn(&mut Reader<'f>, &str) -> Option<T>,
) -> (&'static str, Option<T>) {
    let written = names.into_iter().find(|name| reader.has(name));
    // The last is the vendor's own.
    let [others @ .., own] = names;
    let name = written.unwrap_or(own);
    if reader.describes() {
        for name in others {
            drop(take(reader, name));
        }
    }
    (name, take(reader, name))
}
