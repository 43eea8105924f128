//! What the XDP programs on the interfaces do with packets, by the instructions, constants and
//! tables that the kernel has.

use super::Program;
use super::expected::{TCP, incoming, limited};
use super::table::Effect;
use crate::model::packet_set::{Condition, Cube, ETHERNET, Field, PacketSet, only};
use crate::model::{AddressSet, MacAddr, Ordinal as _, Range};
use crate::netlink::bpf;
use crate::netlink::surroundings::Surroundings;
use crate::xdp::{self, Attachment, OBJECT};
use agent_fw_ebpf::{
    Config, Contents, Decisions, Label, OwnFrames, SECTIONS, load_program, read_table,
    with_sections,
};
use anyhow::{Context as _, anyhow};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::{EbpfLoader, Pod};
use aya_obj::generated::bpf_prog_type;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};

/// The programs in the object.
const XDP: &str = "agent_fw_xdp";
const CLASSIFIER: &str = "agent_fw_tc";

/// Reads the programs that agent-fw has on interfaces, with all of their tables.
pub fn programs() -> anyhow::Result<Vec<Program>> {
    let seen = Surroundings::read()?;
    let mut read: BTreeMap<u32, Reading> = BTreeMap::new();
    let mut programs = Vec::new();
    for attachment in xdp::attachments()? {
        let number = attachment.program;
        let reading = match read.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(
                Reading::of(number).with_context(|| format!("cannot read program {number}"))?,
            ),
        };
        programs.push(reading.at(&attachment, &seen));
    }
    Ok(programs)
}

/// A program and its tables, wherever it is attached.
struct Reading {
    /// `None` for a program that is not agent-fw's.
    decisions: Option<Decisions>,
    /// Which frames it takes for this host's, by interface.
    interfaces: BTreeMap<u32, OwnFrames>,
    faults: Vec<String>,
}

impl Reading {
    fn of(number: u32) -> anyhow::Result<Self> {
        let info = loaded_programs().flatten().find(|info| info.id() == number);
        let info = info.context("it has gone")?;
        let maps = Maps::of(&info)?;
        let mut faults = Vec::new();
        let config = maps.constants(&mut faults);
        let contents = config.and_then(|config| match maps.contents(config, &mut faults) {
            Ok(contents) => Some(contents),
            Err(error) => {
                faults.push(format!("its tables cannot be read: {error:#}"));
                None
            }
        });
        let Some(contents) =
            contents.filter(|contents| is_built_by_us(&info, contents, &maps, &mut faults))
        else {
            return Ok(Self { decisions: None, interfaces: BTreeMap::new(), faults });
        };
        let decisions = contents.decisions();
        faults.extend(decisions.faults.iter().cloned());
        // A program that stands alone does not ask.
        let interfaces = if decisions.gate {
            if !is_frozen(maps.info("INTERFACES")?) {
                faults.push("its list of this host's frames can be changed".to_owned());
            }
            let interfaces: HashMap<_, u32, OwnFrames> = maps.open("INTERFACES")?;
            interfaces.iter().collect::<Result<_, _>>()?
        } else {
            BTreeMap::new()
        };
        Ok(Self { decisions: Some(decisions), interfaces, faults })
    }

    /// What it does at an interface.
    fn at(&self, attachment: &Attachment, seen: &Surroundings) -> Program {
        let Attachment { interface, hook, ahead, .. } = attachment;
        let interface = interface.clone();
        let mut faults = self.faults.clone();
        if *ahead > 0 {
            faults.push(format!("{ahead} other programs come before it, and may let packets pass"));
        }
        let has_gate = self.decisions.as_ref().is_some_and(|decisions| decisions.gate);
        let due = xdp::own_frames(&interface, seen);
        let found = self.interfaces.get(&interface.index).copied();
        // That they differ is told with what else differs. What is not certain to be this host's is the gate's.
        let is_passed = has_gate && (found.is_none() || found.map(mac) != due.map(mac));
        let here = incoming(Cube::everything())
            .limited(Field::InputInterface, &only(interface.index.into()))
            .limited(Field::Hardware, &only(ETHERNET))
            .limited(Field::Protocol, &only(TCP));
        let effect = match &self.decisions {
            None => {
                let why = format!("the program on {}, which is not agent-fw's", interface.name);
                let unknown = here.into_iter().map(|cube| (cube, why.clone())).collect();
                Effect { unknown, ..Effect::default() }
            }
            Some(_) if is_passed => Effect::default(),
            Some(decisions) => {
                let dropped = refused(decisions, here);
                let (v4, v6) = (&decisions.unsure_v4, &decisions.unsure_v6);
                let unsure = addresses(v4.iter().copied(), v6.iter().copied());
                let unsure = Condition::Source(unsure);
                let why = format!("a damaged table of the program on {}", interface.name);
                let parts = dropped.into_iter().map(|cube| cube.split(&unsure));
                let (unknown, dropped): (Vec<_>, Vec<_>) =
                    parts.map(|[unsure, sure]| (unsure, sure)).unzip();
                Effect {
                    dropped: dropped.into_iter().flatten().collect(),
                    unknown: unknown.into_iter().flatten().map(|b| (b, why.clone())).collect(),
                    ..Effect::default()
                }
            }
        };
        let ranges = self.decisions.as_ref().map_or(0, |d| d.v4.len() + d.v6.len());
        let on = |fault: &String| format!("{hook} on {}: {fault}", interface.name);
        let faults = faults.iter().map(on).collect();
        Program { interface, effect, faults, ranges }
    }
}

