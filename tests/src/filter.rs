//! A stand-in for a firewall, for the tests of the lab itself.

use anyhow::Result;

use crate::command::{feed, run};

/// Has the calling thread's namespace filter its input by nftables rules, until the
/// next call.
pub(crate) fn filter_input(rules: &str) -> Result<()> {
    allow_input()?;
    let table =
        format!("table inet lab {{ chain c {{ type filter hook input priority 0; {rules}; }}; }}");
    feed(["nft", "-f", "-"], &table).map(drop)
}

/// Ends the filtering.
pub(crate) fn allow_input() -> Result<()> {
    run(["nft", "add table inet lab; delete table inet lab"]).map(drop)
}
