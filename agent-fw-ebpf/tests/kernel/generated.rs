//! Generated frames over generated policies: the kernel and the model must agree on each frame,
//! and on every count afterwards. `AGENT_FW_FRAMES` sets how many, `AGENT_FW_SEED` which.

use std::collections::BTreeSet;
use std::env;

use agent_fw_ebpf::table::Range;
use agent_fw_ebpf::{Label, Mac, PassReason, Plan, Tally, Verdict};

use crate::frame::{Frame, OURS, PEER};
use crate::program::{Hook, Outcome, Program, enter_network, passes};
use crate::{ELSEWHERE_V6, HERE_V6};

const FRAMES_PER_POLICY: u64 = 2_000;

#[test]
fn the_kernel_and_the_model_agree_on_generated_frames() {
    if !enter_network() {
        return;
    }
    let frames = setting("AGENT_FW_FRAMES", 40_000);
    let seed = setting("AGENT_FW_SEED", 1);
    println!("{frames} frames from AGENT_FW_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..frames.div_ceil(FRAMES_PER_POLICY) {
        compare(&policy(&mut random), &mut random);
    }
}

fn compare(plan: &Plan, random: &mut Random) {
    let program = Program::new(plan);
    let (mut counts, mut admitted) = ([0; 16], 0);
    let mut count = |expected: Outcome| {
        let is_unconcerned = expected.is_err_and(PassReason::is_unconcerned);
        admitted += u64::from(matches!(expected, Ok(Verdict::Admitted(_))));
        counts[expected.map_or_else(Tally::of_reason, Tally::of_verdict)] +=
            u64::from(plan.count_unconcerned || !is_unconcerned);
    };
    for _ in 0..FRAMES_PER_POLICY {
        let frame = random.frame();
        let expected = program.model(&frame);
        assert_eq!(
            program.passes(Hook::Xdp, &frame),
            passes(expected),
            "{expected:?}: {frame:02x?} under {plan:?}"
        );
        // The same at the tc hook, where the stack would have taken a tag off, and where a test run
        // takes no frame that ends in its IP header.
        let is_tagged = matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]);
        if !is_tagged && frame.len() >= 54 && random.below(4) == 0 {
            let passed = program.passes(Hook::Tc, &frame);
            assert_eq!(passed, passes(expected), "tc: {expected:?}: {frame:02x?} under {plan:?}");
            count(expected);
        }
        count(expected);
    }
    assert_eq!(program.counts(), (counts, admitted), "the counts under {plan:?}");
}

fn setting(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|error| panic!("{name}: {error}")),
        Err(_) => default,
    }
}

fn policy(random: &mut Random) -> Plan {
    let labels = 1 + random.below(4) as usize;
    let macs = |random: &mut Random| {
        (random.below(3) == 0).then(|| (0..random.below(4)).map(|_| random.mac()).collect())
    };
    Plan {
        ports: (0..=random.below(3)).map(|_| random.port()).collect(),
        v4: ranges(random, labels, Random::v4, |a| a.checked_add(1)),
        v6: ranges(random, labels, Random::v6, |a| a.checked_add(1)),
        labels: (0..labels).map(|_| macs(random)).collect(),
        otherwise_continue: random.below(8) == 0,
        gate: random.below(2) == 0,
        count_unconcerned: random.below(2) == 0,
        sample_interval_ns: random.below(2) * 1_000_000,
        ..Plan::default()
    }
}

/// Sorted, disjoint ranges between any bounds.
fn ranges<A: Copy + Ord>(
    random: &mut Random,
    labels: usize,
    any: impl Fn(&mut Random) -> A,
    after: impl Fn(A) -> Option<A>,
) -> Vec<Range<A>> {
    let count = [0, 1, 2, 10, 300][random.below(5) as usize];
    let bounds: BTreeSet<A> = (0..count * 2).map(|_| any(random)).collect();
    let bounds: Vec<A> = bounds.into_iter().collect();
    let mut end = None;
    let mut ranges = Vec::new();
    for pair in bounds.chunks_exact(2) {
        let label = Label::new(random.below(labels as u64) as u16).expect("below the limit");
        if end.is_none_or(|end| pair[0] >= end) {
            ranges.push(Range { first: pair[0], last: pair[1], label });
        }
        end = after(pair[1]);
    }
    ranges
}

