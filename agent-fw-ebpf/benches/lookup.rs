//! Nanoseconds a packet, in one run: an empty program, this one, and the same with an LPM trie; and
//! what it takes to load a million prefixes. Fails if a bound is not met.
//!
//! Needs root, and the objects that `cargo xtask build` makes. What is printed is the mean of the
//! fastest quarter of the rounds, less what the empty program costs, or the one that only draws an
//! address. The kernel tells whole nanoseconds; their mean tells more.

#![allow(clippy::cast_possible_truncation, reason = "random bits are cut to size")]
#![allow(clippy::cast_precision_loss, reason = "bytes, to be printed as megabytes")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use agent_fw_ebpf::table::Range;
use agent_fw_ebpf::{Image, Label, Plan, load};
use aya::maps::Array;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::programs::{TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun as _};
use nix::sched::{CloneFlags, unshare};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/agent-fw-bench.o");
const PRODUCT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/agent-fw.o");
const REPEAT: u32 = 300_000;
/// Runs before those that count: the programs that had their turn before have filled the caches.
const WARM_UP: u32 = 100_000;
const ROUNDS: usize = 24;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    // `cargo test --all-targets` runs this, too, and does not want figures.
    if !env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let Ok(object) = fs::read(OBJECT) else {
        eprintln!("{OBJECT} is not there: run `cargo xtask build` first");
        process::exit(3);
    };
    // Nothing is attached to an interface of this host's.
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut bounds = Bounds::default();
    println!("ns a packet above an empty program, addresses drawn at random; the LPM trie's;");
    println!("how many times faster");
    other_packets(&object, &mut bounds)?;
    let mut v4_at_100_000 = 0.0;
    for spread in [Spread::Scattered, Spread::Half] {
        for count in [16, 1_000, 100_000, 1_000_000] {
            let [table, lpm] = decision_v4(&object, spread, count)?;
            let (most, least) = match count {
                16 => (10.0, 0.0),
                1_000 => (10.0, 5.0),
                100_000 => (14.0, 20.0),
                _ => (48.0, 25.0),
            };
            bounds.at_most("", table, most);
            bounds.at_least(lpm / table, least);
            if matches!(spread, Spread::Scattered) && count == 100_000 {
                v4_at_100_000 = table;
            }
        }
    }
    for count in [16, 1_000, 100_000, 1_000_000] {
        let [table, lpm] = decision_v6(&object, count)?;
        if count == 100_000 {
            bounds.at_most("times IPv4's", table / v4_at_100_000, 3.0);
            bounds.at_least(lpm / table, 5.0);
        }
    }
    loading(&mut bounds)?;
    println!("{} of {} bounds are not met", bounds.missed, bounds.all);
    process::exit(i32::from(bounds.missed > 0));
}

/// What was held against what this project has set itself.
#[derive(Default)]
struct Bounds {
    all: usize,
    missed: usize,
}

impl Bounds {
    fn at_most(&mut self, what: &str, value: f64, most: f64) {
        self.note(value <= most, &format!("at most {most}"), &format!("{value:.1} {what}"));
    }

    fn at_least(&mut self, ratio: f64, least: f64) {
        if least > 0.0 {
            self.note(ratio >= least, &format!("at least {least} times"), &format!("{ratio:.1}"));
        }
    }

    fn note(&mut self, met: bool, bound: &str, value: &str) {
        self.all += 1;
        self.missed += usize::from(!met);
        println!("    {bound}: {}, {}", value.trim_end(), if met { "met" } else { "NOT MET" });
    }
}

/// A million prefixes, from the parsed list to an attached program.
fn loading(bounds: &mut Bounds) -> Outcome<()> {
    let product = fs::read(PRODUCT)?;
    for (name, spread) in [("scattered", Spread::Scattered), ("half of all", Spread::Half)] {
        let prefixes = prefixes_v4(spread, 1_000_000);
        let before = kernel_bytes()?;
        let start = Instant::now();
        let image = Image::new(&Plan { v4: ranges_v4(&prefixes), ..plan() })?;
        let mut ebpf = load(&image, &product, EbpfLoader::new())?;
        let program: &mut Xdp = ebpf.program_mut("agent_fw_xdp").ok_or("no program")?.try_into()?;
        program.load()?;
        program.attach("lo", XdpMode::Skb)?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        println!("1000000 IPv4 prefixes, {name}, to an attached program: {took:.0} ms");
        bounds.at_most("ms", took, 150.0);
        let bytes = kernel_bytes()?.saturating_sub(before);
        bounds.at_most("MB in the kernel", bytes as f64 / 1e6, 64.0);
    }
    Ok(())
}

/// What this process's maps and programs take, as the kernel accounts for them.
fn kernel_bytes() -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let of_bpf = text.lines().filter_map(|line| line.strip_prefix("memlock:"));
        bytes += of_bpf.filter_map(|bytes| bytes.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(bytes)
}

