//! What the kernel holds of a policy, table and programs, beside what it should hold.

use crate::configuration::{Backend, Compiled, Configuration, XdpMode};
use crate::nft::{Difference, Live, Nftables, Ruleset, TableName, differences};
use crate::policy::PolicyHash;
use crate::xdp::{self, Attachment, Targets};

/// What the kernel holds.
pub(super) struct Held {
    /// The gate's table.
    pub(super) table: Option<Live>,
    /// The tables of a firewall policy.
    pub(super) firewall: Vec<Live>,
    /// The interfaces that have a program.
    pub(super) programs: Vec<Attachment>,
}

impl Held {
    pub(super) fn read(nftables: &mut Nftables) -> anyhow::Result<Self> {
        let (mut gate, firewall): (Vec<Live>, Vec<Live>) = nftables
            .read_tables()?
            .into_iter()
            .partition(|live| live.image.name == TableName::Gate);
        Ok(Self { table: gate.pop(), firewall, programs: xdp::attachments()? })
    }

    /// All tables.
    pub(super) fn into_tables(self) -> Vec<Live> {
        self.table.into_iter().chain(self.firewall).collect()
    }

    /// Whether the kernel holds anything.
    pub(super) fn is_something(&self) -> bool {
        self.table.is_some() || !self.firewall.is_empty() || !self.programs.is_empty()
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
        differing.extend(self.firewall_differences(compiled));
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

    fn firewall_differences(&self, compiled: &Compiled) -> Vec<String> {
        let wanted: Vec<_> =
            compiled.firewall_tables.iter().cloned().map(Ruleset::into_image).collect();
        let mut differing = Vec::new();
        for image in &wanted {
            let live = self.firewall.iter().find(|live| live.image.name == image.name);
            // The parts of both tables may have the same names.
            let named = |difference: &Difference| match difference {
                Difference::NoTable(_) => difference.to_string(),
                _ => format!("table {}: {difference}", image.name),
            };
            differing.extend(differences(image, live).iter().map(named));
        }
        let names = self.firewall.iter().map(|live| live.image.name);
        let superfluous = names.filter(|name| wanted.iter().all(|image| image.name != *name));
        differing.extend(superfluous.map(|name| format!("the table {name} is superfluous")));
        differing
    }

    fn program_differences(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Vec<String> {
        let Configuration { backend, interfaces, xdp_mode, .. } = configuration;
        if !backend.has_programs() {
            let names: Vec<&str> =
                self.programs.iter().map(|at| at.interface.name.as_str()).collect();
            let superfluous = format!("XDP programs are superfluous: on {}", names.join(", "));
            return if names.is_empty() { Vec::new() } else { vec![superfluous] };
        }
        let targets = match Targets::find(interfaces) {
            Ok(targets) => targets,
            Err(error) => return vec![error.to_string()],
        };
        let hash = compiled.lowered.policy.hash();
        let gate = backend.has_table();
        if targets.are_served_by(&self.programs, *xdp_mode, hash, gate) {
            return Vec::new();
        }
        let wanted: Vec<&str> = targets.names().collect();
        let missing = wanted.iter().filter_map(|name| self.fault_at(name, *xdp_mode, hash, gate));
        let others = self.programs.iter().map(|at| at.interface.name.as_str());
        let superfluous = others
            .filter(|name| !wanted.contains(name))
            .map(|name| format!("the XDP program on {name} is superfluous"));
        let mut found: Vec<String> = missing.chain(superfluous).collect();
        if found.is_empty() {
            found.push("some interface has several of agent-fw's XDP programs".to_owned());
        }
        found
    }

    /// What is wrong with the program of an interface that should have this one.
    fn fault_at(
        &self,
        name: &str,
        mode: XdpMode,
        policy: PolicyHash,
        gate: bool,
    ) -> Option<String> {
        let Some(at) = self.programs.iter().find(|at| at.interface.name == name) else {
            return Some(format!("{name} has no XDP program of agent-fw's"));
        };
        let hook = at.hook;
        if !hook.serves(mode) {
            return Some(format!("the program on {name} is {hook}, should be {mode}"));
        }
        match at.policy {
            None => Some(format!("the program on {name} has no pin that tells its policy")),
            Some(other) if other != policy => {
                Some(format!("the program on {name} is that of policy {other}"))
            }
            Some(_) if at.gate != gate => {
                let found =
                    if at.gate { "behind which the table stands" } else { "to stand alone" };
                Some(format!("the program on {name} is one {found}, which is not so"))
            }
            Some(_) => None,
        }
    }
}
