//! Matches and targets of iptables': which of them remember packets, and what those say that are
//! certain. Their structures are those of linux/netfilter/xt_*.h.

use super::memory::UNKNOWN;
use super::packet::Packet;
use super::truth::Truth;

/// What a match does with a packet that others after it would feel.
pub(super) fn of_match(name: &str, info: &[u8], revision: u32) -> Option<&'static str> {
    /// `XT_RECENT_SET`, `XT_RECENT_UPDATE`, `XT_RECENT_REMOVE`, `XT_RECENT_REAP`.
    const RECENT_CHANGES: u8 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5;
    match name {
        "recent" => {
            let does = info.get(8).copied().unwrap_or(u8::MAX);
            (does & RECENT_CHANGES != 0).then_some(RECENT)
        }
        // At random, or every nth.
        "statistic" => (half(info) != Some(0)).then_some(TURNS),
        "set" => {
            // `struct xt_set_info_match_v3` and `_v4`: what the set has counted, compared.
            let [packets, bytes] = if revision == 3 { [8, 24] } else { [16, 32] };
            let compared = |at: usize| info.get(at).is_some_and(|operation| *operation != 0);
            let is_compared = revision >= 3 && (compared(packets) || compared(bytes));
            is_compared.then_some(COUNTED)
        }
        // A program of the kernel's own kind has no memory; one for eBPF may.
        "bpf" => (revision > 0 && half(info) != Some(0)).then_some(UNKNOWN),
        _ => of_named_match(name),
    }
}

const RECENT: &str = "changes a list of recent sources by it";
const TURNS: &str = "counts it, to take turns";
const COUNTED: &str = "decides by what a set has counted, and counts it";

/// The same, by its name alone.
fn of_named_match(name: &str) -> Option<&'static str> {
    match name {
        "limit" | "hashlimit" | "fuzzy" => Some("takes it off a rate"),
        "quota" | "quota2" | "nfacct" => Some("takes it off a quota"),
        "connlimit" => Some("counts it as a connection"),
        "addrtype" | "ah" | "asn" | "cgroup" | "cluster" | "comment" | "condition"
        | "connbytes" | "connlabel" | "connmark" | "conntrack" | "cpu" | "dccp" | "devgroup"
        | "dscp" | "dst" | "ecn" | "esp" | "eui64" | "frag" | "geoip" | "hbh" | "helper" | "hl"
        | "icmp" | "icmp6" | "iface" | "ipcomp" | "ipp2p" | "iprange" | "ipv4options"
        | "ipv6header" | "ipvs" | "l2tp" | "length" | "length2" | "mac" | "mark" | "mark_m"
        | "mh" | "multiport" | "osf" | "owner" | "physdev" | "pkttype" | "policy" | "rateest"
        | "realm" | "rpfilter" | "rt" | "sctp" | "socket" | "standard" | "state" | "string"
        | "tcp" | "tcpmss" | "time" | "tos" | "ttl" | "u32" | "udp" | "udplite" | "802_3"
        | "among" | "arp" | "ip" | "ip6" | "stp" | "vlan" => None,
        _ => Some(UNKNOWN),
    }
}

/// What a target does with a packet that others after it would feel.
pub(super) fn of_target(name: &str) -> Option<&'static str> {
    match name {
        "SET" => Some("changes a set by it"),
        "IDLETIMER" => Some("starts a timer anew"),
        "RATEEST" => Some("takes it into a rate"),
        "TEE" => Some("sends it to somebody else"),
        "NFQUEUE" | "QUEUE" => Some("gives it to a program, which may remember it"),
        "SYNPROXY" | "TARPIT" | "DELUDE" | "CHAOS" | "ECHO" => Some("answers it"),
        "ACCEPT" | "DROP" | "RETURN" | "REJECT" | "LOG" | "NFLOG" | "ULOG" | "AUDIT" | "LED"
        | "TRACE" | "MARK" | "CONNMARK" | "SECMARK" | "CONNSECMARK" | "CLASSIFY" | "DSCP"
        | "TOS" | "TTL" | "HL" | "ECN" | "TCPMSS" | "TCPOPTSTRIP" | "CHECKSUM" | "HMARK" | "CT"
        | "NOTRACK" | "TPROXY" | "DNAT" | "SNAT" | "REDIRECT" | "MASQUERADE" | "NETMAP"
        | "standard" | "mark" | "dnat" | "snat" | "redirect" | "arpreply" | "log" | "nflog" => None,
        _ => Some(UNKNOWN),
    }
}

/// Whether a target leaves the packet's addresses and ports as they are.
pub(super) fn keeps_addresses(target: &str) -> bool {
    let is_known = of_target(target) != Some(UNKNOWN);
    let changes = ["DNAT", "SNAT", "REDIRECT", "MASQUERADE", "NETMAP", "NFQUEUE", "QUEUE"];
    is_known && !changes.contains(&target) && !matches!(target, "dnat" | "snat" | "redirect")
}

/// What a match of `iptables-legacy-save` does, by its name and its options.
pub(super) fn of_words(name: &str, options: &[&str]) -> Option<&'static str> {
    let has = |word: &str| options.contains(&word);
    match name {
        "recent" => ["--set", "--update", "--remove", "--reap"]
            .iter()
            .any(|word| has(word))
            .then_some(RECENT),
        "statistic" => (!has("random")).then_some(TURNS),
        "set" => options
            .iter()
            .any(|word| word.starts_with("--packets-") || word.starts_with("--bytes-"))
            .then_some(COUNTED),
        "bpf" => (!has("--bytecode")).then_some(UNKNOWN),
        _ => of_named_match(name),
    }
}

