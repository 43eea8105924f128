//! Programs in a build without the feature `xdp`: there are none.

use super::Effect;
use crate::host::interface::Interface;

/// A program on an interface: there can be none.
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

/// None.
pub fn programs() -> anyhow::Result<Vec<Program>> {
    Ok(Vec::new())
}
