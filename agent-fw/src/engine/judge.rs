//! The one judge of the promise "closed": no source but those listed reaches the agent's port, by any
//! interface of this host. Whoever shows the promise shows its answer.

use super::kernel_state::{BOTH_BACKENDS, KernelState};
use super::plan::interfaces_of;
use crate::configuration::{Compiled, Configuration};
use crate::input::options::Backend;
use crate::input::outbound::Outbound;
use crate::model::rule::Direction;
use crate::model::{DefaultAction, Policy};
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::nft::{FIREWALL_PRIORITY, LATE_PRIORITY};
use crate::trace;
use crate::trace::Detour;
use std::fmt;

/// Why the port is not closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotClosed {
    /// The policy admits every source.
    Everyone,
    /// It admits more than half of all addresses of a version of IP.
    Most,
    /// It leaves other sources to the host's other rules.
    LeftToOthers,
    /// The kernel does not enforce it.
    NotEnforced,
    /// Packets come in by these interfaces, and nothing guards them.
    Unguarded(Vec<String>),
    /// A rule of this host leads past what enforces the policy.
    Detour(Detour),
    /// A rule of this host leads past the table that has the relay's port.
    RelayDetour(Detour),
    /// Rules let out more than half of what is to be dropped.
    MostOut,
}

impl NotClosed {
    /// An identifier, for programs.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Most => "most-addresses",
            Self::LeftToOthers => "left-to-other-rules",
            Self::NotEnforced => "not-enforced",
            Self::Unguarded(_) => "unguarded-interfaces",
            Self::Detour(_) | Self::RelayDetour(_) => "detour",
            Self::MostOut => "most-ports",
        }
    }

    /// Whether the policy says so: then nothing is wrong.
    pub fn is_meant(&self) -> bool {
        matches!(self, Self::Everyone | Self::Most | Self::LeftToOthers | Self::MostOut)
    }
}

impl fmt::Display for NotClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str("every source is admitted"),
            Self::Most => {
                f.write_str("more than half of all addresses of a version of IP are admitted")
            }
            Self::LeftToOthers => f.write_str("other sources are left to the host's other rules"),
            Self::NotEnforced => f.write_str("the kernel does not enforce the policy"),
            Self::Unguarded(names) => write!(
                f,
                "packets that come in by {} are not filtered: the backend is xdp; a table filters \
                 them, too: {BOTH_BACKENDS}",
                names.join(", ")
            ),
            Self::Detour(detour) => write!(f, "{detour} ({})", detour.advice()),
            Self::RelayDetour(detour) => {
                let words = detour.to_string().replace("the agent's", "the relay's");
                write!(f, "{words} (restrict that rule to the relay's sources, or take it away)")
            }
            Self::MostOut => f.write_str(
                "rules let out more than half of all ports of TCP or UDP, to more than half of all \
                 addresses of a version of IP",
            ),
        }
    }
}

/// Why the port is not closed; nothing, where it is. `differs`: whether the kernel differs from the
/// policy.
pub fn judge(
    configuration: &Configuration,
    compiled: &Compiled,
    state: &KernelState,
    differs: bool,
) -> anyhow::Result<Vec<NotClosed>> {
    let policy = &compiled.lowered.policy;
    let mut found: Vec<NotClosed> = by_policy(policy).into_iter().collect();
    let is_enforced = !differs && state.is_something() || state.has_whole_table(compiled);
    if !is_enforced {
        found.push(NotClosed::NotEnforced);
    }
    let guarded: Vec<u32> =
        interfaces_of(configuration)?.interfaces().iter().map(|i| i.index).collect();
    let open = unguarded(&link::list()?, &guarded);
    let is_guarded = open.is_empty();
    if configuration.backend == Backend::Xdp && state.table.is_none() && !is_guarded {
        found.push(NotClosed::Unguarded(open));
    }
    let detours =
        trace::detours(policy.ports(), LATE_PRIORITY)?.into_iter().filter(Detour::is_certain);
    let is_closed = |detour: &Detour| {
        is_guarded && detour.is_after_driver()
            || configuration.early_drop && detour.is_after_early_drop()
    };
    let open = detours.filter(|detour| !is_closed(detour));
    let offloaded = if configuration.early_drop { trace::offloaded(policy)? } else { None };
    found.extend(open.chain(offloaded).map(NotClosed::Detour));
    Ok(found)
}

