//! The table that marks the packet, tells how far it came, and catches it before any socket.
//!
//! The kernel removes it when this process ends, however it ends: its owner is our socket.

use super::probe_rule::{
    DROP, ICMP, ICMP_V6, Protocol, is_of, record, sequence_is, trace, transport_is, verdict,
};
use super::records::{Recorded, Records};
use crate::netlink::message::attribute;
use crate::netlink::nfnetlink::{Connection, Kind, named, nested, numbered};
use anyhow::Context as _;
use nix::errno::Errno;

/// The table, in the family `inet`, and in `netdev` for what leaves.
pub(super) const TABLE: &str = "agent_fw_probe";
/// `NFPROTO_INET`, `NFPROTO_NETDEV`.
const INET: u8 = 1;
const NETDEV: u8 = 5;

/// How far the packet came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Mark {
    /// The interface's own hook, `ingress`.
    Entered,
    /// The hook `prerouting`.
    Arrived,
    /// The end of that hook: the next is routing.
    Unrouted,
    /// The hook `input`: it is for this host.
    Routed,
    /// The end of the hook `input`: the agent's socket is next.
    Through,
    /// The hook `forward`: it is for another host.
    Away,
    /// The hook `output`: this host sends it.
    Leaving,
    /// The exit of the interface, behind all chains of IP.
    Exiting,
}

struct Chain {
    mark: Mark,
    name: &'static str,
    hook: u32,
    priority: i32,
}

/// `NF_INET_PRE_ROUTING` and so on; the last chain comes before connection tracking confirms a
/// connection, so that no entry stays.
const CHAINS: [Chain; 5] = [
    Chain { mark: Mark::Arrived, name: "arrived", hook: 0, priority: i32::MIN },
    Chain { mark: Mark::Unrouted, name: "unrouted", hook: 0, priority: i32::MAX },
    Chain { mark: Mark::Routed, name: "routed", hook: 1, priority: i32::MIN },
    Chain { mark: Mark::Through, name: "through", hook: 1, priority: i32::MAX - 1 },
    Chain { mark: Mark::Away, name: "away", hook: 2, priority: i32::MIN },
];
const ENTRANCE: Chain = Chain { mark: Mark::Entered, name: "entered", hook: 5, priority: i32::MIN };
/// The way of what this host sends: the last chain comes before connection tracking confirms.
const LEAVING: [Chain; 2] = [
    Chain { mark: Mark::Leaving, name: "leaving", hook: 3, priority: i32::MIN },
    Chain { mark: Mark::Through, name: "left", hook: 4, priority: i32::MAX - 1 },
];
/// The way of a frame by the exits of devices, from the interface's to the lowest one's.
const EXIT: Chain = Chain { mark: Mark::Exiting, name: "exit", hook: 1, priority: i32::MIN };
const EXITED: Chain = Chain { mark: Mark::Through, name: "exited", hook: 1, priority: i32::MAX };
const OUTPUT: Chain = Chain { mark: Mark::Through, name: "answers", hook: 3, priority: i32::MIN };

impl Mark {
    /// Whether the second packet, which follows the probe, ends here.
    pub(super) fn ends_the_second(self) -> bool {
        matches!(self, Self::Entered | Self::Arrived | Self::Leaving | Self::Exiting)
    }

    /// The mark of one of the table's chains.
    pub(super) fn of_chain(name: &str) -> Option<Self> {
        let mut all = CHAINS.iter().chain([&ENTRANCE, &EXIT, &EXITED]).chain(&LEAVING);
        all.find(|chain| chain.name == name).map(|chain| chain.mark)
    }
}

/// The table, as long as it is held.
pub(super) struct TraceTable {
    connection: Connection,
    /// The table's.
    family: u8,
    /// Whether packets are marked at the interface's own hook already.
    pub(super) sees_entrance: bool,
    /// What it records.
    pub(super) records: Records,
}

/// What it is set up for: packets that come in with this number or the next, and those that this
/// host sends in answer, with a number of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ProbeMatch {
    pub(super) protocol: Protocol,
    pub(super) number: u32,
    pub(super) answer: Option<u32>,
    /// Whether connections are tracked, so that theirs is to be recorded.
    pub(super) is_tracked: bool,
}

