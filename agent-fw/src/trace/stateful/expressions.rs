//! A rule of nf_tables, expression by expression: whether it holds of a packet, as far as that is
//! certain, and whether it remembers it.

use super::memory::{self, UNKNOWN};
use super::packet::Packet;
use super::registers::Registers;
use super::ruleset::{Rule, Set};
use super::truth::Truth;
use super::xtables;
use crate::netlink::nfnetlink::{Connection, find, number, text};
use crate::trace::events::ChainRef;
use crate::trace::rule_text::words_of;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The sets of the host, each read when a rule first looks into it.
pub(super) struct Sets {
    pub(super) connection: Connection,
    read: BTreeMap<(ChainRef, String), Option<Rc<Set>>>,
}

impl Sets {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, read: BTreeMap::new() }
    }

    /// They have changed.
    pub(super) fn forget(&mut self) {
        self.read.clear();
    }

    fn get(&mut self, at: &ChainRef, name: &str) -> Option<Rc<Set>> {
        let table = ChainRef { chain: String::new(), ..at.clone() };
        let connection = &mut self.connection;
        let read = self.read.entry((table, name.to_owned()));
        read.or_insert_with(|| Set::read(connection, at, name).map(Rc::new)).clone()
    }

    pub(super) fn words_of(&mut self, at: &ChainRef, rule: &Rule) -> String {
        words_of(&mut self.connection, at, &rule.message)
    }
}

/// What a rule comes to for a packet.
pub(super) struct Looked {
    pub(super) holds: Truth,
    /// What it does that others would feel.
    pub(super) effect: Option<&'static str>,
    /// What it may say, and to which chains it may lead.
    pub(super) verdicts: Vec<(i32, String)>,
}

impl Looked {
    /// The packet is told what the rule may do to it.
    pub(super) fn at(rule: &Rule, place: &ChainRef, packet: &mut Packet, sets: &mut Sets) -> Self {
        let mut looked = Self { holds: Truth::Yes, effect: None, verdicts: Vec::new() };
        let mut registers = Registers::new();
        let only_logs = only_logs(rule);
        for (name, data) in rule.expressions() {
            if looked.holds == Truth::No {
                break;
            }
            let effect = memory::of_expression(&name, data);
            let effect = effect.filter(|_| !(only_logs && limits(&name, data)));
            looked.effect = looked.effect.or(effect);
            if memory::of_expression(&name, data).is_some() {
                looked.holds = looked.holds.and(Truth::Maybe);
            }
            looked.add(&name, data, place, packet, &mut registers, sets);
        }
        looked
    }

    fn add(
        &mut self,
        name: &str,
        data: &[u8],
        place: &ChainRef,
        packet: &mut Packet,
        registers: &mut Registers,
        sets: &mut Sets,
    ) {
        let field = |kind| find(data, kind).and_then(number);
        match name {
            "meta" if field(3).is_none() => {
                registers.forget(field(1));
                if let Some(value) = meta(field(2), place.family, packet) {
                    registers.load(field(1), &value);
                }
            }
            "ct" if field(4).is_none() => {
                registers.forget(field(1));
                // `NFT_CT_STATE`.
                if field(2) == Some(0) {
                    registers.load(field(1), &packet.state.to_ne_bytes().map(Some));
                }
            }
            // What only sets something that no certain condition reads.
            "meta" | "ct" | "counter" | "log" | "notrack" | "secmark" | "tproxy" | "dup"
            | "limit" | "quota" | "connlimit" | "last" | "dynset" | "flow_offload" => {}
            // It writes.
            "payload" if field(5).is_some() => packet.forget_all(),
            "payload" => registers.load(field(1), &payload(data, packet)),
            "immediate" => self.immediate(data, registers),
            "bitwise" => bitwise(data, registers),
            "cmp" => {
                let value = find(data, 3).and_then(|data| find(data, 1)).unwrap_or_default();
                self.demand(registers.compare(field(1), field(2).unwrap_or(0), value));
            }
            "range" => self.range(data, registers),
            "lookup" => self.look_up(data, place, registers, sets),
            "objref" => self.refer(data, place, sets),
            // It goes no further.
            "reject" => self.verdicts.push((libc::NF_DROP, String::new())),
            // Type 1 is DNAT.
            "nat" => {
                packet.forget_end(field(1) != Some(1));
                self.demand(Truth::Maybe);
            }
            "redir" | "masq" => {
                packet.forget_end(name == "masq");
                self.demand(Truth::Maybe);
            }
            "match" => {
                let (info, revision) = (memory::info(data), memory::revision(data));
                self.demand(xtables::holds(&memory::called(data), info, revision, packet));
            }
            "target" => self.target(&memory::called(data), packet),
            // What comes of the others is not known, nor, of some, which registers they write.
            _ => {
                registers.forget_all();
                if memory::of_expression(name, data).is_some() {
                    packet.forget_all();
                }
                self.demand(Truth::Maybe);
            }
        }
    }

