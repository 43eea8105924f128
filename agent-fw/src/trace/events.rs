//! What the kernel tells of a packet on its way: every chain and rule that it met.

use crate::model::Port;
use crate::netlink::nfnetlink::{Message, find, long, number, text};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One event of a packet's trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// The packet's number.
    pub(super) packet: u32,
    /// The transport's header, in the first event of each chain.
    pub(super) header: Option<Vec<u8>>,
    /// IP's header, there, too.
    network: Option<Vec<u8>>,
    /// Its mark, when that happened.
    pub(super) mark: u32,
    /// The interface that it is about to leave by, there.
    pub(super) out: Option<u32>,
    pub(super) place: ChainRef,
    pub(super) step: Step,
}

/// A chain of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ChainRef {
    /// The table's family, by its number.
    pub family: u8,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl std::fmt::Display for ChainRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "other",
        };
        write!(f, "{family} {} {}", self.table.escape_debug(), self.chain.escape_debug())
    }
}

/// What happened there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A rule matched.
    Rule(u64, Verdict),
    /// The chain ended.
    Return,
    /// The base chain ended: its policy decided.
    Policy(Verdict),
}

/// What a rule or a policy said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The packet goes on to the next base chain.
    Accept,
    /// It ends.
    Drop,
    /// It is given to a program.
    Queue,
    /// A rule keeps it for itself.
    Stolen,
    /// The next rule.
    Continue,
    /// Another chain.
    Jump(String),
    /// Back to the caller.
    Return,
}

/// Numbers of linux/netfilter/nf_tables.h.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const OUT: u16 = 12;
const MARK: u16 = 14;
const POLICY: u16 = 16;

impl Event {
    pub(super) fn parse(message: &Message) -> Option<Self> {
        let (table, chain) = (message.text(TABLE)?, message.text(CHAIN)?);
        let place = ChainRef { family: message.family, table, chain };
        let step = match message.number(TYPE)? {
            1 => {
                Step::Policy(message.number(POLICY).map_or(Verdict::Continue, |code| {
                    Verdict::of(code.cast_signed(), String::new())
                }))
            }
            2 => Step::Return,
            3 => Step::Rule(long(message.find(RULE_HANDLE)?)?, verdict(message.find(VERDICT)?)?),
            _ => return None,
        };
        let bytes = |kind| message.find(kind).map(<[u8]>::to_vec);
        let (header, network) = (bytes(TRANSPORT_HEADER), bytes(NETWORK_HEADER));
        let (mark, out) = (message.number(MARK).unwrap_or_default(), message.number(OUT));
        Some(Self { packet: message.number(ID)?, header, network, mark, out, place, step })
    }

    /// One of which nothing else is known.
    #[cfg(test)]
    pub(super) fn at(place: ChainRef, step: Step) -> Self {
        Self { packet: 0, header: None, network: None, mark: 0, out: None, place, step }
    }

    /// The address and the port that the packet goes to there, where the event tells.
    pub(super) fn destination(&self) -> Option<(IpAddr, Port)> {
        self.end(16, 24, 2)
    }

    /// The address and the port that it comes from.
    pub(super) fn source(&self) -> Option<(IpAddr, Port)> {
        self.end(12, 8, 0)
    }

    fn end(&self, place_v4: usize, place_v6: usize, port: usize) -> Option<(IpAddr, Port)> {
        let network = self.network.as_ref()?;
        let v4 = || Some(IpAddr::from(*network.get(place_v4..)?.first_chunk::<4>()?));
        let v6 = || Some(IpAddr::from(*network.get(place_v6..)?.first_chunk::<16>()?));
        let address = if network.first()? >> 4 == 4 { v4() } else { v6() };
        let port = self.header.as_ref()?.get(port..)?.first_chunk()?;
        Some((address?, Port(u16::from_be_bytes(*port))))
    }
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let chain = find(bytes, 2).map(text).unwrap_or_default();
    Some(Verdict::of(number(find(bytes, 1)?)?.cast_signed(), chain))
}

impl Verdict {
    fn of(code: i32, chain: String) -> Self {
        match code {
            libc::NFT_CONTINUE | libc::NFT_BREAK => Self::Continue,
            libc::NFT_JUMP | libc::NFT_GOTO => Self::Jump(chain),
            libc::NFT_RETURN => Self::Return,
            // The upper bits hold the number of a queue or an error.
            code => match code & 0xff {
                libc::NF_DROP => Self::Drop,
                libc::NF_ACCEPT => Self::Accept,
                libc::NF_STOLEN => Self::Stolen,
                _ => Self::Queue,
            },
        }
    }
}
