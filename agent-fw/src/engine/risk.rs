//! What a policy would cut off that is in use now: sessions that stand, services that listen.

use super::live::LiveSessions;
use super::opening::Known;
use super::session::{Judge, is_restricted_on_purpose};
use crate::configuration::Configuration;
use crate::input::outbound::Outbound;
use crate::model::firewall::{Firewall, Service};
use crate::model::{AddressRange, AddressSet, Port, Range};
use crate::system::sockets::{Protocol, Socket};
use crate::trace::Opener;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What may be cut off, as a person names it: `tcp/22` is what comes in to port 22 of this host,
/// `out:tcp/443` what this host has opened to port 443 of others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    /// Who opens such a session.
    pub opener: Opener,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of whoever does not open it.
    pub port: Port,
}

/// What comes before the name of what this host has opened.
const OUT: &str = "out:";

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let out = if self.opener == Opener::Here { OUT } else { "" };
        let protocol = self.protocol.to_string().to_lowercase();
        write!(f, "{out}{protocol}/{}", self.port)
    }
}

/// A text is no name of what may be cut off.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected tcp/PORT or udp/PORT, or out:tcp/PORT or out:udp/PORT")]
pub struct NameError;

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (opener, rest) = match text.strip_prefix(OUT) {
            Some(rest) => (Opener::Here, rest),
            None => (Opener::There, text),
        };
        let (protocol, port) = rest.split_once('/').ok_or(NameError)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(NameError),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(NameError)?;
        Ok(Self { opener, protocol, port: Port(port) })
    }
}

/// Something that would be cut off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Risk {
    /// What.
    pub name: Name,
    /// Whether a service listens that nobody would reach any more.
    pub is_service: bool,
    /// How many sessions would end.
    pub sessions: usize,
    /// With whom.
    pub remotes: BTreeSet<IpAddr>,
}

/// Other ends that are named where sessions would end.
const NAMED: usize = 3;

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name { opener, protocol, port } = self.name;
        let is_out = opener == Opener::Here;
        let mut said = Vec::new();
        if self.is_service {
            said.push("nobody would reach it any more".to_owned());
        }
        if self.sessions > 0 {
            let s = if self.sessions == 1 { "" } else { "s" };
            let with = if is_out { "to" } else { "from" };
            let (number, remotes) = (self.sessions, listed(&self.remotes));
            said.push(format!("{number} connection{s}, {with} {remotes}"));
        }
        let of = if is_out { " of others" } else { "" };
        write!(f, "{protocol} port {port}{of} ({})", said.join("; "))
    }
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    let mut named: Vec<String> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
    match (addresses.len().saturating_sub(NAMED), named.pop()) {
        (0, Some(last)) if named.is_empty() => last,
        (0, Some(last)) => format!("{} and {last}", named.join(", ")),
        (more, last) => {
            named.extend(last);
            format!("{} and {more} more", named.join(", "))
        }
    }
}

