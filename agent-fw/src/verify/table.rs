//! What the kernel's table does with packets: its rules, carried out on all packets at once.
//!
//! Each instruction splits the packets that come to it in those that meet it and those that do
//! not. What comes out is true of every packet, or names the rule that could not be followed.

use super::field::{Field, Test};
use super::region::{Block, Condition, LOCAL, NO, only, united};
use crate::model::{MacAddr, Ordinal, Port, Range, RangeSet};
use crate::nft::{
    BaseChain, Comparison, Elements, Expression, ForeignBase, Hook, Instruction, Key,
    LATE_PRIORITY, Live, Program,
};
use std::collections::{BTreeMap, BTreeSet};

/// Chains that call each other go no deeper in the kernel.
const MOST_JUMPS: usize = 16;

/// What becomes of packets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effect {
    /// Packets that are dropped.
    pub dropped: Vec<Block>,
    /// Packets of which that is not known, and the rule that they came to.
    pub unknown: Vec<(Block, String)>,
    /// What becomes of packets at the end of the hook `input`, whatever they looked like before:
    /// somebody may have given them the port there. `None` of what has no such end.
    pub late: Option<Late>,
}

/// What becomes of packets at the end of the hook `input`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Late {
    /// Packets that are dropped.
    pub dropped: Vec<Block>,
    /// Packets of which that is not known, and the rule that they came to.
    pub unknown: Vec<(Block, String)>,
}

impl Effect {
    /// The same, of something that sees frames as they come in: none of them has come by the device
    /// of a VRF yet.
    pub(super) fn before_any_vrf(self) -> Self {
        let frame = Condition::Vrf(only(NO));
        let frames = |block: Block| block.met(&frame);
        let unknown =
            self.unknown.into_iter().filter_map(|(block, why)| Some((frames(block)?, why)));
        Self {
            unknown: unknown.collect(),
            late: None,
            dropped: self.dropped.into_iter().filter_map(frames).collect(),
        }
    }
}

/// What the table does with packets.
pub fn effect(live: &Live) -> Effect {
    if live.foreign.dormant {
        return Effect::default();
    }
    let mut machine = Machine::new(live);
    let mut bases: Vec<Base> = live
        .image
        .chains
        .iter()
        .filter_map(|chain| Base::ours(&chain.name, chain.base?))
        .chain(live.foreign.bases.iter().filter_map(Base::foreign))
        .collect();
    bases.sort_by_key(|base| base.priority);
    let mut through = |way: Way, mut packets: Vec<Block>| {
        for base in bases.iter().filter(|base| base.way == way) {
            packets = machine.pass(base, packets);
        }
        packets
    };
    let passing = through(Way::Prerouting, vec![Block::everything()]);
    // Behind the routing, packets for this host and those for others part.
    let local = Condition::Destination(only(LOCAL));
    let (here, away): (Vec<_>, Vec<_>) =
        passing.into_iter().map(|block| block.split(&local)).unzip();
    through(Way::Input, here.into_iter().flatten().collect());
    through(Way::Forward, away.into_iter().flatten().collect());
    let Effect { dropped, unknown, .. } = std::mem::take(&mut machine.effect);
    // What comes to the last chains as a packet to the port need not have been one at the first.
    let at_input = Block::everything().met(&local).into_iter().collect();
    let is_late = |base: &&Base| base.way == Way::Input && base.priority >= LATE_PRIORITY;
    bases.iter().filter(is_late).fold(at_input, |packets, base| machine.pass(base, packets));
    let Effect { dropped: late, unknown: uncertain, .. } = machine.effect;
    let late = Late { dropped: united(late), unknown: uncertain };
    Effect { dropped: united(dropped), unknown, late: Some(late) }
}

/// Where packets that come in meet a base chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Prerouting,
    Input,
    Forward,
}

/// A base chain in the way of packets that come in.
struct Base {
    chain: String,
    way: Way,
    priority: i32,
    drops: bool,
    /// A chain of another type sees some packets only: the first of a connection.
    is_partial: bool,
}

