//! The object in this kernel: hand-made frames with their verdicts, and generated ones beside the
//! model. Needs root; skips, and says why, without.

#![allow(clippy::cast_possible_truncation, reason = "random bits and small lengths")]

mod frame;
mod generated;
mod program;

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use agent_fw_ebpf::table::Range;
use agent_fw_ebpf::{Label, Mac, OwnFrames, PassReason, Plan, Sample, Verdict};
use aya::maps::RingBuf;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use frame::{Frame, OURS, PEER};
use program::{Hook, Outcome, Program, enter_network, passes, set_forwarding};

const PORT: u16 = 4118;
const LISTED: [u8; 4] = [192, 0, 2, 10];
const UNLISTED: [u8; 4] = [203, 0, 113, 9];
const HERE: [u8; 4] = [127, 0, 0, 1];
const ELSEWHERE: [u8; 4] = [198, 51, 100, 7];
const LISTED_V6: u128 = 0x2001_0db8_0001_0000_0000_0000_0000_0005;
const UNLISTED_V6: u128 = 0x2001_0db8_0002_0000_0000_0000_0000_0005;
const HERE_V6: u128 = 0x2001_0db8_cccc_0000_0000_0000_0000_0001;
const ELSEWHERE_V6: u128 = 0x2001_0db8_ffff_0000_0000_0000_0000_0007;

const REFUSED: Outcome = Ok(Verdict::Refused);

fn label(index: u16) -> Label {
    Label::new(index).expect("below the limit")
}

/// 192.0.2.0/24 and `2001:db8:1::/48` may connect; XDP stands alone.
fn plan() -> Plan {
    let v6 = LISTED_V6 >> 80 << 80;
    Plan {
        ports: BTreeSet::from([PORT]),
        v4: vec![Range { first: 0xc000_0200, last: 0xc000_02ff, label: label(0) }],
        v6: vec![Range { first: v6, last: v6 | ((1 << 80) - 1), label: label(1) }],
        labels: vec![None; 2],
        count_unconcerned: true,
        ..Plan::default()
    }
}

/// Holds the kernel's verdicts and the model's against what is expected, frame by frame.
fn check(plan: &Plan, cases: &[(&str, Vec<u8>, Outcome)]) {
    if !enter_network() {
        return;
    }
    let program = Program::new(plan);
    for (name, frame, expected) in cases {
        assert_eq!(program.model(frame), *expected, "{name}: the model");
        for hook in [Hook::Xdp, Hook::Tc] {
            assert_eq!(program.passes(hook, frame), passes(*expected), "{name}: {hook:?}");
        }
    }
}

fn v4(source: [u8; 4]) -> Frame {
    Frame::new().ipv4(source, HERE)
}

fn v6(source: u128) -> Frame {
    Frame::new().ipv6(source, HERE_V6)
}

#[test]
fn listed_sources_pass_and_others_are_dropped() {
    let cases = [
        ("listed", v4(LISTED).tcp(PORT), Ok(Verdict::Admitted(label(0)))),
        ("unlisted", v4(UNLISTED).tcp(PORT), REFUSED),
        ("listed, IPv6", v6(LISTED_V6).tcp(PORT), Ok(Verdict::Admitted(label(1)))),
        ("unlisted, IPv6", v6(UNLISTED_V6).tcp(PORT), REFUSED),
        ("another port", v4(UNLISTED).tcp(443), Err(PassReason::OtherPort)),
        ("another port, IPv6", v6(UNLISTED_V6).tcp(443), Err(PassReason::OtherPort)),
        ("UDP", v4(UNLISTED).payload(17, &[0x10, 0x16, 0x10, 0x16]), Err(PassReason::NotTcp)),
        ("ICMPv6", v6(UNLISTED_V6).payload(58, &[135; 24]), Err(PassReason::NotTcp)),
        ("ARP", Frame::new().ether_type(0x0806).payload(0, &[0; 28]), Err(PassReason::NotIp)),
    ];
    check(&plan(), &cases);
}

