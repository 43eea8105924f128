//! nftables: the ruleset that a policy compiles to, as a value, as text and in the kernel.

mod difference;
mod expression;
mod netlink;
mod ruleset;
mod statement;
mod table;
mod text;

pub use difference::{Difference, differences};
pub use expression::{Expression, MetaKey, Payload, PayloadBase};
pub use netlink::{Live, NetlinkError, Nftables};
pub use ruleset::{
    Extras, LEFT, LOG_RATE, REFUSED, REFUSED_EARLY, Ruleset, Stamp, counter_name,
};
pub use statement::{Family, Rule, Statement};
pub use table::{BaseChain, Chain, Count, Counter, Elements, Hook, Image, Set, Table, Target};
pub use text::Document;

/// The table's name. Its family is `inet`, so that one table sees IPv4 and IPv6.
pub const TABLE: &str = "agent_fw";

/// The priority of the gate, "raw" in nftables' words: before every usual filter (0) and mangle
/// (-150) chain, so that no other rule answers or rewrites what is to be dropped.
pub const GATE_PRIORITY: i32 = -300;
