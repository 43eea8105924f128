//! The maps and tables. Their names are what user space knows them by; the loader sets most of
//! their sizes.

use core::arch::asm;
use core::ptr;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};

use super::{CONFIG, Context};
use crate::config::{Config, constant};
use crate::label::Label;
use crate::table::Tables;
use crate::tally::{LabelTally, OwnFrames, Sample, Tally};

/// A table: a section of its own, which the loader makes as long as the policy's. The kernel has it
/// as a map of one value, which nobody can write to, and to which the program has the address.
#[repr(transparent)]
struct Table<T>([T; 1]);

impl<T: Copy> Table<T> {
    /// The element at `index`, of so many.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the table is longer than its declaration")]
    fn get(&self, index: u32, length: &u64) -> Option<T> {
        if u64::from(index) >= constant(length) {
            return None;
        }
        let mut element = ptr::from_ref(&self.0).cast::<T>();
        let offset = u64::from(index) * size_of::<T>() as u64;
        // SAFETY: an addition that the compiler cannot look into: to it, the table has one element.
        unsafe {
            asm!("{0} += {1}", inout(reg) element, in(reg) offset, options(pure, nomem, nostack));
        }
        // SAFETY: the section has `length` elements; the verifier refuses the program otherwise.
        Some(unsafe { element.read() })
    }
}

macro_rules! tables {
    ($($name:ident: $element:ty = $section:literal;)*) => {$(
        #[expect(unsafe_code, reason = "the loader knows it by these names")]
        #[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        static $name: Table<$element> = Table([0]);
    )*};
}

// As `SECTIONS` has them.
tables! {
    V4_FILTER: u64 = ".rodata.v4filt";
    V4_NODES: u64 = ".rodata.v4nodes";
    V4_WORDS: u32 = ".rodata.v4words";
    V6_FILTER: u64 = ".rodata.v6filt";
    V6_NODES: u64 = ".rodata.v6nodes";
    V6_WORDS: u64 = ".rodata.v6words";
    V6_DEEP: u64 = ".rodata.v6deep";
    V6_LOWS: u64 = ".rodata.v6lows";
    MAC_SETS: u32 = ".rodata.macsets";
    PORTS: u64 = ".rodata.ports";
    SLOTS: u32 = ".rodata.slots";
}

/// The addresses of all sets, by [`crate::mac_key`].
#[map]
static MACS: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);
/// Which frames are this host's, by the index of the interface that they come in by. Of an interface
/// that is not here, that is not known. A program without a gate does not ask.
#[map]
static INTERFACES: HashMap<u32, OwnFrames> = HashMap::with_max_entries(256, 0);
/// Counters, an entry for each interface.
#[map]
static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);
/// Counters by label.
#[map]
static LABELS: PerCpuArray<LabelTally> = PerCpuArray::with_max_entries(1, 0);
/// Refused packets, some of them.
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// The tables, in the kernel's memory.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn v4_filter(&self, index: u32) -> Option<u64> {
        V4_FILTER.get(index, &CONFIG.lengths.v4_filter)
    }

    #[inline(always)]
    fn v4_node(&self, index: u32) -> Option<u64> {
        V4_NODES.get(index, &CONFIG.lengths.v4_nodes)
    }

    #[inline(always)]
    fn v4_word(&self, index: u32) -> Option<u32> {
        V4_WORDS.get(index, &CONFIG.lengths.v4_words)
    }

    #[inline(always)]
    fn v6_filter(&self, index: u32) -> Option<u64> {
        V6_FILTER.get(index, &CONFIG.lengths.v6_filter)
    }

    #[inline(always)]
    fn v6_node(&self, index: u32) -> Option<u64> {
        V6_NODES.get(index, &CONFIG.lengths.v6_nodes)
    }

    #[inline(always)]
    fn v6_word(&self, index: u32) -> Option<u64> {
        V6_WORDS.get(index, &CONFIG.lengths.v6_words)
    }

    #[inline(always)]
    fn v6_deep(&self, index: u32) -> Option<u64> {
        V6_DEEP.get(index, &CONFIG.lengths.v6_deep)
    }

    #[inline(always)]
    fn v6_low(&self, index: u32) -> Option<u64> {
        V6_LOWS.get(index, &CONFIG.lengths.v6_lows)
    }

    #[inline(always)]
    fn mac_set(&self, label: Label) -> Option<u32> {
        MAC_SETS.get(u32::from(label.index()), &CONFIG.lengths.mac_sets)
    }

    #[inline(always)]
    fn has_mac(&self, key: u64) -> bool {
        MACS.get_ptr(&key).is_some()
    }

    #[inline(always)]
    fn ports(&self, index: u32) -> Option<u64> {
        PORTS.get(index, &CONFIG.lengths.ports)
    }
}

/// This CPU's counters of an interface.
#[inline(always)]
#[expect(unsafe_code, reason = "a map's value is a pointer")]
pub(super) fn tally<'a>(config: &Config, context: &impl Context) -> Option<&'a mut Tally> {
    let slot = match config.slot_mask() {
        0 => config.slot(),
        mask => SLOTS.get(context.ifindex() & mask, &CONFIG.lengths.slots)?,
    };
    // SAFETY: the value is this CPU's, and programs of one hook do not interrupt each other on
    // a CPU; a tc program beside could, and would at worst lose a count.
    TALLY.get_ptr_mut(slot).map(|tally| unsafe { &mut *tally })
}

/// This CPU's counters of a label.
#[inline(always)]
#[expect(unsafe_code, reason = "a map's value is a pointer")]
pub(super) fn label_tally<'a>(label: Label) -> Option<&'a mut LabelTally> {
    // SAFETY: as in `tally`.
    LABELS.get_ptr_mut(u32::from(label.index())).map(|tally| unsafe { &mut *tally })
}

/// Which frames that come in by an interface are this host's.
#[inline(always)]
pub(super) fn own_frames(ifindex: u32) -> Option<OwnFrames> {
    // SAFETY: an element that user space replaces meanwhile is the old or the new.
    #[expect(unsafe_code, reason = "the map may be written meanwhile")]
    unsafe { INTERFACES.get(&ifindex) }.copied()
}

/// Hands a sample to who watches. False where the ring buffer is full.
#[inline(always)]
pub(super) fn submit(sample: Sample) -> bool {
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else { return false };
    entry.write(sample);
    entry.submit(0);
    true
}
