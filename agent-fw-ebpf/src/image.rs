//! A policy as the kernel is given it: constants and tables, made from a plain description.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use crate::config::{Config, Lengths, Sources, Span};
use crate::contents::Contents;
use crate::decision::mac_key;
use crate::ethernet::Mac;
use crate::label::Label;
use crate::table::{MissorderedRange, Range, TableV4, TableV6};

/// A policy, described.
///
/// Sources with different conditions have different labels: a label belongs to one admission.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The agent's TCP ports.
    pub ports: BTreeSet<u16>,
    /// Listed IPv4 addresses: sorted, disjoint.
    pub v4: Vec<Range<u32>>,
    /// Listed IPv6 addresses: sorted, disjoint.
    pub v6: Vec<Range<u128>>,
    /// The MAC addresses that each label's admission asks for; `None` for any. One per label.
    pub labels: Vec<Option<BTreeSet<Mac>>>,
    /// Whether other sources are left to the rest of the host.
    pub otherwise_continue: bool,
    /// Whether the gate stands behind.
    pub gate: bool,
    /// Whether packets that do not concern the agent are counted.
    pub count_unconcerned: bool,
    /// The least time between two samples of refused packets on one CPU; zero for no samples.
    pub sample_interval_ns: u64,
    /// By an interface's index its place among the counters; without any, all have the first.
    pub slots: BTreeMap<u32, u16>,
}

/// Why a plan makes no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// There is no port.
    NoPort,
    /// IPv4 ranges are out of order or overlap.
    V4(MissorderedRange),
    /// IPv6 ranges are out of order or overlap.
    V6(MissorderedRange),
    /// A range has a label that is not in `labels`.
    UnknownLabel(Label),
    /// There are more labels than [`Label::MAX`].
    TooManyLabels,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPort => f.write_str("no port to protect"),
            Self::V4(range) => write!(f, "IPv4 range {} is out of order or overlaps", range.index),
            Self::V6(range) => write!(f, "IPv6 range {} is out of order or overlaps", range.index),
            Self::UnknownLabel(label) => write!(f, "label {} is not described", label.index()),
            Self::TooManyLabels => write!(f, "more than {} labels", Label::MAX),
        }
    }
}

impl core::error::Error for PlanError {}

/// A policy, ready to be loaded.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "aya"), allow(dead_code, reason = "sizes are the loader's"))]
pub struct Image {
    contents: Contents,
    /// How many places there are.
    pub(crate) places: u32,
    /// How many labels.
    pub(crate) labels: u32,
}

impl Image {
    /// The image of this plan.
    pub fn new(plan: &Plan) -> Result<Self, PlanError> {
        let ports = [plan.ports.first(), plan.ports.last()].map(Option::<&u16>::copied);
        let [Some(first), Some(last)] = ports else { return Err(PlanError::NoPort) };
        check_labels(plan)?;
        let (v4_sources, v4) = sources_v4(&plan.v4).map_err(PlanError::V4)?;
        let (v6_sources, v6) = sources_v6(&plan.v6).map_err(PlanError::V6)?;
        let (mac_sets, macs) = mac_sets(&plan.labels);
        let asks_for_macs = mac_sets.iter().any(|set| *set != 0);
        let (slot_mask, slots) = slots(&plan.slots);
        // Where packets to other ports are counted, a glance must not let them by.
        let counted = plan.count_unconcerned;
        let [lowest, highest] = if counted { [0, u16::MAX] } else { [first, last] };
        let config = Config {
            sample_interval_ns: plan.sample_interval_ns,
            span: Span::new(lowest, highest),
            v4: v4_sources,
            v6: v6_sources,
            port_map: u8::from(plan.ports.len() != usize::from(highest - lowest) + 1),
            v6_deep: u8::from(!v6.lows.is_empty()),
            macs: u8::from(asks_for_macs),
            otherwise_continue: u8::from(plan.otherwise_continue),
            gate: u8::from(plan.gate),
            count_unconcerned: u8::from(plan.count_unconcerned),
            slot_mask,
            slot: plan.slots.values().next().copied().unwrap_or_default(),
            lengths: Lengths::default(),
            plain: u8::from(!asks_for_macs && !plan.otherwise_continue),
            reserved: [0; 5],
        };
        let places = plan.slots.values().max().map_or(1, |last| u32::from(*last) + 1);
        let port_map = config.port_map != 0;
        let mut contents = Contents {
            config,
            v4_filter: v4.filter,
            v4_nodes: v4.nodes,
            v4_words: v4.words,
            v6_filter: v6.filter,
            v6_nodes: v6.nodes,
            v6_words: v6.words,
            v6_deep: v6.deep,
            v6_lows: v6.lows,
            mac_sets: if asks_for_macs { mac_sets } else { Vec::new() },
            macs,
            ports: if port_map { port_bits(&plan.ports) } else { Vec::new() },
            slots: if slot_mask == 0 { Vec::new() } else { slots },
        };
        contents.config.lengths = contents.lengths();
        Ok(Self { contents, places, labels: plan.labels.len() as u32 })
    }

