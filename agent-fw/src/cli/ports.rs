//! `agent-fw ports`: who must reach whom.

use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say, wrapped};
use super::security_group::{aws, terraform};
use crate::engine::policy::catalogue;
use crate::input::connectivity::{Addresses, CAVEAT, Connectivity, Flow, Host, Role};
use crate::input::options::Mode;
use crate::model::Port;
use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};

/// Shows who must reach whom, on which port, in a deployment of Workload Security
///
/// With --region, the subnets and host names of the region are filled in. For other firewalls than
/// this host's: nothing is changed, and no root is needed.
#[derive(clap::Args, Debug)]
pub(super) struct Ports {
    /// The region; see `agent-fw regions list`
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Who opens connections between agent and manager. Without it, bidirectional
    #[arg(long, value_name = "MODE")]
    direction: Option<Mode>,
    /// What concerns this role alone
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// The TCP port that the agent listens on
    #[arg(long, value_name = "PORT", default_value_t = Port::AGENT.0, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// aws: commands for a security group of EC2; terraform: the same as resources
    ///
    /// Both are for hosts of one role (agent, if none is given), and need a region.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Table,
    Markdown,
    Json,
    Csv,
    Aws,
    Terraform,
}

impl Ports {
    pub(super) fn run(self) -> Result<Outcome> {
        let catalogue = catalogue()?;
        let region = match &self.region {
            Some(name) => {
                let region = catalogue.named(name).map_err(|error| Failure::Input(error.into()))?;
                Some(region)
            }
            None => None,
        };
        let group = matches!(self.format, Format::Aws | Format::Terraform);
        let role = if group { Some(self.role_of_group()?) } else { self.role };
        let direction = self.direction.unwrap_or_default();
        let flows = Connectivity::published()?.flows(region, direction, role, self.port);
        let mut notes = self.notes(&flows, direction);
        if group {
            // A group has no names: they are for who reads it.
            notes.extend(names(&flows));
        }
        match self.format {
            Format::Table => table(&flows, &notes),
            Format::Markdown => markdown(&flows, &notes),
            Format::Json => say!(
                "{:#}",
                json!({
                    "region": region.map(|(name, _)| name), "direction": direction.to_string(),
                    "role": role, "flows": flows, "notes": notes,
                    "directions": directions_as_json(direction),
                })
            ),
            Format::Csv => csv(&flows, &notes)?,
            Format::Aws => say!("{}", aws(&flows, role.unwrap_or(Role::Agent), &notes)),
            Format::Terraform => say!("{}", terraform(&flows, role.unwrap_or(Role::Agent), &notes)),
        }
        Ok(Outcome::Done)
    }

    /// The role of the hosts in a security group.
    fn role_of_group(&self) -> Result<Role> {
        if self.region.is_none() {
            return Err(Failure::Input(anyhow!(
                "rules for a security group need the region's subnets; name it with --region"
            )));
        }
        match self.role.unwrap_or(Role::Agent) {
            Role::Manager => Err(Failure::Input(anyhow!(
                "the manager's security group is the vendor's; choose another --role"
            ))),
            role => Ok(role),
        }
    }

    fn notes(&self, flows: &[Flow], direction: Mode) -> Vec<String> {
        let mut notes = Vec::new();
        let agents = |flow: &&Flow| matches!(flow.from, Role::Agent | Role::Relay);
        let of_agents: Vec<&Flow> = flows.iter().filter(agents).collect();
        if of_agents.iter().any(|flow| flow.port == 443) {
            notes.push(CAVEAT.to_owned());
            notes.push(PROXY.to_owned());
        }
        if of_agents.iter().any(|flow| flow.to == "Smart Protection Server") {
            notes.push(SMART_PROTECTION_SERVER.to_owned());
        }
        if flows.iter().any(|flow| flow.to == "Download Center") {
            notes.push(MIRROR.to_owned());
        }
        if direction == Mode::AgentInitiated {
            let none = "Agent-initiated communication needs nothing inbound to an agent.";
            notes.push(none.to_owned());
        } else if self.region.is_none() {
            notes.push("With --region NAME, its subnets and host names are filled in.".to_owned());
        }
        notes.push(REPLIES.to_owned());
        if self.direction.is_none() {
            notes.push(
                "Direction: bidirectional, as no --direction says otherwise; the vendor's default \
                 is agent-initiated."
                    .to_owned(),
            );
        }
        notes.extend(Mode::ALL.map(in_words));
        notes
    }
}

const REPLIES: &str = "Replies must be allowed, too. Every port is a destination port, and a \
                       default that may be changed; source ports are ephemeral.";
const PROXY: &str = "An agent behind a web proxy reaches its port instead of 443, such as 1443.";
const SMART_PROTECTION_SERVER: &str = "A Smart Protection Server replaces the Smart Protection Network for file and web reputation \
     alone; the other services stay where they are.";
const MIRROR: &str =
    "Software can come from a mirror of the Download Center on a local web server.";