#[test]
fn vlan_tagged_frames_are_decided_on_like_others() {
    let tagged = |kinds: &[u16]| kinds.iter().fold(Frame::new(), |frame, kind| frame.tag(*kind));
    let cases = [
        ("802.1Q", tagged(&[0x8100]).ipv4(UNLISTED, HERE).tcp(PORT), REFUSED),
        ("802.1ad", tagged(&[0x88a8]).ipv4(UNLISTED, HERE).tcp(PORT), REFUSED),
        ("QinQ", tagged(&[0x88a8, 0x8100]).ipv4(UNLISTED, HERE).tcp(PORT), REFUSED),
        ("QinQ, IPv6", tagged(&[0x88a8, 0x8100]).ipv6(UNLISTED_V6, HERE_V6).tcp(PORT), REFUSED),
        (
            "QinQ, listed",
            tagged(&[0x88a8, 0x8100]).ipv4(LISTED, HERE).tcp(PORT),
            Ok(Verdict::Admitted(label(0))),
        ),
        ("three tags", tagged(&[0x88a8, 0x8100, 0x8100]).ipv4(UNLISTED, HERE).tcp(PORT), REFUSED),
    ];
    check_at_xdp(&plan(), &cases);
}

/// The stack takes the first tag off before tc, and a test run does not: XDP only.
fn check_at_xdp(plan: &Plan, cases: &[(&str, Vec<u8>, Outcome)]) {
    if !enter_network() {
        return;
    }
    let program = Program::new(plan);
    for (name, frame, expected) in cases {
        assert_eq!(program.model(frame), *expected, "{name}: the model");
        assert_eq!(program.passes(Hook::Xdp, frame), passes(*expected), "{name}");
    }
}

fn tagged(count: usize, id: u16) -> Frame {
    let kinds = [0x8100, 0x88a8, 0x88a8, 0x8100, 0x8100];
    (0..count).fold(Frame::new(), |frame, n| frame.tag_with(kinds[n % 5], id))
}

#[test]
fn no_number_of_tags_hides_a_frame_from_a_program_that_stands_alone() {
    let cases: Vec<_> = (1..=40)
        .chain([300])
        .flat_map(|count| {
            let is_read = count <= 16;
            let hidden = Ok(Verdict::RefusedHiddenPort);
            let due = |outcome| if is_read { outcome } else { hidden };
            let other = due(Err(PassReason::OtherPort));
            [
                ("IPv4", tagged(count, 0).ipv4(UNLISTED, HERE).tcp(PORT), due(REFUSED)),
                ("IPv6", tagged(count, 7).ipv6(UNLISTED_V6, HERE_V6).tcp(PORT), due(REFUSED)),
                ("another port", tagged(count, 0).ipv4(UNLISTED, HERE).tcp(443), other),
                (
                    "listed",
                    tagged(count, 0).ipv4(LISTED, HERE).tcp(PORT),
                    due(Ok(Verdict::Admitted(label(0)))),
                ),
            ]
        })
        .collect();
    check_at_xdp(&plan(), &cases);
}

#[test]
fn behind_a_program_the_gate_decides_on_virtual_networks_and_on_more_tags_than_16() {
    let here = |frame: Frame| frame.ipv4(UNLISTED, HERE).tcp(PORT);
    let elsewhere = Err(PassReason::NotForThisHost);
    let cases = [
        ("priority", here(tagged(1, 0)), REFUSED),
        ("16 of priority", here(tagged(16, 0)), REFUSED),
        ("17", here(tagged(17, 0)), Err(PassReason::TooManyTags)),
        ("of network 7", here(tagged(1, 7)), elsewhere),
        ("of network 7, behind priority", here(tagged(3, 0).tag_with(0x8100, 7)), elsewhere),
        ("of network 7, before priority", here(tagged(1, 7).tag_with(0x8100, 0)), elsewhere),
        (
            "of network 7, listed",
            tagged(1, 7).ipv4(LISTED, HERE).tcp(PORT),
            Ok(Verdict::Admitted(label(0))),
        ),
    ];
    check_at_xdp(&Plan { gate: true, ..plan() }, &cases);
}

#[test]
fn ipv4_options_hide_nothing() {
    let cases: Vec<_> = (0..=10)
        .map(|words| {
            let frame = Frame::new().ipv4_with(UNLISTED, HERE, words, 0).tcp(PORT);
            ("options", frame, REFUSED)
        })
        .collect();
    check(&plan(), &cases);
}

