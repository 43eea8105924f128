//! The programs in the kernel: loaded, put on interfaces, exchanged, removed.
//!
//! What outlives this process is pinned below [`DIRECTORY`]: a link for each interface, the
//! program, the counters. A link keeps its program on the interface; exchanging the program in it
//! is one step, so that at no moment is an interface without.

use super::OBJECT;
use super::detach::detach;
use super::error::{Obstacle, XdpError, errno};
use super::image::plan;
use super::labels::Numbering;
use super::state::{Admitted, Attachment, Counters};
use crate::configuration::XdpMode;
use crate::host::file;
use crate::host::interface::{self, Interface, XdpPlace};
use crate::policy::PolicyHash;
use crate::rule::Lowered;
use agent_fw_ebpf::{Image, LabelTally, LoadError, Mac, Tally, Undecided, Verdict, load};
use aya::maps::{HashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuValues};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{self, XdpLink};
use aya::programs::{ProgramInfo, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader, Pod};
use aya_obj::programs::XdpAttachType;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where everything is pinned. bpffs takes no dots in names.
pub const DIRECTORY: &str = "/sys/fs/bpf/agent-fw";
/// What the label's numbers stand for.
const NUMBERING: &str = "/run/agent-fw/xdp-labels.json";

/// Counters, whose layout has this version: a newer agent-fw with another one begins anew.
const TALLY: &str = "tally-1";
const LABELS: &str = "labels-1";
const SAMPLES: &str = "samples-1";
/// A link: this, and the interface's index.
const LINK: &str = "link-";
/// A program: this, and its policy's hash, and whether the gate stands behind.
const PROGRAM: &str = "program-";
const WITH_GATE: &str = "-gate";

/// The program in the object.
const PROGRAM_NAME: &str = "agent_fw_xdp";

fn place(mode: XdpMode) -> XdpPlace {
    match mode {
        XdpMode::Native => XdpPlace::Native,
        XdpMode::Generic => XdpPlace::Generic,
    }
}

/// The mode in which a program is put where one runs.
fn mode_of(place: XdpPlace) -> XdpMode {
    match place {
        XdpPlace::Generic => XdpMode::Generic,
        _ => XdpMode::Native,
    }
}

fn pin(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn link_pin(index: u32) -> PathBuf {
    pin(&format!("{LINK}{index}"))
}

fn parse_link_name(name: &str) -> Option<u32> {
    name.strip_prefix(LINK)?.parse().ok()
}

fn pin_error<E>(path: &Path, action: &'static str) -> impl FnOnce(E) -> XdpError
where
    E: Error + Send + Sync + 'static,
{
    let path = path.to_owned();
    move |cause| XdpError::Pin { path, action, cause: Box::new(cause) }
}

/// The names that are pinned.
fn pins() -> Result<Vec<String>, XdpError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(pin_error(Path::new(DIRECTORY), "cannot be listed"))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.collect())
}

/// Takes a link's program off its interface, and lets go of the link.
fn release(index: u32) -> Result<(), XdpError> {
    let path = link_pin(index);
    match detach(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(pin_error(&path, "cannot be detached")(error))
        }
        _ => unpin(&path),
    }
}

fn unpin(path: &Path) -> Result<(), XdpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(pin_error(path, "cannot be removed")(error))
        }
        _ => Ok(()),
    }
}

/// What a pinned program's name says of it.
fn program_name(hash: PolicyHash, gate: bool) -> String {
    format!("{PROGRAM}{hash}{}", if gate { WITH_GATE } else { "" })
}

fn parse_program_name(name: &str) -> Option<(PolicyHash, bool)> {
    let rest = name.strip_prefix(PROGRAM)?;
    let hash = rest.strip_suffix(WITH_GATE).unwrap_or(rest);
    Some((hash.parse().ok()?, hash.len() != rest.len()))
}

