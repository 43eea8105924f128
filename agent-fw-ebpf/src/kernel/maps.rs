//! The maps. Their names are what user space knows them by; the loader sets most of their sizes.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};

use super::Context;
use crate::config::Config;
use crate::ethernet::Mac;
use crate::label::Label;
use crate::table::{FilterPage, LowPage, NodePage, Tables, V4Page, V6Page};
use crate::tally::{LabelTally, Sample, Tally};

#[map]
static V4_FILTER: Array<FilterPage> = Array::with_max_entries(1, 0);
#[map]
static V4_NODES: Array<NodePage> = Array::with_max_entries(1, 0);
#[map]
static V4_WORDS: Array<V4Page> = Array::with_max_entries(1, 0);
#[map]
static V6_FILTER: Array<FilterPage> = Array::with_max_entries(1, 0);
#[map]
static V6_NODES: Array<NodePage> = Array::with_max_entries(1, 0);
#[map]
static V6_WORDS: Array<V6Page> = Array::with_max_entries(1, 0);
#[map]
static V6_DEEP: Array<NodePage> = Array::with_max_entries(1, 0);
#[map]
static V6_LOWS: Array<LowPage> = Array::with_max_entries(1, 0);
/// By label: the number of the set of MAC addresses that it asks for; zero for any address.
#[map]
static MAC_SETS: Array<u32> = Array::with_max_entries(1, 0);
/// The addresses of all sets, by [`crate::mac_key`].
#[map]
static MACS: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);
/// The agent's ports, a bit each.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(1024, 0);
/// The MAC addresses of interfaces, by index. An interface that is not here takes all frames for
/// its own.
#[map]
static INTERFACES: HashMap<u32, u64> = HashMap::with_max_entries(256, 0);
/// The interfaces' places in `TALLY`, by the bits of their indices that tell them apart.
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(1, 0);
/// Counters, an entry for each interface.
#[map]
static TALLY: PerCpuArray<Tally> = PerCpuArray::with_max_entries(1, 0);
/// Counters by label.
#[map]
static LABELS: PerCpuArray<LabelTally> = PerCpuArray::with_max_entries(1, 0);
/// Refused packets, some of them.
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// The tables, as BPF maps.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn v4_filter(&self, page: u32) -> Option<&FilterPage> {
        V4_FILTER.get(page)
    }

    #[inline(always)]
    fn v4_nodes(&self, page: u32) -> Option<&NodePage> {
        V4_NODES.get(page)
    }

    #[inline(always)]
    fn v4_words(&self, page: u32) -> Option<&V4Page> {
        V4_WORDS.get(page)
    }

    #[inline(always)]
    fn v6_filter(&self, page: u32) -> Option<&FilterPage> {
        V6_FILTER.get(page)
    }

    #[inline(always)]
    fn v6_nodes(&self, page: u32) -> Option<&NodePage> {
        V6_NODES.get(page)
    }

    #[inline(always)]
    fn v6_words(&self, page: u32) -> Option<&V6Page> {
        V6_WORDS.get(page)
    }

    #[inline(always)]
    fn v6_deep(&self, page: u32) -> Option<&NodePage> {
        V6_DEEP.get(page)
    }

    #[inline(always)]
    fn v6_lows(&self, page: u32) -> Option<&LowPage> {
        V6_LOWS.get(page)
    }

    #[inline(always)]
    fn mac_set(&self, label: Label) -> Option<u32> {
        MAC_SETS.get(u32::from(label.index())).copied()
    }

    #[inline(always)]
    fn has_mac(&self, key: u64) -> bool {
        MACS.get_ptr(&key).is_some()
    }

    #[inline(always)]
    fn ports(&self, index: u32) -> Option<u64> {
        PORTS.get(index).copied()
    }
}

/// This CPU's counters of an interface.
#[inline(always)]
#[expect(unsafe_code, reason = "a map's value is a pointer")]
pub(super) fn tally<'a>(config: &Config, context: &impl Context) -> Option<&'a mut Tally> {
    let slot = match config.slot_mask() {
        0 => config.slot(),
        mask => *SLOTS.get(context.ifindex() & mask)?,
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

/// The interface's own MAC address.
#[inline(always)]
pub(super) fn interface_mac(ifindex: u32) -> Option<Mac> {
    // SAFETY: an element that user space replaces meanwhile is a MAC address, the old or the new.
    #[expect(unsafe_code, reason = "the map may be written meanwhile")]
    let bits = unsafe { INTERFACES.get(&ifindex) }.copied()?;
    Some(Mac::from_bits(bits))
}

/// Hands a sample to who watches. False where the ring buffer is full.
#[inline(always)]
pub(super) fn submit(sample: Sample) -> bool {
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else { return false };
    entry.write(sample);
    entry.submit(0);
    true
}