/// How listed prefixes lie in the address space.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// Anywhere, small: hardly any drawn address is listed.
    Scattered,
    /// Half of the space in blocks of one size: every second drawn address is listed.
    Half,
}

/// What addresses of IPv6 begin with, the listed and the drawn ones: as registries give them out.
const REGISTRIES: [u64; 8] = [0x2001, 0x2400, 0x2404, 0x2600, 0x2607, 0x2803, 0x2a02, 0x2a0a];

/// What does not concern the agent, above an empty program.
fn other_packets(object: &[u8], bounds: &mut Bounds) -> Outcome<()> {
    let plan = Plan { v4: ranges_v4(&prefixes_v4(Spread::Scattered, 1000)), ..plan() };
    let image = Image::new(&plan)?;
    let mut udp = frame_v4(4118);
    udp[23] = 17;
    let mut arp = frame_v4(4118);
    arp[12..14].copy_from_slice(&[8, 6]);
    let cases = [
        ("another port", frame_v4(443)),
        ("another port, unpadded", frame_v4(443)[..54].to_vec()),
        ("IPv6, another port", frame_v6(443)),
        ("UDP", udp),
        ("ARP", arp),
    ];
    let mut costs = [[0.0; 2]; 5];
    for _ in 0..PLACES {
        let mut ebpf = load(&image, object, EbpfLoader::new())?;
        for ((_, frame), sums) in cases.iter().zip(&mut costs) {
            let [empty, ours] = measure(&mut ebpf, ["empty", "as_is"], frame, ROUNDS / 3)?;
            sums[0] += empty / f64::from(PLACES);
            sums[1] += ours / f64::from(PLACES);
        }
    }
    for ((name, _), [empty, ours]) in cases.iter().zip(costs) {
        println!("{name:32} {:6.1}   (empty {empty:.1})", ours - empty);
        bounds.at_most("", ours - empty, 2.0);
    }
    Ok(())
}

/// How often the programs are loaded for so small a difference, of which the mean is told: where in
/// memory the kernel puts them makes a nanosecond's difference, either way.
const PLACES: u32 = 32;

fn decision_v4(object: &[u8], spread: Spread, count: usize) -> Outcome<[f64; 2]> {
    let prefixes = prefixes_v4(spread, count);
    let ranges = ranges_v4(&prefixes);
    let (mut ebpf, loading) = loaded(object, &Plan { v4: ranges, ..plan() }, count)?;
    let map = ebpf.map_mut("LPM_V4").ok_or("no map LPM_V4")?;
    let mut trie = LpmTrie::<_, [u8; 4], u32>::try_from(map)?;
    for (address, len) in &prefixes {
        trie.insert(&Key::new(*len, address.to_be_bytes()), 0, 0)?;
    }
    let costs = measure(&mut ebpf, ["draw_v4", "table_v4", "lpm_v4"], &frame_v4(4118), ROUNDS)?;
    report(&format!("IPv4, {count} {spread:?}"), costs, &loading);
    let [draw, table, lpm] = costs;
    Ok([table - draw, lpm - draw])
}

fn decision_v6(object: &[u8], count: usize) -> Outcome<[f64; 2]> {
    let prefixes = prefixes_v6(count);
    let ranges = ranges_v6(&prefixes);
    let (mut ebpf, loading) = loaded(object, &Plan { v6: ranges, ..plan() }, count)?;
    let map = ebpf.map_mut("LPM_V6").ok_or("no map LPM_V6")?;
    let mut trie = LpmTrie::<_, [u8; 16], u32>::try_from(map)?;
    for (address, len) in &prefixes {
        trie.insert(&Key::new(*len, address.to_be_bytes()), 0, 0)?;
    }
    let map = ebpf.map_mut("DRAWN").ok_or("no map DRAWN")?;
    let mut drawn = [1; 9];
    drawn[1..].copy_from_slice(&REGISTRIES);
    Array::<_, [u64; 9]>::try_from(map)?.set(0, drawn, 0)?;
    let costs = measure(&mut ebpf, ["draw_v6", "table_v6", "lpm_v6"], &frame_v6(4118), ROUNDS)?;
    report(&format!("IPv6, {count}"), costs, &loading);
    let [draw, table, lpm] = costs;
    Ok([table - draw, lpm - draw])
}

fn report(name: &str, [draw, table, lpm]: [f64; 3], loading: &Loading) {
    let (table, lpm) = (table - draw, lpm - draw);
    println!(
        "{name:32} {table:6.1} {lpm:8.1} {:6.1}x   (drawing {draw:.1})\n    tables: built in {:.1?}, \
         filled in {:.1?}, {} KiB",
        lpm / table,
        loading.built,
        loading.loaded,
        loading.bytes / 1024
    );
}

