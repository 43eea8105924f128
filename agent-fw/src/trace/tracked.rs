//! What connection tracking makes of the packet: the marks, zones and labels that rules give it are
//! its answer's, too.

use super::events::{Event, Step, Verdict};
use super::iptables_legacy;
use super::records::Records;
use super::trace_table::{self, Mark};
use crate::model::Port;
use crate::netlink::conntrack::{Imprint, Zones};
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, find, text};

/// Expressions of nf_tables that have connections tracked.
const TRACKING: [&str; 8] =
    ["ct", "nat", "masq", "redir", "notrack", "connlimit", "flow_offload", "synproxy"];
/// Matches and targets of iptables that do.
const TRACKING_OF_IPTABLES: [&str; 18] = [
    "conntrack",
    "state",
    "connmark",
    "connlabel",
    "connlimit",
    "connbytes",
    "helper",
    "cluster",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "NOTRACK",
    "DNAT",
    "SNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "SYNPROXY",
];

/// Whether some rule of this host has connections tracked. Where none does, connection tracking is
/// left alone: to ask it would switch it on.
pub(super) fn is_in_use(connection: &mut Connection) -> anyhow::Result<bool> {
    /// `NFTA_RULE_EXPRESSIONS`.
    const EXPRESSIONS: u16 = 4;
    let every_family = 0;
    let rules = connection.dump(Kind::GetRule, every_family, &[])?;
    let by_rule = rules.iter().any(|rule| {
        let list = rule.find(EXPRESSIONS).unwrap_or_default();
        attributes(list).any(|(_, expression)| tracks(expression))
    });
    Ok(by_rule || iptables_legacy::has_tables())
}

fn tracks(expression: &[u8]) -> bool {
    /// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`; `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`.
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let name = |bytes| find(bytes, NAME).map(text).unwrap_or_default();
    let kind = name(expression);
    let is_of_iptables = matches!(kind.as_str(), "match" | "target");
    let of_iptables = || find(expression, DATA).map(name).unwrap_or_default();
    TRACKING.contains(&kind.as_str())
        || is_of_iptables && TRACKING_OF_IPTABLES.contains(&of_iptables().as_str())
}

/// How the packet has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Arrival {
    /// Its mark.
    pub(super) mark: u32,
    /// What its connection remembers; nothing, where it is not tracked.
    pub(super) imprint: Option<Imprint>,
}

impl Arrival {
    /// Reads it from the events at the packet's end: each thing that is written down is its mark for
    /// the moment.
    pub(super) fn of(events: &[Event], records: Records) -> Self {
        let marks: Vec<u32> = events
            .iter()
            .filter(|event| {
                event.place.table == trace_table::TABLE
                    && Mark::of_chain(&event.place.chain) == Some(Mark::Through)
                    && matches!(event.step, Step::Rule(_, Verdict::Continue))
            })
            .map(|event| event.mark)
            .collect();
        let mark = marks.first().copied().unwrap_or_default();
        let imprint = match records {
            Records::Untracked => None,
            // What it is now, it may always have been.
            Records::Unavailable => Some(Imprint { is_dnat: true, ..Imprint::default() }),
            Records::Everything => marks.get(1..).and_then(imprint),
        };
        Self { mark, imprint }
    }
}

/// From what was recorded, in that order; nothing, where a part is missing.
fn imprint(recorded: &[u32]) -> Option<Imprint> {
    /// `IPS_DST_NAT`.
    const DESTINATION_NAT: u32 = 1 << 5;
    let [status, asked, own, mark, original, reply, labels @ ..] = *recorded.first_chunk::<10>()?;
    // Numbers of two bytes, in registers of four.
    let two = |register: u32| {
        let [a, b, ..] = register.to_ne_bytes();
        [a, b]
    };
    let zone = |register| u16::from_ne_bytes(two(register));
    let port = |register| Port(u16::from_be_bytes(two(register)));
    let zones = Zones { original: zone(original), reply: zone(reply) };
    let is_dnat = status & DESTINATION_NAT != 0;
    let ports = Some((port(asked), port(own)));
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(labels) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Some(Imprint { is_dnat, ports, mark, zones, labels: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::events::ChainRef;

    #[test]
    fn what_was_recorded_is_read_and_a_packet_without_a_connection_has_none() {
        let event = |(chain, verdict, mark): (&str, Verdict, u32)| {
            let (table, chain) = (trace_table::TABLE.to_owned(), chain.to_owned());
            let place = ChainRef { family: 1, table, chain };
            let mut event = Event::at(place, Step::Rule(7, verdict));
            event.mark = mark;
            event
        };
        let through = |mark| ("through", Verdict::Continue, mark);
        let end = ("through", Verdict::Drop, 9);
        let zone = u32::from_ne_bytes([5, 0, 0, 0]);
        let label = u32::from_ne_bytes([0, 0, 1, 0]);
        let port = |port: u16| {
            let [a, b] = port.to_be_bytes();
            through(u32::from_ne_bytes([a, b, 0, 0]))
        };
        let all = [
            ("unrouted", Verdict::Continue, 3),
            through(7),
            through(1 << 5),
            port(4118),
            port(4119),
            through(8),
        ];
        let rest = [
            through(zone),
            through(zone),
            through(label),
            through(0),
            through(0),
            through(0),
            end.clone(),
        ];
        let tracked: Vec<Event> = all.into_iter().chain(rest).map(event).collect();
        let mut labels = [0; 16];
        labels[2] = 1;
        let zones = Zones { original: 5, reply: 5 };
        let ports = Some((Port(4118), Port(4119)));
        let imprint = Some(Imprint { is_dnat: true, ports, mark: 8, zones, labels });
        let of = |events: &[Event]| Arrival::of(events, Records::Everything);
        assert_eq!(of(&tracked), Arrival { mark: 7, imprint });
        let untracked: Vec<Event> = [through(7), end].into_iter().map(event).collect();
        assert_eq!(of(&untracked), Arrival { mark: 7, imprint: None });
    }
}
