//! A packet's way through the rules of the host, walked before it is sent: every rule that it may
//! meet is looked at, and a rule is left out only where it is certain that the packet does not meet
//! it.

use super::StatefulRule;
use super::expressions::{Looked, Sets};
use super::legacy::Line;
use super::packet::Packet;
use super::ruleset::{BaseChain, Chain, Hook, Rule, Ruleset};
use super::truth::Truth;
use super::xtables;
use crate::netlink::link::Interface;
use crate::trace::events::ChainRef;
use std::collections::BTreeMap;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const V4: u8 = 2;
const V6: u8 = 10;
/// Deeper than the kernel lets chains call each other.
const DEEPEST: usize = 64;

/// Not known to connection tracking, or not yet.
const INVALID: u32 = 1;
/// What a packet that asks for a connection may be: new, related, untracked.
pub(super) const ASKING: &[u32] = &[8, 4, 64];
/// What any other may be: those, established, and invalid.
pub(super) const ANY: &[u32] = &[8, 4, 64, 2, INVALID];

/// Where a packet passes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    In,
    Out,
}

/// How a chain ends for the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    /// It certainly goes no further in this base chain.
    Ends,
    /// It may go on behind whatever called the chain.
    GoesOn,
}

/// One packet on its way.
pub(super) struct Walk<'a> {
    ruleset: &'a Ruleset,
    sets: &'a mut Sets,
    pub(super) packet: Packet,
    /// What was found, by where it stands.
    found: BTreeMap<(String, String, u64), StatefulRule>,
    /// The states that it may have for connection tracking, by the numbers of nf_tables.
    states: &'static [u32],
    /// What chains that were walked came to: the packet before and behind each.
    walked: BTreeMap<ChainRef, Vec<(Packet, Packet, Flow)>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        ruleset: &'a Ruleset,
        sets: &'a mut Sets,
        packet: Packet,
        states: &'static [u32],
    ) -> Self {
        let (found, walked) = (BTreeMap::new(), BTreeMap::new());
        Self { ruleset, sets, packet, found, states, walked }
    }

    pub(super) fn found(self) -> Vec<StatefulRule> {
        self.found.into_values().collect()
    }

    /// Goes through the base chains of a direction, as from this interface.
    pub(super) fn go(&mut self, direction: Direction, interface: Option<&Interface>) {
        let mut due: Vec<&BaseChain> =
            self.ruleset.bases.iter().filter(|base| meets(base, direction, interface)).collect();
        due.sort_by_key(|base| (base.hook, base.priority));
        for group in due.chunk_by(|a, b| (a.hook, a.priority) == (b.hook, b.priority)) {
            let before = self.packet.clone();
            for base in group {
                self.enter(base);
            }
            // Of those with one priority, it is not known which comes first.
            if group.len() > 1 && self.packet != before {
                for base in group {
                    self.enter(base);
                }
            }
        }
    }

    /// One base chain, with every state that the packet may have for connection tracking there.
    fn enter(&mut self, base: &BaseChain) {
        /// The priority of connection tracking.
        const TRACKING: i32 = -200;
        let is_early = match base.hook {
            Hook::Prerouting | Hook::Output => base.priority <= TRACKING,
            hook => hook < Hook::Prerouting,
        };
        let early = is_early.then_some(INVALID);
        let before = self.packet.clone();
        let mut after = before.clone();
        for state in self.states.iter().copied().chain(early) {
            self.packet = Packet { state, ..before.clone() };
            match &base.chain {
                Chain::Nft(place) => drop(self.chain(place, 0)),
                Chain::Legacy(table, chain) => drop(self.legacy(table, chain, 0)),
            }
            after.meet(&self.packet);
        }
        self.packet = after;
    }

    fn chain(&mut self, place: &ChainRef, depth: usize) -> Flow {
        let fits = match place.family {
            V4 => self.packet.is_v4(),
            V6 => !self.packet.is_v4(),
            _ => true,
        };
        if !fits || depth > DEEPEST {
            return Flow::GoesOn;
        }
        let known = self
            .walked
            .get(place)
            .and_then(|all| all.iter().find(|(before, ..)| *before == self.packet).cloned());
        if let Some((_, after, flow)) = known {
            self.packet = after;
            return flow;
        }
        let before = self.packet.clone();
        let ruleset = self.ruleset;
        let mut flow = Flow::GoesOn;
        for rule in ruleset.rules.get(place).map_or(&[][..], Vec::as_slice) {
            match self.rule(place, rule, depth) {
                None => {}
                Some(end) => {
                    flow = end;
                    break;
                }
            }
        }
        let walked = self.walked.entry(place.clone()).or_default();
        walked.push((before, self.packet.clone(), flow));
        flow
    }

    /// Whether the chain certainly ends with this rule, and how.
    fn rule(&mut self, place: &ChainRef, rule: &Rule, depth: usize) -> Option<Flow> {
        let looked = Looked::at(rule, place, &mut self.packet, self.sets);
        if let Some(effect) = looked.effect {
            self.note(place, rule, effect);
        }
        if looked.holds == Truth::No {
            return None;
        }
        let is_certain = looked.holds == Truth::Yes;
        let mut ends = None;
        for (code, chain) in &looked.verdicts {
            let end = match *code {
                libc::NFT_JUMP | libc::NFT_GOTO => {
                    let to = ChainRef { chain: chain.clone(), ..place.clone() };
                    let flow = self.chain(&to, depth + 1);
                    match (flow, *code) {
                        (Flow::Ends, _) => Some(Flow::Ends),
                        (Flow::GoesOn, libc::NFT_GOTO) => Some(Flow::GoesOn),
                        (Flow::GoesOn, _) => None,
                    }
                }
                libc::NFT_RETURN => Some(Flow::GoesOn),
                libc::NFT_CONTINUE | libc::NFT_BREAK => None,
                code if matches!(code & 0xff, libc::NF_ACCEPT | libc::NF_DROP) => Some(Flow::Ends),
                // It goes to a program, which may change it.
                _ => {
                    self.packet.forget_all();
                    self.note(place, rule, "gives it to a program, which may remember it");
                    None
                }
            };
            // With several verdicts, none is certain.
            ends = if is_certain && looked.verdicts.len() == 1 { end } else { None };
        }
        ends
    }

    fn note(&mut self, place: &ChainRef, rule: &Rule, effect: &'static str) {
        let key = (place.to_string(), place.family.to_string(), rule.handle);
        if !self.found.contains_key(&key) {
            let text = self.sets.words_of(place, rule);
            self.found.insert(key, StatefulRule::of_nft(place, rule.handle, text, effect));
        }
    }

    fn legacy(&mut self, table: &str, chain: &str, depth: usize) -> Flow {
        let ruleset = self.ruleset;
        let tables = match &ruleset.legacy[usize::from(!self.packet.is_v4())] {
            Ok(tables) => tables,
            Err(why) => {
                let key = ("iptables-legacy".to_owned(), String::new(), 0);
                self.found.entry(key).or_insert_with(|| StatefulRule::unreadable(why));
                self.packet.forget_all();
                return Flow::GoesOn;
            }
        };
        if depth > DEEPEST {
            return Flow::GoesOn;
        }
        let is_here = |line: &&Line| line.table == table && line.chain == chain;
        let is_chain = |name: &str| tables.has_chain(table, name);
        for (number, line) in tables.lines.iter().enumerate().filter(|(_, line)| is_here(line)) {
            let met = line.meet(&self.packet, is_chain);
            if let Some(effect) = met.effect {
                let key = (format!("iptables-legacy {table}"), chain.to_owned(), number as u64);
                self.found.entry(key).or_insert_with(|| StatefulRule::of_legacy(line, effect));
            }
            let Some(target) = met.target.filter(|_| met.holds != Truth::No) else { continue };
            let is_certain = met.holds == Truth::Yes;
            let end = match target {
                "ACCEPT" | "DROP" | "REJECT" => Some(Flow::Ends),
                "RETURN" => Some(Flow::GoesOn),
                chain if is_chain(chain) => match self.legacy(table, chain, depth + 1) {
                    Flow::Ends => Some(Flow::Ends),
                    Flow::GoesOn => met.is_goto.then_some(Flow::GoesOn),
                },
                target => {
                    if !xtables::keeps_addresses(target) {
                        self.packet.forget_all();
                    }
                    None
                }
            };
            if let Some(end) = end.filter(|_| is_certain) {
                return end;
            }
        }
        Flow::GoesOn
    }
}

/// Whether the packet comes to a base chain.
fn meets(base: &BaseChain, direction: Direction, interface: Option<&Interface>) -> bool {
    // A port's frames go on as those of what it is a port of, and by that one's chains, too.
    let is_port = interface.is_none_or(|interface| interface.master.is_some());
    let is_at = |interface: &Interface| base.devices.contains(&interface.name);
    let is_last = base.priority == i32::MAX;
    match (base.hook, direction) {
        (Hook::Ingress, Direction::In) => is_port || interface.is_some_and(is_at),
        (Hook::BridgePrerouting | Hook::BridgeInput | Hook::BridgeForward, Direction::In) => {
            is_port
        }
        // By which interface it leaves is not known yet.
        (Hook::Prerouting, Direction::In)
        | (
            Hook::Output | Hook::BridgeOutput | Hook::BridgePostrouting | Hook::Egress,
            Direction::Out,
        ) => true,
        // It is caught before the last.
        (Hook::Input, Direction::In) | (Hook::Postrouting, Direction::Out) => !is_last,
        // It is caught by the first.
        (Hook::Forward, Direction::In) => base.priority == i32::MIN,
        _ => false,
    }
}
