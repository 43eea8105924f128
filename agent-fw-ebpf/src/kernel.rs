//! The kernel's side: the decision with BPF's maps for tables, and the frame that the driver or
//! the stack hands over.

mod frame;
pub mod maps;
mod receiver;

pub use frame::Context;
use maps::Maps;
use receiver::Receiver;

use crate::config::{Config, constant};
use crate::decision::{Undecided, Verdict, decide_at_a_glance, try_decide};
use crate::label::Label;
use crate::table::Tables;
use crate::tally::Tally;

/// The policy's constants. The loader overwrites them.
#[expect(unsafe_code, reason = "the loader knows it by this name")]
#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

/// Decides on a frame, counts what came of it, and says whether it may pass.
#[inline(always)]
pub fn passes(context: &impl Context) -> bool {
    passes_by(context, &Maps)
}

/// The same, by other tables.
#[inline(always)]
pub fn passes_by(context: &impl Context, tables: &impl Tables) -> bool {
    let host = Receiver::new(context);
    let decided = match decide_at_a_glance(&context.frame(), &CONFIG, tables, &host) {
        Some(decided) => decided,
        None => try_decide(&context.frame(), &CONFIG, tables, &host),
    };
    match decided {
        Ok(Verdict::Admitted(label)) => {
            count_verdict(context, Verdict::Admitted(label));
            count_label(label);
            true
        }
        Ok(Verdict::LeftToOthers) => {
            count_verdict(context, Verdict::LeftToOthers);
            true
        }
        // Counted where it was refused, in the same look-up.
        Ok(Verdict::Refused | Verdict::RefusedHiddenPort) => false,
        Err(reason) => {
            count_reason(context, reason);
            true
        }
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
fn count_reason(context: &impl Context, reason: Undecided) {
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
    let Some(tally) = maps::label_tally(label) else { return };
    tally.packets += 1;
    let tick = receiver::tick();
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
