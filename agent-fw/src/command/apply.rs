//! `agent-fw apply`: what the boot unit runs.

use super::outcome::{Failure, Outcome, Result};
use super::words::{compile, has_policy, installed};
use super::{Patience, exceptions, report};
use crate::configuration::{Compiled, Configuration};
use crate::firewall::Firewall;
use crate::host::{self, awaited, lock, privilege};
use crate::last_good::LastGood;
use crate::nft::{Extras, Nftables, Ruleset, TableName};
use crate::policy::Port;
use crate::rule::{closed, closing_rule};
use crate::source::Lists;
use crate::xdp::{self, Targets};
use anyhow::{Context as _, anyhow};
use sd_notify::NotifyState;
use std::path::Path;

/// Enforces the policy of /etc/agent-fw/policy.toml
///
/// Lists and regions that the policy names are read again. Counters go on. If the policy cannot be
/// compiled or the kernel refuses it, what was in force stays in force.
#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    /// As the boot unit does: never leave the port open
    ///
    /// If the policy cannot be enforced, the last one that could be is (exit code 1); if there is
    /// none, the port is closed to every source. Where an interface is still missing that gets an
    /// XDP program, the nftables table holds until it comes. Where no policy was ever installed,
    /// nothing is changed.
    #[arg(long)]
    boot: bool,
    #[command(flatten)]
    patience: Patience,
}

impl Apply {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("apply")?;
        let _lock = lock::acquire_for_change("apply", self.patience.duration())?;
        if self.boot { at_boot() } else { apply(false) }
    }
}

/// Enforces the policy, or what stands in for it. The caller has the lock.
pub(super) fn at_boot() -> Result<Outcome> {
    if !has_policy() && matches!(LastGood::read(), Ok(None)) {
        // A package brings what runs this, and a policy comes later, if at all.
        report::remark("no policy is installed: nothing is enforced");
        return Ok(Outcome::Done);
    }
    apply(true).or_else(|failure| fall_back(&failure))
}

fn apply(patient: bool) -> Result<Outcome> {
    let (configuration, compiled) = wanted()?;
    enforce(&configuration, &compiled, patient)?;
    keep(&configuration, &compiled);
    if patient {
        exceptions::refresh_at_boot(&configuration, &compiled);
    } else {
        exceptions::refresh(&configuration, &compiled);
    }
    let hash = compiled.lowered.policy.hash();
    report::remark(&format!("the kernel enforces policy {hash}"));
    if !compiled.lowered.policy.closes() {
        report::promises(&compiled);
        report::open_is_not_tested(&compiled.lowered);
    }
    tell_systemd(&report::promise(&compiled));
    Ok(Outcome::Done)
}

pub(super) fn wanted() -> Result<(Configuration, Compiled)> {
    let Some((configuration, _)) = installed()? else {
        let policy = host::POLICY;
        return Err(Failure::Input(anyhow!("there is no {policy}; `agent-fw install` writes it")));
    };
    let compiled = compile(&configuration, &Lists::default())?;
    Ok((configuration, compiled))
}

/// The table before the programs, which may count on it; what is not to be there goes last. With
/// `patient`, an interface that is missing is waited for behind the table.
pub(super) fn enforce(
    configuration: &Configuration,
    compiled: &Compiled,
    patient: bool,
) -> Result<()> {
    let backend = configuration.backend;
    // One that comes from here on is met by udev, or found below.
    await_interfaces(configuration);
    let mut nftables = Nftables::open()?;
    let (targets, missing) = if backend.has_programs() {
        let (targets, missing) = Targets::present(&configuration.interfaces)?;
        (Some(targets), missing)
    } else {
        (None, Vec::new())
    };
    let holds = backend.has_table() || patient && !missing.is_empty();
    if holds {
        nftables.replace(&compiled.images())?;
    }
    if let Some(targets) = targets {
        // An interface that is not there yet, at boot, is no reason to leave the others open.
        let mode = configuration.xdp_mode;
        xdp::attach(&compiled.lowered, backend.has_table(), targets, mode)?.settle()?;
    } else {
        xdp::remove()?;
    }
    if !holds {
        nftables.delete()?;
    }
    match Targets::demand(missing) {
        Err(error) if patient => report::remark(&format!("{error}; the table holds until then")),
        demanded => demanded?,
    }
    Ok(())
}

