//! The constants of a policy, set before the program is loaded, so that the verifier removes what
//! the policy does not use.

use core::ptr;

use crate::label::Label;
use crate::table::Shape;

/// The constants. In the object it is the read-only global `CONFIG`.
///
/// Every field is read as volatile: to the compiler it may hold anything, to the verifier it
/// holds what the loader wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// The least time between two samples of refused packets on one CPU; zero for no samples.
    pub sample_interval_ns: u64,
    /// The agent's ports, from the lowest to the highest.
    pub span: Span,
    /// The IPv4 sources.
    pub v4: Sources,
    /// The IPv6 sources.
    pub v6: Sources,
    /// 1: the ports between the lowest and the highest are those in the map `PORTS`; 0: all.
    pub port_map: u8,
    /// 1: some list of IPv6 sources tells addresses inside one /64 apart.
    pub v6_deep: u8,
    /// 1: some labels admit listed MAC addresses only.
    pub macs: u8,
    /// 1: other sources are left to the rest of the host; 0: dropped.
    pub otherwise_continue: u8,
    /// 1: the gate stands behind and sees what passes here; 0: this program stands alone.
    pub gate: u8,
    /// 1: packets that do not concern the agent are counted, too.
    pub count_unconcerned: u8,
    /// These bits of an interface's index find its place among the counters in the map `SLOTS`;
    /// zero where all interfaces have the same place.
    pub slot_mask: u16,
    /// That place.
    pub slot: u16,
    /// 1: whether a source may connect is a matter of its IP address alone, and others are dropped,
    /// so that a glance can tell.
    pub plain: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// How long the tables are.
    pub lengths: Lengths,
}

/// How many elements each table has. All 64 bits are compared with an index: Linux 6.1 learns nothing
/// of a register from a comparison of 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lengths {
    /// IPv4's filter.
    pub v4_filter: u64,
    /// IPv4's nodes.
    pub v4_nodes: u64,
    /// IPv4's segments.
    pub v4_words: u64,
    /// IPv6's filter.
    pub v6_filter: u64,
    /// IPv6's nodes.
    pub v6_nodes: u64,
    /// IPv6's segments.
    pub v6_words: u64,
    /// The runs of lower halves.
    pub v6_deep: u64,
    /// The ranges of lower halves, three numbers each.
    pub v6_lows: u64,
    /// The labels' sets of MAC addresses.
    pub mac_sets: u64,
    /// The ports, 64 each.
    pub ports: u64,
    /// The places among the counters.
    pub slots: u64,
}

/// Ports, from a lowest to a highest. The lower half of the number is the lowest, in network byte
/// order; the upper half, by how much the highest is above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Span(u32);

impl Span {
    /// The ports from `lowest` to `highest`.
    #[must_use]
    pub const fn new(lowest: u16, highest: u16) -> Self {
        Self((highest.saturating_sub(lowest) as u32) << 16 | lowest.to_be() as u32)
    }

    /// Whether it has this port.
    #[inline(always)]
    pub(crate) fn has(self, port: u16) -> bool {
        let lowest = u32::from(u16::from_be(self.0 as u16));
        u32::from(port).wrapping_sub(lowest) <= self.0 >> 16
    }

    /// The same of a port in network byte order. Where there is one port, the verifier removes what
    /// comes after the first comparison.
    #[inline(always)]
    pub(crate) fn has_be(self, port: u16) -> bool {
        u32::from(port) == self.0 || self.0 > u32::from(u16::MAX) && self.has(u16::from_be(port))
    }
}

/// How the sources of one version of IP are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sources {
    /// [`Sources::NONE`], [`Sources::ALL`], [`Sources::TABLE`] or [`Sources::BLOCKS`].
    kind: u8,
    /// By how many bits the table's root is indexed.
    root_bits: u8,
    /// By how many bits its filter is indexed, or its blocks; zero for neither.
    filter_bits: u8,
    /// The length of the prefixes that IPv6's filter has a bit for.
    filter_len: u8,
    /// The label of all sources, or of all in a block.
    label: u16,
}