fn mac(own: OwnFrames) -> u64 {
    own.mac
}

/// What a program that decides so drops of the packets that come to it.
fn refused(decisions: &Decisions, here: PacketSet) -> PacketSet {
    if decisions.otherwise_continue {
        return PacketSet::default();
    }
    let ports = decisions.ports.iter().map(|port| Range::single(u128::from(*port))).collect();
    let concerned = here.limited(Field::DestinationPort, &ports);
    let all = AddressSet::all();
    let undecided = limited(Cube::between(&undecided(decisions), &all), []);
    let listed = decisions.labels().into_iter().flat_map(|label| {
        let macs = decisions.macs.get(&label).map(|macs| {
            let macs = macs.iter().filter_map(|mac| MacAddr::from_bits(mac.bits()));
            macs.map(|mac| Range::single(mac.bits().into())).collect()
        });
        let macs = macs.map(|macs| (Field::SourceMac, macs));
        limited(Cube::between(&self::listed(decisions, label), &all), macs)
    });
    concerned.difference(&undecided.into_iter().chain(listed).collect())
}

fn listed(decisions: &Decisions, of: Label) -> AddressSet {
    let v4 = decisions.v4.iter().filter(|range| range.label == of);
    let v6 = decisions.v6.iter().filter(|range| range.label == of);
    addresses(v4.map(|r| (r.first, r.last)), v6.map(|r| (r.first, r.last)))
}

fn undecided(decisions: &Decisions) -> AddressSet {
    addresses(decisions.undecided_v4.iter().copied(), decisions.undecided_v6.iter().copied())
}

fn addresses(
    v4: impl Iterator<Item = (u32, u32)>,
    v6: impl Iterator<Item = (u128, u128)>,
) -> AddressSet {
    let v4 = v4.filter_map(|(first, last)| Range::new(Ipv4Addr::from(first), last.into()));
    let v6 = v6.filter_map(|(first, last)| Range::new(Ipv6Addr::from(first), last.into()));
    AddressSet { v4: v4.collect(), v6: v6.collect() }
}

/// The maps of a program, by name.
struct Maps(BTreeMap<String, MapInfo>);

/// What the kernel keeps of the name of the map of constants.
const CONSTANTS: &str = ".rodata";
const CONFIG_BYTES: usize = size_of::<Config>();

impl Maps {
    fn of(program: &ProgramInfo) -> anyhow::Result<Self> {
        let mut maps = BTreeMap::new();
        for number in program.map_ids()?.unwrap_or_default() {
            let info = MapInfo::from_id(number)?;
            maps.insert(info.name_as_str().unwrap_or_default().to_owned(), info);
        }
        Ok(Self(maps))
    }

    fn info(&self, name: &str) -> anyhow::Result<&MapInfo> {
        self.0.get(name).ok_or_else(|| anyhow!("it has no map {name}"))
    }

    fn open<T: TryFrom<Map, Error = aya::maps::MapError>>(&self, name: &str) -> anyhow::Result<T> {
        let map = Map::from_map_data(MapData::from_id(self.info(name)?.id())?)?;
        T::try_from(map).with_context(|| format!("map {name}"))
    }

    fn array<T: Pod>(&self, name: &str) -> anyhow::Result<Vec<T>> {
        // What the policy does not use is not part of the program.
        if !self.0.contains_key(name) {
            return Ok(Vec::new());
        }
        let array: Array<MapData, T> = self.open(name)?;
        let all = array.iter().collect::<Result<Vec<T>, _>>();
        all.with_context(|| format!("map {name}"))
    }