/// The interfaces that agent-fw's program is on.
pub fn attachments() -> Result<Vec<Attachment>, XdpError> {
    let names = pins()?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let policies: BTreeMap<u32, (PolicyHash, bool)> = names
        .iter()
        .filter_map(|name| {
            let info = ProgramInfo::from_pin(pin(name)).ok();
            Some((parse_program_name(name).and(info)?.id(), parse_program_name(name)?))
        })
        .collect();
    let attached = interface::list()?.into_iter().filter_map(|interface| {
        let (program, place) = own(&interface)?;
        let known = policies.get(&program);
        let (policy, gate) = (known.map(|(hash, _)| *hash), known.is_some_and(|(_, gate)| *gate));
        Some(Attachment { interface, place, program, policy, gate })
    });
    Ok(attached.collect())
}

/// The program that our pinned link has on this interface, and where it runs; `None` where the
/// link is not there, or is that of an interface which has gone.
fn own(interface: &Interface) -> Option<(u32, XdpPlace)> {
    let attached = interface.xdp?;
    let link = PinnedLink::from_pin(link_pin(interface.index)).ok()?;
    let program = FdLink::from(link).info().ok()?.program_id();
    (program == attached.program).then_some((program, attached.place))
}

/// The interfaces that a policy is to be enforced at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Targets(Vec<Interface>);

impl Targets {
    /// The interfaces of these names, all of which must be there; without any name, every physical
    /// one that is up.
    pub fn find(names: &[String]) -> Result<Self, XdpError> {
        let (targets, missing) = Self::present(names)?;
        Self::demand(missing)?;
        Ok(targets)
    }

    /// Those that are there, and the names of the others.
    pub fn present(names: &[String]) -> Result<(Self, Vec<String>), XdpError> {
        let all = interface::list()?;
        if names.is_empty() {
            let physical = |i: &Interface| i.is_up && i.is_physical();
            let found: Vec<_> = all.into_iter().filter(physical).collect();
            let nothing = found.is_empty();
            return if nothing { Err(XdpError::NoPhysical) } else { Ok((Self(found), vec![])) };
        }
        let is_missing = |name: &&String| !all.iter().any(|interface| interface.name == **name);
        let missing = names.iter().filter(is_missing).cloned().collect();
        let present = all.into_iter().filter(|interface| names.contains(&interface.name));
        Ok((Self(present.collect()), missing))
    }

    /// Fails if any is missing.
    pub fn demand(missing: Vec<String>) -> Result<(), XdpError> {
        if missing.is_empty() { Ok(()) } else { Err(XdpError::NoInterface(missing)) }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|interface| interface.name.as_str())
    }

    /// Whether `attached` is exactly what these should have.
    pub fn are_served_by(
        &self,
        attached: &[Attachment],
        mode: XdpMode,
        policy: PolicyHash,
        gate: bool,
    ) -> bool {
        let serves = |interface: &Interface| {
            attached.iter().any(|attachment| {
                attachment.interface.index == interface.index
                    && attachment.place == place(mode)
                    && (attachment.policy, attachment.gate) == (Some(policy), gate)
            })
        };
        self.0.len() == attached.len() && self.0.iter().all(serves)
    }
}

/// A change that can be taken back until it is settled.
#[must_use = "a change is to be settled or taken back"]
pub struct Change {
    /// The program of before, and its pin.
    before: Option<(Xdp, PathBuf)>,
    /// The new program's pin.
    program: PathBuf,
    numbering: Numbering,
    targets: Targets,
    taken: Vec<Step>,
}

/// A step that was begun. Taking it back is right however far it went.
enum Step {
    /// The new program was pinned.
    Pin,
    /// It was put in the place of the one of before.
    Exchange(u32),
    /// It was attached, where another mode's program was or none.
    Attach(Interface, Option<XdpMode>),
}

