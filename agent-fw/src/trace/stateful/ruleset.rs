//! The host's rules, of nf_tables and of iptables-legacy, as they stand now.

use super::legacy::{self, Tables};
use super::memory;
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, named, number, text};
use crate::trace::events::ChainRef;
use crate::trace::trace_table;
use std::collections::BTreeMap;

/// Where base chains hang. In the order in which a packet that comes in meets them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hook {
    Ingress,
    BridgePrerouting,
    BridgeInput,
    BridgeForward,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    BridgeOutput,
    BridgePostrouting,
    Egress,
}

/// What hangs there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Chain {
    Nft(ChainRef),
    /// A table's chain in iptables-legacy.
    Legacy(&'static str, &'static str),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BaseChain {
    pub(super) chain: Chain,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// The interfaces that it is at, where it is at some.
    pub(super) devices: Vec<String>,
}

/// A rule of nf_tables.
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) message: Message,
}

impl Rule {
    /// Each expression's name, and its data.
    pub(super) fn expressions(&self) -> impl Iterator<Item = (String, &[u8])> {
        /// `NFTA_RULE_EXPRESSIONS`.
        const EXPRESSIONS: u16 = 4;
        let list = self.message.find(EXPRESSIONS).unwrap_or_default();
        attributes(list).map(|(_, expression)| {
            let name = find(expression, 1).map(text).unwrap_or_default();
            (name, find(expression, 2).unwrap_or_default())
        })
    }
}

/// All of it.
pub(super) struct Ruleset {
    pub(super) bases: Vec<BaseChain>,
    pub(super) rules: BTreeMap<ChainRef, Vec<Rule>>,
    /// iptables-legacy's, for IPv4 and for IPv6; `Err` where they cannot be read.
    pub(super) legacy: [Result<Tables, String>; 2],
}

/// agent-fw's own tables, which remember nothing but what they are for.
const OWN: [&str; 4] = ["agent_fw", "agent_fw_policy", "agent_fw_guard", trace_table::TABLE];
/// `NFPROTO_INET`, `NFPROTO_ARP`, `NFPROTO_NETDEV`, `NFPROTO_BRIDGE`.
const INET: u8 = 1;
const ARP: u8 = 3;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;

impl Ruleset {
    pub(super) fn read(connection: &mut Connection) -> anyhow::Result<Self> {
        let every_family = 0;
        let is_own = |message: &Message, table: &str| {
            matches!(message.family, INET | ARP) && OWN.contains(&table)
        };
        let mut bases = Vec::new();
        for message in connection.dump(Kind::GetChain, every_family, &[])? {
            bases.extend(base_chain(&message).filter(
                |base| matches!(&base.chain, Chain::Nft(place) if !is_own(&message, &place.table)),
            ));
        }
        let mut rules: BTreeMap<ChainRef, Vec<Rule>> = BTreeMap::new();
        for message in connection.dump(Kind::GetRule, every_family, &[])? {
            let (Some(table), Some(chain)) = (message.text(1), message.text(2)) else { continue };
            if is_own(&message, &table) {
                continue;
            }
            let handle = message.find(3).and_then(crate::netlink::nfnetlink::long).unwrap_or(0);
            let place = ChainRef { family: message.family, table, chain };
            rules.entry(place).or_default().push(Rule { handle, message });
        }
        let legacy = [true, false].map(legacy::read);
        if legacy.iter().any(|lines| !lines.as_ref().is_ok_and(Tables::is_empty)) {
            bases.extend(legacy::base_chains());
        }
        Ok(Self { bases, rules, legacy })
    }
}

fn base_chain(message: &Message) -> Option<BaseChain> {
    /// Numbers of linux/netfilter/nf_tables.h.
    const HOOK: u16 = 4;
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    let about = message.find(HOOK)?;
    let hook = match (message.family, number(find(about, 1)?)?) {
        (NETDEV, 0) | (INET, 5) => Hook::Ingress,
        (BRIDGE, 0) => Hook::BridgePrerouting,
        (BRIDGE, 1) => Hook::BridgeInput,
        (BRIDGE, 2) => Hook::BridgeForward,
        (BRIDGE, 3) => Hook::BridgeOutput,
        (BRIDGE, 4) => Hook::BridgePostrouting,
        (NETDEV, 1) => Hook::Egress,
        (NETDEV | ARP | BRIDGE, _) => return None,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    };
    let one = find(about, DEVICE).map(text);
    let several = attributes(find(about, DEVICES).unwrap_or_default()).map(|(_, name)| text(name));
    let place =
        ChainRef { family: message.family, table: message.text(1)?, chain: message.text(3)? };
    Some(BaseChain {
        chain: Chain::Nft(place),
        hook,
        priority: number(find(about, 2)?)?.cast_signed(),
        devices: one.into_iter().chain(several).collect(),
    })
}

