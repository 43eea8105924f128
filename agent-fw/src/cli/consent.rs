//! `--accept-risk`: what a policy may cut off that is in use now. Consent of one run, not kept.

use super::outcome::{Failure, Result};
use super::report;
use crate::configuration::{Compiled, Configuration, quoted};
use crate::engine::live::LiveSessions;
use crate::engine::opening::Known;
use crate::engine::risk::{Name, Risk, is_asked_about, risks};
use crate::engine::{last_good, policy};
use crate::model::Port;
use crate::system::sockets::Protocol;
use crate::trace::Opener;

/// The port of `sshd`, where nothing else is known.
const SSH: Port = Port(22);

/// What may be cut off.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Consent {
    /// With --policy or --default-deny-outbound: connections and services in use that may be cut off
    ///
    /// What would be is named, and nothing is changed unless all of it is accepted: tcp/22 is what
    /// comes in to TCP port 22 of this host, out:tcp/443 what this host has opened to TCP port 443 of
    /// others; udp likewise. Several with commas, or repeated. It holds for this run alone.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    accept_risk: Vec<Name>,
}

/// Something was refused that nobody has consented to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    /// What, and why.
    pub(super) text: String,
    /// The command that consents.
    pub(super) command: String,
}

/// A policy that would cut off what is in use, and was not accepted.
fn at_risk(risks: &[&Risk]) -> Refused {
    let listed: String = risks.iter().map(|risk| format!("\n{}", words(risk))).collect();
    let text = format!(
        "nothing was changed: this policy would cut off what is in use now{listed}\nIf that is meant, \
         accept it by name:"
    );
    let names: Vec<String> = risks.iter().map(|risk| risk.name.to_string()).collect();
    Refused { text, command: this_command(&["--accept-risk", &names.join(",")]) }
}

impl Consent {
    /// Refuses a policy that cuts off what is in use and not accepted. What is accepted is told; what
    /// there is, is returned. `installed` is the installed policy, as it was
    /// read before the lock was taken: its files may keep waiting whoever reads them.
    pub(super) fn check(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
        installed: Option<&Known>,
    ) -> Result<LiveSessions> {
        let (live, found) = found(configuration, compiled, installed)?;
        let is_accepted = |risk: &&Risk| self.accept_risk.contains(&risk.name);
        let (accepted, refused): (Vec<&Risk>, Vec<&Risk>) = found.iter().partition(is_accepted);
        if !refused.is_empty() {
            return Err(Failure::Input(at_risk(&refused).into()));
        }
        for risk in accepted {
            report::caution("cut off, as accepted:", words(risk));
        }
        let names: Vec<Name> = found.iter().map(|risk| risk.name).collect();
        for name in self.accept_risk.iter().filter(|name| !names.contains(name)) {
            report::caution(
                "note:",
                format_args!("--accept-risk {name}: nothing of it is at risk"),
            );
        }
        Ok(live)
    }
}

/// What would be cut off, SSH first.
fn found(
    configuration: &Configuration,
    compiled: &Compiled,
    installed: Option<&Known>,
) -> anyhow::Result<(LiveSessions, Vec<Risk>)> {
    if !is_asked_about(configuration) {
        return Ok((LiveSessions::default(), Vec::new()));
    }
    // The policy in force is the last that was put there; before that was kept, the installed one.
    let kept = last_good::compiled().ok().flatten().filter(|_| policy::is_installed());
    let before = kept.as_ref().or(installed);
    let after: Known = (configuration.clone(), compiled.clone());
    let mut live = LiveSessions::read()?;
    let mut found = risks(&live, before, &after);
    if found.iter().any(|risk| risk.is_service && risk.name.protocol == Protocol::Udp) {
        live.forget_passing_clients()?;
        found = risks(&live, before, &after);
    }
    found.sort_by_key(|risk| (!is_ssh(risk.name), risk.name));
    Ok((live, found))
}

/// Whether it is SSH: by the usual port, or by that of the session in which this command runs.
fn is_ssh(Name { opener, protocol, port }: Name) -> bool {
    let session = std::env::var("SSH_CONNECTION").unwrap_or_default();
    // The client's address and port, then the server's.
    let of_session = session.split(' ').nth(3).and_then(|port| port.parse().ok()).map(Port);
    let is_its_port = port == SSH || of_session == Some(port);
    opener == Opener::There && protocol == Protocol::Tcp && is_its_port
}

fn words(risk: &Risk) -> String {
    if is_ssh(risk.name) { format!("ssh: {risk}") } else { risk.to_string() }
}

/// A command that is longer than so many bytes is not shown.
const LONGEST: usize = 2000;

/// This command, with these words besides, for a shell.
pub(super) fn this_command(besides: &[&str]) -> String {
    let given = std::env::args_os().map(|word| quoted(&word.to_string_lossy()));
    let besides: Vec<String> = besides.iter().map(|word| quoted(word)).collect();
    let whole = given.chain(besides.iter().cloned()).collect::<Vec<_>>().join(" ");
    match besides.is_empty() {
        _ if whole.len() <= LONGEST => whole,
        true => format!("{} …", &whole[..whole.floor_char_boundary(LONGEST)]),
        false => format!("the same command, and {}", besides.join(" ")),
    }
}
