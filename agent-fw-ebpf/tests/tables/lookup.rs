//! The tables of sources, held against a list that is searched from end to end.

use agent_fw_ebpf::table::{MissorderedRange, Range, TableV4};
use agent_fw_ebpf::{Label, Sources};
use proptest::prelude::*;

use crate::ranges::{LABELS, find_v4, find_v6, image, listed, ranges};

/// Demands that at the edges of the ranges, and at other addresses, the table says what the list
/// says.
fn compare_v4(ranges: &[Range<u32>], others: Vec<u32>) -> Result<(), TestCaseError> {
    let image = image(ranges, &[]);
    let edges = ranges
        .iter()
        .flat_map(|r| [r.first.wrapping_sub(1), r.first, r.last, r.last.wrapping_add(1)]);
    for address in edges.chain(others) {
        let found = find_v4(image.contents(), address);
        prop_assert_eq!(found, Ok(listed(ranges, address)), "{:#x}", address);
    }
    Ok(())
}

/// The same of IPv6.
fn compare_v6(ranges: &[Range<u128>], others: Vec<u128>) -> Result<(), TestCaseError> {
    let image = image(&[], ranges);
    let edges = ranges
        .iter()
        .flat_map(|r| [r.first.wrapping_sub(1), r.first, r.last, r.last.wrapping_add(1)]);
    for address in edges.chain(others) {
        let found = find_v6(image.contents(), address);
        prop_assert_eq!(found, Ok(listed(ranges, address)), "{:#x}", address);
    }
    Ok(())
}

/// Bounds that lie anywhere, or crowd in one place.
fn crowded_u32() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0_u32..4000).prop_map(|low| 0x0a01_f000 + low),
        (0_u32..300).prop_map(|high| high << 16),
        Just(0),
        Just(u32::MAX),
    ]
}

