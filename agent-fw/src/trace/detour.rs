//! A way past the gate: what it is, and what to do about it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// One way past the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Detour {
    /// Before routing, a rule sends packets to the port on to another host, or to a container: they
    /// are forwarded, and never come to the hook `input`.
    SentOn {
        /// The rule.
        rule: String,
        /// Whether it stands before what drops early.
        is_early: bool,
    },
    /// A rule hands packets to other ports to the agent's socket, and leaves their port as it is.
    Handed {
        /// The rule.
        rule: String,
    },
    /// A BPF program chooses the socket that a packet is for, whatever its port.
    Chosen {
        /// The program's number.
        program: u32,
        /// Its name.
        name: String,
    },
    /// Where no table of agent-fw's sees it, packets to other ports get the agent's: by a rule, or by
    /// the load balancer.
    Rewritten {
        /// The rule, or the service.
        rule: String,
    },
    /// Behind the last gate, a rule gives packets to other ports the agent's.
    RewrittenLast {
        /// The rule.
        rule: String,
    },
    /// Where no table of agent-fw's sees them, packets come out of others that programs on interfaces
    /// cannot look into.
    Unpacked {
        /// Out of what.
        from: String,
    },
    /// At the hook `input`, a rule gives packets another source: the late gate judges by that one.
    Resourced {
        /// The rule.
        rule: String,
    },
    /// The kernel takes TCP out of UDP (FOU, GUE), and hands it to sockets past the hook `input`.
    Delivered {
        /// The UDP port.
        udp: u16,
        /// Whether of IPv4.
        is_v4: bool,
    },
    /// A program or a filter of others, at an interface's entrance, may hand packets to sockets, give
    /// them other addresses and ports, or send them on.
    Classified {
        /// Which, and where.
        by: String,
    },
    /// A flowtable forwards connections that stood before an early drop did.
    Offloaded {
        /// Where these come from.
        sources: BTreeSet<IpAddr>,
    },
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SentOn { rule, .. } => {
                write!(f, "packets to the port are sent on to another host or a container: {rule}")
            }
            Self::Handed { rule } => {
                write!(f, "packets to other ports are handed to the agent's socket: {rule}")
            }
            Self::Chosen { program, name } => write!(
                f,
                "the BPF program {program} ({}) chooses sockets for packets, whatever their port",
                name.escape_debug()
            ),
            Self::Rewritten { rule } => {
                write!(f, "packets to other ports get the agent's behind the XDP program: {rule}")
            }
            Self::RewrittenLast { rule } => {
                write!(f, "packets to other ports get the agent's behind the last gate: {rule}")
            }
            Self::Unpacked { from } => {
                write!(f, "packets come out of {from}, where the XDP program cannot see them")
            }
            Self::Resourced { rule } => {
                write!(f, "packets get another source behind the gate: {rule}")
            }
            Self::Delivered { udp, is_v4 } => write!(
                f,
                "TCP in UDP to port {udp} of {} (FOU or GUE) comes to the agent's socket past every \
                 rule",
                if *is_v4 { "IPv4" } else { "IPv6" }
            ),
            Self::Classified { by } => write!(
                f,
                "what it sends on, or hands to sockets, no gate sees as a packet to the port: {by}"
            ),
            Self::Offloaded { sources } => {
                const NAMED: usize = 3;
                let named: Vec<String> =
                    sources.iter().take(NAMED).map(IpAddr::to_string).collect();
                let more = if sources.len() > NAMED { " and others" } else { "" };
                write!(
                    f,
                    "connections that stand go on past the early drop, by a flowtable: from {}{more}",
                    named.join(", ")
                )
            }
        }
    }
}

impl Detour {
    /// Whether it lets others in, as far as that can be known.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Chosen { .. } | Self::Resourced { .. } | Self::Classified { .. })
    }

    /// Whether what decides at the driver comes before it.
    pub fn is_after_driver(&self) -> bool {
        matches!(self, Self::SentOn { .. })
    }

    /// Whether what decides at prerouting comes before it.
    pub fn is_after_early_drop(&self) -> bool {
        matches!(self, Self::SentOn { is_early: false, .. })
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::SentOn { .. } => {
                "an early drop decides before that rule: set `early_drop = true` in \
                 /etc/agent-fw/policy.toml and run `agent-fw apply`; or take the rule away (a \
                 container's -p, a DNAT rule)"
            }
            Self::Handed { .. } => "restrict that rule to the manager's addresses, or take it away",
            Self::Chosen { .. } => {
                "see with `bpftool link` whether it is attached in this network namespace, and \
                 whether it sends anything to the agent's port"
            }
            Self::Rewritten { .. } | Self::Unpacked { .. } => {
                "a table sees them: set `backend = \"both\"` in /etc/agent-fw/policy.toml and run \
                 `agent-fw apply`"
            }
            Self::RewrittenLast { .. } => {
                "give the rule's chain a priority before 2147483645, or take the rule away"
            }
            Self::Resourced { .. } => {
                "leave packets to the agent's port out of that rule, or admit the source that it \
                 gives them"
            }
            Self::Delivered { .. } => {
                "see with `ip fou show` what opened that port, and take it away (`ip fou del`), or \
                 drop UDP to it from others than its peers"
            }
            Self::Classified { .. } => {
                "see what it belongs to (a container network's, mostly), and that it leaves packets \
                 to and from the agent's port alone"
            }
            Self::Offloaded { .. } => {
                "they end when that flowtable is deleted and made anew (`nft list flowtables`)"
            }
        }
    }
}