const _: () = {
    assert!(size_of::<Config>() == 128 && align_of::<Config>() == 8);
    assert!(core::mem::offset_of!(Config, v4) == 12);
    assert!(core::mem::offset_of!(Config, port_map) == 24);
    assert!(core::mem::offset_of!(Config, plain) == 34);
    assert!(core::mem::offset_of!(Config, lengths) == 40 && size_of::<Lengths>() == 88);
    assert!(size_of::<Sources>() == 6);
};

impl Sources {
    /// No source is listed.
    pub const NONE: Self = Self { kind: 0, root_bits: 0, filter_bits: 0, filter_len: 0, label: 0 };

    const ALL: u8 = 1;
    const TABLE: u8 = 2;
    const BLOCKS: u8 = 3;

    /// Every source is listed, under this label.
    #[must_use]
    pub const fn all(label: Label) -> Self {
        Self { kind: Self::ALL, label: label.index(), ..Self::NONE }
    }

    /// The sources are in a table of this shape.
    #[must_use]
    pub const fn table(root_bits: u8, filter_bits: u8, filter_len: u8) -> Self {
        Self { kind: Self::TABLE, root_bits, filter_bits, filter_len, label: 0 }
    }

    /// The sources are in a table with so many blocks, of which some are listed under this label.
    #[must_use]
    pub const fn blocks(root_bits: u8, block_bits: u8, label: Label) -> Self {
        Self { kind: Self::BLOCKS, label: label.index(), ..Self::table(root_bits, block_bits, 0) }
    }

    /// How the sources are known.
    #[inline(always)]
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the fields are constants in place")]
    pub(crate) fn known(&self) -> Known {
        match constant(&self.kind) {
            Self::ALL => Known::All(Label::new(constant(&self.label))),
            Self::TABLE => Known::Table(self.shape()),
            Self::BLOCKS => Known::Blocks(self.shape(), Label::new(constant(&self.label))),
            _ => Known::None,
        }
    }

    #[inline(always)]
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the fields are constants in place")]
    fn shape(&self) -> Shape {
        Shape {
            root_bits: u32::from(constant(&self.root_bits)),
            filter_bits: u32::from(constant(&self.filter_bits)),
            filter_len: u32::from(constant(&self.filter_len)),
        }
    }
}

/// How sources are known, as a case to be told from others.
pub(crate) enum Known {
    None,
    All(Option<Label>),
    Table(Shape),
    /// With the label of blocks that are listed as a whole.
    Blocks(Shape, Option<Label>),
}

impl Config {
    /// No policy: it protects port 0 from everyone.
    pub const EMPTY: Self = Self {
        sample_interval_ns: 0,
        span: Span::new(0, 0),
        v4: Sources::NONE,
        v6: Sources::NONE,
        port_map: 0,
        v6_deep: 0,
        macs: 0,
        otherwise_continue: 0,
        gate: 0,
        count_unconcerned: 0,
        slot_mask: 0,
        slot: 0,
        plain: 1,
        reserved: [0; 5],
        lengths: Lengths {
            v4_filter: 0,
            v4_nodes: 0,
            v4_words: 0,
            v6_filter: 0,
            v6_nodes: 0,
            v6_words: 0,
            v6_deep: 0,
            v6_lows: 0,
            mac_sets: 0,
            ports: 0,
            slots: 0,
        },
    };

