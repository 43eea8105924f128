//! `agent-fw verify`: what it says of the kernel is true, of every change that is made to it.

use crate::chance::Chance;
use crate::mutation::{self, Listing};
use crate::scene::{AGENT, address, install};
use crate::tests;
use agent_fw::configuration::{Compiled, Configuration};
use agent_fw::nft::{Nftables, differences};
use agent_fw::policy::{MacAddr, Packet, Policy, Port, Transport, Verdict};
use agent_fw::source::{Catalogue, Lists};
use agent_fw::truth::{self, Counterexample, Deed, Kernel, Reach, Sample};
use agent_fw::xdp::OBJECT;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp, Udp};
use agent_fw_lab::{Finished, Lab, Peer, Wire, agent_fw, run};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{TestRunOptions, Xdp};
use aya::{EbpfLoader, TestRun as _};
use aya_obj::programs::XdpAttachType;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

tests![
    every_mutation_of_the_table_is_reported_with_a_packet_that_behaves_so,
    every_flipped_bit_of_a_programs_tables_is_reported_if_it_changes_a_decision,
    another_program_or_none_on_the_interface_is_reported,
    verify_says_in_words_and_in_json_what_is_true,
];

/// A packet of a test: where it comes from, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Probe {
    source: IpAddr,
    mac: Option<MacAddr>,
    is_udp: bool,
    is_local: bool,
    port: u16,
}

impl Probe {
    fn of(sample: &Sample) -> Option<Self> {
        let is_sendable = matches!(sample.protocol, 6 | 17)
            && !sample.is_without_mac
            && sample.interface != Some(1);
        is_sendable.then_some(Self {
            source: sample.source,
            mac: sample.mac,
            is_udp: sample.protocol == 17,
            is_local: sample.is_local,
            port: sample.port.0,
        })
    }

    fn due(&self, policy: &Policy, peer: &Peer) -> bool {
        let packet = Packet {
            loopback: false,
            source: self.source,
            mac: Some(self.mac.unwrap_or_else(|| own_mac(peer))),
            transport: if self.is_udp { Transport::Other } else { Transport::Tcp(Port(self.port)) },
        };
        !self.is_local || policy.decide(&packet) != Verdict::Drop
    }

    fn frame(&self, peer: &Peer, source_port: u16) -> Vec<u8> {
        let MacAddr(mac) = self.mac.unwrap_or_else(|| own_mac(peer));
        let ethernet = Ethernet::new(agent_fw_lab::MacAddr(mac), peer.host_mac());
        let (tcp, udp) = (Tcp::syn(source_port, self.port), Udp::new(source_port, self.port));
        let (v4, v6) = if self.is_local {
            (peer.host_v4(), peer.host_v6())
        } else {
            (Ipv4Addr::new(203, 0, 113, 9), Ipv6Addr::new(0x2001, 0xdba, 0, 0, 0, 0, 0, 9))
        };
        match (self.source, self.is_udp) {
            (IpAddr::V4(from), false) => (ethernet / Ipv4::new(from, v4) / tcp).bytes(),
            (IpAddr::V4(from), true) => (ethernet / Ipv4::new(from, v4) / udp).bytes(),
            (IpAddr::V6(from), false) => (ethernet / Ipv6::new(from, v6) / tcp).bytes(),
            (IpAddr::V6(from), true) => (ethernet / Ipv6::new(from, v6) / udp).bytes(),
        }
    }
}

/// The MAC address that the lab gives a peer: its host's, but for the end.
fn own_mac(peer: &Peer) -> MacAddr {
    let [a, b, c, d, number, _] = peer.host_mac().0;
    MacAddr([a, b, c, d, number, 2])
}

/// The first source port of what is sent.
const FIRST: u16 = 20_000;