/// Has interfaces of the policy given their programs when they come. That this cannot be is no
/// reason to leave the port open.
pub(super) fn await_interfaces(configuration: &Configuration) {
    let has_programs = configuration.backend.has_programs();
    let interfaces: &[String] = if has_programs { &configuration.interfaces } else { &[] };
    if let Err(error) = awaited::set(interfaces) {
        let what = format_args!("an interface that comes later gets no XDP program: {error:#}");
        report::caution("note:", what);
    }
}

/// Keeps the policy for a boot at which it cannot be compiled. That it could not be kept is no
/// reason to undo it.
pub(super) fn keep(configuration: &Configuration, compiled: &Compiled) {
    if let Err(error) = LastGood::keep(configuration, compiled) {
        report::caution("note:", format_args!("not kept as the last good policy: {error:#}"));
    }
}

/// Enforces the last good policy, or closes the port.
fn fall_back(failure: &Failure) -> Result<Outcome> {
    let kept = LastGood::read().and_then(|kept| kept.map(|kept| kept.compile()).transpose());
    if let Ok(Some((configuration, compiled))) = &kept
        && enforce(configuration, compiled, true).is_ok()
    {
        let hash = compiled.lowered.policy.hash();
        return Ok(fallen_back(failure, &format!("the last good policy {hash} is in force")));
    }
    let known = kept.ok().flatten().map(|(configuration, _)| Port(configuration.port));
    let policy = policy_file();
    let port = policy.as_ref().and_then(port).or(known).unwrap_or(Port::AGENT);
    let ruleset = Ruleset::compile(&closed(port), Extras::default());
    let mut nftables = Nftables::open()?;
    // What is in force beyond the port stays.
    let others = nftables.read_tables()?.into_iter();
    let others = others.filter(|live| live.image.name != TableName::Gate && live.strays.is_empty());
    let mut beyond: Vec<_> = others.map(|live| live.image).collect();
    let mut consequence = format!("TCP port {port} is closed to every source");
    if beyond.is_empty() && policy.as_ref().is_some_and(names_relay) {
        let closing = Firewall::new([&closing_rule(Port::RELAY)]).context("the relay's port")?;
        beyond.extend(closing.tables(false).into_iter().map(Ruleset::into_image));
        consequence = format!("TCP ports {port} and {} are closed to every source", Port::RELAY);
    }
    beyond.insert(0, ruleset.into_image());
    nftables.replace(&beyond)?;
    Ok(fallen_back(failure, &consequence))
}

fn fallen_back(failure: &Failure, consequence: &str) -> Outcome {
    let said = format!("the policy cannot be enforced, so {consequence}: {:#}", failure.error());
    report::bad("error:", &said);
    tell_systemd(&said);
    Outcome::False
}

/// A `policy.toml` of which something is faulty.
fn policy_file() -> Option<toml::Table> {
    let text = host::file::read(Path::new(host::POLICY)).ok()??;
    text.parse().ok()
}

/// The port in a `policy.toml` of which the rest is faulty.
fn port(policy: &toml::Table) -> Option<Port> {
    let port = policy.get("port")?.as_integer()?;
    u16::try_from(port).ok().filter(|port| *port != 0).map(Port)
}

/// Whether a `policy.toml` of which the rest is faulty says who reaches the relay's port.
fn names_relay(policy: &toml::Table) -> bool {
    policy.get("relay").is_some_and(|relay| relay.as_array().is_none_or(|list| !list.is_empty()))
}

/// The status line of the unit. Without systemd nobody listens.
fn tell_systemd(status: &str) {
    drop(sd_notify::notify(&[NotifyState::Status(status)]));
}
