//! What a table of the kernel's does with packets, hook by hook.

use super::expected::{forwarded, incoming, incoming_to_all, outgoing};
use super::machine::Machine;
use crate::model::TableName;
use crate::model::packet_set::{Condition, Cube, Field, NO, PacketSet, only};
use crate::nft::{BaseChain, ForeignBase, Hook, LATE_PRIORITY, LiveTable};

/// What becomes of packets.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Packets that are dropped.
    pub dropped: PacketSet,
    /// Packets whose connections get the label by which answers to what Bypass let in are known.
    pub labelled: PacketSet,
    /// Packets of which that is not known, and the rule that they came to.
    pub unknown: Vec<(Cube, String)>,
    /// What becomes of packets at the end of the hook `input`, whatever they looked like before:
    /// somebody may have given them the port there. `None` of what has no such end.
    pub late: Option<Late>,
}

/// What becomes of packets at the end of the hook `input`.
#[derive(Clone, Debug, Default)]
pub struct Late {
    /// Packets that are dropped.
    pub dropped: PacketSet,
    /// Packets of which that is not known, and the rule that they came to.
    pub unknown: Vec<(Cube, String)>,
}

impl Effect {
    /// The same, of something that sees frames as they come in: none of them has come by the device
    /// of a VRF yet.
    pub(super) fn before_any_vrf(self) -> Self {
        let frame = Condition::Field(Field::Vrf, only(NO));
        let unknown =
            self.unknown.into_iter().filter_map(|(cube, why)| Some((cube.met(&frame)?, why)));
        Self { unknown: unknown.collect(), dropped: self.dropped.met(&frame), ..Self::default() }
    }
}

/// What a table does with packets.
pub fn effect(live: &LiveTable) -> Effect {
    if live.foreign.dormant {
        return Effect::default();
    }
    let name = live.image.name;
    let mut machine = Machine::new(live);
    let ours = live.image.chains.iter();
    let mut bases: Vec<Base> = ours
        .filter_map(|chain| Some(Base::ours(&chain.name, chain.base?)))
        .chain(live.foreign.bases.iter().map(|base| Base::foreign(name, base)))
        .collect();
    bases.sort_by_key(|base| base.priority);
    let mut through = |way: HookPoint, packets: PacketSet| {
        let met = bases.iter().filter(|base| base.way == way);
        met.fold(packets, |packets, base| machine.pass(base, packets))
    };
    // Behind the routing, packets for this host and those for others part.
    let (here, away) = match name {
        TableName::Arp => (incoming_to_all(Cube::arp()), PacketSet::default()),
        TableName::Firewall => (incoming_to_all(Cube::everything()), forwarded(Cube::everything())),
        TableName::Gate | TableName::Twin => {
            (incoming(Cube::everything()), forwarded(Cube::everything()))
        }
    };
    let sent = match name {
        TableName::Arp => outgoing(Cube::arp()),
        _ => outgoing(Cube::everything()),
    };
    let here = through(HookPoint::Prerouting, here);
    let away = through(HookPoint::Prerouting, away);
    through(HookPoint::Input, here);
    let away = through(HookPoint::Forward, away);
    let sent = through(HookPoint::Output, sent);
    through(HookPoint::Postrouting, away.union(sent));
    let mut found = machine.take_effect();
    if matches!(name, TableName::Gate | TableName::Twin) {
        // What comes to the last chains as a packet to the port need not have been one at the first.
        let at_input = incoming(Cube::everything());
        let is_late = |base: &&Base| base.way == HookPoint::Input && base.priority >= LATE_PRIORITY;
        bases.iter().filter(is_late).fold(at_input, |packets, base| machine.pass(base, packets));
        let Effect { dropped, unknown, .. } = machine.take_effect();
        found.late = Some(Late { dropped, unknown });
    }
    found
}

/// Where packets meet a base chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// At a hook that agent-fw does not follow packets to.
    Elsewhere,
}

/// A base chain in the way of packets.
pub(super) struct Base {
    pub(super) chain: String,
    pub(super) way: HookPoint,
    pub(super) priority: i32,
    pub(super) drops: bool,
    /// A chain of another type sees some packets only: the first of a connection.
    pub(super) is_partial: bool,
}

impl Base {
    fn ours(chain: &str, BaseChain { hook, priority }: BaseChain) -> Self {
        let way = match hook {
            Hook::Prerouting => HookPoint::Prerouting,
            Hook::Input => HookPoint::Input,
            Hook::Output => HookPoint::Output,
        };
        Self { chain: chain.to_owned(), way, priority, drops: false, is_partial: false }
    }

    fn foreign(table: TableName, base: &ForeignBase) -> Self {
        let way = match (table, base.hook) {
            // ARP has its own numbers.
            (TableName::Arp, 0) => HookPoint::Input,
            (TableName::Arp, 1) => HookPoint::Output,
            (TableName::Arp, _) => HookPoint::Elsewhere,
            (_, 0) => HookPoint::Prerouting,
            (_, 1) => HookPoint::Input,
            (_, 2) => HookPoint::Forward,
            (_, 3) => HookPoint::Output,
            (_, 4) => HookPoint::Postrouting,
            _ => HookPoint::Elsewhere,
        };
        let ForeignBase { chain, priority, kind, drops, .. } = base;
        let (chain, is_partial) = (chain.clone(), kind != "filter");
        Self { chain, way, priority: *priority, drops: *drops, is_partial }
    }
}
