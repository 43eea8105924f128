//! What the counters have counted of packets that agent-fw itself has sent, to ask the kernel. They
//! are nobody's: whoever shows a counter takes them off.

use super::kernel_state::KernelState;
use crate::nft::Count;
use crate::system::file;
use crate::xdp::Counters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What was counted of agent-fw's own packets, since the machine was switched on.
const FILE: &str = "/run/agent-fw/own-packets.json";

/// What the counters say, each by a name that no other has.
pub type Readings = BTreeMap<String, Count>;

/// One counter's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Own {
    /// Of agent-fw's own packets.
    own: Count,
    /// What it had counted of all packets then. With less than that, it has begun anew.
    all: u64,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OwnCounts(BTreeMap<String, Own>);

/// What the tables and the programs have counted.
pub fn readings(state: &KernelState, programs: Option<&Counters>) -> Readings {
    let mut readings = Readings::new();
    for live in state.table.iter().chain(&state.firewall) {
        let counters = live.image.counters.iter();
        readings.extend(counters.map(|c| (in_table(&live.image.name, &c.name), c.count)));
    }
    if let Some(counters) = programs {
        let mut add = |name, packets| readings.insert(name, Count { packets, bytes: 0 });
        add(of_programs(REFUSED), counters.refused);
        for by in &counters.admitted {
            add(of_programs(&by.by), by.packets);
        }
        for at in &counters.interfaces {
            add(at_interface(&at.name, REFUSED), at.refused);
            add(at_interface(&at.name, ADMITTED), at.admitted);
        }
    }
    readings
}

const REFUSED: &str = "refused";
const ADMITTED: &str = "admitted";

fn in_table(table: &impl ToString, counter: &str) -> String {
    format!("table {} {counter}", table.to_string())
}

fn of_programs(what: &str) -> String {
    format!("xdp {what}")
}

fn at_interface(interface: &str, what: &str) -> String {
    format!("xdp at {interface} {what}")
}

impl OwnCounts {
    /// What was written down; what is damaged is as if nothing had been sent.
    pub fn read() -> Self {
        let text = file::read(Path::new(FILE)).ok().flatten();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Writes it down.
    pub fn write(&self) -> anyhow::Result<()> {
        file::write(Path::new(FILE), &serde_json::to_string(self)?)
    }

    /// Adds what was counted while at most so many packets of agent-fw's own were sent. Packets of
    /// others that came in the same moment can be told from them by their number alone.
    pub fn add(&mut self, before: &Readings, after: &Readings, sent: u64) {
        for (name, after) in after {
            let before = before.get(name).copied().unwrap_or_default();
            let grown = after.packets.saturating_sub(before.packets);
            let own = grown.min(sent);
            if own == 0 {
                continue;
            }
            let bytes = after.bytes.saturating_sub(before.bytes) * own / grown;
            let known = self.0.entry(name.clone()).or_default();
            known.own = known.own + Count { packets: own, bytes };
            known.all = after.packets;
        }
    }

    /// Forgets what is of counters that have begun anew.
    fn known(mut self, readings: &Readings) -> Self {
        self.0.retain(|name, own| {
            readings.get(name).is_some_and(|reading| reading.packets >= own.all)
        });
        self
    }

    fn less(&self, name: &str, count: Count) -> Count {
        let Count { packets, bytes } = self.0.get(name).copied().unwrap_or_default().own;
        Count {
            packets: count.packets.saturating_sub(packets),
            bytes: count.bytes.saturating_sub(bytes),
        }
    }

    /// Takes them off what is to be shown.
    pub fn take_off(self, state: &mut KernelState, programs: Option<&mut Counters>) {
        let own = self.known(&readings(state, programs.as_deref()));
        for live in state.table.iter_mut().chain(&mut state.firewall) {
            for counter in &mut live.image.counters {
                let name = in_table(&live.image.name, &counter.name);
                counter.count = own.less(&name, counter.count);
            }
        }
        let Some(counters) = programs else { return };
        let less = |name: String, packets: &mut u64| {
            *packets = own.less(&name, Count { packets: *packets, bytes: 0 }).packets;
        };
        less(of_programs(REFUSED), &mut counters.refused);
        for by in &mut counters.admitted {
            less(of_programs(&by.by), &mut by.packets);
        }
        for at in &mut counters.interfaces {
            less(at_interface(&at.name, REFUSED), &mut at.refused);
            less(at_interface(&at.name, ADMITTED), &mut at.admitted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(packets: u64, bytes: u64) -> Readings {
        Readings::from([("table inet agent_fw refused".to_owned(), Count { packets, bytes })])
    }

    #[test]
    fn no_more_is_taken_off_than_was_sent_and_counted() {
        let name = "table inet agent_fw refused";
        let mut own = OwnCounts::default();
        own.add(&one(5, 300), &one(6, 360), 3);
        assert_eq!(own.less(name, Count { packets: 6, bytes: 360 }), one(5, 300)[name]);
        // Others' came in the same moment.
        own.add(&one(6, 360), &one(16, 960), 3);
        assert_eq!(own.less(name, Count { packets: 16, bytes: 960 }), one(12, 720)[name]);
    }

    #[test]
    fn a_counter_that_began_anew_has_counted_none_of_them() {
        let name = "table inet agent_fw refused";
        let mut own = OwnCounts::default();
        own.add(&one(5, 300), &one(8, 480), 3);
        let own = own.known(&one(4, 240));
        assert_eq!(own.less(name, Count { packets: 4, bytes: 240 }), one(4, 240)[name]);
    }
}
