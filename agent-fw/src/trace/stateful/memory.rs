//! Which statements of nf_tables remember the packets that they meet, and what that does.

use super::xtables;
use crate::netlink::nfnetlink::{find, number, text};

/// What a statement that is not known here may do.
pub(super) const UNKNOWN: &str = "may remember the packet: agent-fw does not know what it does";

/// What the statement does with a packet that others after it would feel; `None` for those that
/// leave nothing behind but a counter.
pub(super) fn of_expression(name: &str, data: &[u8]) -> Option<&'static str> {
    let field = |kind| find(data, kind).and_then(number);
    match name {
        // What reads, compares, decides, counts or writes a line of log; and what changes the packet
        // alone, or a connection that ends with it.
        "meta" | "payload" | "ct" | "fib" | "rt" | "socket" | "exthdr" | "osf" | "xfrm"
        | "tunnel" | "inner" | "hash" | "bitwise" | "byteorder" | "cmp" | "range" | "lookup"
        | "immediate" | "counter" | "log" | "reject" | "notrack" | "secmark" | "nat" | "redir"
        | "masq" | "tproxy" | "flow_offload" => None,
        "dynset" => Some("changes a set by it"),
        "limit" => Some("takes it off a rate"),
        "quota" => Some("takes it off a quota"),
        "connlimit" => Some("counts it as a connection"),
        "last" => Some("notes when it came"),
        // `NFTA_NG_TYPE`: in turn, or at random.
        "numgen" => (field(3) == Some(0)).then_some("counts it, to take turns"),
        // `NFTA_OBJREF_IMM_TYPE`. From a map, the walk asks the map.
        "objref" => field(1).and_then(of_object),
        "dup" | "fwd" => Some("sends it to somebody else"),
        "queue" => Some("gives it to a program, which may remember it"),
        "synproxy" => Some("answers it"),
        "match" => xtables::of_match(&called(data), info(data), revision(data)),
        "target" => xtables::of_target(&called(data)),
        _ => Some(UNKNOWN),
    }
}

/// The same of a named object, by the number of its kind.
pub(super) fn of_object(kind: u32) -> Option<&'static str> {
    match kind {
        // A counter; a helper, a timeout, a label, of a connection that ends with the packet.
        1 | 3 | 7 | 8 => None,
        2 => Some("takes it off a quota"),
        4 => Some("takes it off a rate"),
        5 => Some("counts it as a connection"),
        9 => Some("expects another connection after it"),
        10 => Some("answers it"),
        _ => Some(UNKNOWN),
    }
}

/// The name of a match or target of iptables', in iptables-nft; its revision; its structure.
pub(super) fn called(data: &[u8]) -> String {
    find(data, 1).map(text).unwrap_or_default()
}

pub(super) fn revision(data: &[u8]) -> u32 {
    find(data, 2).and_then(number).unwrap_or(0)
}

pub(super) fn info(data: &[u8]) -> &[u8] {
    find(data, 3).unwrap_or_default()
}
