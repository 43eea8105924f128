//! `agent-fw verify`: whether the kernel enforces the installed policy on every packet.

use super::LockWait;
use super::counterexample;
use super::outcome::{Outcome, Result};
use super::report::{self, grouped, say};
use crate::configuration::Configuration;
use crate::engine::apply::Read;
use crate::engine::judge::{Beyond, NotClosed, judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::proof;
use crate::model::PolicyHash;
use crate::netlink::link;
use crate::nft::Nftables;
use crate::system::privilege;
use crate::verify;
use crate::verify::{Counterexample, Kernel};
use serde_json::{Value, json};

/// Proves that the kernel enforces the policy on every packet, or shows one that it decides otherwise
///
/// Reads the table with all of its sets, and the instructions, constants and tables of every XDP
/// program, and carries them out on all packets at once. Exit code 1 if the kernel decides any
/// packet otherwise than the policy, or has anything that agent-fw has not put there.
#[derive(clap::Args, Debug)]
pub(super) struct Verify {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Name every part of tables and programs that differs
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    patience: LockWait,
}

/// What was found.
struct Findings {
    configuration: Configuration,
    policy: PolicyHash,
    read: Vec<String>,
    counterexample: Option<Counterexample>,
    differences: Vec<String>,
    /// The sources that are decided otherwise, in words.
    sources: Vec<String>,
    is_verbose: bool,
    interfaces: Vec<link::Interface>,
    not_closed: Vec<NotClosed>,
    beyond: Beyond,
}

impl Verify {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("verify")?;
        // Not in the middle of another agent-fw's work.
        let (installed, _lock) = Read::with_lock("verify", self.patience.duration())?;
        let Some((configuration, compiled)) = installed.compile_any()? else {
            if self.json {
                say!("{:#}", json!({ "policy": null, "equal": false }));
            } else {
                report::bad("false:", "no policy is installed; `agent-fw install` writes one");
            }
            return Ok(Outcome::False);
        };
        let held = KernelState::read(&mut Nftables::open()?)?;
        let mut differences = held.differences(&configuration, &compiled)?;
        let kernel = proof::kernel(&held)?;
        differences.extend(kernel.programs.iter().flat_map(|program| program.faults.clone()));
        let policy = &compiled.lowered.policy;
        let differs = !differences.is_empty();
        let not_closed = judge(&configuration, &compiled, &held, differs)?;
        let beyond = judge_beyond(&configuration, &compiled, &held, differs)?;
        let sources = proof::sources_in_words(&configuration, &compiled, &kernel)?;
        let scope = proof::scope(&configuration)?;
        let findings = Findings {
            policy: policy.hash(),
            sources,
            is_verbose: self.verbose,
            read: read(&held, &kernel),
            counterexample: verify::counterexample(policy, &scope, &kernel)
                .or_else(|| verify::firewall_counterexample(compiled.firewall.as_ref(), &kernel)),
            differences,
            interfaces: link::list()?,
            not_closed,
            beyond,
            configuration,
        };
        if self.json {
            say!("{:#}", findings.to_json());
        } else {
            findings.print()?;
        }
        Ok(if findings.are_equal() { Outcome::Done } else { Outcome::False })
    }
}

/// What was read, in words.
fn read(held: &KernelState, kernel: &Kernel) -> Vec<String> {
    let count = |number: usize| grouped(number as u64);
    let tables = held.table.iter().chain(&held.firewall).map(|live| {
        let image = &live.image;
        let rules = image.chains.iter().map(|chain| chain.rules.len()).sum();
        let ranges = image.sets.iter().map(|set| set.elements.len()).sum();
        format!(
            "table {}: {} chains, {} rules, {} sets with {} ranges",
            image.name,
            count(image.chains.len()),
            count(rules),
            count(image.sets.len()),
            count(ranges)
        )
    });
    let programs = kernel.programs.iter().map(|program| {
        let (name, ranges) = (&program.interface.name, count(program.ranges));
        format!("XDP program on {name}: its instructions, its tables with {ranges} ranges")
    });
    tables.chain(programs).collect()
}

impl Findings {
    fn are_equal(&self) -> bool {
        self.counterexample.is_none() && self.differences.is_empty()
    }

    fn print(&self) -> anyhow::Result<()> {
        if self.are_equal() {
            report::good("true:", format_args!("the kernel enforces policy {}", self.policy));
            for reason in &self.not_closed {
                report::caution("not closed:", reason);
            }
            for reason in self.beyond.relay.iter().flatten() {
                report::caution("relay, not closed:", reason);
            }
            for reason in self.beyond.outbound.iter().flatten() {
                report::caution("outbound, not closed:", reason);
            }
        } else {
            let what =
                format_args!("the kernel does not enforce policy {}", self.policy).to_string();
            report::bad("false:", what);
        }
        if let Some(Counterexample { packet, due, deed }) = &self.counterexample {
            say!("a packet that is decided otherwise:");
            report::remark(&format!("  {}", counterexample::describe(packet, &self.interfaces)));
            report::remark(&format!("  the policy: {}", counterexample::due_in_words(*due)));
            report::remark(&format!("  the kernel: {}", counterexample::deed_in_words(deed)));
        } else if !self.differences.is_empty() {
            say!("no packet is known that is decided otherwise; but");
        }
        if !self.differences.is_empty() {
            say!("what differs:");
            report::what_differs(&self.sources, &self.differences, self.is_verbose);
            report::remedy(&self.configuration)?;
        }
        for read in &self.read {
            report::remark(&format!("read: {read}"));
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let counterexample = self.counterexample.as_ref();
        let counterexample =
            counterexample.map(|found| counterexample::to_json(found, &self.interfaces));
        json!({
            "policy": self.policy.to_string(),
            "equal": self.are_equal(),
            "closed": self.are_equal() && self.not_closed.is_empty(),
            "relay_closed": self.beyond.relay.as_ref().map(Vec::is_empty),
            "outbound_closed": self.beyond.outbound.as_ref().map(Vec::is_empty),
            "counterexample": counterexample,
            "sources": self.sources,
            "differences": self.differences,
            "read": self.read,
        })
    }
}
