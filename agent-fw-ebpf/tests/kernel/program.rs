//! The loaded program and the model beside it: both decide on the same frames.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use agent_fw_ebpf::{
    Address, Host, Image, Label, LabelTally, Mac, OwnFrames, PassReason, Plain, Plan, Recipient,
    Tally, V6, Verdict, decide_at_a_glance, ethernet, load, load_program, try_decide,
};
use aya::maps::{HashMap, PerCpuArray};
use aya::programs::{SchedClassifier, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::HERE_V6;
use crate::frame::OURS;

/// The object under test: `$AGENT_FW_OBJECT`, or the workspace's build.
fn object() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/agent-fw.o");
    env::var_os("AGENT_FW_OBJECT").map_or(built, PathBuf::from)
}

/// The interface that a test run comes in by.
const LOOPBACK: u32 = 1;

pub(crate) type Outcome = Result<Verdict, PassReason>;

/// The hook that a program is tested at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// Gives the test a network of its own, which has 127.0.0.0/8 and [`crate::HERE_V6`], and forwards to
/// 198.51.100.0/24 and `2001:db8:ffff::/48` and to nowhere else; false, with the reason, where that
/// cannot be had.
pub(crate) fn enter_network() -> bool {
    if !geteuid().is_root() {
        return skipped("needs root");
    }
    if !object().is_file() {
        let object = object().display().to_string();
        return skipped(&format!("{object} is not built (cargo xtask build)"));
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        return skipped(&format!("no network namespace: {error}"));
    }
    for line in [
        "link set lo up",
        "route add 198.51.100.0/24 dev lo",
        "-6 address add 2001:db8:cccc::1 dev lo",
        "-6 route add 2001:db8:cccc::/48 dev lo",
        "-6 route add 2001:db8:ffff::/48 dev lo",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip starts");
        assert!(status.success(), "ip {line}");
    }
    // The address is there before its route.
    let local = ["-6", "route", "show", "table", "local"];
    let has_local = || Command::new("ip").args(local).output().expect("ip starts").stdout;
    while !String::from_utf8_lossy(&has_local()).contains("2001:db8:cccc::1") {
        thread::sleep(Duration::from_millis(2));
    }
    set_forwarding(true);
    true
}

/// Has the network forward, or not.
pub(crate) fn set_forwarding(is_on: bool) {
    for version in ["ipv4", "ipv6"] {
        fs::write(
            format!("/proc/sys/net/{version}/conf/all/forwarding"),
            if is_on { "1" } else { "0" },
        )
        .expect("forwarding");
    }
}

/// The harness knows no test that skips itself: in CI, where none may be skipped, it fails.
fn skipped(reason: &str) -> bool {
    let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!strict, "skipped: {reason}; CI=true: what is skipped counts as failed");
    eprintln!("skipped: {reason}");
    false
}

/// A loaded policy.
pub(crate) struct Program {
    pub(crate) image: Image,
    ebpf: Ebpf,
}

impl Program {
    pub(crate) fn new(plan: &Plan) -> Self {
        let guests = OwnFrames { mac: Mac::new(OURS).bits(), receiver: LOOPBACK, flags: 0 };
        Self::with(plan, Some(guests))
    }

