//! Rules that remember packets: rates, quotas, sets that packets change, lists of recent sources. A
//! packet that asks would pass them as a manager's own does, and the next of the manager's would be
//! judged otherwise. So, before anything is sent, the host's rules are walked, and where the packet
//! may meet such a rule, it is not sent.
//!
//! A limit that decides on nothing but how often a line of log is written is none of them.

mod expressions;
mod legacy;
mod memory;
mod packet;
mod registers;
mod ruleset;
mod truth;
mod walk;
mod xtables;

pub(super) use packet::Packet;

use crate::netlink::link::Interface;
use crate::netlink::nfnetlink::Connection;
use crate::nft::{Generation, Nftables};
use crate::trace::events::ChainRef;
use crate::trace::{rewriting, tc};
use anyhow::Context as _;
use expressions::Sets;
use legacy::Line;
use ruleset::Ruleset;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use walk::{ANY, ASKING, Direction, Walk};

/// Whether rules that remember packets may be asked, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SideEffects {
    /// Where there is one on the way, nothing is sent.
    Refused,
    /// Whatever it costs.
    Accepted,
}

/// A rule that remembers packets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StatefulRule {
    /// Its table, with the family; `iptables-legacy` stands for one, too.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its number in the table, where it has one.
    pub handle: Option<u64>,
    /// Its text.
    pub text: String,
    /// What it would do with the packet.
    pub effect: &'static str,
}

impl StatefulRule {
    fn of_nft(place: &ChainRef, handle: u64, text: String, effect: &'static str) -> Self {
        let full = place.to_string();
        let chain = place.chain.escape_debug().to_string();
        let table = full.strip_suffix(&chain).unwrap_or(&full).trim().to_owned();
        Self { table, chain, handle: Some(handle), text, effect }
    }

    fn of_legacy(line: &Line, effect: &'static str) -> Self {
        let Line { table, chain, text, .. } = line;
        let table = format!("iptables-legacy {table}");
        Self { table, chain: chain.clone(), handle: None, text: text.clone(), effect }
    }

    fn unreadable(why: &str) -> Self {
        let effect = "may remember the packet: the rules cannot be read";
        let (table, text) = ("iptables-legacy".to_owned(), why.to_owned());
        Self { table, chain: String::new(), handle: None, text, effect }
    }
}

impl fmt::Display for StatefulRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, chain, handle, text, .. } = self;
        write!(f, "rule `{text}` in {table}")?;
        if !chain.is_empty() {
            write!(f, " {chain}")?;
        }
        handle.map_or(Ok(()), |handle| write!(f, " (handle {handle})"))
    }
}

/// Nothing was sent: these rules would have remembered it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotAsked(pub Vec<StatefulRule>);

impl fmt::Display for NotAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else { return f.write_str("not asked") };
        write!(f, "not asked: {first} has a memory")?;
        match self.0.len() - 1 {
            0 => Ok(()),
            1 => f.write_str(", and so has 1 other"),
            more => write!(f, ", and so have {more} others"),
        }
    }
}

impl std::error::Error for NotAsked {}

/// Fails where there is such a rule.
pub(super) fn refuse_to_be_remembered(by: Vec<StatefulRule>) -> anyhow::Result<()> {
    if by.is_empty() { Ok(()) } else { Err(NotAsked(by).into()) }
}

/// What the host's rules are, read anew when they have changed.
pub(super) struct Watched {
    nftables: Nftables,
    sets: Sets,
    read: Option<(Generation, Ruleset)>,
    surroundings: Option<Surroundings>,
}

/// What is around an interface, and does not change while it is asked about.
struct Surroundings {
    devices: Vec<u32>,
    own: BTreeSet<IpAddr>,
    /// Something that is no rule may change packets.
    is_rewritten: bool,
}

impl Surroundings {
    fn of(devices: Vec<u32>) -> Self {
        let has_programs = |device: &u32| !tc::tc_programs(*device).is_empty();
        let is_rewritten = devices.iter().any(has_programs) || has_balancer();
        Self { devices, own: rewriting::addresses(), is_rewritten }
    }
}

