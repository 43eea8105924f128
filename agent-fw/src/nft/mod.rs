//! nftables: the ruleset that a policy compiles to, as a value, as text and in the kernel.

mod compile;
mod counters;
mod diff;
mod expression;
mod foreign;
mod kernel;
mod stamp;
mod statement;
mod table;
mod text;

pub use crate::nft::statement::{ConnectionState, End, OPENED_BY_BYPASS, Rule, Statement};
pub(crate) use compile::agent_port::{COMMENT, LOG_BURST};
pub use compile::agent_port::{Extras, LOG_RATE, Ruleset};
pub use compile::firewall::PRIORITY as FIREWALL_PRIORITY;
pub use compile::lookup_cost::{Choice, Form};
pub use compile::sources::LookupCost;
pub use counters::{LEFT, REFUSED, REFUSED_EARLY, counter_name};
pub(crate) use counters::{comment, identifier};
pub use diff::{Difference, differences, is_inside_a_table, without_expressions};
pub use expression::{CtKey, Expression, MetaKey, Payload, PayloadBase, Program};
pub use foreign::{Comparison, Foreign, ForeignBase, ForeignRule, Instruction};
pub use kernel::{
    Cover, Generation, HeldTables, LiveTable, NetlinkError, Nftables, Ownership, Rest,
};
pub use stamp::Stamp;
pub use table::{
    BaseChain, Chain, Count, Counter, Elements, Hook, Image, Key, Prefixes, Set, Table,
};
pub use text::Document;

/// The priority of the gate, "raw" in nftables' words: before every usual filter (0) and mangle
/// (-150) chain, so that no other rule answers or rewrites what is to be dropped.
pub const GATE_PRIORITY: i32 = -300;

/// The priority of the chains that come last: behind every usual chain, IPVS, and NAT; before those
/// that catch a packet of `explain`, and before connection tracking confirms.
pub const LATE_PRIORITY: i32 = i32::MAX - 2;