/// A direction, with what it needs and what speaks for and against it.
fn in_words(direction: Mode) -> String {
    let (inbound, merit, demerit) = (direction.inbound(), direction.merit(), direction.demerit());
    format!(
        "{direction}: {inbound}, outbound TCP 443 to any address. For it: {merit}. Against it: {demerit}."
    )
}

fn directions_as_json(taken: Mode) -> Vec<Value> {
    let one = |direction: Mode| {
        json!({
            "direction": direction.to_string(), "is_taken": direction == taken,
            "inbound": direction.inbound(), "outbound": "TCP 443 to any address",
            "merit": direction.merit(), "demerit": direction.demerit(),
        })
    };
    Mode::ALL.map(one).into()
}

/// The names of each side outside, in words.
fn names(flows: &[Flow]) -> Vec<String> {
    let one = |flow: &Flow| {
        let Flow { to, port, transport, .. } = flow;
        let condition = flow.condition.as_ref().map_or_else(String::new, |of| format!(", {of}"));
        let names: Vec<String> = flow.names.iter().map(ToString::to_string).collect();
        let names =
            if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        format!("{} to {to}, {port}/{transport} {}{condition}{names}", flow.from, flow.protocol)
    };
    flows.iter().map(one).collect()
}

/// Whose addresses the side outside has, in words.
fn addresses(flow: &Flow) -> String {
    match flow.addresses {
        Addresses::Any => "any address".to_owned(),
        Addresses::Own => "your own".to_owned(),
        Addresses::Loopback => "loopback".to_owned(),
        Addresses::Region if flow.subnets.is_empty() => "the region's subnets".to_owned(),
        Addresses::Region => {
            let subnets: Vec<String> = flow.subnets.iter().map(ToString::to_string).collect();
            subnets.join(" ")
        }
    }
}

/// Names with their purposes.
fn joined(names: &[Host]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn table(flows: &[Flow], notes: &[String]) {
    say!("{:<19}  {:<29}  {:<8}  protocol", "from", "to", "port");
    for flow in flows {
        let Flow { from, to, protocol, condition, names, .. } = flow;
        let (from, port) = (from.to_string(), format!("{}/{}", flow.port, flow.transport));
        say!("{from:<19}  {to:<29}  {port:<8}  {protocol}");
        let indent = "    ";
        say!("{}", wrapped(indent, indent, &format!("addresses: {}", addresses(flow))));
        if let Some(condition) = condition {
            say!("{}", wrapped(indent, indent, condition));
        }
        if !names.is_empty() {
            say!("{}", wrapped(indent, "      ", &format!("names: {}", joined(names))));
        }
    }
    for note in notes {
        say!("");
        report::remark(note);
    }
}

fn markdown(flows: &[Flow], notes: &[String]) {
    // What a table of Markdown would take for its own.
    let plain = |text: &str| text.replace('|', "\\|");
    say!("| from | to | port | protocol | addresses | names | when |");
    say!("|---|---|---|---|---|---|---|");
    for flow in flows {
        let Flow { from, to, port, transport, protocol, .. } = flow;
        let (addresses, hosts) = (addresses(flow), plain(&joined(&flow.names)));
        let when = flow.condition.as_deref().unwrap_or("always");
        say!(
            "| {from} | {to} | {port}/{transport} | {protocol} | {addresses} | {hosts} | {when} |"
        );
    }
    for note in notes {
        say!("\n{note}");
    }
}

/// The notes are rows of their own, so that they go wherever the table goes.
fn csv(flows: &[Flow], notes: &[String]) -> Result<()> {
    let mut writer = csv::WriterBuilder::new().flexible(false).from_writer(Vec::new());
    let write = |writer: &mut csv::Writer<Vec<u8>>, row: [&str; 10]| {
        writer.write_record(row).context("cannot write CSV")
    };
    let heading = [
        "from",
        "to",
        "port",
        "transport",
        "protocol",
        "addresses",
        "names",
        "when",
        "purposes",
        "note",
    ];
    write(&mut writer, heading)?;
    for flow in flows {
        let (from, port) = (flow.from.to_string(), flow.port.to_string());
        let (addresses, hosts) = (addresses(flow), flow.hosts.join(" "));
        let when = flow.condition.as_deref().unwrap_or("always");
        let Flow { to, transport, protocol, .. } = flow;
        let has_purpose = |host: &&Host| host.purpose.is_some();
        let purposes: Vec<String> =
            flow.names.iter().filter(has_purpose).map(ToString::to_string).collect();
        let purposes = purposes.join(", ");
        let row = [&from, to, &port, transport, protocol, &addresses, &hosts, when, &purposes, ""];
        write(&mut writer, row)?;
    }
    for note in notes {
        write(&mut writer, ["", "", "", "", "", "", "", "", "", note])?;
    }
    let bytes = writer.into_inner().map_err(|error| anyhow!("cannot write CSV: {error}"))?;
    say!("{}", String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}
