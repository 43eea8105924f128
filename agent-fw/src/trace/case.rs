//! What is asked: a packet, and where it comes in.

use super::routing;
use super::syn::Syn;
use crate::model::{MacAddr, Port};
use crate::netlink::address::{self, OwnAddress};
use crate::netlink::link::Interface;
use crate::netlink::route_lookup::{Flow, RouteLookup};
use crate::netlink::routes::Routes;
use crate::netlink::{link, route_lookup};
use anyhow::{Context as _, bail};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

/// The sender's MAC address where this host knows none: one for documentation (RFC 7042).
const STRANGER: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x00, 0x53, 0x01]);

/// The index of `lo`, by which this host reaches itself.
const LOOPBACK: u32 = 1;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeRequest {
    /// Where the packet comes from.
    pub source: IpAddr,
    /// The MAC address that it comes from; without one, the neighbour's.
    pub mac: Option<MacAddr>,
    /// Where it goes; without, this host's address towards the source.
    pub destination: Option<IpAddr>,
    /// The port.
    pub port: Port,
    /// The interface that it comes in by; without, the one towards the source.
    pub interface: Option<String>,
}

/// A question with everything that it left open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedProbe {
    /// The packet.
    pub syn: Syn,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whether that one was invented, since this host does not know the neighbour's.
    pub is_mac_invented: bool,
    /// The interface.
    pub interface: Interface,
    /// The answer would go out by this interface, where that is another.
    pub back_by: Option<String>,
    /// The VRF that the interface is in, by its index and its name.
    pub(super) vrf: Option<(u32, String)>,
}

/// No packet of that kind can come to this host; in words, why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoWayIn(pub String);

impl std::fmt::Display for NoWayIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoWayIn {}

impl ResolvedProbe {
    /// Settles what a question leaves open.
    pub fn of(question: &ProbeRequest) -> anyhow::Result<Self> {
        Self::among(question, &link::list()?)
    }

    /// The same, where this host's interfaces are known.
    pub fn among(question: &ProbeRequest, all: &[Interface]) -> anyhow::Result<Self> {
        let source = question.source;
        if let Some(destination) =
            question.destination.filter(|to| to.is_ipv4() != source.is_ipv4())
        {
            bail!("{source} and {destination} are of two versions of IP");
        }
        if routing::is_of_link(source) && question.interface.is_none() {
            bail!("{source} is an address of one link; {source}%INTERFACE says of which");
        }
        let End { interface, address: destination } = End::of(question, all)?;
        if interface.name == "lo" {
            bail!("{source} is this host itself: loopback is never filtered");
        }
        let [a, b, ..] = RandomState::new().hash_one(source).to_ne_bytes();
        let syn = Syn {
            source,
            // One of those that connections begin from.
            source_port: Port(u16::from_ne_bytes([a, b]) | 0x8000),
            destination,
            port: question.port,
            // The session's.
            sequence: 0,
        };
        let master = all.iter().find(|other| Some(other.index) == interface.master);
        let vrf = master.filter(|master| master.kind() == Some("vrf"));
        let vrf = vrf.map(|vrf| (vrf.index, vrf.name.clone()));
        let scope = routing::scope(source, interface.index, vrf.as_ref());
        let back = route_lookup::of_leaving(&routing::of_answer(&syn, 0, scope));
        let is_here = |way: &RouteLookup| way.interface == interface.index;
        let here = back.ok().filter(is_here);
        let by_here = || route_lookup::of_leaving(&Flow::to(source).by(interface.index)).ok();
        let known = here
            .or_else(by_here)
            .and_then(|way| route_lookup::mac_of(way.neighbour, interface.index));
        let name_of = |index: u32| {
            all.iter().find(|interface| interface.index == index).map(|i| i.name.clone())
        };
        let back_by = back.ok().filter(|way| !is_here(way)).and_then(|way| name_of(way.interface));
        let mac = question.mac.or(known);
        let (is_mac_invented, mac) = (mac.is_none(), mac.unwrap_or(STRANGER));
        Ok(Self { syn, mac, is_mac_invented, interface, back_by, vrf })
    }
}

/// Where the packet comes to.
struct End {
    interface: Interface,
    address: IpAddr,
}

