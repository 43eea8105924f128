//! `agent-fw compile`: the ruleset for a reviewer, without root and without a kernel.

use super::outcome::{Failure, Outcome, Result};
use super::policy_args::{PolicyArgs, compile};
use super::report;
use crate::configuration::{Compiled, Configuration};
use crate::input::Lists;
use crate::model::firewall::{Firewall, ShadowedRule};
use crate::model::rule::Direction;
use crate::model::{AddressSet, MacMatch, Notation, Ordinal, Range, RangeSet};
use crate::nft::{Choice, Document, Form, LookupCost, Ruleset, counter_name};
use crate::system::file;
use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Prints what a policy compiles to; needs no root and changes nothing
#[derive(clap::Args, Debug)]
pub(super) struct Compile {
    #[command(flatten)]
    words: PolicyArgs,
    /// Compile a policy.toml instead, such as /etc/agent-fw/policy.toml
    #[arg(long, value_name = "FILE", conflicts_with = "PolicyArgs")]
    file: Option<PathBuf>,
    /// nft: a file for `nft -f`, with comments; json: the policy as data
    #[arg(long, value_enum, default_value_t = Format::Nft)]
    format: Format,
    /// Says instead how sources are looked up, what that costs a packet from another one, and what
    /// the other ways would cost
    #[arg(long)]
    explain_cost: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Nft,
    Json,
}

impl Compile {
    pub(super) fn run(self) -> Result<Outcome> {
        let format = self.format;
        let configuration = match &self.file {
            Some(path) => read(path)?,
            None => self.words.configuration()?,
        };
        let compiled = compile(&configuration, &Lists::of_any_kind())?;
        let mut output = BufWriter::new(std::io::stdout().lock());
        let costs = self.explain_cost.then(|| Ruleset::lookup_costs(&compiled.lowered));
        match (costs, format) {
            (Some(costs), Format::Nft) => {
                costs.iter().try_for_each(|cost| write_cost(&mut output, cost))
            }
            (Some(costs), Format::Json) => writeln!(output, "{:#}", costs_as_json(&costs)),
            (None, Format::Nft) => write!(output, "{}", document(&configuration, &compiled))
                .and_then(|()| write_firewall(&mut output, &configuration, &compiled)),
            (None, Format::Json) => {
                writeln!(output, "{:#}", as_json(&configuration, &compiled))
            }
        }
        .and_then(|()| output.flush())
        .or_else(|error| match error.kind() {
            // `agent-fw compile | head` is no failure.
            std::io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })
        .context("cannot write the output")?;
        Ok(Outcome::Done)
    }
}

/// Reads a `policy.toml`.
fn read(path: &Path) -> Result<Configuration> {
    let text = file::read_trusted(path, file::Trust::Anybody).map_err(Failure::Input)?;
    let missing = || Failure::Input(anyhow!("there is no file {}", path.display()));
    let name = path.display().to_string();
    Configuration::parse(&name, &text.ok_or_else(missing)?).map_err(Failure::Input)
}

/// The way that was chosen, and the others.
fn write_cost(output: &mut impl std::io::Write, cost: &LookupCost) -> std::io::Result<()> {
    let LookupCost { counter, family, choices } = cost;
    writeln!(output, "{counter}, {family}:")?;
    for (index, choice) in choices.iter().enumerate() {
        let word = if index == 0 { "chosen" } else { "instead of" };
        writeln!(output, "  {word:11}{choice}")?;
    }
    Ok(())
}

fn costs_as_json(costs: &[LookupCost]) -> Value {
    let choice = |choice: &Choice| {
        let (form, lengths) = match &choice.form {
            Form::Prefixes => ("comparisons", None),
            Form::Hashes(lengths) => ("hashes", Some(lengths)),
            Form::Intervals => ("intervals", None),
        };
        json!({
            "form": form,
            "lengths": lengths,
            "parts": choice.parts,
            "elements": choice.elements,
            "nanoseconds": choice.cost,
        })
    };
    let cost = |LookupCost { counter, family, choices }: &LookupCost| {
        json!({
            "counter": counter,
            "family": family.to_string(),
            "choices": choices.iter().map(choice).collect::<Vec<_>>(),
        })
    };
    costs.iter().map(cost).collect()
}

