//! What an unlisted packet costs from the driver to its drop, as a multiple of the same rule without
//! a set: agent-fw's gate beside one interval set and ipset, in one run.
//!
//! Needs root, and the objects that `cargo xtask build` makes. The packets come from inside the
//! kernel (`BPF_PROG_TEST_RUN` with live frames), each with a source drawn at random; each rule set
//! stands in a network namespace of its own, and all take turns.

use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;
use std::{env, fs, process, thread};

use agent_fw_lab::{Lab, run};
use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, TestRun as _};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/agent-fw-bench.o");
const PACKETS: u32 = 200_000;
const BATCH: u32 = 64;
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    // `cargo test --all-targets` runs this, too, and does not want figures.
    if !env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    if !fs::exists(OBJECT)? {
        eprintln!("{OBJECT} is not there: run `cargo xtask build` first");
        process::exit(3);
    }
    let files: Vec<String> = env::args().skip(1).filter(|arg| arg.ends_with(".nft")).collect();
    thread::scope(|scope| {
        let contenders: Vec<Contender> = files
            .iter()
            .map(|file| Contender::start(scope, file.clone()))
            .collect::<Result<_>>()?;
        let mut figures = vec![Vec::new(); contenders.len()];
        for round in 0..=ROUNDS {
            for (contender, figures) in contenders.iter().zip(&mut figures) {
                let ns = contender.measure()?;
                if round > 0 {
                    figures.push(ns);
                }
            }
        }
        let base = figures[0].clone();
        for (file, figures) in files.iter().zip(&figures) {
            let mut ratios: Vec<f64> =
                figures.iter().zip(&base).map(|(ns, base)| ns / base).collect();
            ratios.sort_by(f64::total_cmp);
            let mut ns = figures.clone();
            ns.sort_by(f64::total_cmp);
            println!("{:6.3} {:7.1} ns  {file}", ratios[ratios.len() / 2], ns[ns.len() / 2]);
        }
        Ok(())
    })
}

struct Contender {
    go: Sender<()>,
    done: Receiver<Result<f64>>,
}

impl Contender {
    fn start<'s>(scope: &'s thread::Scope<'s, '_>, file: String) -> Result<Self> {
        let (go, gone) = channel::<()>();
        let (tell, done) = channel();
        scope.spawn(move || {
            let outcome = Lab::run(|_| {
                let mut generator = Generator::new()?;
                run(["nft", "-f", &file])?;
                tell.send(Ok(0.0))?;
                for () in gone {
                    tell.send(generator.run())?;
                }
                Ok(())
            });
            if let Err(error) = outcome {
                let _ = tell.send(Err(error));
            }
        });
        done.recv()??;
        Ok(Self { go, done })
    }

    fn measure(&self) -> Result<f64> {
        self.go.send(())?;
        self.done.recv()?
    }
}

struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
    context: Vec<u8>,
}

impl Generator {
    fn new() -> Result<Self> {
        run(["ip", "link", "add", "in0", "type", "veth", "peer", "name", "out0"])?;
        run(["ip", "link", "set", "in0", "address", "02:00:00:00:00:01", "up"])?;
        run(["ip", "link", "set", "out0", "up"])?;
        run(["ip", "address", "add", "198.18.0.1/16", "dev", "in0"])?;
        run(["ip", "route", "add", "default", "via", "198.18.0.2"])?;
        run([
            "nft",
            "add table inet sink; add chain inet sink end { type filter hook input priority 2147483646; }; add rule inet sink end tcp dport 4118 counter drop",
        ])?;
        let mut ebpf = Ebpf::load_file(OBJECT)?;
        // A device takes frames of test runs only where a program is attached.
        let program: &mut Xdp = ebpf.program_mut("empty").context("no program")?.try_into()?;
        program.load()?;
        program.attach("in0", XdpMode::Driver)?;
        let program: &mut Xdp =
            ebpf.program_mut("into_stack_v4").context("no program")?.try_into()?;
        program.load()?;
        let index = run(["cat", "/sys/class/net/in0/ifindex"])?.trim().parse::<u32>()?;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 1, 2, 3, 4]);
        frame.extend(Ipv4Addr::new(198, 18, 0, 1).octets());
        frame.extend([
            0x30, 0x39, 0x10, 0x16, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        let length = u32::try_from(frame.len())?;
        let words = [0, length, 0, index, 0, 0];
        let context = words.iter().flat_map(|word: &u32| word.to_ne_bytes());
        Ok(Self { ebpf, context: context.collect(), frame })
    }

    fn run(&mut self) -> Result<f64> {
        let program: &mut Xdp =
            self.ebpf.program_mut("into_stack_v4").context("no program")?.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.frame);
        options.ctx_in = Some(&self.context);
        options.repeat = PACKETS;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let start = Instant::now();
        program.test_run(options)?;
        let took = start.elapsed();
        ensure!(took.as_nanos() > 0);
        Ok(took.as_nanos() as f64 / f64::from(PACKETS))
    }
}