    /// With this to be known of the interface.
    pub(crate) fn with(plan: &Plan, own: Option<OwnFrames>) -> Self {
        Self::try_with(plan, own).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn try_with(plan: &Plan, own: Option<OwnFrames>) -> Result<Self, Box<dyn Error>> {
        let image = Image::new(plan)?;
        let mut ebpf = load(&image, &fs::read(object())?, EbpfLoader::new())?;
        for name in ["agent_fw_xdp", "agent_fw_tc"] {
            load_program(ebpf.program_mut(name).ok_or("no program")?)?;
        }
        if let Some(own) = own {
            let interfaces = ebpf.map_mut("INTERFACES").ok_or("no map")?;
            HashMap::<_, u32, OwnFrames>::try_from(interfaces)?.insert(LOOPBACK, own, 0)?;
        }
        Ok(Self { image, ebpf })
    }

    /// What the verifier went through, and the program's size in bytes.
    pub(crate) fn size(&self, hook: Hook) -> (u32, u32) {
        let name = match hook {
            Hook::Xdp => "agent_fw_xdp",
            Hook::Tc => "agent_fw_tc",
        };
        let program = self.ebpf.program(name).expect("it was loaded");
        let info = program.info().expect("it was loaded");
        let known = info.verified_instruction_count().zip(info.size_translated());
        known.expect("a kernel from 5.16 tells")
    }

    /// Whether the frame passes.
    pub(crate) fn passes(&self, hook: Hook, frame: &[u8]) -> bool {
        let mut out = [0; 4096];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        match hook {
            Hook::Xdp => {
                let program = self.ebpf.program("agent_fw_xdp").expect("it was loaded");
                let program: &Xdp = program.try_into().expect("it is XDP's");
                match program.test_run(options).expect("the kernel runs it").return_value {
                    1 => false,
                    2 => true,
                    other => panic!("XDP returned {other}"),
                }
            }
            Hook::Tc => {
                let program = self.ebpf.program("agent_fw_tc").expect("it was loaded");
                let program: &SchedClassifier = program.try_into().expect("it is tc's");
                match program.test_run(options).expect("the kernel runs it").return_value {
                    2 => false,
                    u32::MAX => true,
                    other => panic!("tc returned {other}"),
                }
            }
        }
    }

    /// What the model says of the frame.
    pub(crate) fn model(&self, frame: &[u8]) -> Outcome {
        let contents = self.image.contents();
        let host = Model { frame, gate: contents.config.gate != 0 };
        let decided = try_decide(frame, &contents.config, contents, &host);
        let glance = decide_at_a_glance(frame, &contents.config, contents, &host);
        assert_eq!(glance.unwrap_or(decided), decided, "at a glance: {frame:02x?}");
        decided
    }

    /// All counts of all CPUs, by place; and admitted packets.
    pub(crate) fn counts(&self) -> ([u64; 16], u64) {
        let map = self.ebpf.map("TALLY").expect("the object has it");
        let tallies = PerCpuArray::<_, Tally>::try_from(map).expect("as it is declared");
        let mut sums = [0; 16];
        for tally in tallies.get(&0, 0).expect("an entry for each interface").iter() {
            for (sum, count) in sums.iter_mut().zip(tally.counts) {
                *sum += count;
            }
        }
        let map = self.ebpf.map("LABELS").expect("the object has it");
        let labels = PerCpuArray::<_, LabelTally>::try_from(map).expect("as it is declared");
        let admitted = labels.iter().flat_map(|values| {
            values
                .expect("an entry for each label")
                .iter()
                .map(|tally| tally.packets)
                .collect::<Vec<_>>()
        });
        (sums, admitted.sum())
    }

    pub(crate) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

pub(crate) fn passes(outcome: Outcome) -> bool {
    !matches!(outcome, Ok(Verdict::Refused | Verdict::RefusedHiddenPort))
}

/// The host that [`enter_network`] makes, when a frame comes to it.
struct Model<'a> {
    frame: &'a [u8],
    gate: bool,
}

impl Host for Model<'_> {
    fn admit(&self, _: Label) {}

    fn refuse<A: Address>(&self, recipient: &Recipient<A>, _: Verdict) -> Result<(), PassReason> {
        if !self.gate {
            return Ok(());
        }
        if recipient.mac != Mac::new(OURS) {
            return Err(PassReason::OtherHost);
        }
        let V6 { high, low } = recipient.destination.to_v6();
        // Without a route, the stack drops it.
        let is_here = if A::IS_V4 {
            low as u32 >> 8 != 0x00c6_3364
        } else {
            !matches!(high >> 16, 0x2001_0db8_ffff | 0x2001_0db8_cccc)
                || u128::from(high) << 64 | u128::from(low) == HERE_V6
        };
        if is_here { Ok(()) } else { Err(PassReason::NotForThisHost) }
    }

    fn refuse_unread(&self) {
        assert!(!self.gate, "what cannot be read is the gate's");
    }

    fn refuse_known<A: Plain>(&self) -> bool {
        let mac = ethernet::destination(self.frame);
        let (Ok(mac), Some([source, destination])) = (mac, A::addresses(self.frame)) else {
            return false;
        };
        self.refuse(&Recipient { mac, source, destination }, Verdict::Refused).is_ok()
    }
}