    /// The constants, or `None` if there are none of agent-fw's.
    fn constants(&self, faults: &mut Vec<String>) -> Option<Config> {
        let found = self.array::<[u8; CONFIG_BYTES]>(CONSTANTS).ok()?;
        let [bytes] = found.as_slice() else {
            faults.push("it has no constants of agent-fw's".to_owned());
            return None;
        };
        if !self.info(CONSTANTS).is_ok_and(is_frozen) {
            faults.push("its constants can be changed".to_owned());
        }
        Some(Config::from_bytes(bytes))
    }

    fn contents(&self, config: Config, faults: &mut Vec<String>) -> anyhow::Result<Contents> {
        let macs = if let Some(info) = self.0.get("MACS") {
            if !is_frozen(info) {
                faults.push("its list of MAC addresses can be changed".to_owned());
            }
            self.open::<HashMap<_, u64, u8>>("MACS")?.keys().collect::<Result<_, _>>()?
        } else {
            BTreeSet::new()
        };
        let mut tables = BTreeMap::new();
        for name in SECTIONS {
            // What the policy does not use is not part of the program.
            let Some(info) = self.0.get(name) else { continue };
            if !is_frozen(info) {
                faults.push(format!("its table {name} can be changed"));
            }
            let map = MapData::from_id(info.id()).with_context(|| format!("map {name}"))?;
            let bytes = read_table(&map).with_context(|| format!("map {name}"))?;
            tables.insert(name, bytes);
        }
        Ok(Contents::from_tables(config, macs, |name| tables.remove(name)))
    }
}

/// Whether nobody can write to a map from outside any more.
fn is_frozen(info: &MapInfo) -> bool {
    let Ok(descriptor) = info.fd() else { return false };
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| line.split_whitespace().eq(["frozen:", "1"]))
}

/// Whether a program has the instructions that this agent-fw's program has when it is loaded with
/// the same constants and maps of the same sizes, and names the same maps in them.
fn is_built_by_us(
    info: &ProgramInfo,
    contents: &Contents,
    maps: &Maps,
    faults: &mut Vec<String>,
) -> bool {
    match compare(info, contents, maps) {
        Ok(true) => true,
        Ok(false) => {
            faults.push("it is not the program that this agent-fw has built".to_owned());
            false
        }
        Err(error) => {
            faults.push(format!("its instructions could not be compared: {error:#}"));
            false
        }
    }
}

fn compare(info: &ProgramInfo, contents: &Contents, maps: &Maps) -> anyhow::Result<bool> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", contents.config.as_bytes(), true);
    for (name, map) in maps.0.iter().filter(|(name, _)| !name.starts_with(CONSTANTS)) {
        loader.map_max_entries(name, map.max_entries());
    }
    let mut ours = loader.load(&with_sections(OBJECT, &contents.sections())?)?;
    let name = match info.program_type() {
        bpf_prog_type::BPF_PROG_TYPE_XDP => XDP,
        _ => CLASSIFIER,
    };
    let program = ours.program_mut(name).context("the object has no program")?;
    load_program(program)?;
    let our_info = program.info()?;
    if our_info.tag() != info.tag() {
        return Ok(false);
    }
    let our_maps = Maps::of(&our_info)?;
    Ok(named(bpf::instructions(our_info.fd()?)?, &our_maps)
        == named(bpf::instructions(info.fd()?)?, maps))
}

/// `BPF_LD | BPF_IMM | BPF_DW`, the first half of an instruction that loads 64 bits.
const LOAD_WIDE: u8 = 0x18;

/// An instruction, with the name of the map in it.
#[derive(PartialEq, Eq)]
struct Named<'a>([u8; 8], Option<&'a str>);

/// Puts names in the place of the numbers of maps, which differ from one loading to the next.
fn named(code: Vec<[u8; 8]>, maps: &Maps) -> Vec<Named<'_>> {
    let name_of = |number: u32| {
        maps.0.iter().find(|(_, map)| map.id() == number).map(|(name, _)| name.as_str())
    };
    code.into_iter()
        .map(|instruction| {
            let [code, registers, c, d, number @ ..] = instruction;
            // `BPF_PSEUDO_MAP_FD` and `BPF_PSEUDO_MAP_VALUE`, in the source register's place.
            let is_map = code == LOAD_WIDE && matches!(registers >> 4, 1 | 2);
            let name = is_map.then(|| name_of(u32::from_ne_bytes(number))).flatten();
            let bare =
                if name.is_some() { [code, registers, c, d, 0, 0, 0, 0] } else { instruction };
            Named(bare, name)
        })
        .collect()
}
