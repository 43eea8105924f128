//! Programs in a build without the feature `xdp`: there are none.

use super::Program;

/// None.
pub fn programs() -> anyhow::Result<Vec<Program>> {
    Ok(Vec::new())
}
