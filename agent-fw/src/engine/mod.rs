//! What agent-fw does: observes this host, plans what is to change, enforces it with undo, and falls
//! back where that fails. It prints nothing: the commands say what it returns.

pub mod apply;
pub mod change;
mod closing;
pub mod enforce;
pub mod failure;
#[cfg(test)]
mod fake;
pub mod guard;
pub mod history;
pub mod host;
pub mod interfaces;
pub mod judge;
pub mod kernel_state;
pub mod last_good;
pub mod last_seen;
pub mod last_test;
pub mod live;
pub mod opening;
pub mod own_counts;
pub mod pending;
pub mod plan;
pub mod policy;
pub mod proof;
pub mod risk;
mod session;
pub mod shrunk;
pub mod sources;
pub mod without_lock;
