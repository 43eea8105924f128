//! `cargo xtask demo`: who reaches the agent's port before and after, in a throwaway network.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use agent_fw_lab::{Lab, Listener, Outcome, Peer};

use crate::process::{as_root, exit_code, is_root, status};
use crate::product;
use crate::setup::{self, Group};

/// The port on which an agent listens for its manager.
const PORT: u16 = 4118;

/// How long a connection may take that is admitted; one that is not takes as long.
const TIMEOUT: Duration = Duration::from_secs(1);

const INSTALL: [&str; 6] =
    ["install", "--allow-from", "region:us-1", "--allow-from", "2001:db8:1::/64", "--no-boot"];

/// Who tries: addresses inside the two blocks of us-1 and beside them, and inside and beside
/// the range of IPv6.
const VISITORS: [(&str, bool); 8] = [
    ("34.205.5.1", true),
    ("34.205.5.31", true),
    ("34.205.5.32", false),
    ("18.97.19.7", true),
    ("198.51.100.7", false),
    ("54.221.196.10", false),
    ("2001:db8:1::7", true),
    ("2001:db8:2::7", false),
];

/// Shows the table, and fails if an outcome is not what the policy says. Run by an ordinary
/// user it starts itself again as root; `again` says that this has been done.
pub(crate) fn demo(again: bool) -> Result<ExitCode> {
    setup::ensure(&[Group::Test])?;
    let given = std::env::var_os("AGENT_FW").map(Into::into);
    let binary = given.map_or_else(product::build, Ok)?;
    if !is_root() {
        ensure!(!again, "sudo did not make this root, without which there is no namespace");
        return start_again(&binary);
    }
    let visits = Lab::run(show)?;
    let wrong = visits.iter().filter(|visit| !visit.as_the_policy_says()).count();
    if wrong > 0 {
        println!("\n{wrong} of {} outcomes are not what the policy says.", visits.len());
        return Ok(ExitCode::FAILURE);
    }
    println!("\nAll {} outcomes are what the policy says.", visits.len());
    Ok(ExitCode::SUCCESS)
}

/// Runs this program as root, with the binary that the user has built.
fn start_again(binary: &Path) -> Result<ExitCode> {
    let xtask = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = as_root("env", "a network namespace")?;
    command.arg(format!("AGENT_FW={}", binary.display())).arg(xtask).args(["demo", "--again"]);
    Ok(exit_code(status(&mut command)?))
}

/// One source, before and after.
struct Visit {
    source: IpAddr,
    listed: bool,
    before: Outcome,
    after: Outcome,
    decided_by: String,
}

impl Visit {
    fn as_the_policy_says(&self) -> bool {
        let expected = if self.listed { Outcome::Talked } else { Outcome::Silent };
        self.before == Outcome::Talked && self.after == expected
    }
}

fn show(lab: &Lab) -> Result<Vec<Visit>> {
    let network = lab.peer("network")?;
    let _agent = Listener::bind(PORT)?;
    println!("A host in a network namespace of its own listens on TCP port {PORT}.");
    println!("No IPv6 block is published for any region; the documentation's range");
    println!("2001:db8:1::/64 stands in for one.\n");

    let mut before = Vec::new();
    for (source, listed) in VISITORS {
        let source: IpAddr = source.parse().with_context(|| format!("{source} is no address"))?;
        network.add_address(source)?;
        before.push((source, listed, connect(&network, source)?));
    }

    println!("$ agent-fw {} \\\n    {}", INSTALL[..3].join(" "), INSTALL[3..].join(" "));
    let installed = agent_fw_lab::agent_fw(INSTALL)?;
    for line in installed.stderr.lines().chain(installed.stdout.lines()) {
        println!("  {line}");
    }
    installed.success()?;
    println!();

    let mut visits = Vec::new();
    print_row(["source", "family", "listed", "before", "after", "decided by", ""]);
    for (source, listed, before) in before {
        let counted = Counters::read()?;
        let after = connect(&network, source)?;
        let decided_by = Counters::read()?.grown_since(&counted);
        let visit = Visit { source, listed, before, after, decided_by };
        print_visit(&visit);
        visits.push(visit);
    }
    Ok(visits)
}

fn connect(network: &Peer, source: IpAddr) -> Result<Outcome> {
    let agent = network.host_address(source, PORT);
    network.enter(|| agent_fw_lab::connect(source, agent, TIMEOUT))?
}

fn print_visit(visit: &Visit) {
    print_row([
        &visit.source.to_string(),
        if visit.source.is_ipv4() { "IPv4" } else { "IPv6" },
        if visit.listed { "yes" } else { "no" },
        &visit.before.to_string(),
        &visit.after.to_string(),
        &visit.decided_by,
        if visit.as_the_policy_says() { "" } else { "WRONG" },
    ]);
}

fn print_row([source, family, listed, before, after, decided_by, verdict]: [&str; 7]) {
    let row =
        format!("{source:<15}{family:<8}{listed:<8}{before:<9}{after:<9}{decided_by:<24}{verdict}");
    println!("{}", row.trim_end());
}

/// The counters of agent-fw's table in the kernel: each names what it counts.
struct Counters(BTreeMap<String, u64>);

impl Counters {
    fn read() -> Result<Self> {
        let argv = ["nft", "-j", "list", "counters", "table", "inet", "agent_fw"];
        let text = agent_fw_lab::run(argv)?;
        let json = serde_json::from_str(&text).context("cannot read what nft prints")?;
        Ok(Self::of_json(&json))
    }

    fn of_json(json: &Value) -> Self {
        let objects = json["nftables"].as_array().into_iter().flatten();
        let counters = objects.map(|object| &object["counter"]);
        let named = counters.filter_map(|counter| {
            Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
        });
        Self(named.collect())
    }

    /// The names of the counters that have counted packets since.
    fn grown_since(&self, earlier: &Self) -> String {
        let grown: Vec<&str> = self
            .0
            .iter()
            .filter(|(name, packets)| earlier.0.get(*name).is_none_or(|before| before < packets))
            .map(|(name, _)| name.as_str())
            .collect();
        if grown.is_empty() { "no counter".to_owned() } else { grown.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::Counters;

    fn counters(admitted: u64, refused: u64) -> Counters {
        Counters::of_json(&serde_json::json!({ "nftables": [
            { "metainfo": { "json_schema_version": 1 } },
            { "counter": { "name": "refused", "packets": refused, "bytes": 0 } },
            { "counter": { "name": "region us-1", "packets": admitted, "bytes": 0 } },
        ] }))
    }

    #[test]
    fn the_counter_that_grew_is_named() {
        assert_eq!(counters(3, 5).grown_since(&counters(3, 4)), "refused");
        assert_eq!(counters(4, 4).grown_since(&counters(3, 4)), "region us-1");
        assert_eq!(counters(4, 5).grown_since(&counters(3, 4)), "refused, region us-1");
        assert_eq!(counters(3, 4).grown_since(&counters(3, 4)), "no counter");
    }
}
