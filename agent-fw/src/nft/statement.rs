//! The statements of agent-fw's rules: each prints itself as nftables writes it, and knows the
//! kernel's instructions for it.

mod instruction;

use super::expression::Program;
use crate::model::{Family, MacAddr, Port};
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

/// A condition or an action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// The packet came in through loopback.
    FromLoopback,
    /// The packet came in through a VRF's own device.
    FromVrf,
    /// The packet's source is an address of this host.
    FromThisHost,
    /// The packet's source is a link-local address, which is not looked up as this host's. Follows
    /// [`Statement::Is`] with IPv6.
    FromLinkLocal,
    /// Adds the packet's source address to this set. Follows [`Statement::Is`].
    LearnSource(Family, String),
    /// Adds the packet's source port to this set. Follows [`Statement::TcpTo`].
    LearnSourcePort(String),
    /// The packet is TCP to this port.
    TcpTo(Port),
    /// The packet is TCP to a port of this set.
    TcpToAnyOf(String),
    /// The packet's destination is an address of this host.
    ToThisHost,
    /// The packet is of this family.
    Is(Family),
    /// The packet's address at this end is this or a smaller one. Follows [`Statement::Is`].
    AddressUpTo(End, IpAddr),
    /// The packet goes out through loopback.
    ToLoopback,
    /// The packet's protocol above IP is this one.
    ProtocolIs(u8),
    /// The packet's protocol above IP is another one.
    ProtocolIsNot(u8),
    /// The packet's address at this end is in this prefix: begins with as many bits of that address.
    /// Follows [`Statement::Is`].
    AddressIs(End, IpAddr, u8),
    /// The packet's address at this end is in this set. Follows [`Statement::Is`].
    AddressIn(End, Family, String),
    /// The first so many bits of the packet's address at this end are in this set. Follows
    /// [`Statement::Is`].
    PrefixIn(End, Family, u8, String),
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
    /// Another packet opened its connection.
    OpenedWithState,
}

/// The bit among a connection's 128 labels that says that Bypass let its first packet through.
pub const OPENED_BY_BYPASS: u32 = 118;

impl End {
    /// As nftables writes it before what is meant: `saddr`, `dport`.
    const fn letter(self) -> char {
        match self {
            Self::Source => 's',
            Self::Destination => 'd',
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromLoopback => write!(f, "iif \"lo\""),
            Self::FromVrf => write!(f, "meta iifkind \"vrf\""),
            Self::FromThisHost => write!(f, "fib saddr type local"),
            Self::FromLinkLocal => write!(f, "ip6 saddr fe80::/10"),
            Self::LearnSource(family, set) => {
                write!(f, "update @{set} {{ {} saddr }}", family.header())
            }
            Self::LearnSourcePort(set) => write!(f, "update @{set} {{ tcp sport }}"),
            Self::TcpTo(port) => write!(f, "tcp dport {port}"),
            Self::TcpToAnyOf(set) => write!(f, "tcp dport @{set}"),
            Self::ToThisHost => write!(f, "fib daddr type local"),
            Self::Is(family) => write!(f, "meta nfproto {family}"),
            Self::AddressUpTo(end, last) => {
                write!(f, "{} {}addr <= {last}", Family::of(*last).header(), end.letter())
            }
            Self::ToLoopback => write!(f, "oif \"lo\""),
            Self::ProtocolIs(number) => write!(f, "meta l4proto {number}"),
            Self::ProtocolIsNot(number) => write!(f, "meta l4proto != {number}"),
            Self::AddressIs(end, address, length) => {
                let (family, end) = (Family::of(*address), end.letter());
                if *length == family.bits() {
                    return write!(f, "{} {end}addr {address}", family.header());
                }
                // Of a prefix that ends with a byte, `nft -f` would load those bytes alone.
                let mask = family.mask(*length);
                write!(f, "{} {end}addr & {mask} == {address}", family.header())
            }
            Self::PrefixIn(end, family, length, set) if *length == family.bits() => {
                write!(f, "{} {}addr @{set}", family.header(), end.letter())
            }
            Self::PrefixIn(end, family, length, set) => {
                let mask = family.mask(*length);
                write!(f, "{} {}addr & {mask} @{set}", family.header(), end.letter())
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
            Self::Connection(ConnectionState::OpenedWithState) => {
                write!(f, "ct label ! {OPENED_BY_BYPASS}")
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
