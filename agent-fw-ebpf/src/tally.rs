//! What each CPU counts and remembers, and what it tells about refused packets.

use crate::address::{Address, V6};
use crate::decision::{PassReason, Verdict};
use crate::ethernet::Mac;

/// One CPU's counters of one interface, which outlive updates, and its memory, which may be lost at
/// any time.
///
/// They are together because a refusal needs both: one look-up instead of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Packets by outcome; [`Tally::of_verdict`] and [`Tally::of_reason`] read them.
    pub counts: [u64; 16],
    /// The last destination that turned out to be this host.
    pub here: LocalDestinationCache,
    /// When the next refused packet may be sampled, in nanoseconds of `CLOCK_MONOTONIC`.
    pub next_sample_ns: u64,
    /// The tick in which that was last compared with the clock.
    pub sample_tick: u64,
    /// Samples that found the ring buffer full.
    pub lost_samples: u64,
}

/// A destination known to be this host, until some tick of the kernel's timer.
///
/// Ticks, not nanoseconds: a program reads them from memory, where a clock takes a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LocalDestinationCache {
    /// The tick from which on the routing table is asked again.
    pub until_tick: u64,
    /// The MAC address, with one more bit for IPv6.
    pub mac: u64,
    /// The upper half of an address of IPv6.
    pub high: u64,
    /// Its lower half, or an address of IPv4.
    pub low: u64,
    /// The interface.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

/// Which frames that come in by an interface are certain to be this host's, as user space has found:
/// those to this MAC address whose destination the routes do not forward to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OwnFrames {
    /// The MAC address.
    pub mac: u64,
    /// The index of the interface that receives them, whose routes count: the bond of a port.
    pub receiver: u32,
    /// [`OwnFrames::ALONE`] and [`OwnFrames::RULES`].
    pub flags: u32,
}

impl OwnFrames {
    /// Nobody else is behind the interface: where nothing is forwarded, all of them are this host's.
    /// Otherwise a guest may share the MAC address.
    pub const ALONE: u32 = 1;
    /// The host has routing rules of its own, which may ask for more than a destination.
    pub const RULES: u32 = 2;

    /// Whether it has this flag.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// One CPU's counters of one label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LabelTally {
    /// Admitted packets.
    pub packets: u64,
    /// When the last one came, in nanoseconds of `CLOCK_MONOTONIC`; zero for never.
    pub last_ns: u64,
    /// The tick in which that was; it is to this tick that `last_ns` is exact.
    pub last_tick: u64,
}

/// A refused packet, for those who watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sample {
    /// When it came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Its source, as an address of IPv6: upper and lower half.
    pub source: [u64; 2],
    /// Its destination, likewise.
    pub destination: [u64; 2],
    /// The MAC address that it came from.
    pub source_mac: u64,
    /// The interface that it came in by.
    pub ifindex: u32,
    /// 1 where its port could not be read.
    pub hidden_port: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Tally>() == 192 && align_of::<Tally>() == 8);
    assert!(offset_of!(Tally, here) == 128 && offset_of!(Tally, next_sample_ns) == 168);
    assert!(
        size_of::<LocalDestinationCache>() == 40
            && offset_of!(LocalDestinationCache, ifindex) == 32
    );
    assert!(size_of::<OwnFrames>() == 16 && offset_of!(OwnFrames, receiver) == 8);
    assert!(size_of::<LabelTally>() == 24 && offset_of!(LabelTally, last_ns) == 8);
    assert!(size_of::<Sample>() == 56 && offset_of!(Sample, ifindex) == 48);
    assert!(FIRST_REASON + PassReason::ALL.len() <= 16);
};

impl Sample {
    /// The sample that an entry of the ring buffer holds.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| words.get(index).map(|word| u64::from_ne_bytes(*word));
        let [ifindex, hidden_port] = {
            let (halves, _) = bytes.get(48..)?.as_chunks::<4>();
            [u32::from_ne_bytes(*halves.first()?), u32::from_ne_bytes(*halves.get(1)?)]
        };
        Some(Self {
            time_ns: word(0)?,
            source: [word(1)?, word(2)?],
            destination: [word(3)?, word(4)?],
            source_mac: word(5)?,
            ifindex,
            hidden_port,
        })
    }
}

const FIRST_REASON: usize = 4;

impl Tally {
    /// The count that this verdict adds to.
    #[inline(always)]
    #[must_use]
    pub const fn of_verdict(verdict: Verdict) -> usize {
        match verdict {
            Verdict::Admitted(_) => 0,
            Verdict::Refused => 1,
            Verdict::RefusedHiddenPort => 2,
            Verdict::LeftToOthers => 3,
        }
    }

    /// The count that this reason adds to.
    #[inline(always)]
    #[must_use]
    pub const fn of_reason(reason: PassReason) -> usize {
        FIRST_REASON + reason as usize
    }
}

impl LocalDestinationCache {
    /// This destination, until that tick.
    #[inline(always)]
    #[must_use]
    pub fn new<A: Address>(ifindex: u32, mac: Mac, address: A, until_tick: u64) -> Self {
        let [mac, high, low] = words(mac, address);
        Self { until_tick, mac, high, low, ifindex, reserved: 0 }
    }

    /// Whether a frame to this destination is for this host, as far as is known at `tick`.
    #[inline(always)]
    #[must_use]
    pub fn is<A: Address>(&self, ifindex: u32, mac: Mac, address: A, tick: u64) -> bool {
        let [mac, high, low] = words(mac, address);
        tick < self.until_tick
            && self.low == low
            && (A::IS_V4 || self.high == high)
            && self.mac == mac
            && self.ifindex == ifindex
    }
}

#[inline(always)]
fn words<A: Address>(mac: Mac, address: A) -> [u64; 3] {
    let V6 { high, low } = address.to_v6();
    if A::IS_V4 {
        [mac.bits(), 0, low & u64::from(u32::MAX)]
    } else {
        [mac.bits() | 1 << 48, high, low]
    }
}
