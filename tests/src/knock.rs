//! A source that tries a port without pause, while something else is done.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::packet::{Ethernet, Ipv4, Segment, Tcp};
use crate::{Peer, Wire, rounds};

/// Sends SYNs from `source`, in the namespace of this peer, to the host's port until `done`. Fails
/// at the first answer. Tells how many were sent.
pub fn knock(peer: &Peer, source: Ipv4Addr, port: u16, done: &AtomicBool) -> Result<u64> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let wire = Wire::open(peer.own_interface())?;
    let mut tried = 0;
    let answer = |frame: &[u8]| {
        Segment::parse(frame).filter(|segment| segment.destination.ip() == IpAddr::V4(source))
    };
    // An emulated processor comes to read its queue of 256 frames more seldom; what does not fit in
    // there is lost, others' packets, too.
    let burst = u16::try_from(rounds(64))?;
    while !done.load(Ordering::Relaxed) {
        for from in 1024..1024 + burst {
            let syn = ethernet / Ipv4::new(source, peer.host_v4()) / Tcp::syn(from, port);
            wire.send(&syn.bytes())?;
            tried += 1;
        }
        let seen = wire.find(Duration::from_millis(2), answer)?;
        ensure!(seen.is_none(), "after {tried} SYNs: {seen:?}");
    }
    Ok(tried)
}

/// Does `work` while `source` knocks at the port from beginning to end. Fails if it was answered
/// once. Tells how many SYNs were sent.
pub fn while_knocking(
    peer: &Peer,
    source: Ipv4Addr,
    port: u16,
    work: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let knocking = scope.spawn(|| peer.enter(|| knock(peer, source, port, &done))?);
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let tried = knocking.join().ok().context("the one who knocks panicked")??;
        worked.map(|()| tried)
    })
}
