//! `agent-fw verify` of XDP programs: every bit of their tables, their instructions, their pins.

use crate::chance::Chance;
use crate::scene::install;
use crate::tests;
use crate::verify::{Probe, probes, verify};
use crate::xdp::pins;
use agent_fw::configuration::Configuration;
use agent_fw::input::{Catalogue, Lists};
use agent_fw::model::{MacAddr, Packet, Port, Transport, Verdict};
use agent_fw::verify;
use agent_fw::verify::{Actual, Counterexample, Kernel, Scope};
use agent_fw::xdp::OBJECT;
use agent_fw_ebpf::{Config, Contents, OwnFrames, freeze, load_program, read_table, with_sections};
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
use agent_fw_lab::{Lab, agent_fw, run};
use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _};
use aya_obj::programs::XdpAttachType;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

tests![
    every_flipped_bit_of_a_programs_tables_is_reported_if_it_changes_a_decision,
    another_program_or_none_on_the_interface_is_reported,
];

/// How many bits are flipped.
const FLIPS: usize = 60;

/// The program that is pinned, to be asked what it does with a frame.
fn pinned() -> Result<Xdp> {
    let names = std::fs::read_dir(pins()?)?.flatten().map(|entry| entry.path());
    let of_program = |path: &PathBuf| path.to_string_lossy().contains("/program-");
    let path = names.into_iter().find(of_program).context("no program is pinned")?;
    Ok(Xdp::from_pin(path, XdpAttachType::Interface)?)
}

/// Whether the program lets the probe pass. Its destination is loopback, so that it is local
/// whatever interface the kernel thinks the frame to come from.
fn passes(program: &Xdp, probe: &Probe) -> Result<bool> {
    let MacAddr(mac) = probe.mac.unwrap_or(MacAddr([2, 0, 0, 0, 0, 9]));
    let ethernet = Ethernet::new(agent_fw_lab::MacAddr(mac), agent_fw_lab::MacAddr([2; 6]));
    let syn = Tcp::syn(51_000, probe.port);
    let frame = match probe.source {
        IpAddr::V4(from) => (ethernet / Ipv4::new(from, Ipv4Addr::LOCALHOST) / syn).bytes(),
        IpAddr::V6(from) => (ethernet / Ipv6::new(from, Ipv6Addr::LOCALHOST) / syn).bytes(),
    };
    let mut options = TestRunOptions::new();
    options.data_in = Some(&frame);
    Ok(program.test_run(options)?.return_value != 1)
}

/// What the kernel has of the installed program.
struct Installed {
    contents: Contents,
    /// The other maps' sizes.
    sizes: Vec<(String, u32)>,
    /// Which frames are this host's, by interface.
    own: Vec<(u32, OwnFrames)>,
}

impl Installed {
    fn read(program: &Xdp) -> Result<Self> {
        let numbers = program.info()?.map_ids()?.context("its maps are known")?;
        let mut tables = BTreeMap::new();
        let (mut sizes, mut own) = (Vec::new(), Vec::new());
        for number in numbers {
            let info = MapInfo::from_id(number)?;
            let name = info.name_as_str().context("every map has a name")?.to_owned();
            let map = MapData::from_id(number)?;
            if name.starts_with(".rodata") {
                refuses_a_change(&map)?;
                tables.insert(name, read_table(&map)?);
                continue;
            }
            if ["MACS", "INTERFACES"].contains(&name.as_str()) {
                refuses_a_change(&map)?;
            }
            if name == "INTERFACES" {
                let map = HashMap::<_, u32, OwnFrames>::try_from(Map::from_map_data(map)?)?;
                own = map.iter().collect::<Result<_, _>>()?;
            }
            sizes.push((name, info.max_entries()));
        }
        let constants = tables.remove(".rodata").context("it has constants")?;
        let constants: [u8; size_of::<Config>()] =
            constants.try_into().map_err(|_| anyhow!("constants of another size"))?;
        let macs_listed = numbers_of_macs(program)?;
        let config = Config::from_bytes(&constants);
        let contents = Contents::from_tables(config, macs_listed, |name| tables.remove(name));
        Ok(Self { contents, sizes, own })
    }