/// What `after` would cut off and `before`, the policy in force, does not. Only whole firewall
/// policies and a default-deny outbound are asked about: to close the agent's port, and a relay's, to
/// all but their sources is what these are for.
///
/// A session would be cut off if a packet of either direction would be dropped: whoever opened it,
/// where that is not known. A service would be if it listens on a port that somebody reaches now,
/// and nobody any more: at any of this host's addresses, over either version of IP. Only TCP and UDP
/// have ports by which a person could name them; other protocols are not asked about.
pub fn risks(live: &LiveSessions, before: Option<&Known>, after: &Known) -> Vec<Risk> {
    let (configuration, compiled) = after;
    let Some(firewall) = compiled.firewall.as_ref().filter(|_| is_asked_about(configuration))
    else {
        return Vec::new();
    };
    let before = before.and_then(|(_, compiled)| compiled.firewall.as_ref());
    if before == Some(firewall) {
        return Vec::new();
    }
    let mut found = BTreeMap::new();
    for session in &live.sessions {
        let judge = Judge::of(session, live, firewall, before);
        if judge.is_purpose(after) {
            continue;
        }
        let is_cut = |opener: &&Opener| {
            !judge.survives(firewall, **opener)
                && before.is_none_or(|before| judge.survives(before, **opener))
        };
        if let Some(opener) = session.openers.iter().find(is_cut) {
            let risk: &mut Risk =
                found.entry(judge.name(*opener)).or_insert_with_key(|name| nothing(*name));
            risk.sessions += 1;
            risk.remotes.insert(session.remote.ip());
        }
    }
    let mut services: BTreeMap<Name, Vec<&Socket>> = BTreeMap::new();
    for socket in &live.services {
        let (protocol, port) = (socket.protocol, socket.port());
        let name = Name { opener: Opener::There, protocol, port };
        services.entry(name).or_default().push(socket);
    }
    for (name, sockets) in services {
        let asked = || sockets.iter().map(|socket| service(socket, &live.own));
        let from = others(&live.own);
        let is_reached = |by: &Firewall| asked().any(|service| by.serves(&service, &from));
        let is_there = asked().any(|service| !service.at.is_empty());
        if is_there
            && !is_restricted_on_purpose(configuration, name.protocol, name.port)
            && before.is_none_or(is_reached)
            && !is_reached(firewall)
        {
            found.entry(name).or_insert_with_key(|name| nothing(*name)).is_service = true;
        }
    }
    found.into_values().collect()
}

fn nothing(name: Name) -> Risk {
    Risk { name, is_service: false, sessions: 0, remotes: BTreeSet::new() }
}

/// Whether a policy is one of those that are asked about.
pub fn is_asked_about(configuration: &Configuration) -> bool {
    configuration.policy || configuration.outbound == Outbound::DefaultDeny
}

/// The service of a socket that listens.
fn service(socket: &Socket, own: &AddressSet) -> Service {
    let at = match socket.local.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            AddressSet { v4: own.v4.clone(), ..AddressSet::default() }
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => own.clone(),
        IpAddr::V4(address) => [AddressRange::V4(Range::single(address))].into_iter().collect(),
        IpAddr::V6(address) => [AddressRange::V6(Range::single(address))].into_iter().collect(),
    };
    Service { protocol: socket.protocol.number(), port: socket.port(), at }
}

/// Every address of other hosts.
fn others(own: &AddressSet) -> AddressSet {
    let v4 = Range::new(Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(127, 255, 255, 255));
    let loopback = v4.map(AddressRange::V4).into_iter();
    let loopback = loopback.chain([AddressRange::V6(Range::single(Ipv6Addr::LOCALHOST))]);
    own.union(&loopback.collect()).complement()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["tcp/22", "udp/53", "out:tcp/443", "out:udp/123"] {
            assert_eq!(text.parse::<Name>().expect("a name").to_string(), text);
        }
        for text in ["22", "tcp", "tcp/", "tcp/0", "tcp/65536", "icmp/8", "in:tcp/22", "tcp/22 out"]
        {
            assert_eq!(text.parse::<Name>(), Err(NameError), "{text}");
        }
    }

    #[test]
    fn a_risk_says_how_many_sessions_and_with_whom() {
        let mut risk = nothing("tcp/22".parse().expect("a name"));
        risk.sessions = 2;
        risk.remotes = [1, 2].map(|last| IpAddr::from([192, 0, 2, last])).into();
        assert_eq!(risk.to_string(), "TCP port 22 (2 connections, from 192.0.2.1 and 192.0.2.2)");
        risk.remotes = [1, 2, 3, 4, 5].map(|last| IpAddr::from([192, 0, 2, last])).into();
        risk.is_service = true;
        assert_eq!(
            risk.to_string(),
            "TCP port 22 (nobody would reach it any more; 2 connections, from 192.0.2.1, \
             192.0.2.2, 192.0.2.3 and 2 more)"
        );
        let mut out = nothing("out:tcp/443".parse().expect("a name"));
        out.sessions = 1;
        out.remotes = [IpAddr::from([192, 0, 2, 1])].into();
        assert_eq!(out.to_string(), "TCP port 443 of others (1 connection, to 192.0.2.1)");
    }
}
