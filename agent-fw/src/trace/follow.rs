//! Sends a packet on its way and hears what it meets, until its trace is complete.

use super::events::Event;
use super::probe_rule::Protocol;
use super::trace_table::{self, Mark};
use crate::netlink::nfnetlink::Connection;
use crate::netlink::tap::Tap;
use anyhow::anyhow;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the packet is waited for. It takes microseconds, but for a machine that is very busy;
/// waited to the end is only where something takes all packets away.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends a frame on its way, and one behind it on the same CPU: when that has come, the first one's
/// trace is complete.
pub(super) fn send_and_follow(
    tap: &mut Tap,
    listener: &mut Connection,
    token: Token,
    frame: &[u8],
    after: &[u8],
) -> anyhow::Result<Vec<Event>> {
    let _here = Pinned::to_this_cpu();
    tap.send(frame)?;
    tap.send(after)?;
    follow(listener, token)
}

/// This thread on one CPU, for as long as it lives: packets that it sends keep their order.
pub(super) struct Pinned(Option<CpuSet>);

impl Pinned {
    pub(super) fn to_this_cpu() -> Self {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).ok();
        let mut only = CpuSet::new();
        let pinned = sched_getcpu()
            .and_then(|cpu| only.set(cpu))
            .and_then(|()| sched_setaffinity(this, &only));
        Self(before.filter(|_| pinned.is_ok()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Where that fails, this process stays on one CPU, which harms nobody.
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

/// By what a packet is known among others that are traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) protocol: Protocol,
    /// What the transport's header begins with: TCP's and UDP's source port, ICMP's type and code.
    pub(super) first: [u8; 2],
    pub(super) number: u32,
}

impl Token {
    /// Whether a transport's header is that of the packet with this number.
    fn is_in(self, header: &[u8], number: u32) -> bool {
        let place = self.protocol.place_of_number() as usize;
        header.starts_with(&self.first)
            && header.get(place..).is_some_and(|rest| rest.starts_with(&number.to_be_bytes()))
    }
}

/// The events of this packet, until the one with the next number has come.
pub(super) fn follow(listener: &mut Connection, token: Token) -> anyhow::Result<Vec<Event>> {
    let deadline = Instant::now() + PATIENCE;
    let next = token.number.wrapping_add(1);
    let (mut ours, mut after) = (BTreeSet::new(), BTreeSet::new());
    let mut events = Vec::new();
    loop {
        let heard = listener.hear(deadline)?;
        for event in heard.iter().filter_map(Event::parse) {
            if let Some(header) = &event.header {
                if token.is_in(header, token.number) {
                    ours.insert(event.packet);
                } else if token.is_in(header, next) {
                    after.insert(event.packet);
                }
            }
            let is_end = after.contains(&event.packet)
                && Mark::of_chain(&event.place.chain).is_some_and(Mark::ends_the_second)
                && event.place.table == trace_table::TABLE;
            if is_end {
                return Ok(events);
            }
            if ours.contains(&event.packet) && !after.contains(&event.packet) {
                events.push(event);
            }
        }
        if Instant::now() >= deadline {
            return Ok(events);
        }
        if events.len() > 100_000 {
            return Err(anyhow!("the packet's trace does not end"));
        }
    }
}