/// Sends packets, and tells of each whether it got through. `must` of them are waited for.
fn through(peer: &Peer, wire: &Wire, probes: &[Probe], must: &[bool]) -> Result<Vec<bool>> {
    mutation::forget()?;
    for (port, probe) in (FIRST..).zip(probes) {
        wire.send(&probe.frame(peer, port))?;
    }
    // One more, behind the others: when it has come, they are done with.
    let last = FIRST + u16::try_from(probes.len())?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let until = |set: &str, wanted: &dyn Fn(&BTreeSet<u16>) -> bool| -> Result<BTreeSet<u16>> {
        loop {
            let seen: BTreeSet<u16> = mutation::seen(set)?.into_iter().collect();
            if wanted(&seen) || Instant::now() > deadline {
                return Ok(seen);
            }
        }
    };
    let came = until("came", &|seen| seen.len() >= probes.len())?;
    ensure!(came.len() >= probes.len(), "not all of the packets came: {came:?}");
    let end = Probe { source: peer.v4().into(), mac: None, is_udp: false, is_local: true, port: 9 };
    wire.send(&end.frame(peer, last))?;
    until("came", &|seen| seen.contains(&last))?;
    // What must be there may be a moment late; what must not is not.
    let needed: Vec<u16> = (FIRST..).zip(must).filter(|(_, must)| **must).map(|(p, _)| p).collect();
    let short = Instant::now() + Duration::from_secs(2);
    let seen = until("passed", &|seen| {
        needed.iter().all(|port| seen.contains(port)) || Instant::now() > short
    })?;
    Ok((FIRST..last).map(|port| seen.contains(&port)).collect())
}

/// Packets around what the policies name, and a few elsewhere.
fn probes(chance: &mut Chance) -> Vec<Probe> {
    let v4 =
        ["34.205.4.255", "34.205.5.0", "34.205.5.31", "34.205.5.32", "18.97.19.0", "198.51.100.7"];
    let v6 = ["2001:db8::1", "2001:db8:8000::1", "2001:db9::1", "2001:db7:ffff::1"];
    let mut sources: Vec<IpAddr> = v4.iter().chain(&v6).map(|text| address(text)).collect();
    sources
        .push(Ipv4Addr::from(0x22cd_0000 + u32::try_from(chance.below(4096)).unwrap_or(0)).into());
    let mut probes = Vec::new();
    for source in sources {
        let port = *chance.pick(&[AGENT, AGENT, AGENT, 4119, 22, 4500]);
        let mac = [None, Some(MacAddr([2, 0x41, 0x18, 0, 0, 1]))][chance.below(2)];
        let (is_udp, is_local) = (chance.once_in(6), !chance.once_in(8));
        probes.push(Probe { source, mac, is_udp, is_local, port });
    }
    probes
}

fn compiled(flags: &str) -> Result<Compiled> {
    let text = format!("{flags}\n");
    let configuration = Configuration::parse("policy.toml", &text)?;
    configuration.compile(&Catalogue::published()?, &Lists::default())
}

/// How many mutations are tried.
const MUTATIONS: usize = 150;