impl TraceTable {
    /// Sets it up for packets that come in by this interface, and for what would answer them.
    pub(super) fn set(interface: &str, quarry: ProbeMatch) -> anyhow::Result<Self> {
        let mut connection = Connection::open()?;
        let records: &[Records] = if quarry.is_tracked {
            &[Records::Everything, Records::Unavailable]
        } else {
            &[Records::Untracked]
        };
        let mut refused = Errno::EOPNOTSUPP;
        for is_owned in [true, false] {
            for sees_entrance in [true, false] {
                for records in records.iter().copied() {
                    let parts = parts(interface, quarry, is_owned, sees_entrance, records);
                    match connection.transact(&parts) {
                        Ok(()) => {
                            return Ok(Self { connection, family: INET, sees_entrance, records });
                        }
                        Err(errno) => refused = errno,
                    }
                    if refused == Errno::EPERM {
                        return Err(refused).context("cannot add a table to nf_tables");
                    }
                }
            }
        }
        Err(refused).context("cannot add a table to nf_tables")
    }
}

impl TraceTable {
    /// Sets it up for packets of this protocol that this host sends.
    pub(super) fn set_outbound(protocol: Protocol, number: u32) -> anyhow::Result<Self> {
        let mut connection = Connection::open()?;
        let mut set = |is_owned| {
            let mut parts = vec![table(is_owned)];
            parts.extend(leaving(protocol, number));
            connection.transact(&parts)
        };
        set(true).or_else(|_| set(false)).context("cannot add a table to nf_tables")?;
        Ok(Self { connection, family: INET, sees_entrance: true, records: Records::Untracked })
    }

    /// Sets it up for frames that leave by an interface, and by the lowest device below it, where they
    /// are caught.
    pub(super) fn set_exit(
        interface: &str,
        lowest: &str,
        protocol: Protocol,
        number: u32,
    ) -> anyhow::Result<Self> {
        let mut connection = Connection::open()?;
        let mut set = |is_owned| {
            let chains = [(&EXIT, interface), (&EXITED, lowest)];
            let chains = chains.into_iter().flat_map(|(chain, device)| {
                trap(chain, Some(device), protocol, number, Records::Untracked)
            });
            let parts = [table(is_owned)].into_iter().chain(chains);
            let parts: Vec<Part> = parts.map(|(kind, _, body)| (kind, NETDEV, body)).collect();
            connection.transact(&parts)
        };
        set(true).or_else(|_| set(false)).context("cannot add a table to nf_tables")?;
        let (family, records) = (NETDEV, Records::Untracked);
        Ok(Self { connection, family, sees_entrance: true, records })
    }
}

impl Drop for TraceTable {
    fn drop(&mut self) {
        // Should that fail, the kernel does it when the socket is closed.
        let _ = self.connection.transact(&[(Kind::DeleteTable, self.family, named(1, TABLE))]);
    }
}

/// Removes a table that an older kernel, which knows no owners, has kept of a process that was
/// killed.
pub(super) fn clear() {
    if let Ok(mut connection) = Connection::open() {
        for family in [INET, NETDEV] {
            let _ = connection.transact(&[(Kind::DeleteTable, family, named(1, TABLE))]);
        }
    }
}

/// A part of a transaction.
type Part = (Kind, u8, Vec<u8>);

fn parts(
    interface: &str,
    quarry: ProbeMatch,
    is_owned: bool,
    sees_entrance: bool,
    records: Records,
) -> Vec<Part> {
    let ProbeMatch { protocol, number, answer, .. } = quarry;
    let mut parts = vec![table(is_owned)];
    if records == Records::Everything {
        parts.extend(tracking());
    }
    let entrance = sees_entrance.then_some(&ENTRANCE);
    for chain in CHAINS.iter().chain(entrance) {
        let device = (chain.mark == Mark::Entered).then_some(interface);
        parts.extend(trap(chain, device, protocol, number, records));
    }
    parts.extend(answer.into_iter().flat_map(|number| leaving(protocol, number)));
    if protocol == Protocol::Tcp {
        parts.push((Kind::NewChain, INET, new_chain(&OUTPUT, None)));
        for rule in answers(number) {
            parts.push((Kind::NewRule, INET, new_rule(OUTPUT.name, &rule)));
        }
    }
    parts
}

