//! The agent's manager: whether the policy is about the one that the agent talks to, and whether its
//! name resolves.

use super::check::{Check, Health};
use crate::configuration::{Compiled, Configuration};
use crate::input::connectivity::Connectivity;
use crate::input::options::Mode;
use crate::input::{Catalogue, OVERRIDES};
use crate::model::Origin;
use crate::system::ds_agent;
use std::net::ToSocketAddrs as _;

/// The regions that a policy admits, as far as it names them.
fn admitted(compiled: &Compiled) -> Vec<&str> {
    let labels = compiled.lowered.ledger.labels().iter();
    let named = labels.filter_map(|label| match label {
        Origin::Region(name) => Some(name.as_str()),
        _ => None,
    });
    named.collect()
}

/// Whether the agent's own manager is in a region that the policy admits; `None` where the agent
/// does not tell.
pub(super) fn agreement(
    configuration: &Configuration,
    compiled: &Compiled,
    catalogue: &Catalogue,
) -> Option<Check> {
    let host = ds_agent::manager()?;
    let why = "a manager in another region calls from other addresses";
    let check = |health, seen| Check::new("the agent's manager", why, health, seen);
    let admitted = admitted(compiled);
    let Some((region, _)) = catalogue.region_of_host(&host) else {
        let seen = format!("the agent's manager is {host}, which is in no known region");
        return Some(check(Health::Note, seen).advise(format!(
            "name its addresses with --allow-from, or add its region to {OVERRIDES}"
        )));
    };
    let seen = format!("the agent's manager is {host}, in region {region}");
    let listens = configuration.direction != Mode::AgentInitiated;
    let is_admitted = compiled.lowered.policy.admits_everyone() || admitted.contains(&region);
    if !listens || is_admitted {
        return Some(check(Health::Good, seen));
    }
    if admitted.is_empty() {
        let seen = format!("{seen}; the policy names no region");
        return Some(check(Health::Note, seen));
    }
    let seen = format!("{seen}; the policy admits region {}", admitted.join(", "));
    let advice = format!("agent-fw install --allow-from region:{region}");
    Some(check(Health::Bad, seen).advise(advice))
}

/// Whether the names by which the agent finds its manager resolve: where it opens connections, it
/// needs them.
pub(super) fn names(
    installed: Option<(&Configuration, &Compiled)>,
    asked: Option<&str>,
    catalogue: &Catalogue,
) -> anyhow::Result<Vec<Check>> {
    let direction = installed.map_or(Mode::default(), |(known, _)| known.direction);
    let mut hosts: Vec<String> = ds_agent::manager().into_iter().collect();
    let regions = installed.map(|(_, compiled)| admitted(compiled)).unwrap_or_default();
    let connectivity = Connectivity::published()?;
    for name in regions.into_iter().chain(asked) {
        let region = catalogue.named(name)?;
        let names = connectivity.names_of_manager(region);
        // The one that every agent asks for first.
        let first = names.iter().find(|name| name.starts_with("agents.")).or(names.first());
        hosts.extend(first.cloned());
    }
    hosts.sort();
    hosts.dedup();
    let why = match direction {
        Mode::ManagerInitiated => "in manager-initiated mode the agent opens no connection to them",
        Mode::Bidirectional | Mode::AgentInitiated => "the agent finds its manager by these names",
    };
    let check = |health, seen| Check::new("the manager's names", why, health, seen);
    if hosts.is_empty() {
        let seen = "it is not known which manager this host's agent has";
        return Ok(vec![
            check(Health::Note, seen.to_owned()).advise("agent-fw doctor --online --region NAME"),
        ]);
    }
    let resolve = |host: String| match (host.as_str(), 443).to_socket_addrs() {
        Ok(found) => check(Health::Good, format!("{host} has {} addresses", found.count())),
        Err(error) => {
            let health =
                if direction == Mode::ManagerInitiated { Health::Note } else { Health::Bad };
            check(health, format!("{host} does not resolve: {error}")).advise(format!(
                "check the resolver (/etc/resolv.conf), or the region's name against {OVERRIDES}"
            ))
        }
    };
    Ok(hosts.into_iter().map(resolve).collect())
}
