//! What a packet to the agent's port from an unlisted source costs, from the driver to its drop, as a
//! multiple of the same rule without a set: agent-fw's gate, one interval set, and ipset, in one run.
//!
//! Needs root, and the objects that `cargo xtask build` makes. The packets come from inside the
//! kernel (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18), each with a source drawn at random. Each
//! rule set stands in a network namespace of its own, and all of a list take turns; what is printed is
//! the median of the turns' ratios. Fails if a bound is not met.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use std::{env, fs, process, thread};

use agent_fw_lab::{Lab, agent_fw, feed, prefixes, run};
use anyhow::{Context as _, Result};
use aya::programs::{TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, TestRun as _};
use ipnet::Ipv4Net;

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/agent-fw-bench.o");
/// Packets of one turn.
const PACKETS: u32 = 200_000;
/// Frames that the stack is given at once.
const BATCH: u32 = 64;
/// Turns that count; one more fills the caches.
const TURNS: usize = 15;

/// The lists, and how many times the cost of the rule without a set agent-fw's gate may have.
const LISTS: [(List, f64); 7] = [
    (List::Region, 1.15),
    (List::Mixed(10), 1.25),
    (List::Mixed(1_000), 1.25),
    (List::Mixed(10_000), 1.25),
    (List::Mixed(100_000), 1.5),
    (List::OneLength(100_000), 1.5),
    (List::Mixed(1_000_000), 1.5),
];

#[derive(Clone, Copy)]
enum List {
    /// The two prefixes of a region.
    Region,
    /// So many prefixes of all lengths from 24 to 32 bits.
    Mixed(usize),
    /// So many of 27 bits.
    OneLength(usize),
}

/// What decides on packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// One rule that drops all packets to the port.
    NoSet,
    AgentFw,
    IntervalSet,
    Ipset,
}

const SUBJECTS: [Subject; 4] =
    [Subject::NoSet, Subject::AgentFw, Subject::IntervalSet, Subject::Ipset];

fn main() -> Result<()> {
    // `cargo test --all-targets` runs this, too, and does not want figures.
    if !env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    if !fs::exists(OBJECT)? {
        eprintln!("{OBJECT} is not there: run `cargo xtask build` first");
        process::exit(3);
    }
    println!("an unlisted packet, as a multiple of the same rule without a set:");
    println!("{:24} {:>9} {:>9} {:>9}   bound", "", "agent-fw", "interval", "ipset");
    let mut missed = 0;
    for (list, most) in LISTS {
        let [_, agent_fw, interval, ipset] = compare(list)?;
        let is_met = agent_fw <= most;
        missed += usize::from(!is_met);
        let met = if is_met { "met" } else { "NOT MET" };
        println!("{:24} {agent_fw:9.2} {interval:9.2} {ipset:9.2}   {most}: {met}", list.words());
    }
    println!("{missed} of {} bounds are not met", LISTS.len());
    process::exit(i32::from(missed > 0));
}

/// Each subject's cost as a multiple of the first one's.
fn compare(list: List) -> Result<[f64; 4]> {
    let prefixes = list.prefixes();
    thread::scope(|scope| {
        let start = |subject| Contender::start(scope, subject, &prefixes);
        let contenders = SUBJECTS.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let mut ratios = SUBJECTS.map(|_| Vec::new());
        for turn in 0..=TURNS {
            let costs = contenders.iter().map(Contender::measure).collect::<Result<Vec<f64>>>()?;
            if turn > 0 {
                for (ratios, cost) in ratios.iter_mut().zip(&costs) {
                    ratios.push(cost / costs[0]);
                }
            }
        }
        Ok(ratios.map(|mut ratios| {
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        }))
    })
}

impl List {
    fn words(self) -> String {
        match self {
            Self::Region => "a region, 2 prefixes".to_owned(),
            Self::Mixed(count) => format!("{count} of 24 to 32 bits"),
            Self::OneLength(count) => format!("{count} of 27 bits"),
        }
    }

    fn prefixes(self) -> Vec<Ipv4Net> {
        let drawn = |count: usize| -> Vec<Ipv4Net> {
            prefixes::list(count).lines().filter_map(|line| line.parse().ok()).collect()
        };
        let prefixes = match self {
            Self::Region => ["18.97.19.0/27", "34.205.5.0/27"]
                .iter()
                .filter_map(|prefix| prefix.parse().ok())
                .collect(),
            Self::Mixed(count) => drawn(count),
            Self::OneLength(count) => drawn(count)
                .into_iter()
                .map(|prefix| Ipv4Net::new_assert(prefix.addr(), 27).trunc())
                .collect(),
        };
        // Nothing twice: nft and ipset would refuse it.
        Ipv4Net::aggregate(&prefixes)
    }
}

/// A subject in a network namespace of its own.
struct Contender {
    go: Sender<()>,
    done: Receiver<Result<f64>>,
}

