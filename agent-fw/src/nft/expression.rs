//! The instructions of the kernel's nf_tables machine, as far as agent-fw uses them.
//!
//! Every value goes through register 1; the verdict has its own.

use std::fmt;

/// A rule as the kernel keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Program {
    /// Its instructions, in order.
    pub expressions: Vec<Expression>,
    /// Its comment, which decides nothing.
    pub comment: String,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, expression) in self.expressions.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{expression}")?;
        }
        if !self.comment.is_empty() {
            write!(f, " comment \"{}\"", self.comment.escape_debug())?;
        }
        Ok(())
    }
}

/// One instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expression {
    /// Loads a fact about the packet into the register.
    Meta(MetaKey),
    /// Loads bytes of the packet into the register.
    Payload(Payload),
    /// Loads a fact about the packet's connection into the register.
    Ct(CtKey),
    /// Loads this into the register.
    Constant(Vec<u8>),
    /// Sets the labels of the packet's connection that the register has.
    SetCtLabels,
    /// Keeps the bits of the register that this mask has.
    Mask(Vec<u8>),
    /// Ends the rule unless the register equals this.
    CompareEqual(Vec<u8>),
    /// Ends the rule if the register equals this.
    CompareDifferent(Vec<u8>),
    /// Ends the rule unless the register, as a big-endian number, is at most this.
    CompareAtMost(Vec<u8>),
    /// Ends the rule unless the register is in the set.
    Lookup {
        /// The set.
        set: String,
    },
    /// Adds the register to the set, or makes it last longer there.
    Learn {
        /// The set.
        set: String,
    },
    /// Adds the packet to a counter.
    Count {
        /// The counter.
        counter: String,
    },
    /// Loads the type of the packet's destination address into the register.
    FibDestinationType,
    /// Loads the type of the packet's source address into the register.
    FibSourceType,
    /// Ends the rule when packets come faster than this.
    Limit {
        /// Packets a second.
        rate: u64,
        /// How many may come at once.
        burst: u32,
    },
    /// Writes the packet's headers to the kernel's log.
    Log {
        /// What the line begins with.
        prefix: String,
        /// The level, as of syslog.
        level: u32,
    },
    /// Ends the base chain: the packet goes on to the next.
    Accept,
    /// Ends the packet.
    Drop,
    /// Goes on in another chain, and comes back if that one does not decide.
    Jump {
        /// The chain.
        chain: String,
    },
    /// Goes on in another chain, and then where that chain's caller was called from.
    Goto {
        /// The chain.
        chain: String,
    },
}

/// A fact about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetaKey {
    /// The index of the interface that it came in through.
    InputInterface,
    /// The index of the interface that it goes out through.
    OutputInterface,
    /// The type of the hardware of the interface that it came in through.
    InputInterfaceType,
    /// What kind of device that interface is, in sixteen bytes: "vrf", "vlan".
    InputInterfaceKind,
    /// The network protocol's family.
    NetworkProtocol,
    /// The transport protocol's number.
    TransportProtocol,
}

/// A fact about a packet's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CtKey {
    /// What the packet is to its connection.
    State,
    /// Whether it goes as the connection's first packet went, or back.
    Direction,
    /// What is known of the connection, as bits.
    Status,
    /// The labels that rules have set on the connection.
    Labels,
}

/// A part of a packet's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The header.
    pub base: PayloadBase,
    /// The offset in it, in bytes.
    pub offset: u32,
    /// The length, in bytes.
    pub length: u32,
}

/// A header of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadBase {
    /// Ethernet.
    Link,
    /// IP.
    Network,
    /// TCP.
    Transport,
}

impl fmt::Display for Expression {
    /// Writes the instruction as `nft --debug=netlink` does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(key) => write!(f, "meta load {key}"),
            Self::Payload(Payload { base, offset, length }) => {
                write!(f, "payload load {length}b @ {base} header + {offset}")
            }
            Self::Ct(key) => write!(f, "ct load {key}"),
            Self::Constant(data) => write_bytes(f, "immediate", data),
            Self::SetCtLabels => write!(f, "ct set label"),
            Self::Mask(data) => write_bytes(f, "bitwise and", data),
            Self::CompareEqual(data) => write_bytes(f, "cmp eq", data),
            Self::CompareDifferent(data) => write_bytes(f, "cmp neq", data),
            Self::CompareAtMost(data) => write_bytes(f, "cmp lte", data),
            Self::Lookup { set } => write!(f, "lookup set {set}"),
            Self::Learn { set } => write!(f, "dynset update set {set}"),
            Self::Count { counter } => write!(f, "objref counter {counter}"),
            Self::FibDestinationType => write!(f, "fib daddr type"),
            Self::FibSourceType => write!(f, "fib saddr type"),
            Self::Limit { rate, burst } => write!(f, "limit {rate}/second burst {burst}"),
            Self::Log { prefix, level } => write!(f, "log prefix \"{prefix}\" level {level}"),
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Jump { chain } => write!(f, "jump {chain}"),
            Self::Goto { chain } => write!(f, "goto {chain}"),
        }
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, what: &str, bytes: &[u8]) -> fmt::Result {
    write!(f, "{what} 0x")?;
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for CtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "state",
            Self::Direction => "direction",
            Self::Status => "status",
            Self::Labels => "label",
        })
    }
}

impl fmt::Display for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InputInterface => "iif",
            Self::OutputInterface => "oif",
            Self::InputInterfaceType => "iiftype",
            Self::InputInterfaceKind => "iifkind",
            Self::NetworkProtocol => "nfproto",
            Self::TransportProtocol => "l4proto",
        })
    }
}

impl fmt::Display for PayloadBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "link",
            Self::Network => "network",
            Self::Transport => "transport",
        })
    }
}
