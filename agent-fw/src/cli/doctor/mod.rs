//! `agent-fw doctor`: what on this host may keep manager and agent apart, or let others in.

mod agent;
mod check;
mod detours;
mod interfaces;
mod machine;
mod manager;
mod modules;
mod outbound;
mod path_mtu;
mod sources;
mod tls;

use super::LockWait;
use super::asking::PacketsSent;
use super::outcome::{Failure, Outcome, Result};
use super::report::say;
use crate::configuration::{Compiled, Configuration};
use crate::engine::apply::Read;
use crate::engine::judge::{Beyond, NotClosed, judge, judge_beyond};
use crate::engine::kernel_state::{KernelState, Remedy};
use crate::engine::policy;
use crate::input::Warning;
use crate::model::Port;
use crate::nft::Nftables;
use crate::system::privilege;
use crate::system::systemd::Persistence;
use crate::trace;
use check::{Check, Health};
use serde_json::{Value, json};

/// Checks what may keep manager and agent apart on this host, or let others in
///
/// Each check says what was seen, why it matters and what to do. Exit code 1 if something needs
/// attention. It makes one connection, to the agent's port over loopback. Where rules of this host
/// would remember a packet that asks, it is not sent, and the check says so.
#[derive(clap::Args, Debug)]
pub(super) struct Doctor {
    /// Ask the resolver for the manager's names: the agent's own, and those of admitted regions
    #[arg(long)]
    online: bool,
    /// With --online: ask for the names of this region, too
    #[arg(long, value_name = "NAME", requires = "online")]
    region: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Doctor {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("doctor")?;
        let catalogue = policy::catalogue();
        let (read, _lock) = Read::with_lock("doctor", self.patience.duration())?;
        trace::clear();
        let installed = match read.compile_any() {
            Ok(installed) => installed,
            Err(Failure::Input(error) | Failure::System(error)) => {
                return Err(Failure::Input(error.context("the installed policy is faulty")));
            }
        };
        let port = installed.as_ref().map_or(Port::AGENT, |(known, _)| Port(known.port));
        let (mut checks, mut sent) = (Vec::new(), PacketsSent::default());
        checks.push(enforcement(installed.as_ref())?);
        checks.extend(installed.as_ref().map_or(Ok(Vec::new()), beyond)?);
        checks.push(agent::listening(installed.as_ref().map(|(known, _)| known), port));
        checks.extend(tls::encryption(port));
        checks.push(agent::own_rules(port));
        // A faulty file of regions matters to a policy alone.
        let is_asked = installed.is_some() || self.online;
        let catalogue = is_asked.then_some(catalogue).transpose()?;
        if let (Some((configuration, compiled)), Some(catalogue)) = (&installed, &catalogue) {
            checks.extend(sources::promises(configuration, compiled, catalogue, &mut sent)?);
            checks.extend(manager::agreement(configuration, compiled, catalogue));
            checks.push(detours::detours(configuration, compiled)?);
            checks.extend(sources::obsolete(compiled));
            checks.push(machine::versions(compiled));
            checks.extend(lasting_notices(compiled));
            checks.push(persistence(configuration));
        }
        checks.extend(outbound::outbound(&mut sent));
        let compiled = installed.as_ref().map(|(_, compiled)| compiled);
        checks.extend(path_mtu::path_mtu(compiled, port, &mut sent));
        checks.extend(interfaces::interfaces(installed.as_ref().map(|(known, _)| known))?);
        checks.push(machine::kernel());
        checks.push(modules::modules(installed.as_ref().map(|(known, _)| known)));
        if self.online
            && let Some(catalogue) = &catalogue
        {
            let installed = installed.as_ref().map(|(known, compiled)| (known, compiled));
            let names = manager::names(installed, self.region.as_deref(), catalogue);
            checks.extend(names.map_err(Failure::Input)?);
        }
        let is_well = checks.iter().all(|check| check.health != Health::Bad);
        if self.json {
            let checks: Vec<Value> = checks.iter().map(Check::to_json).collect();
            let sent = sent.to_json();
            say!("{:#}", json!({ "well": is_well, "checks": checks, "packets_sent": sent }));
        } else {
            checks.iter().for_each(Check::print);
            sent.tell();
        }
        Ok(if is_well { Outcome::Done } else { Outcome::False })
    }
}