/// A chain that nothing leads to, whose rule has connections tracked before the other chains are
/// there: IPv6's are confirmed with the priority of the last one, and of those with one priority,
/// what was there last comes first.
fn tracking() -> Vec<Part> {
    const NAME: &str = "tracking";
    let chain = [named(1, TABLE), named(3, NAME)].concat();
    let rule = new_rule(NAME, &record(Recorded::Mark));
    vec![(Kind::NewChain, INET, chain), (Kind::NewRule, INET, rule)]
}

/// The chains for what this host sends.
fn leaving(protocol: Protocol, number: u32) -> Vec<Part> {
    let records = Records::Untracked;
    LEAVING.iter().flat_map(|chain| trap(chain, None, protocol, number, records)).collect()
}

fn table(is_owned: bool) -> Part {
    /// `NFTA_TABLE_FLAGS`, `NFT_TABLE_F_OWNER`.
    const FLAGS: u16 = 2;
    const OWNER: u32 = 2;
    let flags = if is_owned { numbered(FLAGS, OWNER) } else { Vec::new() };
    (Kind::NewTable, INET, [named(1, TABLE), flags].concat())
}

/// A chain that traces the probe and the packet behind it, and catches what may go no further.
fn trap(
    chain: &Chain,
    device: Option<&str>,
    protocol: Protocol,
    number: u32,
    records: Records,
) -> Vec<Part> {
    let mut parts = vec![(Kind::NewChain, INET, new_chain(chain, device))];
    let end = matches!(chain.mark, Mark::Through | Mark::Away);
    let mut add = |number: u32, what: Vec<Vec<u8>>| {
        let is_it = sequence_is(protocol.place_of_number(), number);
        let rule = [is_of(protocol), is_it, what].concat();
        parts.push((Kind::NewRule, INET, new_rule(chain.name, &rule)));
    };
    add(number, trace());
    if chain.mark == Mark::Through && records == Records::Everything {
        for what in Recorded::ALL {
            add(number, record(what));
        }
    }
    if end {
        add(number, vec![verdict(DROP)]);
    }
    // The second packet only tells that the first has come to its end.
    add(number.wrapping_add(1), [trace(), vec![verdict(DROP)]].concat());
    parts
}

/// What a rule that rejects would send out: a reset, or an ICMP error that quotes the packet.
fn answers(sequence: u32) -> [Vec<Vec<u8>>; 3] {
    // Eight bytes of ICMP, the quoted IP header, then as in the packet.
    const IN_ICMP: u32 = 8 + 20 + 4;
    const IN_ICMP_V6: u32 = 8 + 40 + 4;
    let drop = || vec![verdict(DROP)];
    [
        [is_of(Protocol::Tcp), sequence_is(8, sequence.wrapping_add(1)), drop()].concat(),
        [transport_is(ICMP), sequence_is(IN_ICMP, sequence), drop()].concat(),
        [transport_is(ICMP_V6), sequence_is(IN_ICMP_V6, sequence), drop()].concat(),
    ]
}

fn new_chain(chain: &Chain, device: Option<&str>) -> Vec<u8> {
    let mut hook = vec![numbered(1, chain.hook), attribute(2, &chain.priority.to_be_bytes())];
    hook.extend(device.map(|name| named(3, name)));
    [
        named(1, TABLE),
        named(3, chain.name),
        nested(4, &hook),
        // The policy: accept.
        numbered(5, 1),
        named(7, "filter"),
    ]
    .concat()
}

fn new_rule(chain: &str, expressions: &[Vec<u8>]) -> Vec<u8> {
    let list: Vec<Vec<u8>> =
        expressions.iter().map(|inside| nested(1, std::slice::from_ref(inside))).collect();
    [named(1, TABLE), named(2, chain), nested(4, &list)].concat()
}