/// Whether a match of iptables-nft's holds of the packet.
pub(super) fn holds(name: &str, info: &[u8], revision: u32, packet: &Packet) -> Truth {
    let byte = |at: usize| info.get(at).copied();
    let half = |at: usize| half(info.get(at..)?);
    match name {
        "comment" => Truth::Yes,
        "tcp" => {
            const INVERTS_SOURCE: u8 = 1;
            const INVERTS_DESTINATION: u8 = 2;
            if packet.protocol() != Some(6) {
                return Truth::No;
            }
            let inverts = byte(11).unwrap_or(0);
            // An option, and flags, are not looked at: they can only make it fail.
            let is_plain = byte(8) == Some(0) && byte(9) == Some(0);
            let ports = within(packet.port(true), half(0), half(2))
                .inverted(inverts & INVERTS_SOURCE != 0)
                .and(
                    within(packet.port(false), half(4), half(6))
                        .inverted(inverts & INVERTS_DESTINATION != 0),
                );
            ports.and(if is_plain && inverts < 4 { Truth::Yes } else { Truth::Maybe })
        }
        "udp" => {
            let inverts = byte(8).unwrap_or(0);
            let ports = within(packet.port(true), half(0), half(2))
                .inverted(inverts & 1 != 0)
                .and(within(packet.port(false), half(4), half(6)).inverted(inverts & 2 != 0));
            Truth::certain(packet.protocol() == Some(17)).and(ports)
        }
        "multiport" if revision == 1 => multiport(info, packet),
        "conntrack" if revision >= 2 => {
            const STATE: u16 = 1;
            const ALIAS: u16 = 1 << 13;
            let (Some(asked), Some(inverts), Some(mask)) = (half(146), half(148), half(150)) else {
                return Truth::Maybe;
            };
            if asked & !ALIAS != STATE {
                return Truth::Maybe;
            }
            tracked(packet.state, mask.into()).inverted(inverts & STATE != 0)
        }
        "state" => {
            let mask = info.first_chunk().map(|mask| u32::from_ne_bytes(*mask));
            mask.map_or(Truth::Maybe, |mask| tracked(packet.state, mask))
        }
        "addrtype" if revision == 1 => {
            const LOCAL: u16 = 1 << 2;
            const INVERTS_DESTINATION: u32 = 2;
            let flags = info.get(4..).and_then(|rest| rest.first_chunk());
            let flags = flags.map(|flags| u32::from_ne_bytes(*flags));
            match (half(0), half(2), flags) {
                (Some(0), Some(kinds), Some(flags))
                    if packet.is_to_here && flags & !INVERTS_DESTINATION == 0 =>
                {
                    Truth::certain(kinds & LOCAL != 0).inverted(flags & INVERTS_DESTINATION != 0)
                }
                _ => Truth::Maybe,
            }
        }
        _ => Truth::Maybe,
    }
}

fn half(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

/// Whether a port lies between two, as far as all are known.
pub(super) fn within(port: Option<u16>, first: Option<u16>, last: Option<u16>) -> Truth {
    match (port, first, last) {
        (_, Some(0), Some(u16::MAX)) => Truth::Yes,
        (Some(port), Some(first), Some(last)) => Truth::certain((first..=last).contains(&port)),
        _ => Truth::Maybe,
    }
}

/// Whether connection tracking's state, as nf_tables numbers it, is one of a mask of iptables'.
/// Invalid, established, related and new have one number in both.
fn tracked(state: u32, mask: u32) -> Truth {
    const NFT_UNTRACKED: u32 = 1 << 6;
    const XT_UNTRACKED: u32 = 1 << 8;
    /// Two more, of NAT, hold beside the state.
    const NAT: u32 = 3 << 6;
    let state = if state == NFT_UNTRACKED { XT_UNTRACKED } else { state };
    match (state & mask != 0, mask & NAT != 0) {
        (true, _) => Truth::Yes,
        (false, true) => Truth::Maybe,
        (false, false) => Truth::No,
    }
}

/// `struct xt_multiport_v1`.
fn multiport(info: &[u8], packet: &Packet) -> Truth {
    let half = |at: usize| half(info.get(at..)?);
    let is_source = match info.first() {
        Some(0) => true,
        Some(1) => false,
        _ => return Truth::Maybe,
    };
    let Some(port) = packet.port(is_source) else { return Truth::Maybe };
    let count = usize::from(info.get(1).copied().unwrap_or(0)).min(15);
    let listed: Vec<u16> = (0..count).filter_map(|n| half(2 + 2 * n)).collect();
    let is_first = |n: usize| info.get(32 + n).is_some_and(|flag| *flag != 0);
    let is_one = (0..listed.len()).any(|n| match listed.get(n + 1) {
        Some(last) if is_first(n) => (listed[n]..=*last).contains(&port),
        _ => listed[n] == port,
    });
    Truth::certain(is_one).inverted(info.get(47).is_some_and(|inverted| *inverted != 0))
}