/// What a set or a map has.
pub(super) struct Set {
    pub(super) key_bytes: usize,
    pub(super) is_interval: bool,
    /// Packets or time change it.
    pub(super) is_dynamic: bool,
    /// What looking into it does, beside counting.
    pub(super) effect: Option<&'static str>,
    /// The kind of object that it leads to.
    pub(super) objects: Option<u32>,
    pub(super) elements: Vec<Element>,
}

pub(super) struct Element {
    /// None for one that stands for all others.
    pub(super) key: Option<Vec<u8>>,
    /// It is the first value behind an interval.
    pub(super) is_end: bool,
    /// Its key is the first of several.
    pub(super) has_last: bool,
    /// The verdict that it leads to, and the chain.
    pub(super) verdict: Option<(i32, String)>,
}

impl Set {
    /// Reads it; `None` where that fails.
    pub(super) fn read(connection: &mut Connection, at: &ChainRef, name: &str) -> Option<Self> {
        /// Numbers of linux/netfilter/nf_tables.h.
        const INTERVAL: u32 = 0x4;
        const CHANGING: u32 = 0x10 | 0x20;
        let sets = connection.dump(Kind::GetSet, at.family, &named(1, &at.table)).ok()?;
        let set = sets.iter().find(|set| {
            set.text(1).as_deref() == Some(&at.table) && set.text(2).as_deref() == Some(name)
        })?;
        let flags = set.number(3).unwrap_or(0);
        let declared = effects(set.find(17), set.find(18));
        let ask = [named(1, &at.table), named(2, name)].concat();
        let lists = connection.dump(Kind::GetSetElements, at.family, &ask).ok()?;
        let mut effect = declared;
        let mut elements = Vec::new();
        for (_, element) in lists.iter().filter_map(|list| list.find(3)).flat_map(attributes) {
            effect = effect.or_else(|| effects(find(element, 7), find(element, 11)));
            let verdict = find(element, 2).and_then(|data| find(data, 2));
            let code = verdict.and_then(|verdict| find(verdict, 1)).and_then(number);
            let chain = verdict.and_then(|verdict| find(verdict, 2)).map(text).unwrap_or_default();
            elements.push(Element {
                key: find(element, 1).and_then(|key| find(key, 1)).map(<[u8]>::to_vec),
                is_end: find(element, 3).and_then(number).is_some_and(|flags| flags & 1 != 0),
                has_last: find(element, 10).is_some(),
                verdict: code.map(|code| (code.cast_signed(), chain)),
            });
        }
        elements.sort_by(|a, b| (&a.key, !a.is_end).cmp(&(&b.key, !b.is_end)));
        Some(Self {
            key_bytes: set.number(5).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0),
            is_interval: flags & INTERVAL != 0,
            is_dynamic: flags & CHANGING != 0,
            effect,
            objects: set.number(15),
            elements,
        })
    }

    /// Where the elements are in which this key may be; none where it certainly is in none. True
    /// where it certainly is in the first of them.
    pub(super) fn candidates(&self, key: &[Option<u8>]) -> (Vec<&Element>, bool) {
        let others = || self.elements.iter().filter(|element| element.key.is_none());
        let has_several = self.elements.iter().any(|element| element.has_last);
        let known: Option<Vec<u8>> = key.iter().copied().collect();
        if self.is_dynamic || has_several || self.is_interval && known.is_none() {
            return (self.elements.iter().collect(), false);
        }
        let keyed = |element: &&Element| element.key.is_some();
        if self.is_interval {
            let is_before = |element: &&Element| element.key <= known;
            let before = self.elements.iter().filter(keyed).rfind(is_before);
            let found = before.filter(|element| !element.is_end);
            let is_certain = found.is_some();
            return (found.into_iter().chain(others()).collect(), is_certain);
        }
        let may_be = |element: &&Element| {
            let value = element.key.as_deref().unwrap_or_default();
            super::truth::equal(key, value) != super::truth::Truth::No
        };
        let found: Vec<&Element> = self.elements.iter().filter(keyed).filter(may_be).collect();
        let is_certain = known.is_some() && !found.is_empty();
        (found.into_iter().chain(others()).collect(), is_certain)
    }
}

/// What a set's statements do, one or a list of them.
fn effects(one: Option<&[u8]>, list: Option<&[u8]>) -> Option<&'static str> {
    let listed = attributes(list.unwrap_or_default()).map(|(_, expression)| expression);
    one.into_iter().chain(listed).find_map(|expression| {
        let name = find(expression, 1).map(text).unwrap_or_default();
        memory::of_expression(&name, find(expression, 2).unwrap_or_default())
    })
}
