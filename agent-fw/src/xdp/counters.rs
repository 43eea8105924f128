//! What the programs have counted.

use super::attach::numbering;
use super::error::XdpError;
use super::pin::{MapName, Pin, failed};
use super::state::{Admitted, Counters};
use agent_fw_ebpf::{LabelTally, Tally, Undecided, Verdict};
use aya::Pod;
use aya::maps::{Map, MapData, PerCpuArray};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// What the programs have counted since they were first installed; `None` if none is there.
pub fn counters() -> Result<Option<Counters>, XdpError> {
    let path = Pin::Map(MapName::Tally).path();
    if !path.exists() {
        return Ok(None);
    }
    let tallies: PerCpuArray<_, Tally> = open(MapName::Tally)?;
    let mut counts = [0; 16];
    for tally in tallies.get(&0, 0).map_err(failed(&path, "cannot be read"))?.iter() {
        counts.iter_mut().zip(tally.counts).for_each(|(sum, count)| *sum += count);
    }
    let of = |verdict| Tally::of_verdict(verdict).map_or(0, |at| counts[at]);
    let undecided =
        Undecided::ALL.map(|reason| (reason.to_string(), counts[Tally::of_reason(reason)]));
    Ok(Some(Counters {
        refused: of(Verdict::Refused) + of(Verdict::RefusedHiddenPort),
        left: of(Verdict::LeftToOthers),
        undecided: undecided.into_iter().filter(|(_, packets)| *packets > 0).collect(),
        admitted: admitted()?,
    }))
}

fn admitted() -> Result<Vec<Admitted>, XdpError> {
    let path = Pin::Map(MapName::Labels).path();
    let labels: PerCpuArray<_, LabelTally> = open(MapName::Labels)?;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(anyhow::Error::from)?;
    let now = Duration::from(now);
    let mut admitted = Vec::new();
    for (number, words) in numbering().entries() {
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