/// xorshift: the same frames from the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn port(&mut self) -> u16 {
        [4118, 4119, 4122, 443][self.below(4) as usize]
    }

    fn mac(&mut self) -> Mac {
        Mac::new(self.mac_bytes())
    }

    fn mac_bytes(&mut self) -> [u8; 6] {
        [PEER, [2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]][self.below(3) as usize]
    }

    /// From few addresses, so that policies and frames meet.
    fn v4(&mut self) -> u32 {
        match self.below(4) {
            0 => self.next() as u32,
            1 => 0xc000_0200 + self.below(256) as u32,
            _ => 0x0a00_0000 + (self.below(64) as u32) * 0x1_0000 + self.below(3) as u32,
        }
    }

    fn v6(&mut self) -> u128 {
        match self.below(4) {
            // Unicast: from other addresses, routes do not forward.
            0 => u128::from(self.next() >> 3 | 1 << 61) << 64 | u128::from(self.next()),
            1 => (0x2001_0db8 << 96) + u128::from(self.below(64)),
            _ => (0x2a00 << 112) + (u128::from(self.below(64)) << 64) + u128::from(self.below(3)),
        }
    }

    fn frame(&mut self) -> Vec<u8> {
        let to = [OURS, OURS, OURS, [255; 6], [2, 0, 0, 0, 0, 9]][self.below(5) as usize];
        let mut frame = Frame::between(self.mac_bytes(), to);
        for _ in 0..[0, 0, 0, 1, 2, 3, 8, 16, 17][self.below(9) as usize] {
            let id = [0, 0, 0, 100][self.below(4) as usize];
            frame = frame.tag_with([0x8100, 0x88a8][self.below(2) as usize], id);
        }
        let frame = if self.below(2) == 0 { self.over_v4(frame) } else { self.over_v6(frame) };
        self.mutate(frame)
    }

    fn over_v4(&mut self, frame: Frame) -> Vec<u8> {
        let source = self.v4().to_be_bytes();
        let destination =
            [[127, 0, 0, 1], [127, 0, 0, 9], [198, 51, 100, 7]][self.below(3) as usize];
        let fragment = [0, 0x4000, 0x2000, 0x2001, 1][self.below(5) as usize];
        let words = [0, 0, 1, 10][self.below(4) as usize];
        self.payload(frame.ipv4_with(source, destination, words, fragment))
    }

    fn over_v6(&mut self, frame: Frame) -> Vec<u8> {
        let source = self.v6();
        let destination = [1, HERE_V6, HERE_V6, ELSEWHERE_V6][self.below(4) as usize];
        let mut frame = frame.ipv6(source, destination);
        for _ in 0..[0, 0, 1, 3, 8, 9][self.below(6) as usize] {
            frame = match self.below(6) {
                0 => {
                    frame.fragment_header([0, 0, 0, 2][self.below(4) as usize], self.below(2) == 0)
                }
                1 => frame.extension(51, self.below(4) as u8),
                2 => frame.extension(0, self.below(4) as u8),
                3 => frame.extension(43, self.below(4) as u8),
                _ => frame.extension(60, self.below(20) as u8),
            };
        }
        self.payload(frame)
    }

    fn payload(&mut self, frame: Frame) -> Vec<u8> {
        let port = self.port();
        match self.below(8) {
            0 => frame.payload(17, &[0; 8]),
            1 => frame.payload(6, &[0, 80, 16, 22][..self.below(5) as usize]),
            _ => frame.tcp(port),
        }
    }

    /// Leaves most frames as they are; cuts some, pads some, and changes a bit of others. That may
    /// be a destination's: the network forwards to two prefixes only, which the model knows.
    fn mutate(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        match self.below(6) {
            0 => frame.truncate(14.max(self.below(frame.len() as u64 + 1) as usize)),
            1 => frame.extend((0..self.below(40)).map(|i| i as u8)),
            2 => {
                let at = 12 + self.below(frame.len() as u64 - 12) as usize;
                frame[at] ^= 1 << self.below(8);
            }
            _ => {}
        }
        frame
    }
}
