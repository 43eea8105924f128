//! A rule of a firewall policy, made from one in the vendor's words.

use super::criteria::{Criteria, Place, Protocols};
use super::packet::{ICMP, ICMPV6, TCP, UDP};
use crate::model::rule::{Action, Direction, Endpoint, FrameType, Match, Priority, Protocol};
use crate::model::{AddressSet, MacMatch, RangeSet, rule};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What a person calls it.
    pub name: String,
    /// What it does with a packet that it matches.
    pub action: Action,
    /// When it is evaluated.
    pub priority: Priority,
    /// Which way the packet goes.
    pub direction: Direction,
    /// Which packets it matches.
    pub criteria: Criteria,
}

/// Why a rule cannot be part of a firewall policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("rule `{rule}`: {why}")]
pub struct FirewallError {
    /// The rule's name.
    pub rule: String,
    /// What about it cannot be kept.
    pub why: Unenforceable,
}

/// What a rule says that cannot be kept, and is therefore refused instead of ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unenforceable {
    /// It has a schedule.
    #[error("schedules are not supported; remove `scheduleID` from the rule")]
    Schedule,
    /// It has a context.
    #[error("contexts are not supported; remove `contextID` from the rule")]
    Context,
    /// An action has another priority than it can have.
    #[error("{0} has priority {1} and no other; change the rule's priority")]
    Priority(Action, u8),
    /// Ports of something that has none.
    #[error("it names ports, which only TCP and UDP have; name TCP, UDP or TCP+UDP, too")]
    Ports,
    /// TCP flags of something that has none.
    #[error("it looks at TCP flags, which only TCP has; name TCP as its protocol, too")]
    TcpFlags,
    /// An ICMP type of something that has none.
    #[error("it looks at an ICMP type; name ICMP or ICMPv6 as its protocol, too")]
    Icmp,
    /// The MAC addresses of a packet that is not in a frame yet.
    #[error(
        "it names MAC addresses of outgoing packets, which have none yet where the \
             kernel filters them; name IP addresses instead"
    )]
    OutgoingMac,
    /// More about ARP than who sends it.
    #[error("it is about ARP, of which it can name MAC addresses and nothing else")]
    Arp,
}

impl Unenforceable {
    /// Whether agent-fw has no means for it, and not the rule a fault.
    pub const fn is_lacking(&self) -> bool {
        matches!(self, Self::Schedule | Self::Context | Self::OutgoingMac | Self::Arp)
    }
}

impl Rule {
    /// All that keeps a rule in the vendor's words from being part of a firewall policy.
    pub fn unenforceable(rule: &rule::Rule) -> Vec<Unenforceable> {
        refusals(rule).collect()
    }

    /// The rule that a rule in the vendor's words is.
    pub fn new(rule: &rule::Rule) -> Result<Self, FirewallError> {
        let refused = |why| FirewallError { rule: rule.name.clone(), why };
        refusals(rule).next().map_or(Ok(()), Err).map_err(refused)?;
        let protocols = protocols(&rule.protocol);
        let frames = Frames::of(&rule.frame_type);
        let names_icmpv6 = protocols == Protocols::Only(BTreeSet::from([ICMPV6]));
        let criteria = Criteria {
            arp: frames == Frames::ARP,
            spares_icmpv6: rule.action == Action::Deny && !names_icmpv6,
            protocols,
            source: place(&rule.source, frames),
            destination: place(&rule.destination, frames),
            tcp_flags: rule.tcp_flags,
            icmp: rule.icmp,
        };
        let (name, action, priority) = (rule.name.clone(), rule.action, rule.priority);
        Ok(Self { name, action, priority, direction: rule.direction, criteria })
    }

    /// The place in the order of evaluation: by priority, and in a priority by action.
    pub fn rank(&self) -> impl Ord + use<> {
        let action = match self.action {
            Action::Bypass => 0,
            Action::LogOnly => 1,
            Action::ForceAllow => 2,
            Action::Deny => 3,
            Action::Allow => 4,
        };
        (Reverse(self.priority), action)
    }
}

/// The types of frame that a rule means, of those that are examined on Linux.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Frames {
    v4: bool,
    v6: bool,
    arp: bool,
}

impl Frames {
    const ARP: Self = Self { v4: false, v6: false, arp: true };

