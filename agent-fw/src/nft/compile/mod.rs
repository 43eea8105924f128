//! From policies to tables: the agent's port, and a whole firewall policy.

pub(crate) mod agent_port;
mod firewall;
mod rule_counter;
mod sets;
pub(crate) mod source_tree;
