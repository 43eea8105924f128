//! Who must reach whom in a deployment, with a region's addresses and host names filled in.

use crate::input::Region;
use crate::input::options::Mode;
use anyhow::Context as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The facts as the vendor published them.
const PUBLISHED: &str = include_str!("../../data/connectivity.toml");

/// What everybody must know who opens ports for an agent.
pub const CAVEAT: &str = "Outbound 443 must stay open to every address. The Smart Protection \
                          Network's addresses are not published: narrowing 443 to the region's \
                          subnets breaks it.";

/// Who takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The computer with the administrator's browser.
    Administrator,
    /// Workload Security itself, in its region.
    Manager,
    /// A host with an agent.
    Agent,
    /// A host with a relay, which contains an agent.
    Relay,
    /// The gateway to vCenter and Active Directory.
    DataCenterGateway,
    /// The gateway for reputation queries.
    ServiceGateway,
    /// Whatever uses the API.
    ApiClient,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Manager => "manager",
            Self::Agent => "agent",
            Self::Relay => "relay",
            Self::DataCenterGateway => "data-center-gateway",
            Self::ServiceGateway => "service-gateway",
            Self::ApiClient => "api-client",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose addresses the other side has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addresses {
    /// Not published: no narrower answer than any is right.
    Any,
    /// The region's subnets.
    Region,
    /// The deployment's own.
    Own,
    /// This host's.
    Loopback,
}

/// One connection that must be possible.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Who opens the connection.
    pub from: Role,
    /// To whom: a role's name, or what else there is.
    pub to: String,
    /// The destination port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub transport: String,
    /// What is spoken.
    pub protocol: String,
    /// Whose addresses the side outside has.
    pub addresses: Addresses,
    /// The subnets of the side outside, where they are known.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// The names of the side outside; in the data, what they are listed under.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The same names, with their purposes.
    #[serde(default, skip_deserializing)]
    pub names: Vec<Host>,
    /// When it is needed, if not always.
    #[serde(default)]
    pub condition: Option<String>,
    /// Whether it is needed only where the agent listens.
    #[serde(default, skip_serializing)]
    listening: bool,
}

impl Flow {
    /// Whether the flow comes in to a host of this role.
    pub fn comes_in_to(&self, role: Role) -> bool {
        self.to == role.name()
    }
}

