//! The packets that agent-fw itself sends to ask the kernel: they are nobody's contact.

use super::heartbeat;
use super::sample::decide;
use crate::contact::{Contact, Counted, Moment};
use crate::engine::kernel_state::KernelState;
use crate::nft::{Nftables, comment};
use crate::policy::{MacAddr, Verdict};
use crate::rule::Lowered;
use crate::xdp;
use std::net::IpAddr;

/// The packets that are sent while this lives. Dropping it writes down how many there were, for
/// whoever looks at the counters next.
pub(super) struct OwnPackets {
    began: Option<Moment>,
    /// A program counts what it is asked about, and so does the table.
    has_programs: bool,
    sent: Counted,
}

impl OwnPackets {
    /// None yet.
    pub(super) fn begin() -> Self {
        let has_programs = xdp::attachments().is_ok_and(|attached| !attached.is_empty());
        Self { began: Moment::now().ok(), has_programs, sent: Counted::default() }
    }

    /// So many were sent as from this source.
    pub(super) fn sent(&mut self, lowered: &Lowered, from: (IpAddr, Option<MacAddr>), times: u64) {
        let (source, mac) = from;
        let times = times + u64::from(self.has_programs);
        let by = lowered.ledger.label_of(source).map(|label| comment(&label.to_string()));
        match by.filter(|_| decide(&lowered.policy, source, mac) == Verdict::Accept) {
            Some(by) => self.sent.admitted.entry(by).or_default().0 += times,
            None => self.sent.refused += times,
        }
    }

    fn write_down(&self) -> anyhow::Result<()> {
        let Some(began) = self.began else { return Ok(()) };
        if self.sent == Counted::default() {
            return Ok(());
        }
        let state = KernelState::outline(&mut Nftables::open()?)?;
        let now = heartbeat::counted(&state, xdp::counters()?.as_ref());
        Contact::disregard(&now, &self.sent, began)
    }
}

impl Drop for OwnPackets {
    fn drop(&mut self) {
        // What cannot be written down is taken for a contact: no reason to fail.
        drop(self.write_down());
    }
}