#[test]
fn ipv6_extension_headers_hide_nothing() {
    let mut cases: Vec<(&str, Vec<u8>, Outcome)> = [0, 43, 51, 60]
        .into_iter()
        .flat_map(|kind| [(kind, 1), (kind, 3), (kind, 30)])
        .map(|(kind, units)| {
            ("one extension", v6(UNLISTED_V6).extension(kind, units).tcp(PORT), REFUSED)
        })
        .collect();
    let many = |count| (0..count).fold(v6(UNLISTED_V6), |frame, _| frame.extension(60, 0));
    cases.push(("eight", many(8).tcp(PORT), REFUSED));
    cases.push(("nine", many(9).tcp(PORT), Ok(Verdict::RefusedHiddenPort)));
    cases.push(("other port behind", many(3).tcp(443), Err(PassReason::OtherPort)));
    cases.push(("UDP behind", many(3).payload(17, &[0; 8]), Err(PassReason::NotTcp)));
    cases.push((
        "all kinds",
        v6(UNLISTED_V6)
            .extension(0, 0)
            .extension(60, 1)
            .extension(43, 2)
            .fragment_header(0, false)
            .extension(51, 4)
            .extension(60, 0)
            .tcp(PORT),
        REFUSED,
    ));
    check(&plan(), &cases);
}

#[test]
fn first_fragments_are_decided_on_and_later_ones_pass() {
    let fragment = |offset: u16, more: bool| {
        Frame::new().ipv4_with(UNLISTED, HERE, 0, u16::from(more) << 13 | offset)
    };
    let cases = [
        ("first", fragment(0, true).tcp(PORT), REFUSED),
        ("first, other port", fragment(0, true).tcp(443), Err(PassReason::OtherPort)),
        ("later", fragment(3, true).tcp(PORT), Err(PassReason::LaterFragment)),
        ("last", fragment(3, false).tcp(PORT), Err(PassReason::LaterFragment)),
        ("first, IPv6", v6(UNLISTED_V6).fragment_header(0, true).tcp(PORT), REFUSED),
        (
            "later, IPv6",
            v6(UNLISTED_V6).fragment_header(3, true).tcp(PORT),
            Err(PassReason::LaterFragment),
        ),
        ("too short", fragment(0, true).payload(6, &[0, 80, 16]), Ok(Verdict::RefusedHiddenPort)),
        (
            "too short, listed",
            Frame::new().ipv4_with(LISTED, HERE, 0, 1 << 13).payload(6, &[0, 80, 16]),
            Ok(Verdict::Admitted(label(0))),
        ),
        (
            "too short, IPv6, options in front",
            v6(UNLISTED_V6).fragment_header(0, true).extension(60, 0).payload(6, &[]),
            Ok(Verdict::RefusedHiddenPort),
        ),
        ("too short, whole", v4(UNLISTED).payload(6, &[0, 80, 16]), Err(PassReason::Truncated)),
    ];
    check(&plan(), &cases);
}

#[test]
fn padding_is_not_mistaken_for_a_port() {
    let mut padded = Frame::new().ipv4_with(UNLISTED, HERE, 0, 1 << 13).payload(6, &[0, 80]);
    padded.extend([1, 187, 0, 0, 0, 0]);
    let pad = |mut frame: Vec<u8>, port: u16, len| {
        frame.extend(port.to_be_bytes());
        frame.resize(len, 0);
        frame
    };
    let whole = |port, len| pad(v4(UNLISTED).payload(6, &[0, 80]), port, len);
    let whole_v6 = |port, len| pad(v6(UNLISTED_V6).payload(6, &[0, 80]), port, len);
    let cases = [
        ("a first fragment with padding", padded, Ok(Verdict::RefusedHiddenPort)),
        // The kernel drops them: what they carry of TCP is too short.
        ("padding that spells the port", whole(PORT, 60), Err(PassReason::Truncated)),
        ("the same, short", whole(PORT, 38), Err(PassReason::Truncated)),
        ("padding that spells another", whole(443, 60), Err(PassReason::OtherPort)),
        ("the same, short", whole(443, 38), Err(PassReason::OtherPort)),
        ("the port, behind IPv6", whole_v6(PORT, 58), Err(PassReason::Truncated)),
        ("another, behind IPv6", whole_v6(443, 58), Err(PassReason::OtherPort)),
    ];
    check(&plan(), &cases);
}

