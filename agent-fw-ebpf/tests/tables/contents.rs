//! Tables read back: they list what they were built of; and where a bit of them is flipped, what is
//! read of them is still what a look-up finds.

use agent_fw_ebpf::table::Range;
use agent_fw_ebpf::{Image, Label, Mac, Plan};
use proptest::prelude::*;

use crate::ranges::{LABELS, find_v4, find_v6, image, listed, ranges};

/// The ranges, with neighbours of one label as one.
fn joined<A: Copy + PartialEq>(
    ranges: &[Range<A>],
    after: impl Fn(A) -> Option<A>,
) -> Vec<Range<A>> {
    let mut joined: Vec<Range<A>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.label == range.label && after(last.last) == Some(range.first) => {
                last.last = range.last;
            }
            _ => joined.push(*range),
        }
    }
    joined
}

fn v4_bound() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), (0_u32..3000).prop_map(|low| 0x0a01_f000 + low), Just(0)]
}

fn v6_bound() -> impl Strategy<Value = u128> {
    prop_oneof![
        any::<u128>().prop_map(|bits| bits >> 3 | 1 << 125),
        (0_u128..3000).prop_map(|low| (0x2001_0db8 << 96) + (low << 64)),
        (0_u128..300).prop_map(|low| (0x2a00_1450 << 96) + (7 << 64) + low),
        Just(0),
    ]
}

#[test]
fn constants_that_have_a_glance_pass_over_mac_addresses_are_a_fault() {
    let label = Label::new(0).expect("below the limit");
    let v4 = vec![Range { first: 0x0a00_0000, last: 0x0aff_ffff, label }];
    let labels = vec![Some([Mac::new([2, 0, 0, 0, 0, 1])].into())];
    let plan = Plan { ports: [4118].into(), v4, labels, ..Plan::default() };
    let mut contents = Image::new(&plan).expect("a sound plan").contents().clone();
    assert!(contents.decisions().faults.is_empty());
    contents.config.plain = 1;
    let decisions = contents.decisions();
    assert_eq!(decisions.undecided_v4, [(0, u32::MAX)]);
    assert!(!decisions.faults.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn tables_list_what_they_were_built_of(
        v4 in prop::collection::vec(v4_bound(), 0..400),
        v6 in prop::collection::vec(v6_bound(), 0..400),
        kinds in prop::collection::vec(0..LABELS * 2, 1..50),
    ) {
        let v4 = ranges(v4, &kinds, |bound| bound - 1);
        let v6 = ranges(v6, &kinds, |bound| bound - 1);
        let decisions = image(&v4, &v6).contents().decisions();
        prop_assert_eq!(decisions.v4, joined(&v4, |last| last.checked_add(1)));
        prop_assert_eq!(decisions.v6, joined(&v6, |last| last.checked_add(1)));
        prop_assert!(decisions.faults.is_empty(), "{:?}", decisions.faults);
        prop_assert_eq!(decisions.ports, [4118].into());
    }

    #[test]
    fn with_a_bit_flipped_what_is_read_is_what_a_look_up_finds(
        v4 in prop::collection::vec(v4_bound(), 2..300),
        v6 in prop::collection::vec(v6_bound(), 2..300),
        kinds in prop::collection::vec(0..LABELS * 2, 1..50),
        (which, at, bit) in (0..4_u8, any::<usize>(), 0..64_u32),
        others in prop::collection::vec((v4_bound(), v6_bound()), 100),
    ) {
        let v4 = ranges(v4, &kinds, |bound| bound - 1);
        let v6 = ranges(v6, &kinds, |bound| bound - 1);
        let mut contents = image(&v4, &v6).contents().clone();
        match which {
            0 if !contents.v4_words.is_empty() => {
                let at = at % contents.v4_words.len();
                contents.v4_words[at] ^= 1 << (bit % 32);
            }
            1 if !contents.v4_filter.is_empty() => {
                let at = at % contents.v4_filter.len();
                contents.v4_filter[at] ^= 1 << bit;
            }
            2 if !contents.v6_words.is_empty() => {
                let at = at % contents.v6_words.len();
                contents.v6_words[at] ^= 1 << bit;
            }
            3 if !contents.v6_filter.is_empty() => {
                let at = at % contents.v6_filter.len();
                contents.v6_filter[at] ^= 1 << bit;
            }
            _ => {}
        }
        let decisions = contents.decisions();
        let edges_v4 = v4.iter().flat_map(|r| [r.first, r.last, r.last.wrapping_add(1)]);
        for address in edges_v4.chain(others.iter().map(|(v4, _)| *v4)) {
            let is_in = |(first, last): &(u32, u32)| *first <= address && address <= *last;
            if decisions.unsure_v4.iter().any(is_in) {
                continue;
            }
            match find_v4(&contents, address) {
                Ok(label) => prop_assert_eq!(listed(&decisions.v4, address), label, "{:#x}", address),
                Err(_) => prop_assert!(decisions.undecided_v4.iter().any(is_in), "{address:#x}"),
            }
        }
        let edges_v6 = v6.iter().flat_map(|r| [r.first, r.last, r.last.wrapping_add(1)]);
        for address in edges_v6.chain(others.iter().map(|(_, v6)| *v6)) {
            let is_in = |(first, last): &(u128, u128)| *first <= address && address <= *last;
            if decisions.unsure_v6.iter().any(is_in) {
                continue;
            }
            match find_v6(&contents, address) {
                Ok(label) => prop_assert_eq!(listed(&decisions.v6, address), label, "{:#x}", address),
                Err(_) => prop_assert!(decisions.undecided_v6.iter().any(is_in), "{address:#x}"),
            }
        }
    }
}
