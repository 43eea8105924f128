//! What is in the kernel's table that agent-fw never puts there, as far as it can be read: enough
//! to say what becomes of packets all the same.

use super::expression::Expression;
use super::table::Set;

/// Parts of a table that are not agent-fw's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Foreign {
    /// The table enforces nothing.
    pub dormant: bool,
    /// Some rules look into the sets of one update, some into those of another.
    pub is_torn: bool,
    /// Base chains that hang elsewhere, or drop what no rule of theirs decides.
    pub bases: Vec<ForeignBase>,
    /// Rules with instructions that agent-fw's do not have.
    pub rules: Vec<ForeignRule>,
    /// Sets of another kind that could be read whole.
    pub sets: Vec<Set>,
    /// Sets of which something could not be read.
    pub opaque_sets: Vec<String>,
}

/// A base chain as no policy has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignBase {
    /// The chain.
    pub chain: String,
    /// The hook's number.
    pub hook: u32,
    /// The priority.
    pub priority: i32,
    /// Its type: "filter", "nat", "route".
    pub kind: String,
    /// Whether it drops what its rules do not decide.
    pub drops: bool,
}

/// A rule as no policy has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignRule {
    /// The chain.
    pub chain: String,
    /// Its place in the chain, from 0.
    pub place: usize,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
}

/// An instruction of nf_tables, of those that are met most.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// One that agent-fw's rules have, too.
    Known(Expression),
    /// Ends the rule unless the register compares so with these bytes.
    Compare(Comparison, Vec<u8>),
    /// Ends the rule unless the register lies between these, both included.
    Between(Vec<u8>, Vec<u8>),
    /// Ends the rule if the register is in the set.
    LookupNot(String),
    /// Counts, or marks the packet for tracing: decides nothing.
    Nothing,
    /// Ends the chain; its caller goes on.
    Return,
    /// Ends the packet, and tells its sender.
    Reject,
    /// Any other, by its name.
    Unknown(String),
}

/// How bytes compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// They differ.
    Different,
    /// The register is less.
    Less,
    /// The register is more.
    More,
    /// The register is more or equal.
    AtLeast,
}
