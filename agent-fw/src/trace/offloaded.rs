//! Connections that a flowtable forwards: their packets meet no chain at `prerouting` any more.

use super::detour::Detour;
use super::entry::{GET, source_of};
use crate::model::{Policy, Port};
use crate::netlink::conntrack::{STATUS, TUPLE_ORIGINAL};
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, numbered};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `IPS_OFFLOAD` of linux/netfilter/nf_conntrack_common.h.
const OFFLOADED: u32 = 1 << 14;

/// `CTA_STATUS_MASK`.
const MASK: u16 = 26;

/// The detour that a flowtable is, past an early drop, for connections to the policy's port that the
/// policy would not let begin.
pub fn offloaded(policy: &Policy) -> anyhow::Result<Option<Detour>> {
    let every_family = 0;
    let mut netfilter = Connection::open()?;
    if netfilter.dump(Kind::GetFlowtable, every_family, &[])?.is_empty() {
        return Ok(None);
    }
    let filter = [numbered(STATUS, OFFLOADED), numbered(MASK, OFFLOADED)].concat();
    let all = netfilter.list(GET, every_family, &filter)?;
    let is_admitted = |source: &IpAddr| {
        policy.admissions().iter().any(|admission| admission.addresses.contains(*source))
    };
    let to_port = all.iter().filter_map(|entry| stranger(entry, policy));
    let sources: BTreeSet<IpAddr> = to_port.filter(|source| !is_admitted(source)).collect();
    Ok((!sources.is_empty()).then_some(Detour::Offloaded { sources }))
}

/// Where an offloaded connection to the policy's port comes from.
fn stranger(entry: &Message, policy: &Policy) -> Option<IpAddr> {
    /// `CTA_TUPLE_PROTO`, and in it the protocol's number and the destination port.
    const PROTOCOL: u16 = 2;
    const NUMBER: u16 = 1;
    const TO: u16 = 3;
    const TCP: &[u8] = &[6];
    // Kernels before 5.15 list them all.
    if entry.number(STATUS)? & OFFLOADED == 0 {
        return None;
    }
    let original = entry.find(TUPLE_ORIGINAL)?;
    let protocol = find(original, PROTOCOL)?;
    let port = Port(u16::from_be_bytes(*find(protocol, TO)?.first_chunk()?));
    let is_to_port = find(protocol, NUMBER) == Some(TCP) && policy.ports().contains(port);
    is_to_port.then(|| source_of(original)).flatten().map(|source| source.ip())
}
