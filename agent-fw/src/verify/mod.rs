//! What the kernel enforces, for every packet, and a packet that tells where it differs from a
//! policy.
//!
//! The kernel's rules and tables are carried out on all packets at once: `table` does it for
//! nf_tables, `program` for XDP. Nothing here knows how a policy was encoded.

mod field;
#[cfg(feature = "xdp")]
#[cfg(feature = "xdp")]
mod program;
mod region;
mod table;

#[cfg(feature = "xdp")]
pub use program::programs;
pub use region::{Block, Number, Sample, Sender};
pub use table::{Effect, Late, effect};

use crate::model::{Policy, Range, RangeSet, Verdict};
use crate::netlink::link::Interface;
use region::{Condition, ETHERNET, NO, difference, only, refused};

/// What the kernel does with packets, by all that agent-fw has put there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kernel {
    /// The table, where there is one.
    pub table: Option<Effect>,
    /// The programs.
    pub programs: Vec<Program>,
}

/// A program of agent-fw's on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The interface.
    pub interface: Interface,
    /// What it does with packets.
    pub effect: Effect,
    /// What is wrong with it, in words.
    pub faults: Vec<String>,
    /// How many ranges of sources it lists.
    pub ranges: usize,
}

/// Reads the programs on interfaces: a build without the feature `xdp` has none.
#[cfg(not(feature = "xdp"))]
pub fn programs() -> anyhow::Result<Vec<Program>> {
    Ok(Vec::new())
}

/// Which packets a policy is enforced on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// All: by the table.
    Everywhere,
    /// Those that come in by these interfaces.
    Interfaces(Vec<u32>),
}

/// What the kernel does with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// It drops it.
    Drops,
    /// It lets it pass.
    Passes,
    /// It lets it pass where a rule at the hook `input`, or IPVS, has given it this port.
    PassesRewritten,
    /// That is not known: it comes to something that agent-fw has not put there.
    Unknown(String),
}

/// A packet that is not decided as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counterexample {
    /// The packet.
    pub packet: Sample,
    /// What the policy says.
    pub due: Verdict,
    /// What the kernel does.
    pub deed: Deed,
}

/// A packet that the kernel decides otherwise than the policy; `None` if there is no such packet.
pub fn counterexample(policy: &Policy, reach: &Reach, kernel: &Kernel) -> Option<Counterexample> {
    let at_interfaces: Vec<Effect> =
        kernel.programs.iter().map(|program| program.effect.clone().before_any_vrf()).collect();
    let effects = || kernel.table.iter().chain(&at_interfaces);
    let dropped: Vec<Block> = effects().flat_map(|effect| effect.dropped.clone()).collect();
    let mut unknown: Vec<(Block, String)> =
        effects().flat_map(|effect| effect.unknown.clone()).collect();
    let refused = refused(policy);
    let of = |blocks: &[Block], deed: Deed| {
        let packet = blocks.iter().find_map(Sample::of)?;
        Some(Counterexample { packet, due: packet.due(policy), deed })
    };
    let too_many = difference(dropped.clone(), &refused);
    if let Some(found) = of(&too_many, Deed::Drops) {
        return Some(found);
    }
    let late = kernel.table.as_ref().and_then(|effect| effect.late.as_ref());
    let blocks = |of: &[(Block, String)]| -> Vec<Block> {
        of.iter().map(|(block, _)| block.clone()).collect()
    };
    let rewritten = late.and_then(|late| {
        let settled = [&late.dropped[..], &blocks(&late.unknown)].concat();
        of(&difference(refused.clone(), &settled), Deed::PassesRewritten)
    });
    let missing = difference(within(refused.clone(), reach), &dropped);
    let uncertain = blocks(&unknown);
    let found = of(&difference(missing, &uncertain), Deed::Passes);
    unknown.extend(late.iter().flat_map(|late| late.unknown.clone()));
    found.or(rewritten).or_else(|| {
        // Rather a packet that must not pass than one that nobody cares for.
        let feared = |(block, why): &(Block, String)| {
            let rest = difference(refused.clone(), std::slice::from_ref(block));
            of(&difference(refused.clone(), &rest), Deed::Unknown(why.clone()))
        };
        let any = |(block, why): &(Block, String)| {
            of(std::slice::from_ref(block), Deed::Unknown(why.clone()))
        };
        unknown.iter().find_map(feared).or_else(|| unknown.iter().find_map(any))
    })
}

/// The packets that come within reach of what enforces the policy.
fn within(blocks: Vec<Block>, reach: &Reach) -> Vec<Block> {
    let Reach::Interfaces(indices) = reach else { return blocks };
    let numbers: RangeSet<Number> = indices.iter().map(|i| Range::single(Number(*i))).collect();
    let (at, by) = (Condition::Interface(numbers), Condition::Hardware(only(ETHERNET)));
    let frame = Condition::Vrf(only(NO));
    blocks.into_iter().filter_map(|block| block.met(&at)?.met(&by)?.met(&frame)).collect()
}
