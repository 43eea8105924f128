//! Whether a refused frame is for this host at all, and who is told about it.

use core::mem;

use aya_ebpf::bindings::bpf_fib_lookup as Route;
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_jiffies64, bpf_ktime_get_coarse_ns};

use super::{CONFIG, Context, StackSlot, maps};
use crate::address::{Address, V6};
use crate::decision::{Host, PassReason, Plain, Recipient, Verdict};
use crate::label::Label;
use crate::tally::{LocalDestinationCache, OwnFrames, Sample, Tally};
use crate::{ethernet, tcp};

/// How long a destination is known to be this host without asking again, in ticks: between 25 and
/// 250 ms, as the kernel was built. Routes change rarely, and a flood has few destinations.
const KNOWN_FOR_TICKS: u64 = 25;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `bpf_fib_lookup`: the routes do not forward to this destination: it is local or broadcast, or
/// there is no route.
const NOT_FORWARDED: i64 = 4;
/// `bpf_fib_lookup`: the interface does not forward at all.
const FORWARDING_DISABLED: i64 = 5;

/// All rules of the routing policy.
const BY_RULES: u32 = 0;
/// `BPF_FIB_LOOKUP_DIRECT`: the main table alone, or that of the interface's VRF.
const BY_MAIN_TABLE: u32 = 1;

/// This host, at the interface that a frame came in by.
pub(super) struct Receiver<'a, C> {
    context: &'a C,
}

impl<'a, C: Context> Receiver<'a, C> {
    #[inline(always)]
    pub(super) fn new(context: &'a C) -> Self {
        Self { context }
    }
}

impl<C: Context> Host for Receiver<'_, C> {
    #[inline(always)]
    fn admit(&self, label: Label) {
        let label = StackSlot(label);
        super::count_verdict(self.context, Verdict::Admitted(label.get()));
        super::count_label(label.get());
    }

    #[inline(always)]
    fn refuse<A: Address>(
        &self,
        recipient: &Recipient<A>,
        verdict: Verdict,
    ) -> Result<(), PassReason> {
        let tally = maps::tally(&CONFIG, self.context).ok_or(PassReason::TableFault)?;
        let tick = tick();
        // Alone, the program has nobody behind it who could decide later what is in doubt now.
        if CONFIG.gate() {
            self.check_here(recipient, &mut tally.here, tick)?;
        }
        super::count(tally, verdict);
        if CONFIG.sample_interval_ns() != 0 && tally.sample_tick != tick {
            tally.sample_tick = tick;
            self.sample(recipient, verdict, tally);
        }
        Ok(())
    }

    #[inline(always)]
    fn refuse_unread(&self) {
        super::count_verdict(self.context, Verdict::RefusedHiddenPort);
    }

    #[inline(always)]
    fn refuse_known<A: Plain>(&self) -> bool {
        let tick = StackSlot(tick());
        let Some(tally) = maps::tally(&CONFIG, self.context) else { return false };
        let tick = tick.get();
        if CONFIG.sample_interval_ns() != 0 && tally.sample_tick != tick {
            return false;
        }
        if !CONFIG.gate() {
            super::count(tally, Verdict::Refused);
            return true;
        }
        let frame = self.context.frame();
        let Some([_, destination]) = A::addresses(&frame) else { return false };
        let Ok(mac) = ethernet::destination(&frame) else { return false };
        let is_here = tally.here.is(self.context.ifindex(), mac, destination, tick);
        if is_here {
            super::count(tally, Verdict::Refused);
        }
        is_here
    }
}

impl<C: Context> Receiver<'_, C> {
    /// Fails unless the frame is certain to be for this host.
    #[inline(always)]
    fn check_here<A: Address>(
        &self,
        recipient: &Recipient<A>,
        here: &mut LocalDestinationCache,
        tick: u64,
    ) -> Result<(), PassReason> {
        let (ifindex, mac) = (self.context.ifindex(), recipient.mac);
        if here.is(ifindex, mac, recipient.destination, tick) {
            return Ok(());
        }
        let own = maps::own_frames(ifindex).ok_or(PassReason::NotForThisHost)?;
        if mac.bits() != own.mac {
            return Err(PassReason::OtherHost);
        }
        let destination = recipient.destination;
        let is_here = match route(self.context, own.receiver, destination, BY_RULES) {
            FORWARDING_DISABLED => own.has(OwnFrames::ALONE),
            // The rules may know of a route for another source or mark. If even the main table has
            // one, and they do not take it, this is because the local table has the destination.
            NOT_FORWARDED if own.has(OwnFrames::RULES) => {
                route(self.context, own.receiver, destination, BY_MAIN_TABLE) != NOT_FORWARDED
            }
            NOT_FORWARDED => true,
            _ => false,
        };
        if !is_here {
            return Err(PassReason::NotForThisHost);
        }
        *here = LocalDestinationCache::new(ifindex, mac, destination, tick + KNOWN_FOR_TICKS);
        Ok(())
    }

    #[inline(always)]
    fn sample<A: Address>(&self, recipient: &Recipient<A>, verdict: Verdict, tally: &mut Tally) {
        let now_ns = coarse_ns();
        if now_ns < tally.next_sample_ns {
            return;
        }
        tally.next_sample_ns = now_ns + CONFIG.sample_interval_ns();
        let (source, destination) = (recipient.source.to_v6(), recipient.destination.to_v6());
        let frame = self.context.frame();
        let sent = maps::submit(Sample {
            time_ns: now_ns,
            source: [source.high, source.low],
            destination: [destination.high, destination.low],
            source_mac: ethernet::source(&frame).map_or(0, |mac| mac.bits()),
            ifindex: self.context.ifindex(),
            hidden_port: u32::from(verdict == Verdict::RefusedHiddenPort),
        });
        tally.lost_samples += u64::from(!sent);
    }
}

/// What the routing table says of a destination. It is not told the source, which whoever sends the
/// frame chooses, while the answer is kept for others.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper, and its unions")]
fn route<A: Address>(context: &impl Context, receiver: u32, destination: A, flags: u32) -> i64 {
    // SAFETY: integers, for which zero is a value.
    let mut route: Route = unsafe { mem::zeroed() };
    let destination = destination.to_v6();
    route.l4_protocol = tcp::PROTOCOL;
    route.ifindex = receiver;
    if A::IS_V4 {
        route.family = AF_INET;
        route.__bindgen_anon_4.ipv4_dst = (destination.low as u32).to_be();
    } else {
        route.family = AF_INET6;
        route.__bindgen_anon_4.ipv6_dst = words(destination);
    }
    // SAFETY: the helper reads and writes no more than the struct.
    unsafe { bpf_fib_lookup(context.as_ptr(), &raw mut route, size_of::<Route>() as i32, flags) }
}

#[inline(always)]
fn words(address: V6) -> [u32; 4] {
    let V6 { high, low } = address;
    [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32].map(u32::to_be)
}

/// The kernel's timer. Reading it costs a load: the verifier puts one in the call's place.
#[inline(always)]
pub(super) fn tick() -> u64 {
    #[expect(unsafe_code, reason = "a helper")]
    // SAFETY: the helper takes nothing.
    unsafe {
        bpf_jiffies64()
    }
}

/// `CLOCK_MONOTONIC`, as of the last tick.
#[inline(always)]
pub(super) fn coarse_ns() -> u64 {
    #[expect(unsafe_code, reason = "a helper")]
    // SAFETY: the helper takes nothing.
    unsafe {
        bpf_ktime_get_coarse_ns()
    }
}
