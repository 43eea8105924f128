//! The agent on this host: its process, its port, the rules that it adds.

use super::check::{Check, Health};
use crate::configuration::Configuration;
use crate::input::options::Mode;
use crate::model::Port;
use crate::system::ds_agent;
use std::path::Path;

/// The agent, and whether it does what the direction says.
pub(super) fn listening(configuration: Option<&Configuration>, port: Port) -> Check {
    let why = "the manager reaches the agent only where it listens; an agent that opens all \
               connections itself does not listen";
    let processes = ds_agent::processes();
    let is_listening = !ds_agent::listeners(port).is_empty();
    let process = match processes.as_slice() {
        [] => "no process ds_agent runs here".to_owned(),
        [first, ..] => format!("ds_agent runs (process {first})"),
    };
    let listens = if is_listening { "something listens" } else { "nothing listens" };
    let seen = format!("{process}; {listens} on TCP {port}");
    let check = |health| Check::new("the agent and its port", why, health, seen.clone());
    match configuration.map(|known| known.direction) {
        None => check(Health::Note),
        Some(Mode::AgentInitiated) if is_listening => check(Health::Note).advise(
            "the policy says agent-initiated and closes the port; in the manager, check the \
             computer's communication direction",
        ),
        Some(Mode::AgentInitiated) => check(Health::Good),
        Some(_) if !is_listening => check(Health::Bad).advise(
            "start the agent, or check its communication direction; --port where it listens on \
             another port",
        ),
        Some(_) => check(Health::Good),
    }
}

/// The rules that the agent itself adds.
pub(super) fn own_rules(port: Port) -> Check {
    let why = "the agent adds rules to iptables that open its ports to every address, unless the \
               file is there; agent-fw closes its port all the same, a relay's 4122 stays open";
    let name = "the agent's own iptables rules";
    let is_left_alone = Path::new(ds_agent::LEAVE_IPTABLES).exists();
    let file = format!(
        "{} is {}",
        ds_agent::LEAVE_IPTABLES,
        if is_left_alone { "there" } else { "not there" }
    );
    let rules = ds_agent::own_rules(port);
    if rules.is_empty() {
        let is_well = is_left_alone || ds_agent::processes().is_empty();
        let health = if is_well { Health::Good } else { Health::Note };
        return Check::new(name, why, health, format!("{file}; no such rule is there"));
    }
    let rules: Vec<String> =
        rules.iter().map(|(program, rule)| format!("`{rule}` ({program})")).collect();
    Check::new(name, why, Health::Note, format!("{file}; {}", rules.join(", "))).advise(format!(
        "touch {} before the agent starts, so that it adds none",
        ds_agent::LEAVE_IPTABLES
    ))
}
