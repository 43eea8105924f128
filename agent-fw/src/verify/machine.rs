//! The rules of a table, carried out on all packets at once.
//!
//! Each instruction splits the packets that come to it in those that meet it and those that do
//! not. What comes out is true of every packet, or names the rule that could not be followed.

use super::comparison::{Members, Test};
use super::table::{Base, Effect, HookPoint};
use super::value::Value;
use crate::model::packet_set::{Condition, Connection, Cube, Field, PacketSet};
use crate::model::{Ordinal, Range, TableName};
use crate::nft::{Comparison, Elements, Expression, Instruction, LiveTable, Program};
use std::collections::{BTreeMap, BTreeSet};

/// Chains that call each other go no deeper in the kernel.
const MOST_JUMPS: usize = 16;

/// The rules, ready to be carried out.
pub(super) struct Machine<'a> {
    is_arp: bool,
    /// The hook at which packets are.
    way: HookPoint,
    chains: BTreeMap<&'a str, &'a [Program]>,
    foreign: BTreeMap<(&'a str, usize), &'a [Instruction]>,
    sets: BTreeMap<&'a str, &'a Elements>,
    dropped: Vec<Cube>,
    labelled: Vec<Cube>,
    unknown: Vec<(Cube, String)>,
}

/// What of a chain's packets came out of it.
#[derive(Default)]
struct Outcome {
    /// Accepted: they leave the base chain.
    accepted: Vec<Cube>,
    /// They go on in the caller.
    fell: Vec<Cube>,
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
    pub(super) fn new(live: &'a LiveTable) -> Self {
        let opaque: BTreeSet<&str> = live.foreign.opaque_sets.iter().map(String::as_str).collect();
        let sets = live.image.sets.iter().chain(&live.foreign.sets);
        let is_known = |name: &str| !opaque.contains(name) && !live.foreign.is_torn;
        Self {
            is_arp: live.image.name == TableName::Arp,
            way: HookPoint::Elsewhere,
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
            dropped: Vec::new(),
            labelled: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// What became of the packets that were sent so far.
    pub(super) fn take_effect(&mut self) -> Effect {
        let dropped: PacketSet = std::mem::take(&mut self.dropped).into_iter().collect();
        let labelled: PacketSet = std::mem::take(&mut self.labelled).into_iter().collect();
        // The connection of a packet that is dropped never comes to be.
        let labelled = labelled.difference(&dropped);
        Effect { dropped, labelled, unknown: std::mem::take(&mut self.unknown), late: None }
    }

    /// Sends packets through a base chain: those that pass it.
    pub(super) fn pass(&mut self, base: &Base, packets: PacketSet) -> PacketSet {
        if base.is_partial {
            let why = format!("chain {}, which is no filter", base.chain);
            self.do_not_know(packets.cubes().iter().cloned(), &why);
            return packets;
        }
        self.way = base.way;
        let name = self.chains.get_key_value(base.chain.as_str()).map(|(name, _)| *name);
        let Some(name) = name else { return packets };
        let packets = packets.into_iter().collect();
        let Outcome { mut accepted, fell } = self.run(name, packets, 0);
        if base.drops {
            self.dropped.extend(fell);
        } else {
            accepted.extend(fell);
        }
        accepted.into_iter().collect()
    }

    fn do_not_know(&mut self, packets: impl IntoIterator<Item = Cube>, why: &str) {
        self.unknown.extend(packets.into_iter().map(|cube| (cube, why.to_owned())));
    }

    fn run(&mut self, chain: &'a str, packets: Vec<Cube>, depth: usize) -> Outcome {
        let rules = self.chains.get(chain).copied().unwrap_or_default();
        let mut outcome = Outcome::default();
        let mut current = packets;
        let mut bound = 0;
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
            for cube in current {
                let (matched, how) = self.carry_out(instructions, cube, &words, &mut next);
                if let Some(cube) = matched {
                    met.push(cube);
                    end = how;
                }
            }
            match end {
                _ if met.is_empty() => {}
                End::Next => next.extend(met),
                End::Accept => outcome.accepted.extend(met),
                End::Drop => self.dropped.extend(met),
                End::Return => outcome.fell.extend(met),
                End::Jump(target) | End::Goto(target) if depth >= MOST_JUMPS => {
                    let why = format!("{words}, which goes too deep into {target}");
                    self.do_not_know(met, &why);
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
            // It is worth the trouble where there are many more than before.
            current = if next.len() > bound { united(next) } else { next };
            bound = bound.max(2 * current.len());
        }
        outcome.fell.extend(current);
        outcome.fell = united(outcome.fell);
        outcome
    }

    fn enter(&mut self, target: &str, packets: Vec<Cube>, depth: usize) -> Outcome {
        match self.chains.get_key_value(target).map(|(name, _)| *name) {
            Some(name) => self.run(name, packets, depth + 1),
            None => Outcome { fell: packets, ..Outcome::default() },
        }
    }

    /// Carries out a rule: what met all of it, and how it ended. The rest goes to `next`.
    fn carry_out<'b>(
        &mut self,
        instructions: &'b [Instruction],
        packets: Cube,
        rule: &str,
        next: &mut Vec<Cube>,
    ) -> (Option<Cube>, End<'b>) {
        let mut register = None;
        let mut cube = packets;
        for instruction in instructions {
            let test = match self.step(instruction, &mut register) {
                Step::End(end) => return (Some(cube), end),
                Step::Sometimes if decides(instructions) => {
                    self.do_not_know([cube], &format!("{rule}, which holds at some times only"));
                    return (None, End::Next);
                }
                // Where it only holds sometimes, that makes no difference here.
                Step::Nothing | Step::Sometimes => continue,
                Step::Label => {
                    let tracked = Connection::numbers(Connection::is_tracked);
                    self.labelled.extend(cube.clone().limited(Field::Connection, &tracked));
                    continue;
                }
                Step::Test(test) => test,
                Step::Unknown(what) => {
                    self.do_not_know([cube], &format!("{rule}: {what}"));
                    return (None, End::Next);
                }
            };
            let Some(value) = register.as_ref() else {
                self.do_not_know([cube], &format!("{rule}, which compares nothing"));
                return (None, End::Next);
            };
            // What the value says nothing about, in packets where it lies elsewhere.
            let [with, without] = match value.scope() {
                None => [Some(cube), None],
                Some(scope) => cube.split(&scope),
            };
            let why = format!("{rule}, which reads {value} where there is none");
            self.do_not_know(without, &why);
            let Some(with) = with else { return (None, End::Next) };
            match self.condition(value, &test, &with) {
                Ok(condition) => {
                    let [met, other] = with.split(&condition);
                    next.extend(other);
                    let Some(met) = met else { return (None, End::Next) };
                    cube = met;
                }
                Err(what) => {
                    self.do_not_know([with], &format!("{rule}: {what}"));
                    return (None, End::Next);
                }
            }
        }
        (Some(cube), End::Next)
    }

    /// The packets that pass a test at this hook, or why that is not known.
    fn condition(&self, value: &Value, test: &Test, of: &Cube) -> Result<Condition, String> {
        let is_early = self.way == HookPoint::Prerouting;
        if is_early && (value.is_of_connection() || value.is_output()) {
            return Err(format!("it looks at {value} where there may be none yet"));
        }
        if value.is_label() && self.labelled.iter().any(|cube| cube.intersects(of)) {
            return Err("it looks at a label that a rule has just set".to_owned());
        }
        value.condition(test)
    }

    fn step<'b>(&self, instruction: &'b Instruction, register: &mut Option<Value>) -> Step<'b> {
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

    fn known<'b>(&self, expression: &'b Expression, register: &mut Option<Value>) -> Step<'b> {
        match expression {
            Expression::SetCtLabels => {
                return match register {
                    Some(value) if value.is_bypass_label() => Step::Label,
                    _ => Step::Unknown(format!("instruction `{expression}`")),
                };
            }
            Expression::Ct(key) => *register = Some(Value::connection(*key)),
            Expression::Constant(bytes) => *register = Some(Value::constant(bytes)),
            Expression::FibSourceType => *register = Some(Value::SOURCE_TYPE),
            Expression::Mask(mask) => match register {
                Some(value) => value.mask(mask),
                None => return Step::Unknown("a mask of nothing".to_owned()),
            },
            Expression::CompareDifferent(data) => {
                return Step::Test(Test::Compare(Comparison::Different, data.clone()));
            }
            Expression::Meta(key) => *register = Some(Value::meta(*key)),
            Expression::Payload(payload) => {
                *register = Some(Value::payload(*payload, self.is_arp));
            }
            Expression::FibDestinationType => *register = Some(Value::DESTINATION_TYPE),
            Expression::CompareEqual(data) => return Step::Test(Test::Equal(data.clone())),
            Expression::CompareAtMost(data) => return Step::Test(Test::AtMost(data.clone())),
            Expression::Lookup { set } => return self.look_up(set, true),
            Expression::Count { .. } | Expression::Log { .. } => {}
            // It learns only where the set has room.
            Expression::Limit { .. } | Expression::Learn { .. } => return Step::Sometimes,
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

/// As few cubes as easily hold the same packets.
fn united(cubes: Vec<Cube>) -> Vec<Cube> {
    cubes.into_iter().collect::<PacketSet>().into_iter().collect()
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
    /// Labels the packet's connection, if it has one.
    Label,
    End(End<'a>),
    Unknown(String),
}