fn every_mutation_of_the_table_is_reported_with_a_packet_that_behaves_so() -> Result<()> {
    let mutations = std::env::var("AGENT_FW_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let mutations = mutations.unwrap_or(MUTATIONS);
    let mut chance = Chance::new(4118);
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _elsewhere = lab.peer("elsewhere")?;
        lab.forward()?;
        run(["ip", "route", "add", "203.0.113.0/24", "via", "10.118.2.2"])?;
        run(["ip", "-6", "route", "add", "2001:dba::/32", "via", "fd00:118:2::2"])?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        mutation::witness()?;
        let us = "\"region:us-1\", \"2001:db8::/32\"";
        let policies = [
            compiled(&format!("allow_from = [{us}]"))?,
            compiled(&format!("allow_from = [{us}]\nearly_drop = true\nlog = true"))?,
            compiled(&format!("allow_from = [{us}]\nallow_mac = [\"02:41:18:00:00:01\"]"))?,
            compiled(&format!("allow_from = [{us}]\notherwise = \"continue\""))?,
        ];
        let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut done, mut decided, mut unknown, mut refused) = (0, 0, 0, 0);
        while done < mutations {
            let compiled = chance.pick(&policies);
            let policy = &compiled.lowered.policy;
            let image = compiled.ruleset.clone().into_image();
            let mut nftables = Nftables::open()?;
            nftables.delete()?;
            nftables.replace(&image)?;
            let judge = |nftables: &mut Nftables| -> Result<_> {
                let live = nftables.read()?;
                let differing = differences(&image, live.as_ref());
                let kernel = Kernel { table: live.as_ref().map(truth::effect), programs: vec![] };
                Ok((truth::counterexample(policy, &Reach::Everywhere, &kernel), differing))
            };
            let (before, differing) = judge(&mut nftables)?;
            ensure!(
                before.is_none() && differing.is_empty(),
                "false alarm: {before:?}, {differing:?}"
            );
            let listing = Listing::read()?;
            let mutation = mutation::draw(&mut chance, &listing)?;
            if !mutation::carry_out(&mutation)? {
                refused += 1;
                continue;
            }
            let script = &mutation.script;
            let (found, differing) = judge(&mut nftables)?;
            if Listing::read()?.without_handles() == listing.without_handles() {
                // nft may have other instructions for the same text; without such, nothing differs.
                ensure!(
                    found.is_none() || !differing.is_empty(),
                    "false alarm: {script}: {found:?}"
                );
                continue;
            }
            ensure!(!differing.is_empty(), "not reported: {script}");
            let mut probes = probes(&mut chance);
            let claim = found.as_ref().and_then(|found| Probe::of(&found.packet));
            probes.extend(claim);
            let must: Vec<bool> = probes.iter().map(|p| p.due(policy, &peer)).collect();
            let mut wait = must.clone();
            if let (Some(_), Some(found), Some(last)) = (claim, &found, wait.last_mut()) {
                *last = found.deed == Deed::Passes;
            }
            if found.is_some() {
                let known = wait.len() - 1;
                wait[..known].fill(false);
            }
            let through = through(&peer, &wire, &probes, &wait)?;
            match &found {
                None => {
                    for ((probe, due), did) in probes.iter().zip(&must).zip(&through) {
                        ensure!(
                            due == did,
                            "{script}: {probe:?} passes: {did}, and verify is silent"
                        );
                    }
                }
                Some(found) => {
                    let did = *through.last().context("something was sent")?;
                    match (&found.deed, claim) {
                        (Deed::Unknown(_), _) => unknown += 1,
                        (_, None) => {}
                        (deed, Some(_)) => {
                            let said = *deed == Deed::Passes;
                            ensure!(said == did, "{script}: {found:?}, passes: {did}");
                            ensure!(
                                said != must[must.len() - 1],
                                "{script}: no difference: {found:?}"
                            );
                            decided += 1;
                        }
                    }
                }
            }
            done += 1;
            *tally.entry(mutation.words).or_default() += 1;
        }
        println!(
            "{done} mutations ({refused} more were refused by nft): {decided} changed a decision, \
             and the packet named behaved so; of {unknown} that is not known; {tally:?}"
        );
        ensure!(tally.len() > 12 && decided > mutations / 3, "too few kinds or decisions");
        Ok(())
    })
}

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

fn verify() -> Result<(Value, Finished)> {
    let finished = agent_fw(["verify", "--json"])?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("verify's answer is no JSON: {finished}"))?;
    Ok((value, finished))
}

fn verify_says_in_words_and_in_json_what_is_true() -> Result<()> {
    Lab::run(|_| {
        let nothing = agent_fw(["verify"])?;
        ensure!(nothing.code == Some(1) && nothing.stdout.contains("no policy"), "{nothing}");
        install(&["--allow-from", "region:us-1"])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(0) && value["equal"] == true, "{finished}");
        let plain = agent_fw(["verify"])?;
        let hash = value["policy"].as_str().context("a hash")?;
        ensure!(plain.stdout.contains(&format!("the kernel enforces policy {hash}")), "{plain}");
        run([
            "nft",
            "delete",
            "element",
            "inet",
            "agent_fw",
            "from_region_us-1_v4",
            "{ 34.205.5.0/27 }",
        ])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1) && value["equal"] == false, "{finished}");
        let packet = &value["counterexample"];
        ensure!(packet["source"] == "34.205.5.0" && packet["kernel_drops"] == true, "{value:#}");
        let plain = agent_fw(["verify"])?;
        for part in ["TCP from 34.205.5.0", "the policy: admits it", "the kernel: drops it"] {
            ensure!(plain.stdout.contains(part), "{plain}");
        }
        ensure!(plain.stdout.lines().all(|line| line.chars().count() <= 80), "{plain}");
        agent_fw(["apply"])?.success()?;
        ensure!(verify()?.1.code == Some(0));
        run(["nft", "flush", "ruleset"])?;
        let (value, finished) = verify()?;
        ensure!(finished.code == Some(1), "{finished}");
        ensure!(value["counterexample"]["kernel_drops"] == false, "{value:#}");
        Ok(())
    })
}