fn crowded_u128() -> impl Strategy<Value = u128> {
    prop_oneof![
        any::<u128>(),
        any::<u128>().prop_map(|bits| bits >> 3 | 1 << 125),
        (0_u128..3000).prop_map(|low| (0x2001_0db8 << 96) + (low << 64)),
        (0_u128..300).prop_map(|low| (0x2a00_1450 << 96) + (7 << 64) + low),
        (0_u128..300).prop_map(|low| (0x2a00_1450 << 96) + (8 << 64) - low),
        Just(0),
        Just(u128::MAX),
        Just(u128::from(u64::MAX) << 64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn every_ipv4_address_has_the_label_of_its_range(
        bounds in prop::collection::vec(crowded_u32(), 0..600),
        kinds in prop::collection::vec(0..LABELS * 2, 1..50),
        others in prop::collection::vec(crowded_u32(), 50),
    ) {
        let ranges = ranges(bounds, &kinds, |bound| bound - 1);
        compare_v4(&ranges, others)?;
    }

    #[test]
    fn a_sparse_ipv4_list_is_found_through_its_filter(
        mut firsts in prop::collection::vec(any::<u32>(), 1..300),
        lens in prop::collection::vec(20_u32..=32, 1..50),
        others in prop::collection::vec(any::<u32>(), 100),
    ) {
        firsts.sort_unstable();
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (first, len) in firsts.into_iter().zip(lens.iter().cycle()) {
            let last = first.saturating_add(u32::MAX.checked_shr(*len).unwrap_or(0));
            if ranges.last().is_none_or(|before| before.last < first) {
                ranges.push(Range { first, last, label: Label::new(1).expect("below the limit") });
            }
        }
        compare_v4(&ranges, others)?;
    }

    #[test]
    fn a_sparse_ipv6_list_is_found_through_its_filter(
        mut firsts in prop::collection::vec(crowded_u128(), 1..300),
        lens in prop::collection::vec(20_u32..=128, 1..50),
        others in prop::collection::vec(crowded_u128(), 100),
    ) {
        firsts.sort_unstable();
        let mut ranges: Vec<Range<u128>> = Vec::new();
        for (first, len) in firsts.into_iter().zip(lens.iter().cycle()) {
            let last = first.saturating_add(u128::MAX.checked_shr(*len).unwrap_or(0));
            if ranges.last().is_none_or(|before| before.last < first) {
                ranges.push(Range { first, last, label: Label::new(1).expect("below the limit") });
            }
        }
        compare_v6(&ranges, others)?;
    }

    #[test]
    fn every_ipv6_address_has_the_label_of_its_range(
        bounds in prop::collection::vec(crowded_u128(), 0..600),
        kinds in prop::collection::vec(0..LABELS * 2, 1..50),
        others in prop::collection::vec(crowded_u128(), 50),
    ) {
        let ranges = ranges(bounds, &kinds, |bound| bound - 1);
        compare_v6(&ranges, others)?;
    }
}

#[test]
fn a_list_of_everything_is_a_constant() {
    let label = Label::new(3).expect("below the limit");
    let v4 = vec![Range { first: 0, last: u32::MAX, label }];
    let image = image(&v4, &[]);
    assert_eq!(image.table_bytes(), 0);
    assert_eq!(find_v4(image.contents(), 0x0a00_0001), Ok(Some(label)));
    assert_eq!(find_v6(image.contents(), 1), Ok(None));
}

#[test]
fn a_dense_list_is_known_by_blocks_under_its_foremost_label() {
    let label = |index| Label::new(index).expect("below the limit");
    // Every second /10, most of them under one label, with a hole in one of them.
    let mut ranges: Vec<_> = (0..512)
        .map(|i| i << 23)
        .map(|first| Range {
            first,
            last: first | 0x3f_ffff,
            label: label(u16::from(first < 1 << 30)),
        })
        .collect();
    let split = ranges[300];
    ranges[300].last = split.first + 0x1_2345;
    ranges.insert(301, Range { first: split.first + 0x1_2347, ..split });
    let image = image(&ranges, &[]);
    assert_eq!(image.contents().config.v4, Sources::blocks(12, 14, label(0)));
    let around = |range: &Range<u32>| [range.first.wrapping_sub(1), range.first, range.last];
    for address in ranges.iter().flat_map(around).chain([split.first + 0x1_2346]) {
        assert_eq!(
            find_v4(image.contents(), address),
            Ok(listed(&ranges, address)),
            "{address:#x}"
        );
    }
}

#[test]
fn overlapping_ranges_are_refused() {
    let label = Label::new(0).expect("below the limit");
    let overlapping =
        [Range { first: 5, last: 9, label }, Range { first: 9, last: 9, label }].to_vec();
    assert_eq!(TableV4::build(&overlapping).err(), Some(MissorderedRange { index: 1 }));
}

#[test]
fn a_corner_full_of_addresses_is_told_apart_by_a_run_longer_than_a_page() {
    // Every second address of a corner of the address space: the array of nodes that splits the
    // bucket is as wide as their number says, and they all fall into its first slot.
    let label = Label::new(1).expect("below the limit");
    let odd = (0..700).map(|i| 0xc0a0_0001 + 2 * i);
    let ranges: Vec<_> = odd.map(|first| Range { first, last: first, label }).collect();
    let image = image(&ranges, &[]);
    for address in 0xc09f_ff00..0xc0a0_1000_u32 {
        let is_listed = (0xc0a0_0000..0xc0a0_0000 + 1400).contains(&address) && address & 1 == 1;
        assert_eq!(
            find_v4(image.contents(), address).map(|label| label.is_some()),
            Ok(is_listed),
            "{address:#x}"
        );
    }
}

#[test]
fn a_64_full_of_addresses_is_told_apart_within() {
    let label = Label::new(2).expect("below the limit");
    let base = 0x2001_0db8_u128 << 96;
    let ranges: Vec<_> = (0..5000)
        .map(|i| base + (i << 20))
        .map(|first| Range { first, last: first + 1, label })
        .collect();
    let image = image(&[], &ranges);
    for range in &ranges {
        for address in [range.first - 1, range.first, range.last, range.last + 1] {
            let is_listed = address == range.first || address == range.last;
            assert_eq!(
                find_v6(image.contents(), address).map(|label| label.is_some()),
                Ok(is_listed),
                "{address:#x}"
            );
        }
    }
}