impl Contender {
    fn start<'s>(
        scope: &'s thread::Scope<'s, '_>,
        subject: Subject,
        prefixes: &'s [Ipv4Net],
    ) -> Result<Self> {
        let (go, gone) = channel::<()>();
        let (tell, done) = channel();
        scope.spawn(move || {
            let outcome = Lab::run(|_| {
                let mut generator = Generator::new()?;
                subject.put_in_force(prefixes)?;
                tell.send(Ok(0.0))?;
                for () in gone {
                    tell.send(generator.run())?;
                }
                Ok(())
            });
            if let Err(error) = outcome {
                // Nobody listens once another one has failed.
                let _ = tell.send(Err(error));
            }
        });
        done.recv()??;
        Ok(Self { go, done })
    }

    /// Nanoseconds a packet.
    fn measure(&self) -> Result<f64> {
        self.go.send(())?;
        self.done.recv()?
    }
}

impl Subject {
    fn put_in_force(self, prefixes: &[Ipv4Net]) -> Result<()> {
        let lines = |ending: &str| {
            prefixes.iter().fold(String::new(), |mut text, prefix| {
                // Writing to a String does not fail.
                let _ = writeln!(text, "{prefix}{ending}");
                text
            })
        };
        let table = |sets: &str, rule: &str| {
            format!(
                "table inet other {{ {sets}\nchain gate {{ type filter hook input priority raw; \
                 {rule}; }}\n}}\n"
            )
        };
        match self {
            Self::NoSet => {
                feed(["nft", "-f", "-"], &table("", "tcp dport 4118 drop"))?;
            }
            Self::AgentFw => {
                fs::write("/run/sources", lines(""))?;
                let sources = ["--allow-from", "file:/run/sources"];
                agent_fw(["install", "--no-boot", "--untested"].iter().chain(&sources))?
                    .success()?;
            }
            Self::IntervalSet => {
                let elements = lines(",");
                let set = format!(
                    "set sources {{ type ipv4_addr; flags interval; elements = {{\n{elements}}} }}"
                );
                let rule = "tcp dport 4118 ip saddr != @sources drop";
                feed(["nft", "-f", "-"], &table(&set, rule))?;
            }
            Self::Ipset => {
                let elements = prefixes.iter().fold(String::new(), |mut text, prefix| {
                    let _ = writeln!(text, "add sources {prefix}");
                    text
                });
                let most = prefixes.len().max(65_536);
                let set = format!("create sources hash:net maxelem {most}\n{elements}");
                feed(["ipset", "restore"], &set)?;
                run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "4118", "-m", "set", "!"]
                    .into_iter()
                    .chain(["--match-set", "sources", "src", "-j", "DROP"]))?;
            }
        }
        Ok(())
    }
}

/// Sends packets into the stack of its namespace, from inside the kernel.
struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
    context: Vec<u8>,
}

const PROGRAM: &str = "into_stack_v4";
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

impl Generator {
    fn new() -> Result<Self> {
        run(["ip", "link", "add", "in0", "type", "veth", "peer", "name", "out0"])?;
        run(["ip", "link", "set", "in0", "address", "02:00:00:00:00:01", "up"])?;
        run(["ip", "link", "set", "out0", "up"])?;
        run(["ip", "address", "add", &format!("{HOST}/16"), "dev", "in0"])?;
        run(["ip", "route", "add", "default", "via", "198.18.0.2"])?;
        // What is not dropped is caught here: nobody is to answer it.
        let end = "table inet end { chain end { type filter hook input priority 2147483646; \
                   tcp dport 4118 drop; }; }";
        feed(["nft", "-f", "-"], end)?;
        let mut ebpf = Ebpf::load_file(OBJECT)?;
        // A veth takes frames of test runs only where a program is attached.
        let program: &mut Xdp = ebpf.program_mut("empty").context("no program")?.try_into()?;
        program.load()?;
        program.attach("in0", XdpMode::Driver)?;
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("no program")?.try_into()?;
        program.load()?;
        let index = fs::read_to_string("/sys/class/net/in0/ifindex")?.trim().parse::<u32>()?;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        // IPv4: the program writes the source and the checksum.
        frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0]);
        frame.extend(HOST.octets());
        // TCP: a SYN to 4118.
        frame.extend([0x30, 0x39, 0x10, 0x16, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
        frame.extend([0xff, 0xff, 0, 0, 0, 0]);
        // `struct xdp_md`: where the frame begins and ends, and the interface that it comes in by.
        let words = [0, u32::try_from(frame.len())?, 0, index, 0, 0];
        let context = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Self { ebpf, frame, context })
    }

    /// Nanoseconds a packet.
    fn run(&mut self) -> Result<f64> {
        let program = self.ebpf.program_mut(PROGRAM).context("no program")?;
        let program: &mut Xdp = program.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.frame);
        options.ctx_in = Some(&self.context);
        options.repeat = PACKETS;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let start = Instant::now();
        program.test_run(options)?;
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(PACKETS))
    }
}