#[test]
fn behind_it_the_gate_decides_on_hidden_ports() {
    let plan = Plan { gate: true, ..plan() };
    let cases = [
        (
            "too short",
            Frame::new().ipv4_with(UNLISTED, HERE, 0, 1 << 13).payload(6, &[0, 80, 16]),
            Err(PassReason::ShortFirstFragment),
        ),
        (
            "nine extensions",
            (0..9).fold(v6(UNLISTED_V6), |frame, _| frame.extension(60, 0)).tcp(PORT),
            Err(PassReason::TooManyExtensions),
        ),
        ("unlisted", v4(UNLISTED).tcp(PORT), REFUSED),
    ];
    check(&plan, &cases);
}

/// Frames to the agent's port from nobody who is listed, and what a program with a gate behind it
/// makes of them.
fn for_others_or_not() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let elsewhere = Err(PassReason::NotForThisHost);
    let to = |mac| Frame::between(PEER, mac).ipv4(UNLISTED, HERE).tcp(PORT);
    let mut cases = vec![
        ("here", v4(UNLISTED).tcp(PORT), REFUSED),
        ("here, IPv6", v6(UNLISTED_V6).tcp(PORT), REFUSED),
        ("another host's MAC", to([2, 0, 0, 0, 0, 9]), Err(PassReason::OtherHost)),
        ("broadcast MAC", to([255; 6]), Err(PassReason::OtherHost)),
        ("forwarded", Frame::new().ipv4(UNLISTED, ELSEWHERE).tcp(PORT), elsewhere),
        ("forwarded, IPv6", Frame::new().ipv6(UNLISTED_V6, ELSEWHERE_V6).tcp(PORT), elsewhere),
        ("without a route", Frame::new().ipv4(UNLISTED, [8, 8, 8, 8]).tcp(PORT), REFUSED),
        ("without a route, IPv6", Frame::new().ipv6(UNLISTED_V6, 0x2a00 << 112).tcp(PORT), REFUSED),
    ];
    // What is not said of a destination by whoever chooses the source.
    for source in SOURCES_NOBODY_HAS {
        cases.push(("forwarded", Frame::new().ipv4(source, ELSEWHERE).tcp(PORT), elsewhere));
        cases.push(("here", v4(source).tcp(PORT), REFUSED));
    }
    for source in SOURCES_NOBODY_HAS_V6 {
        cases.push(("forwarded", Frame::new().ipv6(source, ELSEWHERE_V6).tcp(PORT), elsewhere));
        cases.push(("here", v6(source).tcp(PORT), REFUSED));
    }
    // Again: what was remembered in between.
    cases.extend(cases.clone());
    cases
}

const SOURCES_NOBODY_HAS: [[u8; 4]; 7] = [
    [127, 0, 0, 1],
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [224, 0, 0, 1],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
    [169, 254, 7, 7],
];

const SOURCES_NOBODY_HAS_V6: [u128; 8] = [
    0,
    1,
    HERE_V6,
    0xfe80 << 112 | 0xbad,
    0xff02 << 112 | 1,
    0xff0e << 112 | 1,
    0xfec0 << 112 | 1,
    0xffff_7f00_0001,
];

#[test]
fn with_a_gate_behind_it_what_may_be_for_others_passes_whatever_its_source() {
    check(&Plan { gate: true, ..plan() }, &for_others_or_not());
}

#[test]
fn alone_the_program_refuses_whatever_its_mac_address_and_destination() {
    let cases = for_others_or_not().into_iter().map(|(name, frame, _)| (name, frame, REFUSED));
    check(&plan(), &cases.collect::<Vec<_>>());
}

