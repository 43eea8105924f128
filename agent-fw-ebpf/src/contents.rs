//! A program's constants and tables in user space, and what they decide.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::{Config, Known};
use crate::decision::{is_agents, mac_key};
use crate::ethernet::Mac;
use crate::label::Label;
use crate::table::{
    Listed, ROOT_BITS, Range, Shape, Tables, listed_by_blocks, listed_v4, listed_v6,
};

/// Constants and tables: those that an image gives the kernel, or those that the kernel has.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The constants.
    pub config: Config,
    /// IPv4's filter, or its blocks.
    pub v4_filter: Vec<u64>,
    /// IPv4's nodes.
    pub v4_nodes: Vec<u64>,
    /// IPv4's segments.
    pub v4_words: Vec<u32>,
    /// IPv6's filter.
    pub v6_filter: Vec<u64>,
    /// IPv6's nodes.
    pub v6_nodes: Vec<u64>,
    /// IPv6's segments.
    pub v6_words: Vec<u64>,
    /// Runs of lower halves.
    pub v6_deep: Vec<u64>,
    /// Ranges of lower halves.
    pub v6_lows: Vec<u64>,
    /// By label: the number of the set of MAC addresses that it asks for; zero for any address.
    pub mac_sets: Vec<u32>,
    /// The agent's ports, a bit each.
    pub ports: Vec<u64>,
    /// The interfaces' places among the counters, by the bits of their indices that tell them
    /// apart.
    pub slots: Vec<u32>,
    /// The keys of the map `MACS`.
    pub macs: BTreeSet<u64>,
}

/// What a program decides, for every packet to this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decisions {
    /// The ports that it is about.
    pub ports: BTreeSet<u16>,
    /// The listed IPv4 addresses.
    pub v4: Vec<Range<u32>>,
    /// The listed IPv6 addresses.
    pub v6: Vec<Range<u128>>,
    /// IPv4 addresses whose look-up fails, so that their packets pass: first and last.
    pub undecided_v4: Vec<(u32, u32)>,
    /// IPv6 addresses likewise.
    pub undecided_v6: Vec<(u128, u128)>,
    /// IPv4 addresses of which it is not known whether their look-up fails.
    pub unsure_v4: Vec<(u32, u32)>,
    /// IPv6 addresses likewise.
    pub unsure_v6: Vec<(u128, u128)>,
    /// The MAC addresses that labels ask for. A label that is not here takes any.
    pub macs: BTreeMap<Label, BTreeSet<Mac>>,
    /// Whether other sources pass.
    pub otherwise_continue: bool,
    /// Whether it leaves packets with a hidden port to the gate.
    pub gate: bool,
    /// What no table of ours has, in words.
    pub faults: BTreeSet<String>,
}

impl Contents {
    /// What the program decides with these.
    #[must_use]
    pub fn decisions(&self) -> Decisions {
        // A glance would pass over what the closer look holds frames against.
        let contradictory =
            self.config.plain() && (self.config.macs() || self.config.otherwise_continue());
        let v4 = match self.config.v4().known() {
            _ if contradictory => contradiction(0, u32::MAX),
            Known::None => nothing(),
            Known::All(label) => everything(0, u32::MAX, label),
            Known::Blocks(Shape { filter_bits: 0, .. }, _) => damaged("IPv4", 0, u32::MAX),
            Known::Table(shape) | Known::Blocks(shape, _) if !is_sane(shape, 24) => {
                damaged("IPv4", 0, u32::MAX)
            }
            Known::Table(shape) => listed_v4(self, shape, self.v4_words.len()),
            Known::Blocks(shape, label) => {
                listed_by_blocks(self, shape, label, self.v4_words.len())
            }
        };
        let v6 = match self.config.v6().known() {
            _ if contradictory => contradiction(0, u128::MAX),
            Known::None | Known::Blocks(..) => nothing(),
            Known::All(label) => everything(0, u128::MAX, label),
            Known::Table(shape) if !is_sane(shape, 25) => damaged("IPv6", 0, u128::MAX),
            Known::Table(shape) => {
                let (words, lows) = (self.v6_words.len(), self.v6_lows.len());
                listed_v6(self, shape, self.config.v6_deep(), words, lows)
            }
        };
        let is_agents = |port: &u16| is_agents(&self.config, self, *port).unwrap_or(false);
        let mut faults = v4.faults;
        faults.extend(v6.faults);
        Decisions {
            ports: (0..=u16::MAX).filter(is_agents).collect(),
            macs: labels(&v4.ranges, &v6.ranges)
                .into_iter()
                .filter_map(|label| Some((label, self.macs_of(label)?)))
                .collect(),
            v4: v4.ranges,
            undecided_v4: v4.undecided,
            unsure_v4: v4.unsure,
            unsure_v6: v6.unsure,
            undecided_v6: v6.undecided,
            v6: v6.ranges,
            otherwise_continue: self.config.otherwise_continue(),
            gate: self.config.gate(),
            faults,
        }
    }