    /// The program with these contents instead.
    fn load(&self, contents: &Contents) -> Result<Ebpf> {
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", contents.config.as_bytes(), true);
        for (name, size) in &self.sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load(&with_sections(OBJECT, &contents.sections())?)?;
        let mut macs =
            HashMap::<_, u64, u8>::try_from(ebpf.map_mut("MACS").context("the object has it")?)?;
        for key in &contents.macs {
            macs.insert(key, 1_u8, 0)?;
        }
        freeze(ebpf.map("MACS").context("the object has it")?)?;
        let map = ebpf.map_mut("INTERFACES").context("the object has it")?;
        let mut interfaces = HashMap::<_, u32, OwnFrames>::try_from(map)?;
        for (index, own) in &self.own {
            interfaces.insert(index, own, 0)?;
        }
        freeze(ebpf.map("INTERFACES").context("the object has it")?)?;
        load_program(ebpf.program_mut("agent_fw_xdp").context("the object has it")?)?;
        Ok(ebpf)
    }
}

/// The keys of the map of MAC addresses.
fn numbers_of_macs(program: &Xdp) -> Result<BTreeSet<u64>> {
    for number in program.info()?.map_ids()?.unwrap_or_default() {
        if MapInfo::from_id(number)?.name_as_str() == Some("MACS") {
            let map = Map::from_map_data(MapData::from_id(number)?)?;
            return Ok(HashMap::<_, u64, u8>::try_from(map)?.keys().collect::<Result<_, _>>()?);
        }
    }
    Ok(BTreeSet::new())
}

/// Demands that root cannot change a table that the kernel has.
fn refuses_a_change(map: &MapData) -> Result<()> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let is_frozen = text.lines().any(|line| line.split_whitespace().eq(["frozen:", "1"]));
    ensure!(is_frozen, "a table can be changed: {text}");
    Ok(())
}

/// Flips a bit of a table, mostly of an element that is not zero: the rest is mostly unused. Says
/// which.
fn flip(chance: &mut Chance, contents: &mut Contents) -> String {
    let longs: [(&str, &mut Vec<u64>); 7] = [
        ("v4_filter", &mut contents.v4_filter),
        ("v4_nodes", &mut contents.v4_nodes),
        ("v6_filter", &mut contents.v6_filter),
        ("v6_nodes", &mut contents.v6_nodes),
        ("v6_words", &mut contents.v6_words),
        ("v6_deep", &mut contents.v6_deep),
        ("v6_lows", &mut contents.v6_lows),
    ];
    let words: [(&str, &mut Vec<u32>); 2] =
        [("v4_words", &mut contents.v4_words), ("mac_sets", &mut contents.mac_sets)];
    let longs = longs.into_iter().map(|(name, table)| (name, Table::Longs(table)));
    let words = words.into_iter().map(|(name, table)| (name, Table::Words(table)));
    // A dense list has no filter.
    let mut used: Vec<_> = longs.chain(words).filter(|(_, table)| !table.is_empty()).collect();
    assert!(used.len() >= 7, "the policy uses {} tables", used.len());
    let (name, table) = used.swap_remove(chance.below(used.len()));
    let (at, bit) = match table {
        Table::Longs(table) => flip_in(chance, table, |long, bit| *long ^= 1 << bit, 64),
        Table::Words(table) => flip_in(chance, table, |word, bit| *word ^= 1 << bit, 32),
    };
    format!("bit {bit} of element {at} of {name}")
}

enum Table<'a> {
    Longs(&'a mut [u64]),
    Words(&'a mut [u32]),
}

impl Table<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Longs(table) => table.is_empty(),
            Self::Words(table) => table.is_empty(),
        }
    }
}

fn flip_in<T: Copy + Default + PartialEq>(
    chance: &mut Chance,
    table: &mut [T],
    flip: impl Fn(&mut T, usize),
    bits: usize,
) -> (usize, usize) {
    let busy: Vec<usize> = (0..table.len()).filter(|at| table[*at] != T::default()).collect();
    let at = if busy.is_empty() || chance.once_in(3) {
        chance.below(table.len())
    } else {
        *chance.pick(&busy)
    };
    let bit = chance.below(bits);
    flip(&mut table[at], bit);
    (at, bit)
}

