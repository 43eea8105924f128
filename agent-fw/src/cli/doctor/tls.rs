//! TLS on the agent's port: version and suite, beside those that the vendor publishes.

use super::check::{Check, Health};
use crate::cli::asking;
use crate::cli::own_packets::OwnPackets;
use crate::model::Port;
use crate::system::ds_agent;
use crate::system::tls::{Agreed, NoHandshake, handshake, offers};
use crate::trace;
use crate::trace::NotAsked;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// An agent that is busy answers in less.
const PATIENCE: Duration = Duration::from_secs(5);

/// `None` where nothing listens: another check says that.
pub(super) fn encryption(port: Port) -> Option<Check> {
    let address = address_of_listener(&ds_agent::listeners(port))?;
    let why = "manager and agent agree on the newest version of TLS and a suite that both have";
    let check = |health, seen: String| {
        Check::new("TLS on the agent's port", why, health, format!("{address} port {port}: {seen}"))
    };
    match trace::stateful_rules_of_loopback(address, port) {
        Ok(rules) if rules.is_empty() => {}
        Ok(rules) => return Some(check(Health::Note, NotAsked(rules).to_string())),
        Err(error) => return Some(check(Health::Note, asking::why_not(&error))),
    }
    let mut own = OwnPackets::begin();
    let shaken = handshake((address, port.0).into(), PATIENCE);
    // Of a connection, the first is counted.
    own.sent_besides(1);
    drop(own);
    Some(match shaken {
        Ok(agreed) => {
            let (is_published, seen) = beside_the_published(&agreed);
            let check = check(if is_published { Health::Good } else { Health::Note }, seen);
            if is_published { check } else { check.advise(ANOTHER) }
        }
        Err(refused @ NoHandshake::NothingInCommon(_)) => check(Health::Note, refused.to_string())
            .advise(
                "agents before 11.0 Update 6 offer only suites in CBC mode, which this test has \
                 not: that is no fault, but update the agent",
            ),
        Err(refused @ NoHandshake::Unreachable(_)) => check(Health::Note, refused.to_string())
            .advise("see whether this host's rules let loopback through"),
        Err(refused @ NoHandshake::Silent(_)) => check(Health::Bad, refused.to_string())
            .advise("what listens there hangs, or is not the agent: see `ss -tlnp`"),
        Err(refused @ (NoHandshake::Closed | NoHandshake::NotTls(_))) => {
            check(Health::Bad, refused.to_string()).advise(ANOTHER)
        }
    })
}

const ANOTHER: &str = "see with `ss -tlnp` whether the agent is what listens there";

/// Whether the vendor publishes such an agent, and what was seen in words.
fn beside_the_published(agreed: &Agreed) -> (bool, String) {
    let Agreed { version, suite, ended } = agreed;
    let offers = offers().unwrap_or_default();
    let of_suite = offers.iter().filter(|(_, offer)| offer.suites.contains(suite));
    let agents: Vec<&str> = of_suite.map(|(agent, _)| agent.as_str()).collect();
    let beside = if agents.is_empty() {
        "which no published version of the agent offers".to_owned()
    } else {
        format!("which agents {} offer", agents.join(", "))
    };
    let ended = ended.as_ref().map_or_else(String::new, |why| format!("; then it ended: {why}"));
    (!agents.is_empty(), format!("TLS {version} with {suite}, {beside}{ended}"))
}

/// Where to reach a listener without leaving this host.
fn address_of_listener(listening: &[IpAddr]) -> Option<IpAddr> {
    let first = listening.iter().min_by_key(|address| !address.is_loopback())?;
    let is_any_v4 = listening.contains(&Ipv4Addr::UNSPECIFIED.into());
    Some(match first {
        _ if is_any_v4 => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => *address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_over_loopback() {
        let of = |all: &[&str]| {
            let all: Vec<IpAddr> = all.iter().filter_map(|text| text.parse().ok()).collect();
            address_of_listener(&all).map(|address| address.to_string())
        };
        assert_eq!(of(&["0.0.0.0", "::"]).as_deref(), Some("127.0.0.1"));
        assert_eq!(of(&["::"]).as_deref(), Some("::1"));
        assert_eq!(of(&["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(of(&["192.0.2.1", "127.0.0.1"]).as_deref(), Some("127.0.0.1"));
        assert_eq!(of(&[]), None);
    }
}