impl End {
    /// Where the source can be expected to come to: there where it is answered from.
    fn of(question: &ProbeRequest, all: &[Interface]) -> anyhow::Result<Self> {
        let ProbeRequest { source, .. } = *question;
        let named = question.interface.as_deref().map(|name| {
            let found = all.iter().find(|interface| interface.name == name);
            found.with_context(|| format!("there is no interface {name}"))
        });
        let named = named.transpose()?;
        let own = || own_addresses(source, all);
        let address = match (question.destination, named) {
            (Some(address), _) => address,
            (None, Some(interface)) => address_at(interface, source, own)?,
            (None, None) => address_towards(source, own)?,
        };
        if let Some(interface) = named {
            return Ok(Self { interface: interface.clone(), address });
        }
        let index = if let Some(way) = way_back(source, Some(address)) {
            way.interface
        } else {
            // Nothing answers it; still it can come in there where that address is.
            let own = own()?;
            let has_it = own.iter().find(|own| own.address == address);
            has_it.or_else(|| own.first()).ok_or_else(|| no_address(source))?.interface
        };
        let interface = all.iter().find(|interface| interface.index == index);
        let interface = interface.context("the interface towards the source has gone")?.clone();
        Ok(Self { interface, address })
    }
}

fn way_back(source: IpAddr, from: Option<IpAddr>) -> Option<RouteLookup> {
    route_lookup::of_leaving(&Flow { from, ..Flow::to(source) }).ok()
}

/// This host's address by which a packet leaves; where it has none but loopback's, IPv6 says that one.
fn outward(way: RouteLookup) -> Option<IpAddr> {
    way.own.filter(|own| !own.is_loopback() || way.interface == LOOPBACK)
}

/// This host's address, of those at an interface, that a source would ask for which comes in by it.
fn address_at(
    interface: &Interface,
    source: IpAddr,
    own: impl Fn() -> anyhow::Result<Vec<OwnAddress>>,
) -> anyhow::Result<IpAddr> {
    let by_it = route_lookup::of_leaving(&Flow::to(source).by(interface.index)).ok();
    if let Some(own) = by_it.filter(|way| way.interface == interface.index).and_then(outward) {
        return Ok(own);
    }
    let here = own()?.into_iter().filter(|own| own.interface == interface.index);
    let here: Vec<IpAddr> = here.map(|own| own.address).collect();
    let is_answered_here = |address: &&IpAddr| {
        way_back(source, Some(**address)).is_some_and(|way| way.interface == interface.index)
    };
    let found = here.iter().find(is_answered_here).or(here.first()).copied();
    let elsewhere = || way_back(source, None).and_then(outward);
    found.or_else(elsewhere).with_context(|| {
        format!("{} has no address towards {source}; --to names one", interface.name)
    })
}

/// This host's address that a source would ask for: the one that it would be sent packets from, or
/// one that routing has a way back from.
fn address_towards(
    source: IpAddr,
    own: impl Fn() -> anyhow::Result<Vec<OwnAddress>>,
) -> anyhow::Result<IpAddr> {
    if let Some(own) = way_back(source, None).and_then(outward) {
        return Ok(own);
    }
    let own: Vec<IpAddr> = own()?.into_iter().map(|own| own.address).collect();
    let is_answered = |address: &&IpAddr| way_back(source, Some(**address)).is_some();
    let found = own.iter().find(is_answered).or(own.first()).copied();
    found.ok_or_else(|| no_address(source).into())
}

fn no_address(source: IpAddr) -> NoWayIn {
    let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
    NoWayIn(format!("this host has no {version} address by which {source} could reach it"))
}

/// The addresses of this host's interfaces that are up, of the source's version of IP; first those of
/// interfaces by which some route leads to the source, whatever table it is in.
fn own_addresses(source: IpAddr, all: &[Interface]) -> anyhow::Result<Vec<OwnAddress>> {
    let routes = Routes::read()?.towards(source);
    let is_up = |index| all.iter().any(|i| i.index == index && i.is_up && i.name != "lo");
    let mut own = address::list()?;
    own.retain(|own| {
        let fits = routing::is_of_link(own.address) == routing::is_of_link(source);
        own.address.is_ipv4() == source.is_ipv4() && is_up(own.interface) && fits
    });
    own.sort_by_key(|own| !routes.contains(&own.interface));
    Ok(own)
}
