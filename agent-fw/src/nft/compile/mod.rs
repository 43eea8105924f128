//! From policies to tables: the agent's port, and a whole firewall policy.

mod address_lookup;
pub(crate) mod agent_port;
mod alternatives;
pub(super) mod firewall;
pub(crate) mod lookup_cost;
mod rule_counter;
mod sets;
pub(crate) mod sources;
