//! The packets that agent-fw itself sends to ask the kernel: they are nobody's contact.

use super::heartbeat;
use super::sample::decide;
use crate::engine::kernel_state::KernelState;
use crate::engine::last_seen::{Contact, Counted, Moment};
use crate::engine::last_test;
use crate::engine::own_counts::{OwnCounts, Readings, readings};
use crate::model::rule::AgentPolicy;
use crate::model::{MacAddr, Verdict};
use crate::nft::{Nftables, comment};
use crate::xdp;
use std::net::IpAddr;

/// The packets that are sent while this lives. Dropping it writes down how many there were, for
/// whoever looks at the counters next.
pub(super) struct OwnPackets {
    began: Option<Moment>,
    /// What the counters said then.
    before: Readings,
    /// A program counts what it is asked about, and so does the table.
    has_programs: bool,
    sent: Counted,
    /// All of them.
    total: u64,
    /// The generation of the ruleset before.
    generation: Option<u32>,
}

impl OwnPackets {
    /// None yet.
    pub(super) fn begin() -> Self {
        let has_programs = xdp::attachments().is_ok_and(|attached| !attached.is_empty());
        let before = now_counted().map(|(_, readings)| readings).unwrap_or_default();
        let began = Moment::now().ok();
        let generation = last_test::generation();
        Self { began, before, has_programs, sent: Counted::default(), total: 0, generation }
    }

    /// So many were sent as from this source.
    pub(super) fn sent(
        &mut self,
        lowered: &AgentPolicy,
        from: (IpAddr, Option<MacAddr>),
        times: u64,
    ) {
        let (source, mac) = from;
        let times = times + u64::from(self.has_programs);
        self.total += times;
        let by = lowered.ledger.label_of(source).map(|label| comment(&label.to_string()));
        match by.filter(|_| decide(&lowered.policy, source, mac) == Verdict::Accept) {
            Some(by) => self.sent.admitted.entry(by).or_default().0 += times,
            None => self.sent.refused += times,
        }
    }

    /// So many were sent that are not a source's to the agent's port: rules for the whole host
    /// count them.
    pub(super) fn sent_besides(&mut self, packets: u64) {
        self.total += packets;
    }

    fn write_down(&self) -> anyhow::Result<()> {
        let Some(began) = self.began else { return Ok(()) };
        if self.total == 0 {
            return Ok(());
        }
        let (now, readings) = now_counted()?;
        let mut own = OwnCounts::read();
        own.add(&self.before, &readings, self.total);
        own.write()?;
        Contact::disregard(&now, &self.sent, began)
    }
}

/// What has been counted, of sources and by each counter.
fn now_counted() -> anyhow::Result<(Counted, Readings)> {
    let state = KernelState::outline(&mut Nftables::open()?)?;
    let programs = xdp::counters()?;
    let programs = programs.as_ref();
    Ok((heartbeat::counted(&state, programs), readings(&state, programs)))
}

impl Drop for OwnPackets {
    fn drop(&mut self) {
        // What cannot be written down is taken for a contact: no reason to fail.
        drop(self.write_down());
        last_test::disregard(self.generation);
    }
}