/// Puts the policy's program on these interfaces. If that fails at one of them, it is taken back at
/// the others.
pub fn attach(
    lowered: &Lowered,
    gate: bool,
    targets: Targets,
    mode: XdpMode,
) -> Result<Change, XdpError> {
    make_directory()?;
    targets.0.iter().try_for_each(refuse_foreign)?;
    let before = program_of_before()?;
    let mut numbering = numbering();
    let plan = plan(lowered, gate, &mut numbering)?;
    make_room(plan.labels.len())?;
    let image = Image::new(&plan)?;
    let mut ebpf = load_pinned(&image)?;
    reset(&mut ebpf, &numbering)?;
    fill_interfaces(&mut ebpf, &targets)?;
    let program: &mut Xdp = ebpf
        .program_mut(PROGRAM_NAME)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::NoMap(PROGRAM_NAME))?;
    program.load().map_err(XdpError::Program)?;
    let name = pin(&program_name(lowered.policy.hash(), gate));
    let mut change = Change { before, program: name, numbering, targets, taken: Vec::new() };
    match change.take(program, mode) {
        Ok(()) => Ok(change),
        Err(error) => {
            change.undo()?;
            Err(error)
        }
    }
}

impl Change {
    fn take(&mut self, program: &mut Xdp, mode: XdpMode) -> Result<(), XdpError> {
        self.taken.push(Step::Pin);
        pin_program(program, &self.program)?;
        for interface in &self.targets.0 {
            let there = own(interface).map(|(_, there)| there);
            if there == Some(place(mode)) {
                self.taken.push(Step::Exchange(interface.index));
                exchange(program, interface.index)?;
            } else {
                self.taken.push(Step::Attach(interface.clone(), there.map(mode_of)));
                attach_to(program, interface, mode)?;
            }
        }
        Ok(())
    }

    /// The names of the interfaces.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.targets.names()
    }

    /// Takes the change back: what was enforced before is enforced again.
    pub fn undo(mut self) -> Result<(), XdpError> {
        for step in std::mem::take(&mut self.taken).into_iter().rev() {
            self.undo_step(step)?;
        }
        if self.before.is_none() { remove() } else { Ok(()) }
    }

    fn undo_step(&mut self, step: Step) -> Result<(), XdpError> {
        match (step, &mut self.before) {
            (Step::Pin, Some((program, path))) => {
                unpin(&self.program)?;
                pin_program(program, path)
            }
            (Step::Exchange(index), Some((program, _))) => exchange(program, index),
            (Step::Attach(interface, Some(mode)), Some((program, _))) => {
                attach_to(program, &interface, mode)
            }
            (Step::Pin, None) => unpin(&self.program),
            (Step::Exchange(index), None) => release(index),
            (Step::Attach(interface, _), _) => release(interface.index),
        }
    }

    /// Makes the change last: takes the program off interfaces that are not to have it, and lets
    /// go of the one of before.
    pub fn settle(self) -> Result<(), XdpError> {
        let mut kept: Vec<PathBuf> = self.targets.0.iter().map(|i| link_pin(i.index)).collect();
        kept.push(self.program);
        for name in pins()? {
            if kept.contains(&pin(&name)) {
                continue;
            }
            if let Some(index) = parse_link_name(&name) {
                release(index)?;
            } else if name.starts_with(PROGRAM) {
                unpin(&pin(&name))?;
            }
        }
        let text = serde_json::to_string(&self.numbering.settled()).map_err(anyhow::Error::from)?;
        Ok(file::write(Path::new(NUMBERING), &text)?)
    }
}

/// Takes the program off every interface, those that have gone included, and removes every pin.
pub fn remove() -> Result<(), XdpError> {
    for name in pins()? {
        parse_link_name(&name).map_or_else(|| unpin(&pin(&name)), release)?;
    }
    match fs::remove_dir(DIRECTORY) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(pin_error(Path::new(DIRECTORY), "cannot be removed")(error));
        }
        _ => {}
    }
    Ok(file::remove(Path::new(NUMBERING))?)
}

