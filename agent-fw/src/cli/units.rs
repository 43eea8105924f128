//! The units of systemd that `install` writes and starts, and flags for them.

use super::outcome::Result;
use super::{metrics, report};
use crate::system::systemd;
use anyhow::Context as _;
use std::path::PathBuf;

/// Where Debian's node_exporter looks for text files.
const NODE_EXPORTER: &str = "/var/lib/prometheus/node-exporter";

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "At boot")]
pub(super) struct Units {
    /// Leave the boot unit alone
    #[arg(long)]
    no_boot: bool,
    /// Have systemd run `agent-fw guard`, which keeps others from changing the table
    #[arg(long, conflicts_with_all = ["no_boot", "confirm"])]
    guard: bool,
    /// Have systemd write metrics to node_exporter's directory for text files, every minute
    #[arg(
        long,
        value_name = "DIRECTORY",
        num_args = 0..=1,
        default_missing_value = NODE_EXPORTER,
        conflicts_with_all = ["no_boot", "dry_run", "confirm"]
    )]
    metrics: Option<PathBuf>,
}

impl Units {
    /// The directory for metrics is another's: it is not made.
    pub(super) fn check(&self) -> Result<()> {
        let missing = self.metrics.as_ref().filter(|directory| !directory.is_dir());
        missing.map_or(Ok(()), |directory| Err(metrics::no_directory(directory)))
    }

    /// What is to be on disk for the next boot; `None` where none of it is wanted, and on a host
    /// that has no systemd.
    pub(super) fn files(&self) -> Result<Option<Vec<(PathBuf, String)>>> {
        let is_wanted = !self.no_boot && systemd::has_systemd();
        Ok(is_wanted.then(systemd::files).transpose()?)
    }

    /// Starts what there is now, and says what happens at the next boot, where that is not what the
    /// user expects. Fails where what a flag asks for does not come about; the policy is in force all
    /// the same.
    pub(super) fn start(&self, has_unit: bool) -> Result<()> {
        if has_unit {
            if let Err(error) = systemd::start() {
                let unit = systemd::UNIT;
                let what = format_args!("{unit} is enabled, but not started: {error:#}");
                report::caution("note:", what);
            }
            let guard = if self.guard { systemd::set_guard() } else { Ok(()) };
            let metrics = self.metrics.as_deref().map_or(Ok(()), systemd::set_metrics);
            guard.with_context(|| {
                format!("the policy is in force, but {} does not stand", systemd::GUARD)
            })?;
            metrics.context("the policy is in force, but no metrics are written")?;
        } else if !self.no_boot {
            report::caution(
                "boot:",
                "this host has no systemd. Let `agent-fw apply --boot` be run",
            );
            report::remark("  before the network is up, or the port is open after the next boot");
        }
        Ok(())
    }
}
