//! What a host has to reach for its agent, and the rules that keep it open.

use crate::input::connectivity::{Addresses as Whose, CAVEAT, Connectivity, Flow, Role};
use crate::input::options::Mode;
use crate::input::{Source, SourceError};
use crate::model::firewall::{Datagram, Firewall, Packet, Payload, Transport, Verdict};
use crate::model::rule::{
    Action, Addresses, Direction, Endpoint, FrameType, Match, Priority, Protocol, Rule,
};
use crate::model::{AddressSet, Origin, Port, Range, RangeSet, firewall};
use anyhow::bail;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// What becomes of connections that this host opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outbound {
    /// agent-fw leaves them alone.
    #[default]
    Untouched,
    /// What the agent needs stays open, whatever a policy's rules say; the rest is left to these.
    NeedsOpen,
    /// What the agent needs stays open; what no rule admits is dropped.
    DefaultDeny,
}

impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "untouched",
            Self::NeedsOpen => "needs-open",
            Self::DefaultDeny => "default-deny",
        })
    }
}

/// One `--outbound-to`: where a service of the deployment's own is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// The service, as [`services`] names it.
    pub service: String,
    /// Addresses that it has; without one, there is no such service.
    pub at: Option<Source>,
    /// Its port, which a proxy alone has to say.
    pub port: Option<Port>,
}

/// Why the text of an `--outbound-to` is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DestinationError {
    /// There is no `=` in it.
    #[error("expected SERVICE=ADDRESSES, such as dns-server=192.0.2.53")]
    Form,
    /// A proxy without its port.
    #[error(
        "expected proxy=ADDRESS:PORT, such as proxy=192.0.2.3:1443 or proxy=[2001:db8::3]:1443"
    )]
    Proxy,
    /// What follows is no source.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (service, at) = text.split_once('=').ok_or(DestinationError::Form)?;
        let (at, port) = match (service, at) {
            (_, NONE) => (None, None),
            (PROXY, at) => {
                let (address, port) = address_and_port(at).ok_or(DestinationError::Proxy)?;
                (Some(address.parse()?), Some(port))
            }
            (_, at) => (Some(at.parse()?), None),
        };
        Ok(Self { service: service.to_owned(), at, port })
    }
}

/// The service that no flow names: the web proxy through which the agent reaches the outside.
const PROXY: &str = "proxy";

/// An address, in brackets if it is of IPv6, and a port.
fn address_and_port(text: &str) -> Option<(&str, Port)> {
    let (address, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok())??;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    // Without brackets, what is before the last colon may be half an address.
    let address = bare.or_else(|| (!address.contains(':')).then_some(address))?;
    (port != 0 && !address.is_empty()).then_some((address, Port(port)))
}

/// The word for a service that the deployment does not have.
const NONE: &str = "none";

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.at, self.port) {
            (Some(source), Some(port)) => {
                let address = source.to_string();
                let is_v6 = address.contains(':');
                let (open, close) = if is_v6 { ("[", "]") } else { ("", "") };
                write!(f, "{}={open}{address}{close}:{port}", self.service)
            }
            (Some(source), None) => write!(f, "{}={source}", self.service),
            (None, _) => write!(f, "{}={NONE}", self.service),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("`{text}`: {error}"))
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

/// What a host of this role opens connections to.
fn needed(role: Role) -> anyhow::Result<Vec<Flow>> {
    let flows =
        Connectivity::published()?.flows(None, Mode::AgentInitiated, Some(role), Port::AGENT.0);
    let leaves = |flow: &Flow| flow.from == role && flow.addresses != Whose::Loopback;
    Ok(flows.into_iter().filter(leaves).collect())
}

