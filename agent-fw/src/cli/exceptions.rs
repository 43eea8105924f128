//! Exceptions in other firewalls, as commands make, renew and take them back.

use super::openness::firewall_in_the_way;
use super::report;
use crate::configuration::{Compiled, Configuration};
use crate::host_firewall;
use crate::host_firewall::{Exception, Plan, Remark};
use crate::model::Port;
use anyhow::{Context as _, bail};

/// Firewalls that can stand in the way one behind the other. There are fewer kinds.
const MOST: usize = 8;

/// Makes exceptions until every admitted source that is tried gets through. If one does not help,
/// all that were made are taken back.
pub(super) fn open(configuration: &Configuration, compiled: &Compiled) -> anyhow::Result<()> {
    let mut made = Vec::new();
    open_all(configuration, compiled, &mut made).map_err(|error| {
        let remarks: Vec<Remark> = made.into_iter().rev().flat_map(Exception::close).collect();
        tell(&remarks);
        error.context("the policy is in force; no firewall was opened (--open-host-firewall)")
    })
}

fn open_all(
    configuration: &Configuration,
    compiled: &Compiled,
    made: &mut Vec<Exception>,
) -> anyhow::Result<()> {
    let policy = &compiled.lowered.policy;
    let port = Port(configuration.port);
    for _ in 0..MOST {
        let Some(firewall) = firewall_in_the_way(&compiled.lowered, port)? else { return Ok(()) };
        if Exception::all()?.iter().any(|known| *known.firewall() == firewall) {
            bail!("an exception in {firewall} does not help; `agent-fw explain --all` tells why");
        }
        let plan = Plan::of(&firewall, policy, port)?;
        let (exception, remarks) = Exception::open(&plan).with_context(|| firewall.to_string())?;
        made.push(exception);
        tell(&remarks);
        if plan.is_wider {
            report::caution(
                "note:",
                format_args!("{firewall} cannot tell these sources apart: it"),
            );
            report::remark("  lets every source through; agent-fw alone closes the port to others");
        }
    }
    bail!("too many firewalls are in the way")
}

/// Makes the recorded exceptions what the policy asks for. What fails is said: it is no reason not
/// to enforce the policy.
pub(super) fn refresh(configuration: &Configuration, compiled: &Compiled) {
    renew(
        configuration,
        compiled,
        |_| true,
        |error| {
            report::caution("note:", format_args!("an exception is not renewed: {error:#}"));
        },
    );
}

/// The same at boot, or when a firewall has been loaded: without those that keep their rules by
/// themselves. One that is not there yet is no fault.
pub(super) fn refresh_at_boot(configuration: &Configuration, compiled: &Compiled) {
    let is_lost = |exception: &Exception| !exception.firewall().keeps_rules();
    renew(configuration, compiled, is_lost, |_| ());
}

fn renew(
    configuration: &Configuration,
    compiled: &Compiled,
    concerns: impl Fn(&Exception) -> bool,
    fails: impl Fn(&anyhow::Error),
) {
    let exceptions = Exception::all().unwrap_or_else(|error| {
        fails(&error);
        Vec::new()
    });
    for exception in exceptions.into_iter().filter(concerns) {
        match exception.refresh(&compiled.lowered.policy, Port(configuration.port)) {
            Ok(remarks) => tell(&remarks),
            Err(error) => fails(&error),
        }
    }
}

/// Takes them all back; whether all have gone.
pub(super) fn close() -> anyhow::Result<bool> {
    let remarks = host_firewall::close_all()?;
    tell(&remarks);
    Ok(!remarks.iter().any(|remark| matches!(remark, Remark::Stays(..))))
}

fn tell(remarks: &[Remark]) {
    /// More are only counted.
    const NAMED: usize = 12;
    for remark in remarks.iter().take(NAMED) {
        match remark {
            Remark::Made(what) => report::remark(&format!("exception made: {what}")),
            Remark::Found(what) => report::remark(&format!("exception there already: {what}")),
            Remark::TakenBack(what) => report::remark(&format!("exception taken back: {what}")),
            Remark::Gone(what) => report::remark(&format!("exception gone already: {what}")),
            Remark::Stays(what, why) => {
                report::bad("exception stays:", format_args!("{what}: {why}"));
            }
        }
    }
    if remarks.len() > NAMED {
        report::remark(&format!("and {} more such steps", remarks.len() - NAMED));
    }
}