    /// What the kernel has once the image is loaded.
    #[must_use]
    pub const fn contents(&self) -> &Contents {
        &self.contents
    }

    /// How many bytes of tables the kernel is given.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.contents.sections().iter().map(|section| section.bytes.len()).sum()
    }
}

fn check_labels(plan: &Plan) -> Result<(), PlanError> {
    if plan.labels.len() > usize::from(Label::MAX) {
        return Err(PlanError::TooManyLabels);
    }
    let used = plan.v4.iter().map(|r| r.label).chain(plan.v6.iter().map(|r| r.label));
    match used.max() {
        Some(label) if usize::from(label.index()) >= plan.labels.len() => {
            Err(PlanError::UnknownLabel(label))
        }
        _ => Ok(()),
    }
}

fn sources_v4(ranges: &[Range<u32>]) -> Result<(Sources, TableV4), MissorderedRange> {
    match ranges {
        [] => Ok((Sources::NONE, TableV4::default())),
        [Range { first: 0, last: u32::MAX, label }] => {
            Ok((Sources::all(*label), TableV4::default()))
        }
        _ => {
            let table = TableV4::build(ranges)?;
            let TableV4 { root_bits, filter_bits, foremost, .. } = table;
            let sources = match foremost {
                Some(label) => Sources::blocks(root_bits, filter_bits, label),
                None => Sources::table(root_bits, filter_bits, 0),
            };
            Ok((sources, table))
        }
    }
}

fn sources_v6(ranges: &[Range<u128>]) -> Result<(Sources, TableV6), MissorderedRange> {
    match ranges {
        [] => Ok((Sources::NONE, TableV6::default())),
        [Range { first: 0, last: u128::MAX, label }] => {
            Ok((Sources::all(*label), TableV6::default()))
        }
        _ => {
            let table = TableV6::build(ranges)?;
            let TableV6 { root_bits, filter_bits, filter_len, .. } = table;
            Ok((Sources::table(root_bits, filter_bits, filter_len), table))
        }
    }
}

/// Each label's set, numbered from 1, and the keys of all sets' addresses.
fn mac_sets(labels: &[Option<BTreeSet<Mac>>]) -> (Vec<u32>, BTreeSet<u64>) {
    let mut known: Vec<&BTreeSet<Mac>> = Vec::new();
    let mut keys = BTreeSet::new();
    let mut number = |set| {
        let place = known.iter().position(|other| *other == set).unwrap_or_else(|| {
            known.push(set);
            known.len() - 1
        });
        let number = place as u32 + 1;
        keys.extend(set.iter().map(|mac| mac_key(number, *mac)));
        number
    };
    let sets = labels.iter().map(|macs| macs.as_ref().map_or(0, &mut number)).collect();
    (sets, keys)
}

/// The fewest bits that tell the interfaces apart, and their places by these. Should it take more
/// than 16, some have one place.
fn slots(places: &BTreeMap<u32, u16>) -> (u16, Vec<u32>) {
    let differ = |bits: &u32| {
        let low: BTreeSet<u32> = places.keys().map(|index| index & ((1 << bits) - 1)).collect();
        low.len() == places.len()
    };
    let bits = (0..16).find(differ).unwrap_or(16);
    let mask = (1 << bits) - 1;
    let mut slots = alloc::vec![0; 1 << bits];
    for (index, place) in places {
        slots[(index & mask) as usize] = u32::from(*place);
    }
    (mask as u16, slots)
}

fn port_bits(ports: &BTreeSet<u16>) -> Vec<u64> {
    let mut bits = alloc::vec![0; 1024];
    for port in ports {
        bits[usize::from(port / 64)] |= 1 << (port % 64);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_told_apart_by_the_fewest_bits() {
        assert_eq!(slots(&BTreeMap::new()), (0, alloc::vec![0]));
        assert_eq!(slots(&BTreeMap::from([(7, 3)])), (0, alloc::vec![3]));
        assert_eq!(slots(&BTreeMap::from([(2, 0), (3, 5)])), (1, alloc::vec![0, 5]));
        let (mask, places) = slots(&BTreeMap::from([(2, 1), (1026, 2)]));
        assert_eq!((mask, places.len(), places[2], places[1026]), (2047, 2048, 1, 2));
    }
}