#[test]
fn a_rule_for_some_sources_only_does_not_make_a_destination_this_hosts() {
    if !enter_network() {
        return;
    }
    // Without these rules, there is no route at all.
    for line in [
        "route add 127.0.0.0/8 dev lo",
        "rule add from 203.0.113.9 table 7",
        "route add 10.9.0.0/16 dev lo table 7",
        "-6 rule add from 2001:db8:2::5 table 7",
        "-6 route add 2001:db8:9::/48 dev lo table 7",
    ] {
        let status = std::process::Command::new("ip").args(line.split(' ')).status();
        assert!(status.expect("ip starts").success(), "ip {line}");
    }
    let flags = OwnFrames::RULES;
    let own = OwnFrames { mac: Mac::new(OURS).bits(), receiver: 1, flags };
    let program = Program::with(&Plan { gate: true, ..plan() }, Some(own));
    for _ in 0..2 {
        for source in [UNLISTED, [203, 0, 113, 10]] {
            let frame = Frame::new().ipv4(source, [10, 9, 0, 1]).tcp(PORT);
            assert!(program.passes(Hook::Xdp, &frame), "{source:?}");
        }
        for source in [UNLISTED_V6, UNLISTED_V6 + 1] {
            let frame = Frame::new().ipv6(source, 0x2001_0db8_0009 << 80 | 1).tcp(PORT);
            assert!(program.passes(Hook::Xdp, &frame), "{source:x}");
        }
        assert!(!program.passes(Hook::Xdp, &v4(UNLISTED).tcp(PORT)));
        assert!(!program.passes(Hook::Xdp, &v6(UNLISTED_V6).tcp(PORT)));
    }
}

#[test]
fn without_forwarding_only_an_interface_that_nobody_shares_tells_what_is_this_hosts() {
    if !enter_network() {
        return;
    }
    set_forwarding(false);
    let plan = Plan { gate: true, ..plan() };
    let own = |flags| OwnFrames { mac: Mac::new(OURS).bits(), receiver: 1, flags };
    for (own, due) in [(None, true), (Some(own(0)), true), (Some(own(OwnFrames::ALONE)), false)] {
        let program = Program::with(&plan, own);
        for hook in [Hook::Xdp, Hook::Tc] {
            let frame = v4(UNLISTED).tcp(PORT);
            assert_eq!(program.passes(hook, &frame), due, "{own:?}, {hook:?}");
            let frame = v6(UNLISTED_V6).tcp(PORT);
            assert_eq!(program.passes(hook, &frame), due, "{own:?}, {hook:?}");
        }
        let other = Frame::between(PEER, [2, 0, 0, 0, 0, 9]).ipv4(UNLISTED, HERE).tcp(PORT);
        assert!(program.passes(Hook::Xdp, &other), "{own:?}");
    }
}

#[test]
fn frames_that_end_anywhere_are_never_misread() {
    if !enter_network() {
        return;
    }
    let program = Program::new(&plan());
    let whole = [
        Frame::new().tag(0x88a8).tag(0x8100).ipv4_with(UNLISTED, HERE, 10, 0).tcp(PORT),
        Frame::new().ipv4_with(UNLISTED, HERE, 3, 1 << 13).tcp(PORT),
        v6(UNLISTED_V6).extension(0, 2).fragment_header(0, true).extension(60, 1).tcp(PORT),
        v6(LISTED_V6).tcp(PORT),
    ];
    for frame in whole {
        // The kernel runs no program on less than an Ethernet header.
        for len in 14..frame.len() {
            let cut = &frame[..len];
            assert_eq!(program.passes(Hook::Xdp, cut), passes(program.model(cut)), "{cut:x?}");
        }
    }
}

#[test]
fn both_the_address_and_the_mac_must_be_listed() {
    let macs = Some(BTreeSet::from([Mac::new(PEER)]));
    let plan = Plan { labels: vec![macs, None], ..plan() };
    let other = [2, 0, 0, 0, 0, 7];
    let cases = [
        ("both", v4(LISTED).tcp(PORT), Ok(Verdict::Admitted(label(0)))),
        ("another MAC", Frame::between(other, OURS).ipv4(LISTED, HERE).tcp(PORT), REFUSED),
        ("another address", v4(UNLISTED).tcp(PORT), REFUSED),
        (
            "any MAC will do",
            Frame::between(other, OURS).ipv6(LISTED_V6, HERE_V6).tcp(PORT),
            Ok(Verdict::Admitted(label(1))),
        ),
    ];
    check(&plan, &cases);
}

#[test]
fn others_can_be_left_to_the_host() {
    let plan = Plan { otherwise_continue: true, ..plan() };
    check(&plan, &[("unlisted", v4(UNLISTED).tcp(PORT), Ok(Verdict::LeftToOthers))]);
}

