//! From a policy to the plan of an XDP program's tables: pure, and the same on every machine.

use crate::model::rule::AgentPolicy;
use crate::model::{
    Admission, DefaultAction, MacAddr, MacMatch, Ordinal, OriginMap, Range, RangeMap,
};
use crate::xdp::counter_ids::{Numbering, Words};
use agent_fw_ebpf::table;
use agent_fw_ebpf::{Label as Number, Mac, Plan};
use std::collections::BTreeSet;

/// Refused packets that one CPU hands to whoever watches: one in a tenth of a second.
const SAMPLE_INTERVAL_NS: u64 = 100_000_000;

/// MAC addresses that one policy may name. The kernel is given each by itself, and a range that
/// somebody negated has millions of millions.
const MOST_MACS: u64 = 65_536;

/// Why a policy cannot be given to XDP.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unencodable {
    /// It names ranges of MAC addresses that are too many to list.
    #[error("it names more than {MOST_MACS} MAC addresses; --backend nft can have ranges of them")]
    TooManyMacs,
    /// It names more lists and regions than there are labels.
    #[error("it names more than {} lists and regions", Number::MAX)]
    TooManyLabels,
}

/// The plan of this policy. `gate` tells whether nftables stands behind; `numbering` gives each
/// list of an admission its label.
pub fn plan(
    lowered: &AgentPolicy,
    gate: bool,
    numbering: &mut Numbering,
) -> Result<Plan, Unencodable> {
    let AgentPolicy { policy, ledger } = lowered;
    let ports = policy.ports().ranges().iter();
    let mut plan = Plan {
        ports: ports.flat_map(|range| range.first().0..=range.last().0).collect(),
        otherwise_continue: policy.others() == DefaultAction::Continue,
        gate,
        sample_interval_ns: SAMPLE_INTERVAL_NS,
        ..Plan::default()
    };
    for admission in policy.admissions() {
        admit(&mut plan, ledger, admission, numbering)?;
    }
    plan.v4.sort_unstable_by_key(|range| range.first);
    plan.v6.sort_unstable_by_key(|range| range.first);
    plan.v4 = joined(plan.v4, |last| last.checked_add(1));
    plan.v6 = joined(plan.v6, |last| last.checked_add(1));
    Ok(plan)
}

fn admit(
    plan: &mut Plan,
    ledger: &OriginMap,
    admission: &Admission,
    numbering: &mut Numbering,
) -> Result<(), Unencodable> {
    let macs = listed(&admission.macs)?;
    let v4 = ledger.v4().restrict(&admission.addresses.v4);
    let v6 = ledger.v6().restrict(&admission.addresses.v6);
    for (index, label) in (0..).zip(ledger.labels()) {
        if !names(&v4, index) && !names(&v6, index) {
            continue;
        }
        let words = Words::new(label, &admission.macs);
        let number = numbering.number(&words).ok_or(Unencodable::TooManyLabels)?;
        let place = usize::from(number.index());
        if plan.labels.len() <= place {
            plan.labels.resize(place + 1, None);
        }
        plan.labels[place].clone_from(&macs);
        plan.v4.extend(ranges(&v4, index, number, u32::from));
        plan.v6.extend(ranges(&v6, index, number, u128::from));
    }
    Ok(())
}

fn names<T: Ordinal>(map: &RangeMap<T, u16>, label: u16) -> bool {
    map.entries().iter().any(|(_, of)| *of == label)
}

fn ranges<T: Ordinal, A>(
    map: &RangeMap<T, u16>,
    label: u16,
    number: Number,
    bits: impl Fn(T) -> A,
) -> impl Iterator<Item = table::Range<A>> {
    let of_label = map.entries().iter().filter(move |(_, of)| *of == label);
    of_label.map(move |(range, _)| table::Range {
        first: bits(range.first()),
        last: bits(range.last()),
        label: number,
    })
}

/// Neighbours with the same label as one: two halves of the address space are then all of it,
/// which costs no look-up.
fn joined<A: Copy + PartialEq>(
    ranges: Vec<table::Range<A>>,
    after: impl Fn(A) -> Option<A>,
) -> Vec<table::Range<A>> {
    let mut joined: Vec<table::Range<A>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.label == range.label && after(last.last) == Some(range.first) => {
                last.last = range.last;
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn listed(macs: &MacMatch) -> Result<Option<BTreeSet<Mac>>, Unencodable> {
    let MacMatch::Only(macs) = macs else { return Ok(None) };
    let size = |range: &Range<MacAddr>| range.last().bits() - range.first().bits() + 1;
    // At most 2^48 each, and few ranges: the sum does not overflow before it is too large.
    if macs.ranges().iter().map(size).fold(0, u64::saturating_add) > MOST_MACS {
        return Err(Unencodable::TooManyMacs);
    }
    let all = macs.ranges().iter().flat_map(|range| range.first().bits()..=range.last().bits());
    Ok(Some(all.map(Mac::from_bits).collect()))
}