/// A service's name for flags: `NTP server` is `ntp-server`.
fn service(flow: &Flow) -> String {
    let words = flow.to.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// Refuses an `--outbound-to` of a service that there is not, or that may have any address.
pub fn check(role: Role, destinations: &[Destination]) -> anyhow::Result<()> {
    let flows = needed(role)?;
    for destination in destinations {
        let named = &destination.service;
        let whose = |whose| flows.iter().filter(move |flow| flow.addresses == whose).map(service);
        if whose(Whose::Own).any(|own| own == *named) || destination.is_proxy() {
            continue;
        }
        if named == "443" || whose(Whose::Any).any(|any| any == *named) {
            bail!("--outbound-to {destination}: {CAVEAT}");
        }
        let mut known: Vec<String> = whose(Whose::Own).chain([PROXY.to_owned()]).collect();
        known.dedup();
        bail!(
            "--outbound-to {destination}: there is no service `{named}`; those of a deployment's \
             own are {}",
            known.join(", ")
        );
    }
    Ok(())
}

impl Destination {
    /// Whether it is a web proxy.
    pub fn is_proxy(&self) -> bool {
        self.service == PROXY
    }
}

/// The rule that keeps a web proxy reachable.
pub fn rule_for_proxy(port: Port, at: Vec<(Origin, AddressSet)>) -> Rule {
    let name = format!("outbound TCP {port}: proxy");
    rule(name, Protocol::Tcp, Range::single(port).into(), Match::Is(Addresses(at)))
}

/// A port that has to be reached: for which services, and at which addresses.
#[derive(Default)]
struct Need {
    services: Vec<String>,
    /// `None` is any address.
    at: Option<Vec<(Origin, AddressSet)>>,
}

impl Need {
    fn for_whom(&self) -> String {
        match self.services.as_slice() {
            [one] => one.clone(),
            [first, others @ ..] => format!("{first}, {} more", others.len()),
            [] => String::new(),
        }
    }
}

/// Addresses of services, by their names; a service that is not among them may be anywhere.
pub type Places = BTreeMap<String, Vec<(Origin, AddressSet)>>;

/// The rules that keep open what a host of this role needs, at the highest priority: no Deny of a
/// policy's stands in the way.
pub fn rules(role: Role, places: &Places) -> anyhow::Result<Vec<Rule>> {
    let mut needs: BTreeMap<(u16, String), Need> = BTreeMap::new();
    for flow in needed(role)? {
        let place = places.get(&service(&flow));
        let need = needs
            .entry((flow.port, flow.transport))
            .or_insert_with(|| Need { services: Vec::new(), at: Some(Vec::new()) });
        if !need.services.contains(&flow.to) {
            need.services.push(flow.to);
        }
        need.at = need.at.take().zip(place).map(|(known, place)| [known, place.clone()].concat());
    }
    let rules = needs.into_iter().filter_map(|((port, transport), need)| {
        let protocol = protocol(port, &transport);
        let name = format!("outbound {protocol} {port}: {}", need.for_whom());
        let at = need.at.map_or(Match::Any, |at| Match::Is(Addresses(at)));
        // None of the services is there.
        let is_needed = at != Match::Is(Addresses::default());
        is_needed.then(|| rule(name, protocol, Range::single(Port(port)).into(), at))
    });
    // Not in the vendor's list: without an address, nothing is reached. Renewals go through
    // filters, other than the first request. Servers' ports: RFC 2131, RFC 8415.
    let dhcp = [67, 547].map(|port| Range::single(Port(port))).into_iter().collect();
    let dhcp = rule("outbound DHCP".to_owned(), Protocol::Udp, dhcp, Match::Any);
    Ok(rules.chain([dhcp]).collect())
}

/// DNS is in the vendor's list as UDP; long answers come by TCP (RFC 7766).
fn protocol(port: u16, transport: &str) -> Protocol {
    match transport {
        _ if port == 53 => Protocol::TcpUdp,
        "tcp" => Protocol::Tcp,
        _ => Protocol::Udp,
    }
}

fn rule(name: String, protocol: Protocol, ports: RangeSet<Port>, at: Match<Addresses>) -> Rule {
    Rule {
        name,
        action: Action::ForceAllow,
        priority: Priority::HIGHEST,
        direction: Direction::Outgoing,
        frame_type: Match::Is(FrameType::Ip),
        protocol: Match::Is(protocol),
        source: Endpoint::ANY,
        destination: Endpoint { addresses: at, ports: Match::Is(ports), ..Endpoint::ANY },
        tcp_flags: None,
        icmp: None,
        schedule: None,
        context: None,
    }
}

/// Whether outgoing connections to TCP 443 are not open to every address. Tried with one that no
/// list can name: it is for documentation (RFC 5737).
pub fn narrows_443(firewall: &Firewall) -> bool {
    const SYN: u8 = 0x02;
    let datagram = Datagram {
        source: Ipv4Addr::new(192, 0, 2, 7).into(),
        destination: Ipv4Addr::new(203, 0, 113, 7).into(),
        transport: Transport::Tcp(Port(40_000), Port(443), SYN),
        flow: firewall::Flow::Forth,
    };
    let (direction, payload) = (Direction::Outgoing, Payload::Ip(datagram));
    let packet = Packet { direction, loopback: false, macs: None, payload };
    firewall.decide(&packet) == Verdict::Drop
}

/// The rule by which answers get out to what an incoming Bypass lets in: it has no state by which
/// they would.
pub fn answers_to(bypass: &Rule) -> Rule {
    Rule {
        name: format!("answers: {}", bypass.name),
        direction: Direction::Outgoing,
        source: Endpoint { macs: Match::Any, ..bypass.destination.clone() },
        destination: Endpoint { macs: Match::Any, ..bypass.source.clone() },
        tcp_flags: None,
        icmp: None,
        ..bypass.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_of(rule: &Rule) -> u16 {
        let Match::Is(ports) = &rule.destination.ports else { panic!("{rule:?}") };
        ports.ranges()[0].first().0
    }

    fn rules_of(role: Role, places: &Places) -> BTreeMap<u16, Rule> {
        let rules = rules(role, places).expect("valid");
        rules.into_iter().map(|rule| (port_of(&rule), rule)).collect()
    }

    #[test]
    fn dns_ntp_and_443_are_open_to_any_address_and_a_relay_needs_no_less() {
        for role in [Role::Agent, Role::Relay] {
            let rules = rules_of(role, &Places::new());
            for port in [53, 123, 443, 80, 4122, 514, 8080] {
                let rule = &rules[&port];
                assert_eq!(rule.destination.addresses, Match::Any, "{rule:?}");
            }
            assert_eq!(rules[&53].protocol, Match::Is(Protocol::TcpUdp));
        }
    }

    #[test]
    fn a_port_that_several_services_have_is_as_wide_as_the_widest() {
        let place = vec![(Origin::Address, AddressSet::default())];
        let own = ["smart-protection-server", "relay"];
        let places = own.map(|service| (service.to_owned(), place.clone())).into_iter().collect();
        let rules = rules_of(Role::Agent, &places);
        assert_eq!(rules[&443].destination.addresses, Match::Any);
        for port in [5274, 4122] {
            assert_eq!(rules[&port].destination.addresses, Match::Is(Addresses(place.clone())));
        }
    }

    #[test]
    fn a_proxy_has_an_address_and_a_port() {
        for text in [
            "proxy=192.0.2.3",
            "proxy=192.0.2.3:",
            "proxy=192.0.2.3:0",
            "proxy=192.0.2.3:65536",
            "proxy=2001:db8::3:1443",
            "proxy=:1443",
            "proxy=proxy.example:1443",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_has_no_published_addresses_is_not_narrowed() {
        let check = |text: &str| super::check(Role::Agent, &[text.parse().expect("a destination")]);
        for text in ["manager=region:us-1", "443=region:us-1", "smart-protection-network=any"] {
            let refused = check(text).expect_err(text).to_string();
            assert!(refused.contains("must stay open to every address"), "{refused}");
        }
        let refused = check("dns=192.0.2.53").expect_err("no such service").to_string();
        assert!(refused.contains("dns-server, ntp-server"), "{refused}");
        let own = ["dns-server=192.0.2.53", "relay=none", "siem-or-syslog-server=2001:db8::1"];
        let proxies = ["proxy=192.0.2.3:1443", "proxy=[2001:db8::3]:8080", "proxy=none"];
        for text in own.into_iter().chain(proxies) {
            check(text).expect(text);
            assert_eq!(text.parse::<Destination>().expect("valid").to_string(), text);
        }
    }
}