/// Why a policy does not close its ports, if it does not.
fn by_policy(policy: &Policy) -> Option<NotClosed> {
    if policy.admits_everyone() {
        Some(NotClosed::Everyone)
    } else if policy.admits_most() {
        Some(NotClosed::Most)
    } else {
        (policy.others() == DefaultAction::Continue).then_some(NotClosed::LeftToOthers)
    }
}

/// The judge's answers about what is promised beyond the agent's port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Beyond {
    /// Why the relay's port is not closed, where the policy says who reaches it.
    pub relay: Option<Vec<NotClosed>>,
    /// Why other outgoing connections are not dropped, where the policy says that they are.
    pub outbound: Option<Vec<NotClosed>>,
}

impl Beyond {
    /// Whether all that is promised is so.
    pub fn is_closed(&self) -> bool {
        self.relay.iter().chain(&self.outbound).all(Vec::is_empty)
    }

    /// Whether all is as open, or as closed, as the policy says.
    pub fn is_as_meant(&self) -> bool {
        self.relay.iter().chain(&self.outbound).flatten().all(NotClosed::is_meant)
    }
}

/// Judges what is promised beyond the agent's port. `differs`: whether the kernel differs from the
/// policy.
pub fn judge_beyond(
    configuration: &Configuration,
    compiled: &Compiled,
    state: &KernelState,
    differs: bool,
) -> anyhow::Result<Beyond> {
    let is_enforced = !differs && !state.firewall.is_empty() || state.has_firewall(compiled);
    let not_enforced = || (!is_enforced).then_some(NotClosed::NotEnforced);
    let mut beyond = Beyond::default();
    if let Some(policy) = &compiled.relay {
        let detours = trace::detours(policy.ports(), FIREWALL_PRIORITY)?.into_iter();
        let detours = detours.filter(Detour::is_certain).map(NotClosed::RelayDetour);
        let found = by_policy(policy).into_iter().chain(not_enforced());
        beyond.relay = Some(found.chain(detours).collect());
    }
    if let Some(firewall) = &compiled.firewall
        && configuration.outbound == Outbound::DefaultDeny
    {
        let opens = (!firewall.closes(Direction::Outgoing)).then_some(NotClosed::MostOut);
        beyond.outbound = Some(opens.into_iter().chain(not_enforced()).collect());
    }
    Ok(beyond)
}

/// The interfaces by which packets come in that no guarded one has seen.
fn unguarded(all: &[Interface], guarded: &[u32]) -> Vec<String> {
    let open = all.iter().filter(|interface| interface.is_up && !is_seen(interface, all, guarded));
    open.map(|interface| interface.name.clone()).collect()
}

/// Whether what comes in by an interface has come in by a guarded one before, or never comes from
/// outside.
fn is_seen(interface: &Interface, all: &[Interface], guarded: &[u32]) -> bool {
    if interface.index == LOOPBACK || guarded.contains(&interface.index) {
        return true;
    }
    match interface.kind() {
        // Nothing ever comes in by it.
        Some("dummy") => true,
        // Frames come up from the ports of a bridge, a bond, a VRF; without any, nothing comes.
        Some("bridge" | "bond" | "vrf" | "team") => {
            let mut ports = all.iter().filter(|port| port.master() == Some(interface.index));
            ports.all(|port| is_seen(port, all, guarded))
        }
        Some("vlan" | "macvlan" | "macvtap" | "ipvlan") => interface
            .lower()
            .and_then(|lower| all.iter().find(|other| other.index == lower))
            .is_some_and(|lower| is_seen(lower, all, guarded)),
        _ => false,
    }
}

/// The index of loopback, in every network namespace.
const LOOPBACK: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_a_guarded_interface_is_guarded_and_another_is_not() {
        let up = |index, name: &str| {
            let mut interface = Interface::default();
            (interface.index, interface.name, interface.is_up) = (index, name.to_owned(), true);
            interface
        };
        let all = [
            up(1, "lo"),
            up(2, "eth0"),
            up(3, "eth1"),
            up(4, "eth0.7").standing_on("vlan", 2),
            up(5, "eth1.7").standing_on("vlan", 3),
            up(6, "wg0").standing_on("wireguard", 2),
        ];
        assert_eq!(unguarded(&all, &[2]), ["eth1", "eth1.7", "wg0"]);
        assert_eq!(unguarded(&all, &[2, 3]), ["wg0"]);
        let mut down = up(7, "eth2");
        down.is_up = false;
        assert!(unguarded(&[down], &[]).is_empty());
    }
}