    fn demand(&mut self, condition: Truth) {
        self.holds = self.holds.and(condition);
    }

    fn immediate(&mut self, data: &[u8], registers: &mut Registers) {
        let register = find(data, 1).and_then(number);
        let Some(value) = find(data, 2) else { return };
        if let Some(verdict) = find(value, 2) {
            let code = find(verdict, 1).and_then(number).unwrap_or(0).cast_signed();
            let chain = find(verdict, 2).map(text).unwrap_or_default();
            self.verdicts.push((code, chain));
        } else if let Some(value) = find(value, 1) {
            let bytes: Vec<Option<u8>> = value.iter().copied().map(Some).collect();
            registers.load(register, &bytes);
        }
    }

    fn range(&mut self, data: &[u8], registers: &Registers) {
        let field = |kind| find(data, kind).and_then(number);
        let bound = |kind| find(data, kind).and_then(|data| find(data, 1)).unwrap_or_default();
        // `NFT_CMP_GTE`, `NFT_CMP_LTE`.
        let from = registers.compare(field(1), 5, bound(3));
        let to = registers.compare(field(1), 3, bound(4));
        self.demand(from.and(to).inverted(field(2).unwrap_or(0) == 1));
    }

    fn look_up(
        &mut self,
        data: &[u8],
        place: &ChainRef,
        registers: &mut Registers,
        sets: &mut Sets,
    ) {
        let field = |kind| find(data, kind).and_then(number);
        let name = find(data, 1).map(text).unwrap_or_default();
        let Some(set) = sets.get(place, &name) else {
            // Gone since, or not to be read.
            self.effect = self.effect.or(Some(UNKNOWN));
            registers.forget_all();
            return self.demand(Truth::Maybe);
        };
        let key = registers.read(field(2), set.key_bytes);
        let (candidates, is_certain) = set.candidates(&key);
        if !candidates.is_empty() {
            self.effect = self.effect.or(set.effect);
        }
        let is_inverted = field(5).unwrap_or(0) & 1 == 1;
        let found = match (candidates.is_empty(), is_certain) {
            (true, _) => Truth::No,
            (_, true) => Truth::Yes,
            _ => Truth::Maybe,
        };
        self.demand(found.inverted(is_inverted));
        match field(3) {
            Some(0) => {
                // A certain one comes first.
                let number = if is_certain { 1 } else { candidates.len() };
                let found = candidates.iter().take(number);
                self.verdicts.extend(found.filter_map(|element| element.verdict.clone()));
            }
            Some(register) => registers.forget_from(register),
            None => {}
        }
    }

    /// A named object; from a map, any of those that it may lead to.
    fn refer(&mut self, data: &[u8], place: &ChainRef, sets: &mut Sets) {
        /// `NFTA_OBJREF_SET_NAME`.
        const MAP: u16 = 4;
        let Some(map) = find(data, MAP).map(text) else { return };
        let effect = match sets.get(place, &map) {
            Some(map) => map.objects.and_then(memory::of_object),
            None => Some(UNKNOWN),
        };
        self.effect = self.effect.or(effect);
        self.demand(Truth::Maybe);
    }

