//! From the kernel's table to an [`Image`], reading nothing but the kernel.

mod element;
mod expression;
mod foreign;
mod object;
mod reader;

use super::socket::{NetlinkError, Socket};
use crate::model::TableName;
use crate::nft::Stamp;
use crate::nft::compile::agent_port::GATE;
use crate::nft::expression::{Expression, Program};
use crate::nft::foreign::{Foreign, Instruction};
use crate::nft::kernel::set_generation::SetGeneration;
use crate::nft::table::{Chain, Elements, Image, Set};
use reader::Reader;
pub(super) use reader::generation;
use std::collections::BTreeMap;

/// How often a read is tried again when the ruleset changes meanwhile.
const ATTEMPTS: usize = 20;

/// The table as it is in the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LiveTable {
    /// What of it agent-fw could have put there.
    pub image: Image,
    /// What it certainly has not put there, in words.
    pub strays: Vec<String>,
    /// Sets of an update that did not come to its end, by their names in the kernel. No rule uses
    /// them.
    pub leftovers: Vec<String>,
    /// What could be read of what agent-fw has not put there.
    pub foreign: Foreign,
    /// Who may change it.
    pub tenure: Ownership,
    /// Which names the sets in use have.
    pub(super) epoch: SetGeneration,
}

impl LiveTable {
    /// The stamp: which policy the table says that it enforces.
    pub fn stamp(&self) -> Option<Stamp> {
        let gate = self.image.chains.iter().find(|chain| chain.name == GATE)?;
        Stamp::parse(&gate.rules.first()?.comment)
    }
}

/// Who may change a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ownership {
    /// Whoever may change nf_tables.
    #[default]
    Free,
    /// The same, until somebody takes it for its own: it outlives its owners.
    Orphan,
    /// The connection that owns it, and nobody else.
    Owned,
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// All but the elements of sets.
    Outline,
    /// All.
    Everything,
}

/// Reads a table as of one moment.
pub(super) fn read(
    socket: &mut Socket,
    table: TableName,
    depth: Depth,
) -> Result<Option<LiveTable>, NetlinkError> {
    for _ in 0..ATTEMPTS {
        let before = generation(socket)?;
        let reading = read_once(socket, table, depth)?;
        if !reading.torn && generation(socket)? == before {
            return Ok(reading.live);
        }
    }
    Err(NetlinkError::KeptChanging)
}

/// What one pass over the table found.
struct Reading {
    live: Option<LiveTable>,
    /// Whether the ruleset changed meanwhile.
    torn: bool,
}

fn read_once(socket: &mut Socket, table: TableName, depth: Depth) -> Result<Reading, NetlinkError> {
    let mut reader = Reader::new(socket, table);
    let Some((comment, tenure)) = reader.table()? else {
        return Ok(Reading { live: None, torn: false });
    };
    let counters = reader.counters()?;
    let mut sets = reader.sets(depth)?;
    let mut chains = reader.chains()?;
    reader.flowtables()?;
    let Reader { mut strays, mut foreign, torn, .. } = reader;
    let (epoch, is_one) = epoch_in_use(&mut chains);
    if !is_one {
        strays.push("rules that look into the sets of two updates".to_owned());
        foreign.is_torn = true;
    }
    name_sets(&mut foreign, epoch);
    let leftovers = leftovers(&mut sets, epoch);
    tell_lengths(&mut sets, &chains);
    let image = Image { name: table, comment, counters, sets, chains };
    Ok(Reading { live: Some(LiveTable { image, strays, leftovers, foreign, tenure, epoch }), torn })
}

/// Gives the sets that rules look into the compiler's names, and tells of which epoch they are, and
/// whether all are of that one.
fn epoch_in_use(chains: &mut [Chain<Program>]) -> (SetGeneration, bool) {
    let mut epochs = Vec::new();
    let rules = chains.iter_mut().flat_map(|chain| &mut chain.rules);
    for expression in rules.flat_map(|rule| &mut rule.expressions) {
        if let Expression::Lookup { set } | Expression::Learn { set } = expression {
            let (name, epoch) = SetGeneration::split(set);
            epochs.push(epoch);
            *set = name.to_owned();
        }
    }
    let in_use = epochs.first().copied().unwrap_or_default();
    (in_use, epochs.iter().all(|epoch| *epoch == in_use))
}

/// Gives the sets of this epoch that foreign rules look into the compiler's names.
fn name_sets(foreign: &mut Foreign, epoch: SetGeneration) {
    for instruction in foreign.rules.iter_mut().flat_map(|rule| &mut rule.instructions) {
        if let Instruction::Known(Expression::Lookup { set } | Expression::Learn { set })
        | Instruction::LookupNot(set) = instruction
            && SetGeneration::split(set).1 == epoch
        {
            *set = SetGeneration::split(set).0.to_owned();
        }
    }
}

/// Tells of what length the prefixes of sets are, by the masks with which rules look into them.
fn tell_lengths(sets: &mut [Set], chains: &[Chain<Program>]) {
    let rules = chains.iter().flat_map(|chain| &chain.rules);
    let masked = rules.flat_map(|rule| rule.expressions.windows(2)).filter_map(|pair| match pair {
        [Expression::Mask(mask), Expression::Lookup { set }] => Some((set.as_str(), mask)),
        _ => None,
    });
    let masks: BTreeMap<&str, &Vec<u8>> = masked.collect();
    for set in sets {
        let Some(mask) = masks.get(set.name.as_str()) else { continue };
        let ones = mask.iter().map(|byte| byte.leading_ones()).sum::<u32>();
        let ones = u8::try_from(ones).unwrap_or(u8::MAX);
        match &mut set.elements {
            Elements::HashedV4(prefixes) => prefixes.length = ones,
            Elements::HashedV6(prefixes) => prefixes.length = ones,
            _ => {}
        }
    }
}

/// Takes the sets of the epoch that is not in use out, and gives the others the compiler's names.
fn leftovers(sets: &mut Vec<Set>, in_use: SetGeneration) -> Vec<String> {
    let left = sets.extract_if(.., |set| SetGeneration::split(&set.name).1 != in_use);
    let left = left.map(|set| set.name).collect();
    for set in sets {
        SetGeneration::split(&set.name).0.to_owned().clone_into(&mut set.name);
    }
    left
}
