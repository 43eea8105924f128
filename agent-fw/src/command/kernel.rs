//! What the kernel holds of a policy, table and programs, beside what it should hold.

use crate::configuration::{Backend, Compiled, Configuration};
use crate::nft::{Live, Nftables, differences};
use crate::xdp::{self, Attachment, Targets};

/// What the kernel holds.
pub(super) struct Held {
    /// The table.
    pub(super) table: Option<Live>,
    /// The interfaces that have a program.
    pub(super) programs: Vec<Attachment>,
}

impl Held {
    pub(super) fn read(nftables: &mut Nftables) -> anyhow::Result<Self> {
        Ok(Self { table: nftables.read()?, programs: xdp::attachments()? })
    }

    /// Whether the kernel holds anything.
    pub(super) fn is_something(&self) -> bool {
        self.table.is_some() || !self.programs.is_empty()
    }

    /// Whether a program stands behind another's XDP program that has gone: its place is free.
    pub(super) fn can_move(&self) -> bool {
        self.programs.iter().any(|at| at.hook.mode().is_none() && at.behind.is_none())
    }

    /// What differs from what the configuration asks for, in words.
    pub(super) fn differences(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Vec<String> {
        let mut differing = self.table_differences(configuration.backend, compiled);
        differing.extend(self.program_differences(configuration, compiled));
        differing
    }

    fn table_differences(&self, backend: Backend, compiled: &Compiled) -> Vec<String> {
        if backend.has_table() {
            let image = compiled.ruleset.clone().into_image();
            let differing = differences(&image, self.table.as_ref());
            return differing.iter().map(ToString::to_string).collect();
        }
        let extra =
            self.table.as_ref().map(|_| "the table inet agent_fw is superfluous".to_owned());
        extra.into_iter().collect()
    }

    fn program_differences(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Option<String> {
        let Configuration { backend, interfaces, xdp_mode, .. } = configuration;
        if !backend.has_programs() {
            let names: Vec<&str> =
                self.programs.iter().map(|at| at.interface.name.as_str()).collect();
            let names = names.join(", ");
            return (!names.is_empty())
                .then(|| format!("XDP programs are superfluous: on {names}"));
        }
        let targets = match Targets::find(interfaces) {
            Ok(targets) => targets,
            Err(error) => return Some(error.to_string()),
        };
        let hash = compiled.lowered.policy.hash();
        let served = targets.are_served_by(&self.programs, *xdp_mode, hash, backend.has_table());
        (!served).then(|| "the XDP programs are not as they should be, or not where".to_owned())
    }
}