    /// The MAC addresses that a label asks for; `None` for any.
    fn macs_of(&self, label: Label) -> Option<BTreeSet<Mac>> {
        if !self.config.macs() {
            return None;
        }
        // Without an entry the program passes the packet undecided, whatever its MAC address.
        let set = self.mac_set(label).filter(|set| *set != 0)?;
        // As `mac_key` has it: of the set's number, a key has the lower bits.
        let of_set = |key: &&u64| **key >> 48 == mac_key(set, Mac::from_bits(0)) >> 48;
        Some(
            self.macs
                .iter()
                .filter(of_set)
                .map(|key| Mac::from_bits(key & ((1 << 48) - 1)))
                .collect(),
        )
    }
}

impl Decisions {
    /// The labels of all listed addresses.
    #[must_use]
    pub fn labels(&self) -> BTreeSet<Label> {
        labels(&self.v4, &self.v6)
    }
}

fn labels(v4: &[Range<u32>], v6: &[Range<u128>]) -> BTreeSet<Label> {
    v4.iter().map(|range| range.label).chain(v6.iter().map(|range| range.label)).collect()
}

fn nothing<A>() -> Listed<A> {
    Listed {
        ranges: Vec::new(),
        undecided: Vec::new(),
        unsure: Vec::new(),
        faults: BTreeSet::new(),
    }
}

fn everything<A: Copy>(first: A, last: A, label: Option<Label>) -> Listed<A> {
    let ranges = label.into_iter().map(|label| Range { first, last, label }).collect();
    Listed { ranges, ..nothing() }
}

/// Whether a table of ours can have this shape.
fn is_sane(shape: Shape, most_filter_bits: u32) -> bool {
    ROOT_BITS.contains(&shape.root_bits)
        && shape.filter_bits <= most_filter_bits
        && (shape.filter_bits == 0
            || (15..=64).contains(&shape.filter_len)
            || most_filter_bits < 25)
}

fn contradiction<A>(first: A, last: A) -> Listed<A> {
    let fault = String::from("the constants contradict each other");
    Listed { undecided: Vec::from([(first, last)]), faults: BTreeSet::from([fault]), ..nothing() }
}

fn damaged<A>(family: &str, first: A, last: A) -> Listed<A> {
    let fault = format!("the constants give the table of {family} sources an impossible shape");
    Listed { undecided: Vec::from([(first, last)]), faults: BTreeSet::from([fault]), ..nothing() }
}

impl Tables for Contents {
    fn v4_filter(&self, index: u32) -> Option<u64> {
        self.v4_filter.get(index as usize).copied()
    }

    fn v4_node(&self, index: u32) -> Option<u64> {
        self.v4_nodes.get(index as usize).copied()
    }

    fn v4_word(&self, index: u32) -> Option<u32> {
        self.v4_words.get(index as usize).copied()
    }

    fn v6_filter(&self, index: u32) -> Option<u64> {
        self.v6_filter.get(index as usize).copied()
    }

    fn v6_node(&self, index: u32) -> Option<u64> {
        self.v6_nodes.get(index as usize).copied()
    }

    fn v6_word(&self, index: u32) -> Option<u64> {
        self.v6_words.get(index as usize).copied()
    }

    fn v6_deep(&self, index: u32) -> Option<u64> {
        self.v6_deep.get(index as usize).copied()
    }

    fn v6_low(&self, index: u32) -> Option<u64> {
        self.v6_lows.get(index as usize).copied()
    }

    fn mac_set(&self, label: Label) -> Option<u32> {
        self.mac_sets.get(usize::from(label.index())).copied()
    }

    fn has_mac(&self, key: u64) -> bool {
        self.macs.contains(&key)
    }

    fn ports(&self, index: u32) -> Option<u64> {
        self.ports.get(index as usize).copied()
    }
}