fn every_flipped_bit_of_a_programs_tables_is_reported_if_it_changes_a_decision() -> Result<()> {
    let mut chance = Chance::new(4119);
    Lab::run(|lab| {
        let _peer = lab.peer("manager")?;
        let sources = "region:us-1 2001:db8::/32 2001:db8:ffff::7 198.51.100.0/28 2a00::1-2a00::9";
        let list: String = (0..600)
            .map(|n| format!("34.{}.{}.0/29\n2a00:{:x}::/48\n", n % 250, n / 3, 2 * n))
            .collect();
        std::fs::write("/run/more.list", list)?;
        let mut flags = vec!["--backend", "xdp", "--interface", "manager0"];
        sources.split(' ').for_each(|source| flags.extend(["--allow-from", source]));
        flags.extend(["--allow-from", "file:/run/more.list", "--allow-mac", "02:41:18:00:00:01"]);
        install(&flags)?;
        let configuration = std::fs::read_to_string("/etc/agent-fw/policy.toml")?;
        let configuration = Configuration::parse("policy.toml", &configuration)?;
        let compiled = configuration.compile(&Catalogue::published()?, &Lists::default())?;
        let policy = &compiled.lowered.policy;
        let interface = agent_fw::netlink::link::list()?;
        let index = interface.iter().find(|i| i.name == "manager0").context("it is there")?.index;
        let installed = Installed::read(&pinned()?)?;
        let names = std::fs::read_dir(pins()?)?.flatten().map(|entry| entry.path());
        let is_link = |path: &PathBuf| path.to_string_lossy().contains("/link-");
        let link = names.into_iter().find(is_link).context("a link is pinned")?;
        let mut held = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(link)?))?;
        let (mut changed, mut harmless, mut unknown) = (0, 0, 0);
        for _ in 0..FLIPS {
            let mut contents = installed.contents.clone();
            let words = flip(&mut chance, &mut contents);
            let mut damaged = installed.load(&contents)?;
            let program: &mut Xdp =
                damaged.program_mut("agent_fw_xdp").context("a program")?.try_into()?;
            let attached = program.attach_to_link(held)?;
            let kernel = Kernel { programs: verify::programs()?, ..Kernel::default() };
            let found = verify::counterexample(policy, &Scope::Interfaces(vec![index]), &kernel);
            match &found {
                Some(Counterexample { deed: Actual::Unknown(_), .. }) => unknown += 1,
                Some(found) => {
                    let probe = Probe::of(&found.packet).context("a packet that can be sent")?;
                    let did = passes(program, &probe)?;
                    ensure!((found.deed == Actual::Passes) == did, "{words}: {found:?}: {did}");
                    changed += 1;
                }
                None => {
                    let mut probes = probes(&mut chance);
                    probes.retain(|probe| !probe.is_udp && probe.is_local);
                    for probe in probes {
                        let probe = Probe {
                            mac: Some(probe.mac.unwrap_or(MacAddr([2, 0, 0, 0, 0, 9]))),
                            ..probe
                        };
                        let packet = Packet {
                            loopback: false,
                            source: probe.source,
                            mac: probe.mac,
                            transport: Transport::Tcp(Port(probe.port)),
                        };
                        let due = policy.decide(&packet) != Verdict::Drop;
                        ensure!(passes(program, &probe)? == due, "{words}: {probe:?} is due {due}");
                    }
                    harmless += 1;
                }
            }
            held = program.take_link(attached)?;
        }
        println!(
            "{FLIPS} bits flipped: {changed} changed a decision, {harmless} none, {unknown} unknown"
        );
        ensure!(changed > FLIPS / 8, "too few flips changed anything");
        agent_fw(["apply"])?.success()?;
        ensure!(verify()?.1.code == Some(0), "not restored");
        Ok(())
    })
}

fn another_program_or_none_on_the_interface_is_reported() -> Result<()> {
    Lab::run(|lab| {
        let _peer = lab.peer("manager")?;
        let flags = ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
        install(&flags)?;
        ensure!(verify()?.1.code == Some(0));
        // Our own object, with no policy's constants: it guards port 0.
        let names: Vec<PathBuf> =
            std::fs::read_dir(pins()?)?.flatten().map(|entry| entry.path()).collect();
        let of = |word: &str| names.iter().find(|path| path.to_string_lossy().contains(word));
        let link = of("/link-").context("a link is pinned")?;
        let mut foreign = EbpfLoader::new().load(OBJECT)?;
        let foreign: &mut Xdp =
            foreign.program_mut("agent_fw_xdp").context("a program")?.try_into()?;
        foreign.load()?;
        let held = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(link)?))?;
        let held = foreign.attach_to_link(held)?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1), "{finished}");
        let packet = &value["counterexample"];
        ensure!(packet["kernel_drops"] == true && packet["port"] == 0, "{value:#}");
        drop(foreign.take_link(held)?);
        agent_fw(["apply"])?.success()?;
        ensure!(verify()?.1.code == Some(0));
        // A pin that is lost, and then the link.
        let program = of("/program-").context("a program is pinned")?;
        run([OsStr::new("rm"), program.as_os_str()])?;
        ensure!(verify()?.1.code == Some(1), "the lost pin is not reported");
        agent_fw(["apply"])?.success()?;
        run([OsStr::new("rm"), link.as_os_str()])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1), "{finished}");
        ensure!(value["counterexample"]["interface"] == "manager0", "{value:#}");
        ensure!(value["counterexample"]["kernel_drops"] == false, "{value:#}");
        Ok(())
    })
}
