//! Whole firewall policies: `--policy`.

mod counted;
mod engine;
mod flow;
mod golden;
mod kernel;
mod lifecycle;
mod proof;
mod random;
mod specification;
mod traffic;

pub(crate) use counted::TESTS as COUNTED;
pub(crate) use engine::TESTS as ENGINE;
pub(crate) use golden::{TESTS as GOLDEN, rules};
pub(crate) use lifecycle::TESTS as LIFECYCLE;
pub(crate) use proof::TESTS as PROOF;
pub(crate) use specification::TESTS as SPECIFICATION;
pub(crate) use traffic::TESTS as TRAFFIC;
