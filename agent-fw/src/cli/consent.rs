//! `--accept-risk`: what a policy may cut off that is in use now. Consent of one run, not kept.

use super::outcome::{Failure, Result};
use super::report;
use crate::configuration::{Compiled, Configuration};
use crate::engine::live::LiveSessions;
use crate::engine::opening::Known;
use crate::engine::risk::{Name, Risk, is_asked_about, risks};
use crate::engine::{last_good, policy};
use crate::model::Port;
use crate::system::sockets::Protocol;
use crate::trace::Opener;
use std::fmt;

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

/// Something that is in use would be cut off, and has not been accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AtRisk {
    risks: Vec<Risk>,
    /// The command that accepts it.
    pub(super) command: String,
}

impl std::error::Error for AtRisk {}

impl fmt::Display for AtRisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was changed: this policy would cut off what is in use now")?;
        self.risks.iter().try_for_each(|risk| write!(f, "\n{}", words(risk)))?;
        f.write_str("\nIf that is meant, accept it by name:")
    }
}

/// The installed policy, where what it lets pass matters and was not kept when it was put in force. Its
/// files may keep waiting whoever reads them: it is read before the lock is taken.
pub(super) fn installed(configuration: &Configuration) -> Option<Known> {
    let is_needed = is_asked_about(configuration) && !last_good::is_kept();
    is_needed.then(|| policy::compiled().ok().flatten()).flatten()
}

impl Consent {
    /// Refuses a policy that cuts off what is in use and not accepted. What is accepted is told; what
    /// there is, is returned. `installed` is what [`installed`] has read.
    pub(super) fn check(
        &self,
        configuration: &Configuration,
        compiled: &Compiled,
        installed: Option<Known>,
    ) -> Result<LiveSessions> {
        let (live, found) = found(configuration, compiled, installed)?;
        let is_accepted = |risk: &&Risk| self.accept_risk.contains(&risk.name);
        let (accepted, refused): (Vec<&Risk>, Vec<&Risk>) = found.iter().partition(is_accepted);
        if !refused.is_empty() {
            let risks: Vec<Risk> = refused.into_iter().cloned().collect();
            let command = command(&risks);
            return Err(Failure::Input(AtRisk { risks, command }.into()));
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
    installed: Option<Known>,
) -> anyhow::Result<(LiveSessions, Vec<Risk>)> {
    if !is_asked_about(configuration) {
        return Ok((LiveSessions::default(), Vec::new()));
    }
    // The policy in force is the last that was put there; before that was kept, the installed one.
    let before = last_good::compiled().ok().flatten().filter(|_| policy::is_installed());
    let before = before.or(installed);
    let after: Known = (configuration.clone(), compiled.clone());
    let mut live = LiveSessions::read()?;
    let mut found = risks(&live, before.as_ref(), &after);
    if found.iter().any(|risk| risk.is_service && risk.name.protocol == Protocol::Udp) {
        live.forget_passing_clients()?;
        found = risks(&live, before.as_ref(), &after);
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

/// This command, with these accepted besides.
fn command(risks: &[Risk]) -> String {
    let names: Vec<String> = risks.iter().map(|risk| risk.name.to_string()).collect();
    let given = std::env::args_os().map(|word| quoted(&word.to_string_lossy()));
    let accepted = ["--accept-risk".to_owned(), names.join(",")];
    given.chain(accepted).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        // As `$'…'` reads it; a terminal must not.
        return format!("$'{}'", word.escape_default());
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        assert_eq!(quoted("--allow-from=region:us-1"), "--allow-from=region:us-1");
        assert_eq!(quoted("/etc/my rules.json"), "'/etc/my rules.json'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
