//! The statements of agent-fw's rules: each prints itself as nftables writes it, and knows the
//! kernel's instructions for it.

use super::expression::{CtKey, Expression, MetaKey, Payload, PayloadBase, Program};
use crate::policy::{MacAddr, Port};
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
    /// The packet goes out through loopback.
    ToLoopback,
    /// The packet's protocol above IP is this one.
    ProtocolIs(u8),
    /// The packet's protocol above IP is another one.
    ProtocolIsNot(u8),
    /// The packet's address at this end is this one. Follows [`Statement::Is`].
    AddressIs(End, IpAddr),
    /// The packet's address at this end is in this set. Follows [`Statement::Is`].
    AddressIn(End, Family, String),
    /// The frame's MAC address at this end is this one.
    MacIs(End, MacAddr),
    /// The frame's MAC address at this end is in this set.
    MacIn(End, String),
    /// The packet's port at this end is this one. Follows [`Statement::ProtocolIs`] with TCP or UDP.
    PortIs(End, Port),
    /// The packet's port at this end is in this set. Follows [`Statement::ProtocolIs`] with TCP or
    /// UDP.
    PortIn(End, String),
    /// Of the TCP flags of the mask, exactly these are set; or, with `not`, not exactly these.
    /// Follows [`Statement::ProtocolIs`] with TCP.
    TcpFlags {
        /// The flags looked at.
        mask: u8,
        /// Their values.
        value: u8,
        /// Whether it is another combination that is meant.
        not: bool,
    },
    /// The first bytes of the ICMP header, type and code, are these; or, with `not`, others.
    /// Follows [`Statement::ProtocolIs`] with ICMP or `ICMPv6`.
    IcmpHeader {
        /// The type, and the code if it matters.
        bytes: Vec<u8>,
        /// Whether other ones are meant.
        not: bool,
    },
    /// Connection tracking says this of the packet.
    Connection(ConnectionState),
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
        prefix: String,
    },
    /// Sets the label [`OPENED_BY_BYPASS`] on the packet's connection.
    LabelConnection,
    /// Ends the base chain.
    Accept,
    /// Ends the packet.
    Drop,
    /// Goes on in this chain.
    Jump(String),
    /// Goes on in this chain, and not in this one again.
    Goto(String),
}

/// An end of a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// What connection tracking says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectionState {
    /// It opens a connection, which is known only when it has passed every hook.
    Opens,
    /// It fits some connection, begins one, or is not tracked.
    Valid,
    /// It goes against the direction in which its connection was opened.
    Reply,
    /// A packet that Bypass let through opened its connection.
    OpenedByBypass,
}

/// The bit among a connection's 128 labels that says that Bypass let its first packet through.
pub const OPENED_BY_BYPASS: u32 = 118;

