//! The kernel's side: the decision with BPF's maps for tables, and the frame that the driver or
//! the stack hands over.

mod frame;
pub mod maps;
mod receiver;

pub use frame::{AtDriver, AtStack, Context};
use maps::Maps;
use receiver::Receiver;

use crate::address::{V4, V6};
use crate::config::{Config, constant};
use crate::decision::{PassReason, Plain, Verdict, decide_plain, try_decide};
use crate::fast_path::{Glance, glance};
use crate::label::Label;
use crate::table::Tables;
use crate::tally::Tally;

/// The policy's constants. The loader overwrites them.
#[expect(unsafe_code, reason = "the loader knows it by this name")]
#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

/// Decides on a frame, counts what came of it, and says whether it may pass.
#[inline(always)]
pub fn passes<C: Context>(context: C) -> bool {
    passes_by(context, &Maps)
}

/// The same, by other tables.
#[inline(always)]
pub fn passes_by<C: Context>(context: C, tables: &impl Tables) -> bool {
    let frame = context.frame();
    let passes = match glance(&frame, &CONFIG) {
        // Where packets to other ports are counted, the span has them all.
        Glance::OtherPort => Ok(true),
        Glance::V4 => passes_plain::<V4, C>(context, &frame, tables),
        Glance::V6 => passes_plain::<V6, C>(context, &frame, tables),
        other => match other.reason() {
            Some(reason) => {
                if CONFIG.count_unconcerned() {
                    count_unconcerned(context, reason);
                }
                Ok(true)
            }
            None => Err(context),
        },
    };
    // One place to call it from: the verifier follows it anew from each.
    passes.unwrap_or_else(|context| passes_closer_look(context, tables))
}

/// Whether a plain frame to the agent may pass; its context, where it takes more than a glance.
#[inline(always)]
fn passes_plain<A: Plain, C: Context>(
    context: C,
    frame: &C::Frame,
    tables: &impl Tables,
) -> Result<bool, C> {
    let context = StackSlot(context);
    match decide_plain::<A>(frame, &CONFIG, tables, &Receiver::new(&context)) {
        Some(Ok(Verdict::Admitted(_))) => Ok(true),
        Some(Ok(Verdict::Refused)) => Ok(false),
        Some(Err(PassReason::OtherPort)) if !CONFIG.count_unconcerned() => Ok(true),
        _ => Err(context.get()),
    }
}

/// Decides on a frame that takes more than a glance. A function of its own: what it keeps in
/// registers and on the stack is not made room for where a glance will do.
#[inline(never)]
fn passes_closer_look<C: Context>(context: C, tables: &impl Tables) -> bool {
    match try_decide(&context.frame(), &CONFIG, tables, &Receiver::new(&context)) {
        // These are counted where they are decided on.
        Ok(Verdict::Admitted(_)) => true,
        Ok(Verdict::Refused | Verdict::RefusedHiddenPort) => false,
        Ok(Verdict::LeftToOthers) => {
            count_verdict(&context, Verdict::LeftToOthers);
            true
        }
        Err(reason) => {
            count_reason(&context, reason);
            true
        }
    }
}

/// A function of its own, so that nothing is left of the call where it is not made.
#[inline(never)]
fn count_unconcerned<C: Context>(context: C, reason: PassReason) {
    count_reason(&context, reason);
}

/// A value that is kept on the stack. A register that is to outlive a call is saved whenever the
/// program runs, whether it comes to the call or not.
#[derive(Clone, Copy)]
struct StackSlot<T>(T);

impl<T: Copy> StackSlot<T> {
    #[inline(always)]
    fn get(&self) -> T {
        constant(&self.0)
    }
}

impl<C: Context> Context for StackSlot<C> {
    type Frame = C::Frame;

    #[inline(always)]
    fn frame(&self) -> C::Frame {
        self.get().frame()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.get().ifindex()
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.get().as_ptr()
    }
}

#[inline(always)]
fn count_verdict(context: &impl Context, verdict: Verdict) {
    if let Some(tally) = maps::tally(&CONFIG, context) {
        count(tally, verdict);
    }
}

#[inline(always)]
fn count(tally: &mut Tally, verdict: Verdict) {
    if let Some(count) = tally.counts.get_mut(Tally::of_verdict(verdict)) {
        *count += 1;
    }
}

#[inline(always)]
fn count_reason(context: &impl Context, reason: PassReason) {
    if reason.is_unconcerned() && !CONFIG.count_unconcerned() {
        return;
    }
    // The compiler knows the reasons and would leave out the check of the bounds; the verifier of
    // kernel 6.1 wants to see it.
    let at = constant(&Tally::of_reason(reason));
    if let Some(tally) = maps::tally(&CONFIG, context)
        && let Some(count) = tally.counts.get_mut(at)
    {
        *count += 1;
    }
}

#[inline(always)]
fn count_label(label: Label) {
    let tick = StackSlot(receiver::tick());
    let Some(tally) = maps::label_tally(label) else { return };
    tally.packets += 1;
    let tick = tick.get();
    if tally.last_tick != tick {
        tally.last_tick = tick;
        tally.last_ns = receiver::coarse_ns();
    }
}

/// Never reached: the verifier has no patience with loops that do not end, and refuses the object
/// if a panic is left in it.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