struct Loading {
    built: Duration,
    loaded: Duration,
    bytes: usize,
}

fn loaded(object: &[u8], plan: &Plan, count: usize) -> Outcome<(Ebpf, Loading)> {
    let start = Instant::now();
    let image = Image::new(plan)?;
    let built = start.elapsed();
    let mut loader = EbpfLoader::new();
    let count = u32::try_from(count)?;
    loader.map_max_entries("LPM_V4", count).map_max_entries("LPM_V6", count);
    let start = Instant::now();
    let ebpf = load(&image, object, loader)?;
    Ok((ebpf, Loading { built, loaded: start.elapsed(), bytes: image.table_bytes() }))
}

/// The cost of each program, in turns, so that a busy machine disturbs them alike; and of the turns
/// the fastest quarter.
fn measure<const N: usize>(
    ebpf: &mut Ebpf,
    names: [&str; N],
    frame: &[u8],
    rounds: usize,
) -> Outcome<[f64; N]> {
    for name in names {
        let program: &mut Xdp = ebpf.program_mut(name).ok_or("no such program")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
    }
    let mut costs = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (name, costs) in names.iter().zip(&mut costs) {
            let program: &Xdp = ebpf.program(name).ok_or("no such program")?.try_into()?;
            run(program, frame, WARM_UP)?;
            costs.push(run(program, frame, REPEAT)?);
        }
    }
    Ok(costs.map(|mut costs| {
        costs.sort_unstable_by(f64::total_cmp);
        let fastest = &costs[..rounds / 4];
        fastest.iter().sum::<f64>() / fastest.len() as f64
    }))
}

/// Nanoseconds a run, rounded down. The kernel stops its watch while other tasks have their turn.
fn run(program: &Xdp, frame: &[u8], repeat: u32) -> Outcome<f64> {
    let mut out = [0; 256];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.repeat = repeat;
    Ok(program.test_run(options)?.duration.as_secs_f64() * 1e9)
}

fn plan() -> Plan {
    Plan { ports: BTreeSet::from([4118]), labels: vec![None], ..Plan::default() }
}

fn prefixes_v4(spread: Spread, count: usize) -> BTreeSet<(u32, u32)> {
    let mut random = Random(1);
    let mut prefixes = BTreeSet::new();
    // Half of the space: as many blocks again as are listed.
    let half_len = (count * 2).next_power_of_two().trailing_zeros();
    let len = if matches!(spread, Spread::Half) { half_len } else { 24 };
    while prefixes.len() < count {
        prefixes.insert(((random.next() as u32) >> (32 - len) << (32 - len), len));
    }
    prefixes
}

fn ranges_v4(prefixes: &BTreeSet<(u32, u32)>) -> Vec<Range<u32>> {
    let range = |(first, len): &(u32, u32)| Range {
        first: *first,
        last: first | u32::MAX.checked_shr(*len).unwrap_or(0),
        label: label(),
    };
    prefixes.iter().map(range).collect()
}

/// Prefixes of 32 to 64 bits, none inside another.
fn prefixes_v6(count: usize) -> BTreeSet<(u128, u32)> {
    let mut random = Random(2);
    let mut prefixes = BTreeSet::new();
    while prefixes.len() < count {
        let len = 32 + (random.next() % 33) as u32;
        let first = REGISTRIES[(random.next() % 8) as usize];
        let high = first << 48 | random.next() >> 16;
        prefixes.insert((u128::from(high) << 64 >> (128 - len) << (128 - len), len));
    }
    let mut end = 0;
    prefixes.retain(|(first, len)| {
        let apart = *first >= end;
        if apart {
            end = first + (1 << (128 - len));
        }
        apart
    });
    prefixes
}

fn ranges_v6(prefixes: &BTreeSet<(u128, u32)>) -> Vec<Range<u128>> {
    let range = |(first, len): &(u128, u32)| Range {
        first: *first,
        last: first + ((1 << (128 - len)) - 1),
        label: label(),
    };
    prefixes.iter().map(range).collect()
}

fn label() -> Label {
    Label::new(0).expect("below the limit")
}

/// The shortest frame that Ethernet carries, without its checksum. Shorter ones are padded on their
/// way, unless they never leave a virtual link.
const SHORTEST: usize = 60;

fn frame_v4(port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 127, 0, 0, 1]);
    frame.extend(tcp(port));
    frame.resize(SHORTEST, 0);
    frame
}

fn frame_v6(port: u16) -> Vec<u8> {
    let mut frame =
        vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64];
    frame.extend(0x2001_0db8_u128.rotate_right(32).to_be_bytes());
    frame.extend(1_u128.to_be_bytes());
    frame.extend(tcp(port));
    frame
}

fn tcp(port: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 2;
    header
}

/// A small generator (xorshift): the same lists on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