fn make_directory() -> Result<(), XdpError> {
    let parent = Path::new(DIRECTORY).parent().unwrap_or(Path::new("/"));
    let is_bpffs = statfs(parent).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !is_bpffs {
        return Err(XdpError::NoFileSystem);
    }
    match DirBuilder::new().mode(0o700).create(DIRECTORY) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(pin_error(Path::new(DIRECTORY), "cannot be made")(error))
        }
        _ => Ok(()),
    }
}

/// Fails where another program than ours is.
fn refuse_foreign(interface: &Interface) -> Result<(), XdpError> {
    let Some(attached) = interface.xdp.filter(|_| own(interface).is_none()) else { return Ok(()) };
    let program = loaded_programs().flatten().find(|info| info.id() == attached.program);
    let name = program.and_then(|info| info.name_as_str().map(str::to_owned));
    let obstacle = Obstacle::Foreign { attached, name };
    Err(XdpError::Interface { interface: interface.name.clone(), obstacle })
}

fn program_of_before() -> Result<Option<(Xdp, PathBuf)>, XdpError> {
    let Some(name) = pins()?.into_iter().find(|name| parse_program_name(name).is_some()) else {
        return Ok(None);
    };
    let path = pin(&name);
    let program = Xdp::from_pin(&path, XdpAttachType::Interface)
        .map_err(pin_error(&path, "cannot be read"))?;
    Ok(Some((program, path)))
}

fn pin_program(program: &mut Xdp, path: &Path) -> Result<(), XdpError> {
    unpin(path)?;
    program.pin(path).map_err(pin_error(path, "cannot be pinned"))
}