/// Whether the policy outlives a reboot.
fn persistence(configuration: &Configuration) -> Check {
    let why = "a policy that is not applied at boot leaves the port open from then on";
    let found = Persistence::look();
    let health = if found.unit { Health::Good } else { Health::Note };
    let check = Check::new("the next boot", why, health, found.to_string());
    let command = configuration.install_command();
    if found.unit { check } else { check.advise(format!("run `{command}`: it enables the unit")) }
}

/// What is said for as long as it is so: what an older version has installed and a newer one would
/// ask about, and a file that may have been cut off.
fn lasting_notices(compiled: &Compiled) -> impl Iterator<Item = Check> {
    compiled.notices.iter().filter(|notice| notice.is_lasting()).map(|notice| {
        let (name, why) = if *notice == Warning::LacksEnd {
            let why = "what stood behind the place where a file was cut off is not enforced";
            ("policy.toml is whole", why)
        } else if *notice == Warning::AllRules {
            let why = "rules that are meant for other computers may open ports of this one";
            ("assigned rules", why)
        } else if *notice == Warning::StatelessUdp {
            let why = "the vendor's engine admits unsolicited UDP by Force Allow alone";
            ("stateful UDP", why)
        } else if *notice == Warning::NoEngineRules {
            let why = "where a policy is restrictive, the engine lets DNS, DHCP and words about \
                       packets that are too large through";
            ("rules of the engine", why)
        } else {
            let why = "what admits much of the Internet, or is decided by others, may be a slip";
            ("consent", why)
        };
        Check::new(name, why, Health::Note, notice.to_string())
    })
}

/// Whether what is promised of other ports than the agent's is so.
fn beyond((configuration, compiled): &(Configuration, Compiled)) -> Result<Vec<Check>> {
    let held = KernelState::read(&mut Nftables::open()?)?;
    let differs = !held.differences(configuration, compiled)?.is_empty();
    let Beyond { relay, outbound } = judge_beyond(configuration, compiled, &held, differs)?;
    let check = |name, why, reasons: Vec<NotClosed>| {
        let reason = reasons.iter().find(|reason| !reason.is_meant()).or(reasons.first());
        let (health, seen) = match reason {
            None => (Health::Good, "it is".to_owned()),
            Some(reason) if reason.is_meant() => {
                (Health::Note, format!("as the policy says: {reason}"))
            }
            Some(reason) => (Health::Bad, format!("it is not: {reason}")),
        };
        Check::new(name, why, health, seen)
    };
    let relay = relay.map(|reasons| {
        check("the relay's port is closed to others", "--relay names its sources", reasons)
    });
    let outbound = outbound.map(|reasons| {
        check(
            "other outgoing connections are dropped",
            "--default-deny-outbound lets out what the agent needs",
            reasons,
        )
    });
    Ok(relay.into_iter().chain(outbound).collect())
}

/// Whether the kernel has what was installed.
fn enforcement(installed: Option<&(Configuration, Compiled)>) -> Result<Check> {
    let check = |health, seen: String| {
        let why = "without it the agent's hidden rule opens its port to every address";
        Check::new("the policy is enforced", why, health, seen)
    };
    let Some((configuration, compiled)) = installed else {
        let none = check(Health::Bad, "no policy is installed".to_owned());
        return Ok(none.advise("agent-fw install --allow-from region:NAME"));
    };
    let held = KernelState::read(&mut Nftables::open()?)?;
    let differing = held.differences(configuration, compiled)?;
    let policy = &compiled.lowered.policy;
    if let Some(first) = differing.first() {
        return Ok(check(Health::Bad, format!("the kernel differs: {first}")).advise(format!(
            "{}; `agent-fw verify` shows all that differs",
            Remedy::of(configuration)?
        )));
    }
    let not_closed = judge(configuration, compiled, &held, false)?;
    Ok(match not_closed.iter().find(|reason| !reason.is_meant()).or(not_closed.first()) {
        Some(reason) if reason.is_meant() => {
            check(Health::Note, format!("as the policy says, the port is not closed: {reason}"))
        }
        // What to do is part of the reason.
        Some(reason) => check(Health::Bad, format!("the port is not closed: {reason}")),
        None => check(Health::Good, format!("the kernel has policy {}", policy.hash())),
    })
}
