//! `agent-fw verify` of XDP programs: every bit of their tables, their instructions, their pins.

use crate::chance::Chance;
use crate::scene::install;
use crate::tests;
use crate::verify::{Probe, probes, verify};
use agent_fw::configuration::Configuration;
use agent_fw::policy::{MacAddr, Packet, Port, Transport, Verdict};
use agent_fw::source::{Catalogue, Lists};
use agent_fw::truth::{self, Counterexample, Deed, Kernel, Reach};
use agent_fw::xdp::OBJECT;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
use agent_fw_lab::{Lab, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{TestRunOptions, Xdp};
use aya::{EbpfLoader, TestRun as _};
use aya_obj::programs::XdpAttachType;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

tests![
    every_flipped_bit_of_a_programs_tables_is_reported_if_it_changes_a_decision,
    another_program_or_none_on_the_interface_is_reported,
];

/// How many bits are flipped.
const FLIPS: usize = 60;
const PINS: &str = "/sys/fs/bpf/agent-fw";

/// The program that is pinned, to be asked what it does with a frame.
fn pinned() -> Result<Xdp> {
    let names = std::fs::read_dir(PINS)?.flatten().map(|entry| entry.path());
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

/// Flips a bit of an element of this map. Doing it again takes it back.
fn flip<const N: usize>(map: u32, index: u32, bit: usize) -> Result<()> {
    let map = Map::from_map_data(MapData::from_id(map)?)?;
    let mut array = Array::<_, [u8; N]>::try_from(map)?;
    let mut bytes = array.get(&index, 0)?;
    bytes[bit / 8] ^= 1 << (bit % 8);
    Ok(array.set(index, bytes, 0)?)
}

fn flip_in(info: &MapInfo, index: u32, bit: usize) -> Result<()> {
    match info.value_size() {
        4096 => flip::<4096>(info.id(), index, bit),
        3072 => flip::<3072>(info.id(), index, bit),
        8 => flip::<8>(info.id(), index, bit),
        _ => flip::<4>(info.id(), index, bit),
    }
}

/// A bit of an element that is not zero, where there is one: the rest is mostly unused.
fn busy_bit(chance: &mut Chance, info: &MapInfo) -> Result<(u32, usize)> {
    let index = u32::try_from(chance.below(usize::try_from(info.max_entries())?))?;
    let bits = 8 * usize::try_from(info.value_size())?;
    if info.value_size() != 4096 || chance.once_in(3) {
        return Ok((index, chance.below(bits)));
    }
    let map = Map::from_map_data(MapData::from_id(info.id())?)?;
    let bytes = Array::<_, [u8; 4096]>::try_from(map)?.get(&index, 0)?;
    let busy: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let at = if busy.is_empty() {
        chance.below(bits)
    } else {
        8 * *chance.pick(&busy) + chance.below(8)
    };
    Ok((index, at))
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
        let program = pinned()?;
        let interface = agent_fw::host::interface::list()?;
        let index = interface.iter().find(|i| i.name == "manager0").context("it is there")?.index;
        let info = program.info()?;
        let maps: Vec<MapInfo> = info
            .map_ids()?
            .context("its maps are known")?
            .into_iter()
            .map(MapInfo::from_id)
            .collect::<Result<_, _>>()?;
        let tables = [
            "V4_FILTER",
            "V4_NODES",
            "V4_WORDS",
            "V6_FILTER",
            "V6_NODES",
            "V6_WORDS",
            "V6_DEEP",
            "V6_LOWS",
            "MAC_SETS",
        ];
        let maps: Vec<&MapInfo> = maps
            .iter()
            .filter(|info| info.name_as_str().is_some_and(|name| tables.contains(&name)))
            .collect();
        ensure!(maps.len() == tables.len(), "some table is missing");
        let (mut changed, mut harmless, mut unknown) = (0, 0, 0);
        for _ in 0..FLIPS {
            let info = *chance.pick(&maps);
            let (element, bit) = busy_bit(&mut chance, info)?;
            flip_in(info, element, bit)?;
            let words = format!("bit {bit} of element {element} of {:?}", info.name_as_str());
            let kernel = Kernel { table: None, programs: truth::programs()? };
            let found = truth::counterexample(policy, &Reach::Interfaces(vec![index]), &kernel);
            match &found {
                Some(Counterexample { deed: Deed::Unknown(_), .. }) => unknown += 1,
                Some(found) => {
                    let probe = Probe::of(&found.packet).context("a packet that can be sent")?;
                    let did = passes(&program, &probe)?;
                    ensure!((found.deed == Deed::Passes) == did, "{words}: {found:?}: {did}");
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
                        ensure!(
                            passes(&program, &probe)? == due,
                            "{words}: {probe:?} is due {due}"
                        );
                    }
                    harmless += 1;
                }
            }
            flip_in(info, element, bit)?;
        }
        println!(
            "{FLIPS} bits flipped: {changed} changed a decision, {harmless} none, {unknown} unknown"
        );
        ensure!(changed > FLIPS / 8, "too few flips changed anything");
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
            std::fs::read_dir(PINS)?.flatten().map(|entry| entry.path()).collect();
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
