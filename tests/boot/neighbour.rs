//! Whoever is on the machine's network: sends SYNs without pause, and counts the answers.

use agent_fw_lab::packet::{Ethernet, Ipv4, Segment, Tcp};
use agent_fw_lab::{Lab, MacAddr, Wire, run};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The machine's address and its card's.
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// The neighbour's, which is the machine's gateway.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The tap interface.
pub(crate) const TAP: &str = "tap0";
const MACHINE_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The same, as QEMU wants it.
pub(crate) const MACHINE_MAC_TEXT: &str = "52:54:00:12:34:56";

/// In region us-1.
const LISTED: Ipv4Addr = Ipv4Addr::new(34, 205, 5, 1);
/// In no region.
const UNLISTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const AGENT: u16 = 4118;
/// Between two SYNs of a source: more would only keep the emulated machine busy.
const PAUSE: Duration = Duration::from_millis(4);

/// The ports that SYNs come from, one after another.
const FIRST: u16 = 10_000;
const LAST: u16 = 60_000;
/// An answer that comes so late is a repetition: that a SYN was let in before the port was closed.
const REPEATED: Duration = Duration::from_millis(900);

/// What was counted so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Answers to the source that is admitted.
    pub(crate) listed: u64,
    /// Answers to the one that is not.
    pub(crate) unlisted: u64,
}

#[derive(Debug, Default)]
struct Counts {
    listed: AtomicU64,
    unlisted: AtomicU64,
    sent: AtomicU64,
    done: AtomicBool,
}

/// The neighbour at work. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Neighbour {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Neighbour {
    /// Makes the tap interface in the lab's host and begins to knock there.
    pub(crate) fn settle(lab: &Lab) -> Result<Self> {
        run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"])?;
        for address in [GATEWAY, LISTED, UNLISTED] {
            let length = if address == GATEWAY { 24 } else { 32 };
            run(["ip", "address", "add", &format!("{address}/{length}"), "dev", TAP])?;
        }
        run(["ip", "link", "set", TAP, "up"])?;
        let mac = std::fs::read_to_string(format!("/sys/class/net/{TAP}/address"))?;
        let mac: MacAddr = mac.trim().parse().context("the tap has no MAC address")?;
        let counts = Arc::new(Counts::default());
        let (theirs, namespace) = (Arc::clone(&counts), lab.host().clone());
        let thread = thread::spawn(move || namespace.enter(|| knock(mac, &theirs))?);
        Ok(Self { counts, thread: Some(thread) })
    }

    /// What was counted so far.
    pub(crate) fn seen(&self) -> Seen {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen { listed: get(&self.counts.listed), unlisted: get(&self.counts.unlisted) }
    }

    /// Waits for answers that are on their way, and tells how many unlisted ones there were.
    pub(crate) fn unlisted_so_far(&self) -> u64 {
        thread::sleep(Duration::from_secs(1));
        self.seen().unlisted
    }

    /// Waits until `met` is true of what is counted; fails if it does not come true in time.
    pub(crate) fn wait(
        &self,
        what: &str,
        patience: Duration,
        met: impl Fn(Seen) -> bool,
    ) -> Result<Seen> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.seen();
            if met(seen) {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "not in time: {what}; {seen:?}");
            ensure!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "it has stopped");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many SYNs were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.counts.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn knock(mac: MacAddr, counts: &Counts) -> Result<()> {
    let wire = Wire::open(TAP)?;
    let ethernet = Ethernet::new(mac, MacAddr(MACHINE_MAC));
    let mut port = FIRST;
    let mut asked = vec![Instant::now(); usize::from(LAST - FIRST) + 1];
    while !counts.done.load(Ordering::Relaxed) {
        port = if port == LAST { FIRST } else { port + 1 };
        asked[usize::from(port - FIRST)] = Instant::now();
        for source in [UNLISTED, LISTED] {
            let syn = ethernet / Ipv4::new(source, MACHINE) / Tcp::syn(port, AGENT);
            // While the power is off, nobody is there to take it.
            if wire.send(&syn.bytes()).is_ok() {
                counts.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        let deadline = Instant::now() + PAUSE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Some((to, port)) = wire.find(left, answer)?
                && asked.get(usize::from(port - FIRST)).is_some_and(|at| at.elapsed() < REPEATED)
            {
                let count = if to == LISTED { &counts.listed } else { &counts.unlisted };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// To whom the agent's host answers a SYN.
fn answer(frame: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let segment = Segment::parse(frame).filter(Segment::is_syn_ack)?;
    match segment.destination.ip() {
        IpAddr::V4(to) if segment.source.port() == AGENT => {
            Some((to, segment.destination.port())).filter(|(_, port)| *port >= FIRST)
        }
        _ => None,
    }
}