/// `NF_CT_STATE_INVALID_BIT` and `IPS_CONFIRMED` of linux/netfilter/nf_conntrack_common.h.
const STATE_INVALID: u32 = 1;
const STATUS_CONFIRMED: u32 = 8;
/// `IP_CT_DIR_REPLY`.
const DIRECTION_REPLY: u8 = 1;
/// The index of the loopback interface: the kernel makes it first in every network namespace.
/// <https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/include/net/flow.h> (`LOOPBACK_IFINDEX`)
const LOOPBACK: u32 = 1;
/// `ARPHRD_ETHER`: the hardware type of interfaces that have MAC addresses of six bytes.
const ETHERNET: u16 = 1;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// The number of TCP.
const TCP: u8 = 6;
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
                vec![End::Source.address(*family), Expression::Lookup { set: set.clone() }]
            }
            Self::FromUpTo(IpAddr::V4(last)) => {
                vec![
                    End::Source.address(Family::V4),
                    Expression::CompareAtMost(last.octets().to_vec()),
                ]
            }
            Self::FromUpTo(IpAddr::V6(last)) => {
                vec![
                    End::Source.address(Family::V6),
                    Expression::CompareAtMost(last.octets().to_vec()),
                ]
            }
            Self::FromAnyMacOf(set) => End::Source.mac(Expression::Lookup { set: set.clone() }),
            Self::ToLoopback => {
                vec![Expression::Meta(MetaKey::OutputInterface), equals(&LOOPBACK.to_ne_bytes())]
            }
            Self::ProtocolIs(number) => {
                vec![Expression::Meta(MetaKey::TransportProtocol), equals(&[*number])]
            }
            Self::ProtocolIsNot(number) => {
                vec![Expression::Meta(MetaKey::TransportProtocol), differs(&[*number])]
            }
            Self::AddressIs(end, IpAddr::V4(address)) => {
                vec![end.address(Family::V4), equals(&address.octets())]
            }
            Self::AddressIs(end, IpAddr::V6(address)) => {
                vec![end.address(Family::V6), equals(&address.octets())]
            }
            Self::AddressIn(end, family, set) => {
                vec![end.address(*family), Expression::Lookup { set: set.clone() }]
            }
            Self::MacIs(end, mac) => end.mac(equals(&mac.0)),
            Self::MacIn(end, set) => end.mac(Expression::Lookup { set: set.clone() }),
            Self::PortIs(end, port) => vec![end.port(), equals(&port.0.to_be_bytes())],
            Self::PortIn(end, set) => vec![end.port(), Expression::Lookup { set: set.clone() }],
            Self::TcpFlags { mask, value, not } => {
                vec![transport(13, 1), Expression::Mask(vec![*mask]), compare(&[*value], *not)]
            }
            Self::IcmpHeader { bytes, not } => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                vec![transport(0, length), compare(bytes, *not)]
            }
            Self::Connection(state) => state.expressions(),
            Self::LabelConnection => {
                vec![Expression::Constant(label().to_vec()), Expression::SetCtLabels]
            }
            Self::Count(counter) => vec![Expression::Count { counter: counter.clone() }],
            Self::Limit { rate, burst } => vec![Expression::Limit { rate: *rate, burst: *burst }],
            Self::Log { prefix } => {
                vec![Expression::Log { prefix: prefix.clone(), level: LEVEL_INFO }]
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

fn differs(bytes: &[u8]) -> Expression {
    Expression::CompareDifferent(bytes.to_vec())
}

fn compare(bytes: &[u8], not: bool) -> Expression {
    if not { differs(bytes) } else { equals(bytes) }
}

fn transport(offset: u32, length: u32) -> Expression {
    Expression::Payload(Payload { base: PayloadBase::Transport, offset, length })
}

/// The labels of a connection of which [`OPENED_BY_BYPASS`] alone is set.
const fn label() -> [u8; 16] {
    (1_u128 << OPENED_BY_BYPASS).to_ne_bytes()
}

impl ConnectionState {
    fn expressions(self) -> Vec<Expression> {
        match self {
            Self::Opens => vec![
                Expression::Ct(CtKey::Status),
                Expression::Mask(STATUS_CONFIRMED.to_ne_bytes().to_vec()),
                equals(&[0; 4]),
            ],
            Self::Valid => {
                vec![Expression::Ct(CtKey::State), differs(&STATE_INVALID.to_ne_bytes())]
            }
            Self::Reply => vec![Expression::Ct(CtKey::Direction), equals(&[DIRECTION_REPLY])],
            Self::OpenedByBypass => vec![
                Expression::Ct(CtKey::Labels),
                Expression::Mask(label().to_vec()),
                differs(&[0; 16]),
            ],
        }
    }
}

impl End {
    fn address(self, family: Family) -> Expression {
        let (source, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        let offset = match self {
            Self::Source => source,
            Self::Destination => source + length,
        };
        Expression::Payload(Payload { base: PayloadBase::Network, offset, length })
    }

    fn mac(self, compare: Expression) -> Vec<Expression> {
        let offset = match self {
            Self::Source => 6,
            Self::Destination => 0,
        };
        vec![
            Expression::Meta(MetaKey::InputInterfaceType),
            equals(&ETHERNET.to_ne_bytes()),
            Expression::Payload(Payload { base: PayloadBase::Link, offset, length: 6 }),
            compare,
        ]
    }

    fn port(self) -> Expression {
        match self {
            Self::Source => transport(0, 2),
            Self::Destination => transport(2, 2),
        }
    }

    /// As nftables writes it before what is meant: `saddr`, `dport`.
    const fn letter(self) -> char {
        match self {
            Self::Source => 's',
            Self::Destination => 'd',
        }
    }
}

fn destination_port() -> Vec<Expression> {
    let tcp = [Expression::Meta(MetaKey::TransportProtocol), equals(&[TCP])];
    tcp.into_iter().chain([End::Destination.port()]).collect()
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
            Self::ToLoopback => write!(f, "oif \"lo\""),
            Self::ProtocolIs(number) => write!(f, "meta l4proto {number}"),
            Self::ProtocolIsNot(number) => write!(f, "meta l4proto != {number}"),
            Self::AddressIs(end, address @ IpAddr::V4(_)) => {
                write!(f, "ip {}addr {address}", end.letter())
            }
            Self::AddressIs(end, address @ IpAddr::V6(_)) => {
                write!(f, "ip6 {}addr {address}", end.letter())
            }
            Self::AddressIn(end, family, set) => {
                write!(f, "{} {}addr @{set}", family.header(), end.letter())
            }
            Self::MacIs(end, mac) => write!(f, "ether {}addr {mac}", end.letter()),
            Self::MacIn(end, set) => write!(f, "ether {}addr @{set}", end.letter()),
            Self::PortIs(end, port) => write!(f, "th {}port {port}", end.letter()),
            Self::PortIn(end, set) => write!(f, "th {}port @{set}", end.letter()),
            Self::TcpFlags { mask, value, not } => {
                let compare = if *not { "!=" } else { "==" };
                write!(f, "tcp flags & {mask:#04x} {compare} {value:#04x}")
            }
            Self::IcmpHeader { bytes, not } => {
                let compare = if *not { "!= " } else { "" };
                write!(f, "@th,0,{} {compare}0x", bytes.len() * 8)?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Connection(ConnectionState::Opens) => {
                write!(f, "ct status & confirmed == 0")
            }
            Self::Connection(ConnectionState::Valid) => write!(f, "ct state != invalid"),
            Self::Connection(ConnectionState::Reply) => write!(f, "ct direction reply"),
            Self::Connection(ConnectionState::OpenedByBypass) => {
                write!(f, "ct label {OPENED_BY_BYPASS}")
            }
            Self::LabelConnection => write!(f, "ct label set {OPENED_BY_BYPASS}"),
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
