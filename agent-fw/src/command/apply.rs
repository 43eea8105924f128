//! `agent-fw apply`: what the boot unit runs.

use super::outcome::{Failure, Outcome, Result};
use super::words::{compile, installed};
use super::{Patience, report};
use crate::configuration::{Compiled, Configuration};
use crate::host::{self, lock, privilege};
use crate::nft::Nftables;
use crate::source::Lists;
use crate::xdp::{self, Targets};
use anyhow::anyhow;

/// Enforces the policy of /etc/agent-fw/policy.toml
///
/// Lists and regions that the policy names are read again. Counters go on. If the policy cannot be
/// compiled or the kernel refuses it, what was in force stays in force.
#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    #[command(flatten)]
    patience: Patience,
}

impl Apply {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("apply")?;
        let _lock = lock::acquire("apply", self.patience.duration())?;
        let Some((configuration, _)) = installed()? else {
            let policy = host::POLICY;
            return Err(Failure::Input(anyhow!(
                "there is no {policy}; `agent-fw install` writes it"
            )));
        };
        let compiled = compile(&configuration, &Lists::default())?;
        enforce(&configuration, &compiled)?;
        let hash = compiled.lowered.policy.hash();
        report::remark(&format!("the kernel enforces policy {hash}"));
        if !compiled.lowered.policy.closes() {
            report::promises(&compiled.lowered);
            report::open_is_not_tested(&compiled.lowered);
        }
        Ok(Outcome::Done)
    }
}

/// The table before the programs, which may count on it; what is not to be there goes last.
fn enforce(configuration: &Configuration, compiled: &Compiled) -> Result<()> {
    let backend = configuration.backend;
    let mut nftables = Nftables::open()?;
    if backend.has_table() {
        nftables.replace(&compiled.ruleset.clone().into_image())?;
    }
    if backend.has_programs() {
        // An interface that is not there yet, at boot, is no reason to leave the others open.
        let (targets, missing) = Targets::present(&configuration.interfaces)?;
        let mode = configuration.xdp_mode;
        xdp::attach(&compiled.lowered, backend.has_table(), targets, mode)?.settle()?;
        Targets::demand(missing)?;
    } else {
        xdp::remove()?;
    }
    if !backend.has_table() {
        nftables.delete()?;
    }
    Ok(())
}
