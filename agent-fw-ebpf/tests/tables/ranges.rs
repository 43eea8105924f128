//! Lists of sources, and what they are held against: a search from end to end.

use agent_fw_ebpf::table::Range;
use agent_fw_ebpf::{Address as _, Contents, Image, Label, PassReason, Plan, V4, V6};

pub(crate) const LABELS: u16 = 5;

/// Sorted, disjoint ranges from any bounds: between one bound and the next lies a range, or a gap.
pub(crate) fn ranges<A: Copy + Ord>(
    mut bounds: Vec<A>,
    kinds: &[u16],
    before: impl Fn(A) -> A,
) -> Vec<Range<A>> {
    bounds.sort_unstable();
    bounds.dedup();
    let pairs = bounds.windows(2).zip(kinds.iter().cycle());
    let range = |(pair, kind): (&[A], &u16)| {
        let label = Label::new(*kind).filter(|_| *kind < LABELS)?;
        Some(Range { first: pair[0], last: before(pair[1]), label })
    };
    pairs.filter_map(range).collect()
}

/// The label of an address, by the list.
pub(crate) fn listed<A: Copy + Ord>(ranges: &[Range<A>], address: A) -> Option<Label> {
    ranges.iter().find(|r| r.first <= address && address <= r.last).map(|r| r.label)
}

/// The image of a policy with these sources.
pub(crate) fn image(v4: &[Range<u32>], v6: &[Range<u128>]) -> Image {
    let labels = vec![None; usize::from(LABELS)];
    let (v4, v6) = (v4.to_vec(), v6.to_vec());
    let plan = Plan { ports: [4118].into(), v4, v6, labels, ..Plan::default() };
    Image::new(&plan).expect("a sound plan")
}

/// The label of an address, by the tables.
pub(crate) fn find_v4(contents: &Contents, address: u32) -> Result<Option<Label>, PassReason> {
    V4(address).label(&contents.config, contents)
}

/// The label of an address, by the tables.
pub(crate) fn find_v6(contents: &Contents, address: u128) -> Result<Option<Label>, PassReason> {
    let halves = V6 { high: (address >> 64) as u64, low: address as u64 };
    halves.label(&contents.config, contents)
}
