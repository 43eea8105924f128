//! What is in force in the kernel, tables and programs, beside what should be.

use super::interfaces::Found;
use super::plan::{interfaces_of, missing_interfaces, objections_of};
use crate::configuration::{Compiled, Configuration};
use crate::input::options::XdpMode;
use crate::model::{PolicyHash, TableName};
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::nft::{Difference, LiveTable, Nftables, Ruleset, differences};
use crate::system::privilege;
use crate::xdp::{self, Attachment};
use std::fmt;

/// What is in force in the kernel.
pub struct KernelState {
    /// The gate's table.
    pub table: Option<LiveTable>,
    /// The tables of a firewall policy.
    pub firewall: Vec<LiveTable>,
    /// The interfaces that have a program.
    pub programs: Vec<Attachment>,
    /// XDP programs of which neither a pin nor the kernel tells whether they are agent-fw's, in
    /// words. The kernel tells it to whoever has CAP_SYS_ADMIN.
    pub unexplained: Vec<String>,
}

/// How the table is put behind programs that stand alone.
pub(super) const BOTH_BACKENDS: &str =
    "set `backend = \"both\"` in /etc/agent-fw/policy.toml and run `agent-fw apply`";

/// The command that puts right what differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// `agent-fw apply`.
    Apply,
    /// `agent-fw apply --boot`: an interface is missing, and the table is to hold until it comes.
    ApplyAtBoot,
    /// Another backend: programs alone cut others off.
    BothBackends,
}

impl Remedy {
    /// The one that helps where the kernel differs from this configuration.
    pub fn of(configuration: &Configuration) -> anyhow::Result<Self> {
        let found = interfaces_of(configuration)?;
        Ok(if !objections_of(configuration, &found)?.is_empty() {
            Self::BothBackends
        } else if found.missing.is_empty() {
            Self::Apply
        } else {
            Self::ApplyAtBoot
        })
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply => "run `agent-fw apply` to restore it",
            Self::ApplyAtBoot => "run `agent-fw apply --boot`: the table then holds until it comes",
            Self::BothBackends => return write!(f, "{BOTH_BACKENDS}; then nobody is cut off"),
        })
    }
}

impl KernelState {
    /// Reads it.
    pub fn read(nftables: &mut Nftables) -> anyhow::Result<Self> {
        Self::of(nftables.read_tables()?)
    }

    /// The same, without the elements of sets.
    pub fn outline(nftables: &mut Nftables) -> anyhow::Result<Self> {
        Self::of(nftables.outline()?)
    }

    fn of(tables: Vec<LiveTable>) -> anyhow::Result<Self> {
        let (mut gate, firewall): (Vec<LiveTable>, Vec<LiveTable>) =
            tables.into_iter().partition(|live| live.image.name == TableName::Gate);
        let programs = xdp::attachments()?;
        let unexplained = if privilege::may_list_programs() {
            Vec::new()
        } else {
            let is_known = |i: &Interface| programs.iter().any(|at| at.interface.index == i.index);
            let others = link::list()?.into_iter().filter(|interface| !is_known(interface));
            others.filter_map(|interface| unexplained(&interface)).collect()
        };
        Ok(Self { table: gate.pop(), firewall, programs, unexplained })
    }

    /// Whether the kernel holds anything.
    pub fn is_something(&self) -> bool {
        self.table.is_some() || !self.firewall.is_empty() || !self.programs.is_empty()
    }

    /// Whether a program stands behind another's XDP program that has gone: its place is free.
    pub fn can_move(&self) -> bool {
        self.programs.iter().any(|at| at.hook.mode().is_none() && at.behind.is_none())
    }