/// The name of a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What it is for, where that is published.
    #[serde(default)]
    pub purpose: Option<String>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.purpose {
            Some(purpose) => write!(f, "{} ({purpose})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Names of hosts by what they are for.
type Hosts = BTreeMap<String, Vec<Host>>;

/// All flows, and the names of hosts: everywhere, in commercial regions, in others by name.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connectivity {
    #[serde(rename = "flow")]
    flows: Vec<Flow>,
    hosts: BTreeMap<String, Hosts>,
}

impl Connectivity {
    /// The built-in facts.
    pub fn published() -> anyhow::Result<Self> {
        toml::from_str(PUBLISHED).context("the built-in connectivity.toml")
    }

    /// What is needed in `direction` by a host of `role`, or by any; `region` fills in subnets and
    /// names. Another agent's port than the default is `port`.
    pub fn flows(
        &self,
        region: Option<(&str, &Region)>,
        direction: Mode,
        role: Option<Role>,
        port: u16,
    ) -> Vec<Flow> {
        let mut flows = Vec::new();
        for flow in &self.flows {
            if flow.listening && direction == Mode::AgentInitiated {
                continue;
            }
            let mut flow = flow.clone();
            // A relay contains an agent.
            if role == Some(Role::Relay) && flow.from == Role::Agent && flow.to != "relay" {
                flow.from = Role::Relay;
            }
            if role.is_some_and(|role| flow.from != role && !flow.comes_in_to(role)) {
                continue;
            }
            if flow.listening {
                flow.port = port;
            }
            flow.names = self.names(region, &flow.hosts);
            flow.hosts = flow.names.iter().map(|host| host.name.clone()).collect();
            if let (Some((_, region)), Addresses::Region) = (region, flow.addresses) {
                flow.subnets.clone_from(&region.subnets);
            }
            // What an agent needs as well is needed once.
            if !flows.contains(&flow) {
                flows.push(flow);
            }
        }
        flows
    }

    /// The names of Workload Security in a region, as an agent asks for them.
    pub fn names_of_manager(&self, region: (&str, &Region)) -> Vec<String> {
        let names = self.names(Some(region), &["workload_security".to_owned()]);
        names.into_iter().map(|host| host.name).collect()
    }

    fn names(&self, region: Option<(&str, &Region)>, listed: &[String]) -> Vec<Host> {
        let (name, domain) = region
            .map_or(("", "workload.REGION.cloudone.trendmicro.com"), |(name, region)| {
                (name, region.domain.as_str())
            });
        let own = if self.hosts.contains_key(name) { name } else { "commercial" };
        let kinds = [own, "everywhere"].into_iter().filter_map(|kind| self.hosts.get(kind));
        let kinds: Vec<&Hosts> = kinds.collect();
        let hosts = listed
            .iter()
            .flat_map(|listed| kinds.iter().filter_map(move |hosts| hosts.get(listed)).flatten());
        let named =
            |host: &Host| Host { name: host.name.replace("{domain}", domain), ..host.clone() };
        hosts.map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Catalogue;

    fn flows(region: &str, direction: Mode, role: Role) -> Vec<Flow> {
        let catalogue = Catalogue::published().expect("valid");
        let of = catalogue.get(region).expect("a region");
        let connectivity = Connectivity::published().expect("valid");
        connectivity.flows(Some((region, of)), direction, Some(role), 4118)
    }

    #[test]
    fn every_name_of_hosts_is_listed_somewhere_and_every_list_is_used() {
        let connectivity = Connectivity::published().expect("valid");
        let known: Vec<&String> = connectivity.hosts.values().flat_map(BTreeMap::keys).collect();
        let used: Vec<&String> = connectivity.flows.iter().flat_map(|flow| &flow.hosts).collect();
        assert!(used.iter().all(|name| known.contains(name)), "{used:?}");
        assert!(known.iter().all(|name| used.contains(name)), "{known:?}");
        for flow in &connectivity.flows {
            assert!(["tcp", "udp"].contains(&flow.transport.as_str()), "{flow:?}");
        }
    }

    #[test]
    fn only_where_the_agent_listens_something_comes_in_to_it() {
        for (direction, expected) in
            [(Mode::AgentInitiated, 0), (Mode::ManagerInitiated, 1), (Mode::Bidirectional, 1)]
        {
            let flows = flows("de-1", direction, Role::Agent);
            let incoming: Vec<_> =
                flows.iter().filter(|flow| flow.comes_in_to(Role::Agent)).collect();
            assert_eq!(incoming.len(), expected, "{direction}");
            for flow in incoming {
                assert_eq!(flow.subnets.len(), 2);
                assert_eq!((flow.port, flow.from), (4118, Role::Manager));
            }
        }
    }

    #[test]
    fn outbound_443_is_never_narrowed_to_the_regions_subnets() {
        for role in [Role::Agent, Role::Relay] {
            let flows = flows("us-1", Mode::Bidirectional, role);
            let mut outbound = flows.iter().filter(|flow| flow.from == role && flow.port == 443);
            assert!(outbound.all(|flow| flow.subnets.is_empty()), "{flows:?}");
        }
    }

    #[test]
    fn a_relay_needs_all_that_an_agent_needs() {
        let relay = flows("us-1", Mode::Bidirectional, Role::Relay);
        for flow in flows("us-1", Mode::Bidirectional, Role::Agent) {
            let same =
                |other: &&Flow| (other.port, &other.transport) == (flow.port, &flow.transport);
            assert!(relay.iter().any(|other| same(&other)), "{flow:?}");
        }
        assert!(relay.iter().any(|flow| flow.comes_in_to(Role::Relay) && flow.port == 4122));
    }

    #[test]
    fn names_of_hosts_are_those_of_the_region() {
        let us = flows("us-1", Mode::Bidirectional, Role::ApiClient);
        assert_eq!(us.len(), 1);
        let expected = "agents-010.workload.us-1.cloudone.trendmicro.com".to_owned();
        assert!(us[0].hosts.contains(&expected), "{us:?}");
        let gov = flows("gov-us-1", Mode::Bidirectional, Role::ApiClient);
        assert!(!gov[0].hosts.iter().any(|host| host.starts_with("agents-003")), "{gov:?}");
        let gateway = flows("gov-us-1", Mode::Bidirectional, Role::DataCenterGateway);
        let names: Vec<&String> = gateway.iter().flat_map(|flow| &flow.hosts).collect();
        assert_eq!(names[0], "gateway.workload.us-1.cloudone.trendmicro.com");
    }
}
