//! The statements of agent-fw's rules: each prints itself as nftables writes it, and knows the
//! kernel's instructions for it.

use super::expression::{Expression, MetaKey, Payload, PayloadBase, Program};
use crate::policy::Port;
use std::fmt;
use std::net::IpAddr;

/// A rule: statements that are evaluated in order until one does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    statements: Vec<Statement>,
    comment: String,
}

impl Rule {
    /// A rule without comment.
    pub fn new(statements: impl IntoIterator<Item = Statement>) -> Self {
        Self { statements: statements.into_iter().collect(), comment: String::new() }
    }

    /// The rule with a comment.
    #[must_use]
    pub fn with_comment(self, comment: String) -> Self {
        Self { comment, ..self }
    }

    /// The rule in the kernel's instructions.
    pub fn into_program(self) -> Program {
        let expressions = self.statements.iter().flat_map(Statement::expressions).collect();
        Program { expressions, comment: self.comment }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.statements.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            write!(f, "{blank}{statement}")?;
        }
        if !self.comment.is_empty() {
            write!(f, " comment \"{}\"", self.comment)?;
        }
        Ok(())
    }
}

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A condition or an action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// The packet came in through loopback.
    FromLoopback,
    /// The packet is TCP to this port.
    TcpTo(Port),
    /// The packet is TCP to a port of this set.
    TcpToAnyOf(String),
    /// The packet's destination is an address of this host.
    ToThisHost,
    /// The packet is of this family.
    Is(Family),
    /// The packet's source address is in this set. Follows [`Statement::Is`].
    FromAnyOf(Family, String),
    /// The packet's source address is this or a smaller one. Follows [`Statement::Is`].
    FromUpTo(IpAddr),
    /// The packet came from a MAC address of this set.
    FromAnyMacOf(String),
    /// Count the packet.
    Count(String),
    /// Goes on for so many packets a second, with as many as `burst` at once.
    Limit {
        /// Packets a second.
        rate: u64,
        /// Packets at once.
        burst: u32,
    },
    /// Writes the packet's headers to the kernel's log at level "info".
    Log {
        /// What the line begins with.
        prefix: &'static str,
    },
    /// Ends the base chain.
    Accept,
    /// Ends the packet.
    Drop,
    /// Goes on in this chain.
    Jump(String),
    /// Goes on in this chain, and not in this one again.
    Goto(String),
}

/// The index of the loopback interface: the kernel makes it first in every network namespace.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/include/net/flow.h> (`LOOPBACK_IFINDEX`)
const LOOPBACK: u32 = 1;
/// `ARPHRD_ETHER`: the hardware type of interfaces that have MAC addresses of six bytes.
const ETHERNET: u16 = 1;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// `LOG_INFO` of syslog.
const LEVEL_INFO: u32 = 6;

impl Statement {
    fn expressions(&self) -> Vec<Expression> {
        match self {
            Self::FromLoopback => {
                vec![Expression::Meta(MetaKey::InputInterface), equals(&LOOPBACK.to_ne_bytes())]
            }
            Self::TcpTo(port) => {
                let mut tcp = destination_port();
                tcp.push(equals(&port.0.to_be_bytes()));
                tcp
            }
            Self::TcpToAnyOf(set) => {
                let mut tcp = destination_port();
                tcp.push(Expression::Lookup { set: set.clone() });
                tcp
            }
            Self::ToThisHost => vec![Expression::FibDestinationType, equals(&LOCAL.to_ne_bytes())],
            Self::Is(family) => {
                vec![Expression::Meta(MetaKey::NetworkProtocol), equals(&[family.number()])]
            }
            Self::FromAnyOf(family, set) => {
                vec![source(*family), Expression::Lookup { set: set.clone() }]
            }
            Self::FromUpTo(IpAddr::V4(last)) => {
                vec![source(Family::V4), Expression::CompareAtMost(last.octets().to_vec())]
            }
            Self::FromUpTo(IpAddr::V6(last)) => {
                vec![source(Family::V6), Expression::CompareAtMost(last.octets().to_vec())]
            }
            Self::FromAnyMacOf(set) => vec![
                Expression::Meta(MetaKey::InputInterfaceType),
                equals(&ETHERNET.to_ne_bytes()),
                Expression::Payload(Payload { base: PayloadBase::Link, offset: 6, length: 6 }),
                Expression::Lookup { set: set.clone() },
            ],
            Self::Count(counter) => vec![Expression::Count { counter: counter.clone() }],
            Self::Limit { rate, burst } => vec![Expression::Limit { rate: *rate, burst: *burst }],
            Self::Log { prefix } => {
                vec![Expression::Log { prefix: (*prefix).to_owned(), level: LEVEL_INFO }]
            }
            Self::Accept => vec![Expression::Accept],
            Self::Drop => vec![Expression::Drop],
            Self::Jump(chain) => vec![Expression::Jump { chain: chain.clone() }],
            Self::Goto(chain) => vec![Expression::Goto { chain: chain.clone() }],
        }
    }
}

fn equals(bytes: &[u8]) -> Expression {
    Expression::CompareEqual(bytes.to_vec())
}

fn destination_port() -> Vec<Expression> {
    vec![
        Expression::Meta(MetaKey::TransportProtocol),
        equals(&[6]),
        Expression::Payload(Payload { base: PayloadBase::Transport, offset: 2, length: 2 }),
    ]
}

fn source(family: Family) -> Expression {
    let (offset, length) = match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    Expression::Payload(Payload { base: PayloadBase::Network, offset, length })
}

impl Family {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    const fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromLoopback => write!(f, "iif \"lo\""),
            Self::TcpTo(port) => write!(f, "tcp dport {port}"),
            Self::TcpToAnyOf(set) => write!(f, "tcp dport @{set}"),
            Self::ToThisHost => write!(f, "fib daddr type local"),
            Self::Is(family) => write!(f, "meta nfproto {family}"),
            Self::FromAnyOf(family, set) => write!(f, "{} saddr @{set}", family.header()),
            Self::FromUpTo(last @ IpAddr::V4(_)) => write!(f, "ip saddr <= {last}"),
            Self::FromUpTo(last @ IpAddr::V6(_)) => write!(f, "ip6 saddr <= {last}"),
            Self::FromAnyMacOf(set) => write!(f, "ether saddr @{set}"),
            Self::Count(counter) => write!(f, "counter name \"{counter}\""),
            Self::Limit { rate, burst } => {
                write!(f, "limit rate {rate}/second burst {burst} packets")
            }
            Self::Log { prefix } => write!(f, "log prefix \"{prefix}\" level info"),
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