    /// What differs from what the configuration asks for, in words.
    pub fn differences(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> anyhow::Result<Vec<String>> {
        let found = interfaces_of(configuration)?;
        let mut differing = self.table_differences(&found, configuration, compiled);
        differing.extend(self.firewall_differences(compiled));
        differing.extend(self.program_differences(&found, configuration, compiled));
        let objections = objections_of(configuration, &found)?.into_iter();
        differing
            .extend(objections.map(|why| format!("an XDP program alone cuts others off: {why}")));
        Ok(differing)
    }

    /// Whether the table alone enforces the policy, whatever programs there are.
    pub fn has_whole_table(&self, compiled: &Compiled) -> bool {
        let image = compiled.ruleset.clone().into_image();
        self.table.is_some() && differences(&image, self.table.as_ref()).is_empty()
    }

    /// Whether the tables of a firewall policy are as they should be, whatever else differs.
    pub fn has_firewall(&self, compiled: &Compiled) -> bool {
        !compiled.firewall_tables.is_empty() && self.firewall_differences(compiled).is_empty()
    }

    fn table_differences(
        &self,
        wanted: &Found,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Vec<String> {
        let is_wanted = configuration.backend.has_table();
        let stands_in = !wanted.missing.is_empty() && self.table.is_some();
        if is_wanted || stands_in {
            let image = compiled.ruleset.clone().into_image();
            let differing = differences(&image, self.table.as_ref());
            return differing.iter().map(ToString::to_string).collect();
        }
        let unexpected = self.table.as_ref().map(|_| {
            let backend = configuration.backend;
            format!("unexpected table inet agent_fw (the backend is {backend})")
        });
        unexpected.into_iter().collect()
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
        let unexpected = names.filter(|name| wanted.iter().all(|image| image.name != *name));
        differing.extend(unexpected.map(|name| format!("unexpected table {name}")));
        differing
    }

    fn program_differences(
        &self,
        wanted: &Found,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Vec<String> {
        let Configuration { backend, xdp_mode, .. } = configuration;
        if !backend.has_programs() {
            let names: Vec<&str> =
                self.programs.iter().map(|at| at.interface.name.as_str()).collect();
            let unexpected = format!("unexpected XDP programs on {}", names.join(", "));
            return if names.is_empty() { Vec::new() } else { vec![unexpected] };
        }
        let mut found = Vec::new();
        let interfaces = wanted.interfaces();
        if interfaces.is_empty() && configuration.interfaces.is_empty() {
            found.push("no physical interface is up".to_owned());
        }
        // Where the table holds until it comes, a missing interface opens nothing.
        if !wanted.missing.is_empty() && self.table.is_none() {
            found.push(missing_interfaces(&wanted.missing));
        }
        let hash = compiled.lowered.policy.hash();
        let gate = backend.has_table();
        for interface in &interfaces {
            found.extend(self.fault_at(interface, *xdp_mode, hash, gate));
        }
        let is_wanted = |at: &Attachment| interfaces.iter().any(|i| i.index == at.interface.index);
        let unexpected = self.programs.iter().filter(|at| !is_wanted(at));
        let named = |at: &Attachment| format!("unexpected XDP program on {}", at.interface.name);
        found.extend(unexpected.map(named));
        if found.is_empty() && self.programs.len() > interfaces.len() {
            found.push("some interface has several of agent-fw's XDP programs".to_owned());
        }
        found
    }

    /// What is wrong with the program of an interface that should have this one.
    fn fault_at(
        &self,
        interface: &Interface,
        mode: XdpMode,
        policy: PolicyHash,
        gate: bool,
    ) -> Option<String> {
        let name = &interface.name;
        let Some(at) = self.programs.iter().find(|at| at.interface.index == interface.index) else {
            let unexplained = unexplained(interface).filter(|what| self.unexplained.contains(what));
            let none = || format!("{name} has no XDP program of agent-fw's");
            return Some(unexplained.unwrap_or_else(none));
        };
        if !at.is_pinned {
            return Some(format!(
                "no pin below /sys/fs/bpf explains agent-fw's program {} on {name}",
                at.program
            ));
        }
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
                let (built, says) = if at.gate { ("both", "xdp") } else { ("xdp", "both") };
                Some(format!(
                    "the program on {name} was built for `--backend {built}`, but the policy says \
                     `{says}`"
                ))
            }
            Some(_) => {
                at.mistake.as_ref().map(|mistake| format!("the program on {name} {mistake}"))
            }
        }
    }
}

/// An interface's XDP program, of which nothing is known.
fn unexplained(interface: &Interface) -> Option<String> {
    let program = interface.xdp?.program;
    let name = &interface.name;
    Some(format!(
        "{name} has no XDP program that a pin shows to be agent-fw's; what program {program} does \
         there is not known"
    ))
}
