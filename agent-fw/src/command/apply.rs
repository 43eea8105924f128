//! `agent-fw apply`: what the boot unit runs.

use super::outcome::{Failure, Outcome, Result};
use super::words::{compile, installed};
use super::{Patience, report};
use crate::host::{self, lock, privilege};
use crate::nft::Nftables;
use crate::source::Lists;
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
        Nftables::open()?.replace(&compiled.ruleset.into_image())?;
        let hash = compiled.lowered.policy.hash();
        report::remark(&format!("the kernel enforces policy {hash}"));
        Ok(Outcome::Done)
    }
}