fn document<'a>(configuration: &Configuration, compiled: &'a Compiled) -> Document<'a> {
    let policy = &compiled.lowered.policy;
    let (version, hash) = (env!("CARGO_PKG_VERSION"), policy.hash());
    let (port, direction) = (policy.ports(), configuration.direction);
    let preamble = vec![
        format!("agent-fw {version}, policy {hash}"),
        format!("TCP port {port}, {direction}; {}.", report::others(policy)),
        "An accept here ends this table's chain only: other tables may still drop.".to_owned(),
    ];
    let provenance = compiled
        .provenance
        .iter()
        .map(|(label, provenance)| (counter_name(label), provenance.clone()))
        .collect();
    Document { ruleset: &compiled.ruleset, preamble, provenance }
}

/// The tables of a firewall policy.
fn write_firewall(
    output: &mut impl std::io::Write,
    configuration: &Configuration,
    compiled: &Compiled,
) -> std::io::Result<()> {
    let what = if configuration.policy {
        "The firewall policy beyond the agent's port"
    } else {
        "What is enforced beyond the sources of the agent's port"
    };
    for ruleset in &compiled.firewall_tables {
        let preamble = vec![format!("{what}: a packet has to pass both.")];
        write!(output, "\n{}", Document { ruleset, preamble, provenance: BTreeMap::new() })?;
    }
    Ok(())
}

/// The rules of a firewall policy, in the order in which they are evaluated.
fn firewall_as_json(firewall: &Firewall, has_engine_rules: bool) -> Value {
    let idle = firewall.idle_rules();
    let rules = firewall.rules().iter().map(|rule| {
        let idle = idle.iter().find(|idle| std::ptr::eq(idle.rule, rule));
        json!({
            "name": rule.name,
            "action": rule.action.to_string(),
            "priority": rule.priority.to_string(),
            "direction": rule.direction.to_string(),
            "decides": idle.is_none(),
            "shadowed_by": idle.map(ShadowedRule::names),
        })
    });
    let restrictive = |direction| firewall.restricts(direction);
    json!({
        "engine_rules": has_engine_rules,
        "rules": rules.collect::<Vec<_>>(),
        "incoming_is_restrictive": restrictive(Direction::Incoming),
        "outgoing_is_restrictive": restrictive(Direction::Outgoing),
    })
}

fn as_json(configuration: &Configuration, compiled: &Compiled) -> Value {
    let policy = &compiled.lowered.policy;
    let admissions: Vec<Value> = policy
        .admissions()
        .iter()
        .map(|admission| {
            let macs = match &admission.macs {
                MacMatch::Any => Value::Null,
                MacMatch::Only(macs) => json!(notations(macs)),
            };
            let AddressSet { v4, v6 } = &admission.addresses;
            json!({ "macs": macs, "ipv4": notations(v4), "ipv6": notations(v6) })
        })
        .collect();
    let sources: Vec<&String> = compiled.provenance.values().collect();
    let firewall = compiled.firewall.as_ref();
    let ports: Vec<String> = policy.ports().ranges().iter().map(ToString::to_string).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "hash": policy.hash().to_string(),
        "ports": ports,
        "direction": configuration.direction.to_string(),
        "relay": configuration.relay,
        "outbound": configuration.outbound,
        "outbound_to": configuration.outbound_to,
        "otherwise": policy.others().to_string(),
        "admits_everyone": policy.admits_everyone(),
        "admissions": admissions,
        "sources": sources,
        "firewall": firewall.map(|of| firewall_as_json(of, configuration.enforces_engine_rules())),
        "notices": compiled.notices.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn notations<T: Ordinal>(set: &RangeSet<T>) -> Vec<String>
where
    Range<T>: Notation,
{
    set.ranges().iter().map(Notation::notation).collect()
}