impl Base {
    fn ours(chain: &str, BaseChain { hook, priority }: BaseChain) -> Option<Self> {
        let way = match hook {
            Hook::Prerouting => Way::Prerouting,
            Hook::Input => Way::Input,
            // What this host sends, answers too, is not what a policy of sources is about.
            Hook::Output => return None,
        };
        Some(Self { chain: chain.to_owned(), way, priority, drops: false, is_partial: false })
    }

    fn foreign(base: &ForeignBase) -> Option<Self> {
        let way = match base.hook {
            0 => Way::Prerouting,
            1 => Way::Input,
            2 => Way::Forward,
            // Answers, and what this host begins, go by the others.
            _ => return None,
        };
        let ForeignBase { chain, priority, kind, drops, .. } = base;
        let (chain, is_partial) = (chain.clone(), kind != "filter");
        Some(Self { chain, way, priority: *priority, drops: *drops, is_partial })
    }
}

/// The rules, ready to be carried out.
struct Machine<'a> {
    chains: BTreeMap<&'a str, &'a [Program]>,
    foreign: BTreeMap<(&'a str, usize), &'a [Instruction]>,
    sets: BTreeMap<&'a str, &'a Elements>,
    effect: Effect,
}

/// What of a chain's packets came out of it.
#[derive(Default)]
struct Outcome {
    /// Accepted: they leave the base chain.
    accepted: Vec<Block>,
    /// They go on in the caller.
    fell: Vec<Block>,
}

/// How a rule ends for packets that meet all of it.
enum End<'a> {
    Next,
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

impl<'a> Machine<'a> {
    fn new(live: &'a Live) -> Self {
        let opaque: BTreeSet<&str> = live.foreign.opaque_sets.iter().map(String::as_str).collect();
        let sets = live.image.sets.iter().chain(&live.foreign.sets);
        let is_known = |name: &str| !opaque.contains(name) && !live.foreign.is_torn;
        Self {
            chains: live
                .image
                .chains
                .iter()
                .map(|c| (c.name.as_str(), c.rules.as_slice()))
                .collect(),
            foreign: live
                .foreign
                .rules
                .iter()
                .map(|rule| ((rule.chain.as_str(), rule.place), rule.instructions.as_slice()))
                .collect(),
            sets: sets
                .filter(|set| is_known(&set.name))
                .map(|set| (set.name.as_str(), &set.elements))
                .collect(),
            effect: Effect::default(),
        }
    }

    /// Sends packets through a base chain: those that pass it.
    fn pass(&mut self, base: &Base, packets: Vec<Block>) -> Vec<Block> {
        if base.is_partial {
            let why = format!("chain {}, which is no filter", base.chain);
            self.effect.unknown.extend(packets.iter().map(|block| (block.clone(), why.clone())));
            return packets;
        }
        let name = self.chains.get_key_value(base.chain.as_str()).map(|(name, _)| *name);
        let Some(name) = name else { return packets };
        let Outcome { mut accepted, fell } = self.run(name, packets, 0);
        if base.drops {
            self.effect.dropped.extend(fell);
        } else {
            accepted.extend(fell);
        }
        united(accepted)
    }