/// What stands for what since the last policy. Where that is lost, the counts begin anew.
fn numbering() -> Numbering {
    let text = file::read(Path::new(NUMBERING)).ok().flatten();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Lets go of the counters of labels where they are too few for the next policy.
fn make_room(labels: usize) -> Result<(), XdpError> {
    let path = pin(LABELS);
    match MapInfo::from_pin(&path) {
        Ok(info) if (info.max_entries() as usize) < labels => unpin(&path),
        _ => Ok(()),
    }
}

fn load_pinned(image: &Image) -> Result<Ebpf, XdpError> {
    let mut loader = EbpfLoader::new();
    for (map, name) in [("TALLY", TALLY), ("LABELS", LABELS), ("SAMPLES", SAMPLES)] {
        loader.map_pin_path(map, pin(name));
    }
    Ok(load(image, OBJECT, loader)?)
}

/// Zero for labels that stand for something new.
fn reset(ebpf: &mut Ebpf, numbering: &Numbering) -> Result<(), LoadError> {
    let failed = |error| LoadError::Map("LABELS", error);
    let map = ebpf.map_mut("LABELS").ok_or(LoadError::NoMap("LABELS"))?;
    let mut labels = PerCpuArray::<_, LabelTally>::try_from(map).map_err(failed)?;
    for number in numbering.fresh() {
        let counts = labels.get(&number.into(), 0).map_err(failed)?;
        let zeros = vec![LabelTally::default(); counts.len()];
        let zeros = PerCpuValues::try_from(zeros).map_err(|error| failed(error.into()))?;
        labels.set(number.into(), zeros, 0).map_err(failed)?;
    }
    Ok(())
}

/// Tells the program by which MAC address frames are for this host, where one address tells.
fn fill_interfaces(ebpf: &mut Ebpf, targets: &Targets) -> Result<(), XdpError> {
    let all = interface::list()?;
    let failed = |error| LoadError::Map("INTERFACES", error);
    let map = ebpf.map_mut("INTERFACES").ok_or(LoadError::NoMap("INTERFACES"))?;
    let mut macs = HashMap::<_, u32, u64>::try_from(map).map_err(failed)?;
    for interface in &targets.0 {
        if let Some(mac) = interface::own_mac(interface, &all) {
            macs.insert(interface.index, Mac::new(mac).bits(), 0).map_err(failed)?;
        }
    }
    Ok(())
}

/// Puts a program in the place of the one that a link has.
fn exchange(program: &mut Xdp, index: u32) -> Result<(), XdpError> {
    let path = link_pin(index);
    let link = PinnedLink::from_pin(&path).map_err(pin_error(&path, "cannot be read"))?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(pin_error(&path, "is no XDP link"))?;
    let exchanged = program.attach_to_link(link).and_then(|id| program.take_link(id));
    // The pin holds the link, which needs no descriptor of ours.
    exchanged.map(drop).map_err(pin_error(&path, "cannot be given another program"))
}

/// Attaches a program where there is none, or one of ours in another mode, which has to go first:
/// the kernel takes one mode at a time.
fn attach_to(program: &mut Xdp, interface: &Interface, mode: XdpMode) -> Result<(), XdpError> {
    let path = link_pin(interface.index);
    release(interface.index)?;
    let fault = |obstacle| XdpError::Interface { interface: interface.name.clone(), obstacle };
    let aya_mode = match mode {
        XdpMode::Native => xdp::XdpMode::Driver,
        XdpMode::Generic => xdp::XdpMode::Skb,
    };
    let attached = program.attach_to_if_index(interface.index, aya_mode);
    let link = attached
        .and_then(|id| program.take_link(id))
        .map_err(|error| fault(Obstacle::of(errno(&error), interface.mtu)))?;
    // Without a link, dropping it has detached the program again.
    let link = FdLink::try_from(link).map_err(|_| fault(Obstacle::NoLink))?;
    link.pin(&path).map(drop).map_err(pin_error(&path, "cannot be pinned"))
}

/// What the programs have counted since they were first installed; `None` if none is there.
pub fn counters() -> Result<Option<Counters>, XdpError> {
    let path = pin(TALLY);
    if !path.exists() {
        return Ok(None);
    }
    let tallies: PerCpuArray<_, Tally> = open(TALLY)?;
    let mut counts = [0; 16];
    for tally in tallies.get(&0, 0).map_err(pin_error(&path, "cannot be read"))?.iter() {
        counts.iter_mut().zip(tally.counts).for_each(|(sum, count)| *sum += count);
    }
    let of = |verdict| Tally::of_verdict(verdict).map_or(0, |at| counts[at]);
    let undecided =
        Undecided::ALL.map(|reason| (reason.to_string(), counts[Tally::of_reason(reason)]));
    Ok(Some(Counters {
        refused: of(Verdict::Refused) + of(Verdict::RefusedHiddenPort),
        left: of(Verdict::LeftToOthers),
        undecided: undecided.into_iter().filter(|(_, packets)| *packets > 0).collect(),
        admitted: admitted()?,
    }))
}

fn admitted() -> Result<Vec<Admitted>, XdpError> {
    let path = pin(LABELS);
    let labels: PerCpuArray<_, LabelTally> = open(LABELS)?;
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(anyhow::Error::from)?;
    let now = Duration::from(now);
    let mut admitted = Vec::new();
    for (number, words) in numbering().entries() {
        let tallies = labels.get(&number.into(), 0).map_err(pin_error(&path, "cannot be read"))?;
        let last = tallies.iter().map(|tally| tally.last_ns).max().filter(|last| *last > 0);
        admitted.push(Admitted {
            by: words.label.clone(),
            packets: tallies.iter().map(|tally| tally.packets).sum(),
            last: last.map(|last| now.saturating_sub(Duration::from_nanos(last))),
        });
    }
    Ok(admitted)
}

fn open<V: Pod>(name: &str) -> Result<PerCpuArray<MapData, V>, XdpError> {
    let path = pin(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .and_then(PerCpuArray::try_from)
        .map_err(pin_error(&path, "cannot be read"))
}
