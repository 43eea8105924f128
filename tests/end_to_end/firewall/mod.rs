//! Whole firewall policies: `--policy`.

mod by_hand;
mod counted;
mod counterexample;
mod engine;
mod flow;
mod golden;
mod kernel;
mod lifecycle;
mod proof;
mod random;
mod specification;
mod traffic;

pub(crate) use by_hand::TESTS as BY_HAND;
pub(crate) use counted::TESTS as COUNTED;
pub(crate) use engine::TESTS as ENGINE;
pub(crate) use golden::{TESTS as GOLDEN, rules};
pub(crate) use lifecycle::TESTS as LIFECYCLE;
pub(crate) use proof::TESTS as PROOF;
pub(crate) use specification::TESTS as SPECIFICATION;
pub(crate) use traffic::TESTS as TRAFFIC;
