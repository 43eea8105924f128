//! Asks the running kernel whether a packet gets through: a marked SYN is sent in by the real
//! interface, traced through every chain of every table, and caught before any socket.
//!
//! What it takes (a device, a table) belongs to this process: the kernel removes it with it.

mod answer;
pub(crate) mod base_chains;
mod case;
mod cgroup;
mod destination;
mod detour;
mod detours;
mod driver;
mod egress;
mod entrance;
mod entrance_detours;
mod entry;
pub(crate) mod events;
mod follow;
mod full_table;
mod icmp;
pub(crate) mod iptables_legacy;
mod offloaded;
mod outbound;
pub(crate) mod path;
mod path_mtu;
mod probe_rule;
mod reach;
mod records;
mod registers;
mod rewriting;
mod routing;
pub(crate) mod rule_text;
mod session;
mod socket;
mod stateful;
mod syn;
mod tc;
mod trace_table;
mod tracked;

pub use crate::netlink::route_lookup::macs_towards;
pub use crate::netlink::routes::Routes;
pub use base_chains::Base;
pub use case::{NoWayIn, ProbeRequest, ResolvedProbe};
pub use detour::Detour;
pub use detours::detours;
pub use driver::{Action, Driver};
pub use entry::{Entry, Memory, Opener, Tracking};
pub use events::{ChainRef, Verdict};
pub use iptables_legacy::LegacyRule;
pub use offloaded::offloaded;
pub use outbound::Outbound;
pub use path::{Conclusion, Decider, Decision, PacketTrace};
pub use path_mtu::PathMtu;
pub use session::Session;
pub use socket::Taker;
pub use stateful::{NotAsked, SideEffects, StatefulRule};
pub use syn::Syn;
pub use tc::tc_programs;

use crate::model::Port;
use crate::netlink::link;
use crate::netlink::nfnetlink::Connection;
use anyhow::Context as _;
use entrance::Entrance;
use stateful::{Packet, Watched};
use std::net::IpAddr;

/// Asks the kernel about one packet. Fails with [`NotAsked`] where rules would remember it.
pub fn ask(case: &ResolvedProbe, side_effects: SideEffects) -> anyhow::Result<PacketTrace> {
    Session::at(&case.interface, side_effects)?.ask(case)
}

/// The rules of this host that would remember the packet, or the one that answers it.
pub fn stateful_rules(case: &ResolvedProbe) -> anyhow::Result<Vec<StatefulRule>> {
    let entrance = Entrance::of(&case.interface, case.mac, &link::list()?);
    case.remembered_by(&mut Watched::open()?, &entrance)
}

/// The rules of this host that would remember a connection which it makes to itself.
pub fn stateful_rules_of_loopback(to: IpAddr, port: Port) -> anyhow::Result<Vec<StatefulRule>> {
    let all = link::list()?;
    let loopback = all.iter().find(|interface| interface.name == "lo");
    let loopback = loopback.context("there is no interface lo")?;
    let (source, destination) = (to, to);
    // The kernel draws it.
    let source_port = Port(0);
    let there = Syn { source, source_port, destination, port, sequence: 0 };
    let made = [there.packet(), there.answer(0)].map(Option::unwrap_or_default);
    let [mut there, mut back] = made.map(|packet| Packet::made_by_the_kernel(&packet));
    there.forget_port(true);
    back.forget_port(false);
    Watched::open()?.over_loopback([there, back], loopback)
}

/// The handles of the rules in a chain that have this comment.
pub fn commented(chain: &ChainRef, comment: &str) -> anyhow::Result<Vec<u64>> {
    rule_text::commented(&mut Connection::open()?, chain, comment)
}

/// Removes what an older kernel may have kept of an `explain` that was killed.
pub fn clear() {
    trace_table::clear();
}