#[test]
fn ports_may_be_any_set() {
    let plan = Plan { ports: BTreeSet::from([PORT, 4122, 63]), ..plan() };
    let cases = [
        ("first", v4(UNLISTED).tcp(63), REFUSED),
        ("middle", v4(UNLISTED).tcp(PORT), REFUSED),
        ("last", v4(UNLISTED).tcp(4122), REFUSED),
        ("between", v4(UNLISTED).tcp(4120), Err(PassReason::OtherPort)),
    ];
    check(&plan, &cases);
}

#[test]
fn refused_packets_are_sampled_no_faster_than_allowed() {
    if !enter_network() {
        return;
    }
    let mut program = Program::new(&Plan { sample_interval_ns: 3_600_000_000_000, ..plan() });
    for _ in 0..100 {
        assert!(!program.passes(Hook::Xdp, &v4(UNLISTED).tcp(PORT)));
    }
    let map = program.ebpf().map_mut("SAMPLES").expect("the object has it");
    let mut samples = RingBuf::try_from(map).expect("as it is declared");
    let mut seen = 0;
    while let Some(bytes) = samples.next() {
        let sample = Sample::from_bytes(&bytes).expect("as long as a sample");
        assert_eq!(sample.source, [0, 0xffff_cb00_7109]);
        assert_eq!(sample.destination, [0, 0xffff_7f00_0001]);
        assert_eq!(sample.source_mac, Mac::new(PEER).bits());
        assert_eq!((sample.ifindex, sample.hidden_port), (1, 0));
        seen += 1;
    }
    // One for each CPU that a run happened on.
    assert!((1..=64).contains(&seen), "{seen} samples");
}

#[test]
fn a_signal_while_the_verifier_works_is_no_failure() {
    if !enter_network() {
        return;
    }
    let action = SigAction::new(SigHandler::Handler(heard), SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "a handler of signals")]
    // SAFETY: the handler only adds to an atomic number.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    let loads = pthread_self();
    let start = Instant::now();
    Program::new(&plan());
    let pause = 3 * start.elapsed();
    thread::scope(|scope| {
        let signals = scope.spawn(|| {
            for _ in 0..12 {
                thread::sleep(pause);
                pthread_kill(loads, Signal::SIGUSR1).expect("the thread is there");
            }
        });
        while !signals.is_finished() {
            Program::new(&plan());
        }
    });
    let heard = HEARD.load(Ordering::Relaxed);
    assert!(heard > 5, "{heard} signals");
}

static HEARD: AtomicUsize = AtomicUsize::new(0);

extern "C" fn heard(_: c_int) {
    HEARD.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn the_program_does_not_grow_unnoticed() {
    if !enter_network() {
        return;
    }
    let macs = Some(BTreeSet::from([Mac::new(PEER)]));
    let deep = vec![Range { first: 5, last: 9, label: label(0) }];
    let full = Plan { labels: vec![macs, None], v6: deep, sample_interval_ns: 1, ..plan() };
    let none = Plan { v4: Vec::new(), v6: Vec::new(), ..plan() };
    let v4 = Plan { v6: Vec::new(), ..plan() };
    let gated = Plan { gate: true, ..full.clone() };
    for (name, plan, [xdp, tc]) in [
        ("no sources", none, [(19_200, 17_500), (14_600, 13_400)]),
        ("IPv4", v4, [(33_700, 21_100), (16_400, 15_200)]),
        ("IPv4 and IPv6", plan(), [(89_600, 25_300), (21_400, 17_400)]),
        ("everything", full, [(143_100, 23_200), (29_400, 20_700)]),
        ("everything, behind it the gate", gated, [(88_400, 25_200), (24_900, 22_700)]),
    ] {
        let program = Program::new(&plan);
        for (hook, (most_verified, most_bytes)) in [(Hook::Xdp, xdp), (Hook::Tc, tc)] {
            let (verified, bytes) = program.size(hook);
            println!("{name}, {hook:?}: {verified} instructions verified, {bytes} bytes");
            // Verifiers differ: the bounds are those of Linux 6.18, a quarter above what was seen.
            let most_verified = if is_6_18() { most_verified } else { 300_000 };
            let most_bytes = if is_6_18() { most_bytes } else { 2 * most_bytes };
            assert!(verified <= most_verified, "{name}, {hook:?}: {verified} verified");
            assert!(bytes <= most_bytes, "{name}, {hook:?}: {bytes} bytes");
        }
    }
}

fn is_6_18() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.starts_with("6.18")
}