    fn run(&mut self, chain: &'a str, packets: Vec<Block>, depth: usize) -> Outcome {
        let rules = self.chains.get(chain).copied().unwrap_or_default();
        let mut outcome = Outcome::default();
        let mut current = packets;
        for (place, program) in rules.iter().enumerate() {
            if current.is_empty() {
                break;
            }
            let known: Vec<Instruction>;
            let instructions = if let Some(foreign) = self.foreign.get(&(chain, place)) {
                foreign
            } else {
                known = program.expressions.iter().cloned().map(Instruction::Known).collect();
                known.as_slice()
            };
            let words = format!("rule {} of chain {chain}", place + 1);
            let mut next = Vec::new();
            let mut met = Vec::new();
            let mut end = End::Next;
            for block in current {
                let (matched, how) = self.carry_out(instructions, block, &words, &mut next);
                if let Some(block) = matched {
                    met.push(block);
                    end = how;
                }
            }
            match end {
                _ if met.is_empty() => {}
                End::Next => next.extend(met),
                End::Accept => outcome.accepted.extend(met),
                End::Drop => self.effect.dropped.extend(met),
                End::Return => outcome.fell.extend(met),
                End::Jump(target) | End::Goto(target) if depth >= MOST_JUMPS => {
                    let why = format!("{words}, which goes too deep into {target}");
                    self.effect.unknown.extend(met.into_iter().map(|block| (block, why.clone())));
                }
                End::Jump(target) => {
                    let inner = self.enter(target, met, depth);
                    outcome.accepted.extend(inner.accepted);
                    next.extend(inner.fell);
                }
                End::Goto(target) => {
                    let inner = self.enter(target, met, depth);
                    outcome.accepted.extend(inner.accepted);
                    outcome.fell.extend(inner.fell);
                }
            }
            current = united(next);
        }
        outcome.fell.extend(current);
        outcome.fell = united(outcome.fell);
        outcome
    }

    fn enter(&mut self, target: &str, packets: Vec<Block>, depth: usize) -> Outcome {
        match self.chains.get_key_value(target).map(|(name, _)| *name) {
            Some(name) => self.run(name, packets, depth + 1),
            None => Outcome { fell: packets, ..Outcome::default() },
        }
    }

