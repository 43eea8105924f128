//! What the programs have counted.

use super::attach::numbering;
use super::error::XdpError;
use super::pin::{MapName, Pin, failed};
use super::state::{Admitted, Counters, OfInterface};
use agent_fw_ebpf::{Label, LabelTally, PassReason, Tally, Verdict};
use aya::Pod;
use aya::maps::{Map, MapData, PerCpuArray};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// What the programs have counted since they were first installed; `None` if none is there.
pub fn counters() -> Result<Option<Counters>, XdpError> {
    let pin = Pin::Map(MapName::Tally);
    if !pin.is_there() {
        return Ok(None);
    }
    let tallies: PerCpuArray<_, Tally> = open(MapName::Tally)?;
    let mut all = [0; 16];
    let mut interfaces = Vec::new();
    for (number, name) in numbering().interfaces.entries() {
        let mut counts = [0; 16];
        let of_cpus = tallies.get(&number.into(), 0);
        for tally in of_cpus.map_err(failed(&pin.path(), "cannot be read"))?.iter() {
            add(&mut counts, tally.counts);
        }
        add(&mut all, counts);
        interfaces.push(of_interface(name.clone(), counts));
    }
    let undecided =
        PassReason::ALL.map(|reason| (reason.to_string(), all[Tally::of_reason(reason)]));
    let OfInterface { refused, left, .. } = of_interface(String::new(), all);
    Ok(Some(Counters {
        refused,
        left,
        undecided: undecided.into_iter().filter(|(_, packets)| *packets > 0).collect(),
        admitted: admitted()?,
        interfaces,
    }))
}

fn add(sums: &mut [u64; 16], counts: [u64; 16]) {
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}

fn of_interface(name: String, counts: [u64; 16]) -> OfInterface {
    let of = |verdict| counts[Tally::of_verdict(verdict)];
    let reasons = PassReason::ALL.map(|reason| counts[Tally::of_reason(reason)]);
    let admitted = Label::new(0).map_or(0, |label| of(Verdict::Admitted(label)));
    OfInterface {
        name,
        admitted,
        refused: of(Verdict::Refused) + of(Verdict::RefusedHiddenPort),
        left: of(Verdict::LeftToOthers),
        undecided: reasons.iter().sum(),
    }
}

fn admitted() -> Result<Vec<Admitted>, XdpError> {
    let path = Pin::Map(MapName::Labels).path();
    let labels: PerCpuArray<_, LabelTally> = open(MapName::Labels)?;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(anyhow::Error::from)?;
    let now = Duration::from(now);
    let mut admitted = Vec::new();
    for (number, words) in numbering().labels.entries() {
        let tallies = labels.get(&number.into(), 0).map_err(failed(&path, "cannot be read"))?;
        let last = tallies.iter().map(|tally| tally.last_ns).max().filter(|last| *last > 0);
        admitted.push(Admitted {
            by: words.label.clone(),
            packets: tallies.iter().map(|tally| tally.packets).sum(),
            last: last.map(|last| now.saturating_sub(Duration::from_nanos(last))),
        });
    }
    Ok(admitted)
}

fn open<V: Pod>(name: MapName) -> Result<PerCpuArray<MapData, V>, XdpError> {
    let path = Pin::Map(name).path();
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(PerCpuArray::try_from)
        .map_err(failed(&path, "cannot be read"))
}