    fn target(&mut self, name: &str, packet: &mut Packet) {
        match name {
            "REJECT" | "DROP" => self.verdicts.push((libc::NF_DROP, String::new())),
            "ACCEPT" => self.verdicts.push((libc::NF_ACCEPT, String::new())),
            _ if xtables::keeps_addresses(name) => {}
            _ => {
                packet.forget_all();
                self.demand(Truth::Maybe);
            }
        }
    }
}

/// Whether the rule does nothing but write a line of log, as often as a limit lets it.
fn only_logs(rule: &Rule) -> bool {
    let mut logs = false;
    for (name, data) in rule.expressions() {
        match name.as_str() {
            "log" => logs = true,
            "target" if matches!(memory::called(data).as_str(), "LOG" | "NFLOG" | "ULOG") => {
                logs = true;
            }
            "immediate" if find(data, 2).is_some_and(|value| find(value, 2).is_some()) => {
                return false;
            }
            "lookup" if find(data, 3).and_then(number) == Some(0) => return false,
            "immediate" | "lookup" | "match" | "limit" | "counter" | "cmp" | "range"
            | "bitwise" | "byteorder" | "fib" | "rt" | "socket" => {}
            "payload" if find(data, 5).is_none() => {}
            "meta" if find(data, 3).is_none() => {}
            "ct" if find(data, 4).is_none() => {}
            _ => return false,
        }
    }
    logs
}

fn limits(name: &str, data: &[u8]) -> bool {
    name == "limit" || name == "match" && memory::called(data) == "limit"
}

/// What nf_tables reads of the packet's surroundings, by `enum nft_meta_keys`.
fn meta(key: Option<u32>, family: u8, packet: &Packet) -> Option<Vec<Option<u8>>> {
    const NETDEV: u8 = 5;
    const BRIDGE: u8 = 7;
    let (index, name) = packet.by.as_ref().map(|(index, name)| (*index, name.as_bytes())).unzip();
    let bytes = match key? {
        1 if packet.is_v4() => vec![0x08, 0x00],
        1 => vec![0x86, 0xdd],
        4 => index?.to_ne_bytes().to_vec(),
        6 => {
            let mut name = name?.to_vec();
            name.resize(16, 0);
            name
        }
        15 if !matches!(family, NETDEV | BRIDGE) => vec![if packet.is_v4() { 2 } else { 10 }],
        16 => vec![packet.protocol()?],
        _ => return None,
    };
    Some(bytes.into_iter().map(Some).collect())
}

/// The bytes of a header.
fn payload(data: &[u8], packet: &Packet) -> Vec<Option<u8>> {
    let field = |kind| {
        let value = find(data, kind).and_then(number)?;
        usize::try_from(value).ok()
    };
    let header: &[Option<u8>] = match field(2) {
        Some(0) => &packet.link,
        Some(1) => &packet.network,
        Some(2) => &packet.transport,
        _ => &[],
    };
    let length = field(4).unwrap_or(16).min(64);
    let mut bytes: Vec<_> =
        header.iter().skip(field(3).unwrap_or(usize::MAX)).take(length).copied().collect();
    bytes.resize(length, None);
    bytes
}

/// What `mask` and `xor` make of a value; of shifts and the like, nothing is known.
fn bitwise(data: &[u8], registers: &mut Registers) {
    let field = |kind| find(data, kind).and_then(number);
    let value = |kind| find(data, kind).and_then(|data| find(data, 1));
    let length = field(3).and_then(|length| usize::try_from(length).ok()).unwrap_or(16).min(64);
    let from = registers.read(field(1), length);
    let made = match (field(6).unwrap_or(0), value(4), value(5)) {
        (0, Some(mask), Some(xor)) => {
            let bits = mask.iter().zip(xor);
            from.iter()
                .zip(bits)
                .map(|(byte, (mask, xor))| match (byte, mask) {
                    (_, 0) => Some(*xor),
                    (Some(byte), mask) => Some(byte & mask ^ xor),
                    (None, _) => None,
                })
                .collect()
        }
        _ => vec![None; length],
    };
    registers.load(field(2), &made);
}