impl Watched {
    pub(super) fn open() -> anyhow::Result<Self> {
        let sets = Sets::new(Connection::open()?);
        Ok(Self { nftables: Nftables::open()?, sets, read: None, surroundings: None })
    }

    fn now(&mut self) -> anyhow::Result<(&Ruleset, &mut Sets)> {
        let generation = self.nftables.generation()?;
        if self.read.as_ref().is_none_or(|(of, _)| *of != generation) {
            self.sets.forget();
            self.read = Some((generation, Ruleset::read(&mut self.sets.connection)?));
        }
        let (_, ruleset) = self.read.as_ref().context("no rules were read")?;
        Ok((ruleset, &mut self.sets))
    }

    /// The rules that remember a packet which comes in through these devices, the lowest first, or
    /// the one that answers it, where it asks for a connection.
    pub(super) fn incoming(
        &mut self,
        mut packet: Packet,
        devices: &[Interface],
        answer: Option<Packet>,
    ) -> anyhow::Result<Vec<StatefulRule>> {
        let indices: Vec<u32> = devices.iter().map(|device| device.index).collect();
        let known = self.surroundings.take().filter(|around| around.devices == indices);
        let around = known.unwrap_or_else(|| Surroundings::of(indices));
        // Through several, it may meet the chains at any device.
        let alone = if let [interface] = devices { Some(interface) } else { None };
        let (port, address) = (packet.port(false), packet.address(false));
        // What is a port of another comes in by that one, too.
        if let Some(interface) = alone.filter(|interface| interface.master.is_none()) {
            packet.by = Some((interface.index, interface.name.clone()));
            packet.is_to_here = address.is_some_and(|address| around.own.contains(&address));
        }
        if around.is_rewritten {
            packet.forget_all();
        }
        self.surroundings = Some(around);
        let (ruleset, sets) = self.now()?;
        let states = if answer.is_some() { ASKING } else { ANY };
        let mut walk = Walk::new(ruleset, sets, packet, states);
        walk.go(Direction::In, alone);
        let behind = (walk.packet.port(false), walk.packet.address(false));
        let mut found = walk.found();
        if let Some(mut answer) = answer {
            // Where it has come to another port or address, it is answered from there.
            if port.is_none() || behind != (port, address) {
                answer.forget_end(true);
            }
            found.extend(leaving(ruleset, sets, answer));
        }
        Ok(sorted(found))
    }

    /// The rules that remember a packet which this host sends.
    pub(super) fn outgoing(&mut self, packet: Packet) -> anyhow::Result<Vec<StatefulRule>> {
        let (ruleset, sets) = self.now()?;
        Ok(sorted(leaving(ruleset, sets, packet)))
    }

    /// The rules that remember packets which this host sends to itself.
    pub(super) fn over_loopback(
        &mut self,
        packets: impl IntoIterator<Item = Packet>,
        loopback: &Interface,
    ) -> anyhow::Result<Vec<StatefulRule>> {
        let (ruleset, sets) = self.now()?;
        let mut found = Vec::new();
        for packet in packets {
            let mut walk = Walk::new(ruleset, sets, packet, ANY);
            walk.go(Direction::Out, None);
            walk.packet.by = Some((loopback.index, loopback.name.clone()));
            walk.go(Direction::In, Some(loopback));
            found.extend(walk.found());
        }
        Ok(sorted(found))
    }
}

fn leaving(ruleset: &Ruleset, sets: &mut Sets, packet: Packet) -> Vec<StatefulRule> {
    let mut walk = Walk::new(ruleset, sets, packet, ANY);
    walk.go(Direction::Out, None);
    walk.found()
}

fn sorted(mut found: Vec<StatefulRule>) -> Vec<StatefulRule> {
    found.sort();
    found.dedup();
    found
}

/// Whether the load balancer IPVS has services here: it changes where packets go.
fn has_balancer() -> bool {
    let listed = std::fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
    listed
        .lines()
        .any(|line| ["TCP", "UDP", "SCTP", "FWM"].iter().any(|kind| line.starts_with(kind)))
}