    fn of(types: &Match<FrameType>) -> Self {
        let named = |of: &FrameType| match of {
            FrameType::Ip => Self { v4: true, v6: true, arp: false },
            FrameType::Ipv4 | FrameType::Other(FrameType::IPV4) => {
                Self { v4: true, v6: false, arp: false }
            }
            FrameType::Ipv6 | FrameType::Other(FrameType::IPV6) => {
                Self { v4: false, v6: true, arp: false }
            }
            FrameType::Arp | FrameType::Other(FrameType::ARP) => Self::ARP,
            FrameType::RevArp | FrameType::Other(_) => Self { v4: false, v6: false, arp: false },
        };
        match types {
            Match::Any => Self { v4: true, v6: true, arp: true },
            Match::Is(of) => named(of),
            Match::Not(of) => {
                let Self { v4, v6, arp } = named(of);
                Self { v4: !v4, v6: !v6, arp: !arp }
            }
        }
    }
}

fn refusals(rule: &rule::Rule) -> impl Iterator<Item = Unenforceable> + use<> {
    let is_within = |numbers: &[u8]| {
        matches!(protocols(&rule.protocol), Protocols::Only(named)
            if named.iter().all(|number| numbers.contains(number)))
    };
    let ends = [&rule.source, &rule.destination];
    let has = |field: fn(&Endpoint) -> bool| ends.into_iter().any(field);
    let is_about_ip = has(|end| end.addresses != Match::Any || end.ports != Match::Any)
        || rule.protocol != Match::Any
        || rule.tcp_flags.is_some()
        || rule.icmp.is_some();
    let refusals = [
        (rule.schedule.is_some(), Unenforceable::Schedule),
        (rule.context.is_some(), Unenforceable::Context),
        (
            rule.action == Action::Allow && Some(rule.priority) != Priority::new(0),
            Unenforceable::Priority(rule.action, 0),
        ),
        (
            rule.action == Action::LogOnly && rule.priority != Priority::HIGHEST,
            Unenforceable::Priority(rule.action, 4),
        ),
        (has(|end| end.ports != Match::Any) && !is_within(&[TCP, UDP]), Unenforceable::Ports),
        (rule.tcp_flags.is_some() && !is_within(&[TCP, UDP]), Unenforceable::TcpFlags),
        (rule.icmp.is_some() && !is_within(&[ICMP, ICMPV6]), Unenforceable::Icmp),
        (
            rule.direction == Direction::Outgoing && has(|end| end.macs != Match::Any),
            Unenforceable::OutgoingMac,
        ),
        (Frames::of(&rule.frame_type) == Frames::ARP && is_about_ip, Unenforceable::Arp),
    ];
    refusals.into_iter().filter(|(holds, _)| *holds).map(|(_, refusal)| refusal)
}

fn protocols(protocol: &Match<Protocol>) -> Protocols {
    let numbers = |protocol: &Protocol| match protocol {
        Protocol::Tcp => BTreeSet::from([TCP]),
        Protocol::Udp => BTreeSet::from([UDP]),
        Protocol::TcpUdp => BTreeSet::from([TCP, UDP]),
        Protocol::Icmp => BTreeSet::from([ICMP]),
        Protocol::Icmpv6 => BTreeSet::from([ICMPV6]),
        Protocol::Other(number) => BTreeSet::from([*number]),
    };
    match protocol {
        Match::Any => Protocols::AllBut(BTreeSet::new()),
        Match::Is(protocol) => Protocols::Only(numbers(protocol)),
        Match::Not(protocol) => Protocols::AllBut(numbers(protocol)),
    }
}

fn place(end: &Endpoint, frames: Frames) -> Place {
    let named = match &end.addresses {
        Match::Any => AddressSet::all(),
        Match::Is(addresses) => addresses.all(),
        Match::Not(addresses) => addresses.all().complement(),
    };
    let AddressSet { v4, v6 } = named;
    let addresses = AddressSet {
        v4: if frames.v4 { v4 } else { RangeSet::default() },
        v6: if frames.v6 { v6 } else { RangeSet::default() },
    };
    let macs = match &end.macs {
        Match::Any => MacMatch::Any,
        Match::Is(macs) => MacMatch::Only(macs.clone()),
        Match::Not(macs) => MacMatch::Only(macs.complement()),
    };
    let ports = match &end.ports {
        Match::Any => None,
        Match::Is(ports) => Some(ports.clone()),
        Match::Not(ports) => Some(ports.complement()),
    };
    Place { addresses, macs, ports }
}