    /// The constants' bytes, as the loader wants them.
    #[must_use]
    #[expect(unsafe_code, reason = "a struct as its bytes")]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `repr(C)`, and the assertions above show that there is no padding.
        unsafe { core::slice::from_raw_parts(ptr::from_ref(self).cast::<u8>(), size_of::<Self>()) }
    }

    /// The constants that have these bytes.
    #[cfg(not(target_arch = "bpf"))]
    #[must_use]
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let (longs, _) = bytes.as_chunks::<8>();
        let length = |place: usize| u64::from_ne_bytes(longs[5 + place]);
        let sources = |at: usize| Sources {
            kind: bytes[at],
            root_bits: bytes[at + 1],
            filter_bits: bytes[at + 2],
            filter_len: bytes[at + 3],
            label: word(at + 4),
        };
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        Self {
            sample_interval_ns: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            span: Span(u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])),
            v4: sources(12),
            v6: sources(18),
            port_map: bytes[24],
            v6_deep: bytes[25],
            macs: bytes[26],
            otherwise_continue: bytes[27],
            gate: bytes[28],
            count_unconcerned: bytes[29],
            slot_mask: word(30),
            slot: word(32),
            plain: bytes[34],
            reserved: [35, 36, 37, 38, 39].map(|at| bytes[at]),
            lengths: Lengths {
                v4_filter: length(0),
                v4_nodes: length(1),
                v4_words: length(2),
                v6_filter: length(3),
                v6_nodes: length(4),
                v6_words: length(5),
                v6_deep: length(6),
                v6_lows: length(7),
                mac_sets: length(8),
                ports: length(9),
                slots: length(10),
            },
        }
    }

    #[inline(always)]
    pub(crate) fn v4(&self) -> &Sources {
        &self.v4
    }

    #[inline(always)]
    pub(crate) fn v6(&self) -> &Sources {
        &self.v6
    }

    #[inline(always)]
    pub(crate) fn v6_deep(&self) -> bool {
        constant(&self.v6_deep) != 0
    }

    #[inline(always)]
    pub(crate) fn macs(&self) -> bool {
        constant(&self.macs) != 0
    }

    /// Whether a source may connect is a matter of its IP address alone.
    #[inline(always)]
    pub(crate) fn plain(&self) -> bool {
        constant(&self.plain) != 0
    }

    #[inline(always)]
    pub(crate) fn port_map(&self) -> bool {
        constant(&self.port_map) != 0
    }

    /// The agent's ports, from the lowest to the highest.
    #[inline(always)]
    pub(crate) fn span(&self) -> Span {
        constant(&self.span)
    }

    #[inline(always)]
    pub(crate) fn otherwise_continue(&self) -> bool {
        constant(&self.otherwise_continue) != 0
    }

    #[inline(always)]
    pub(crate) fn gate(&self) -> bool {
        constant(&self.gate) != 0
    }

    /// Whether packets that do not concern the agent are counted, too.
    #[inline(always)]
    #[must_use]
    pub fn count_unconcerned(&self) -> bool {
        constant(&self.count_unconcerned) != 0
    }

    /// By which bits of its index an interface's counters are found; zero for one place.
    #[inline(always)]
    #[must_use]
    pub fn slot_mask(&self) -> u32 {
        u32::from(constant(&self.slot_mask))
    }

    /// The one place.
    #[inline(always)]
    #[must_use]
    pub fn slot(&self) -> u32 {
        u32::from(constant(&self.slot))
    }

    /// The least time between two samples on one CPU; zero for none.
    #[inline(always)]
    #[must_use]
    pub fn sample_interval_ns(&self) -> u64 {
        constant(&self.sample_interval_ns)
    }
}

/// A value of which the compiler knows nothing.
#[inline(always)]
#[expect(unsafe_code, reason = "the compiler must not know the value")]
pub(crate) fn constant<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is readable.
    unsafe { ptr::from_ref(value).read_volatile() }
}

/// The same value, of which the verifier knows nothing any more, so that it need not follow what
/// comes next for each value anew: it does not look into an atomic addition.
#[inline(always)]
pub(crate) fn forgotten(value: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    #[expect(unsafe_code, reason = "the verifier must not know the value")]
    {
        let mut value = value as u64;
        let zero = 0_u64;
        // SAFETY: adds zero to a number on the stack.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut value, in(reg) zero, options(nostack));
        }
        value as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}