    /// Carries out a rule: what met all of it, and how it ended. The rest goes to `next`.
    fn carry_out<'b>(
        &mut self,
        instructions: &'b [Instruction],
        packets: Block,
        rule: &str,
        next: &mut Vec<Block>,
    ) -> (Option<Block>, End<'b>) {
        let mut register = None;
        let mut block = packets;
        for instruction in instructions {
            let test = match self.step(instruction, &mut register) {
                Step::End(end) => return (Some(block), end),
                Step::Sometimes if decides(instructions) => {
                    let why = format!("{rule}, which holds at some times only");
                    self.effect.unknown.push((block, why));
                    return (None, End::Next);
                }
                // Where it only holds sometimes, that makes no difference here.
                Step::Nothing | Step::Sometimes => continue,
                Step::Test(test) => test,
                Step::Unknown(what) => {
                    self.effect.unknown.push((block, format!("{rule}: {what}")));
                    return (None, End::Next);
                }
            };
            let Some(field) = register.as_ref() else {
                self.effect.unknown.push((block, format!("{rule}, which compares nothing")));
                return (None, End::Next);
            };
            // What the field says nothing about, in packets where it lies elsewhere.
            let block_with = match field.scope() {
                None => Some(block),
                Some(scope) => {
                    let (with, without) = block.split(&scope);
                    if let Some(without) = without {
                        let why = format!("{rule}, which reads {field} where there is none");
                        self.effect.unknown.push((without, why));
                    }
                    with
                }
            };
            let Some(with) = block_with else { return (None, End::Next) };
            match field.condition(&test) {
                Ok(condition) => {
                    let (met, other) = with.split(&condition);
                    next.extend(other);
                    let Some(met) = met else { return (None, End::Next) };
                    block = met;
                }
                Err(what) => {
                    self.effect.unknown.push((with, format!("{rule}: {what}")));
                    return (None, End::Next);
                }
            }
        }
        (Some(block), End::Next)
    }

    fn step<'b>(&self, instruction: &'b Instruction, register: &mut Option<Field>) -> Step<'b> {
        match instruction {
            Instruction::Known(expression) => self.known(expression, register),
            Instruction::Compare(comparison, data) => {
                Step::Test(Test::Compare(*comparison, data.clone()))
            }
            Instruction::Between(from, to) => Step::Test(Test::Between(from.clone(), to.clone())),
            Instruction::LookupNot(set) => self.look_up(set, false),
            Instruction::Nothing => Step::Nothing,
            Instruction::Return => Step::End(End::Return),
            Instruction::Reject => Step::End(End::Drop),
            Instruction::Unknown(name) => Step::Unknown(format!("instruction `{name}`")),
        }
    }

    fn known<'b>(&self, expression: &'b Expression, register: &mut Option<Field>) -> Step<'b> {
        match expression {
            // What is learned, is at `output`, which is compared part by part.
            Expression::Learn { .. }
            | Expression::FibSourceType
            | Expression::Ct(_)
            | Expression::Constant(_)
            | Expression::SetCtLabels => {
                return Step::Unknown(format!("instruction `{expression}`"));
            }
            Expression::Mask(mask) => match register {
                Some(field) => field.mask(mask),
                None => return Step::Unknown("a mask of nothing".to_owned()),
            },
            Expression::CompareDifferent(data) => {
                return Step::Test(Test::Compare(Comparison::Different, data.clone()));
            }
            Expression::Meta(key) => match Field::meta(*key) {
                Some(field) => *register = Some(field),
                None => return Step::Unknown(format!("instruction `{expression}`")),
            },
            Expression::Payload(payload) => *register = Some(Field::payload(*payload)),
            Expression::FibDestinationType => *register = Some(Field::DESTINATION),
            Expression::CompareEqual(data) => return Step::Test(Test::Equal(data.clone())),
            Expression::CompareAtMost(data) => return Step::Test(Test::AtMost(data.clone())),
            Expression::Lookup { set } => return self.look_up(set, true),
            Expression::Count { .. } | Expression::Log { .. } => {}
            Expression::Limit { .. } => return Step::Sometimes,
            Expression::Accept => return Step::End(End::Accept),
            Expression::Drop => return Step::End(End::Drop),
            Expression::Jump { chain } => return Step::End(End::Jump(chain)),
            Expression::Goto { chain } => return Step::End(End::Goto(chain)),
        }
        Step::Nothing
    }

    fn look_up<'b>(&self, set: &str, is_in: bool) -> Step<'b> {
        let Some(elements) = self.sets.get(set) else {
            return Step::Unknown(format!("set {set}, which could not be read"));
        };
        let members = match elements {
            Elements::V4(ranges) => Members::V4(ranges.iter().copied().collect()),
            Elements::V6(ranges) => Members::V6(ranges.iter().copied().collect()),
            Elements::Mac(ranges) => Members::Mac(ranges.iter().copied().collect()),
            Elements::Port(ranges) => Members::Port(ranges.iter().copied().collect()),
            Elements::HashedV4(prefixes) => {
                Members::V4(prefixes.first.iter().map(single).collect())
            }
            Elements::HashedV6(prefixes) => {
                Members::V6(prefixes.first.iter().map(single).collect())
            }
            Elements::Learned(key) => Members::Learned(*key),
        };
        Step::Test(Test::In(members, is_in))
    }
}

fn single<T: Ordinal>(value: &T) -> Range<T> {
    Range::single(*value)
}

/// Whether the rule ends with a verdict.
fn decides(instructions: &[Instruction]) -> bool {
    instructions.iter().any(|instruction| match instruction {
        Instruction::Known(
            Expression::Accept
            | Expression::Drop
            | Expression::Jump { .. }
            | Expression::Goto { .. },
        )
        | Instruction::Return
        | Instruction::Reject
        | Instruction::Unknown(_) => true,
        Instruction::Known(_)
        | Instruction::Compare(..)
        | Instruction::Between(..)
        | Instruction::LookupNot(_)
        | Instruction::Nothing => false,
    })
}

enum Step<'a> {
    Nothing,
    /// Holds or not, for reasons that are not in the packet.
    Sometimes,
    Test(Test),
    End(End<'a>),
    Unknown(String),
}

/// What a set holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Members {
    V4(RangeSet<std::net::Ipv4Addr>),
    V6(RangeSet<std::net::Ipv6Addr>),
    Mac(RangeSet<MacAddr>),
    Port(RangeSet<Port>),
    /// What this host itself sends from, just now.
    Learned(Key),
}
