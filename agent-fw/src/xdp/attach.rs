//! The programs in the kernel: loaded, put on interfaces, exchanged, removed.
//!
//! A link, or a filter, keeps its program on the interface; exchanging the program in it is one
//! step, so that at no moment is an interface without.

use super::OBJECT;
use super::alone::{Objection, objections};
use super::error::{Obstacle, XdpError};
use super::hook::{self, AttachPoint, CLASSIFIER};
use super::own_frames::own_frames;
use super::own_list::OwnList;
use super::pin::{self, Enforced, MapName, Pin};
use super::program::Programs;
use super::state::{Attachment, Hook};
use super::unpinned::{self, XDP};
use crate::input::options::XdpMode;
use crate::model::PolicyHash;
use crate::model::rule::AgentPolicy;
use crate::netlink::bpf;
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::netlink::surroundings::Surroundings;
use crate::system::{file, namespace};
use crate::xdp::compile::plan;
use crate::xdp::counter_ids::Numberings;
use agent_fw_ebpf::{Image, LabelTally, LoadError, OwnFrames, Tally, freeze, load, load_program};
use aya::maps::{HashMap, MapInfo, PerCpuArray, PerCpuValues};
use aya::programs::loaded_programs;
use aya::{Ebpf, EbpfLoader, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The map of the frames that are certain to be this host's.
const INTERFACES: &str = "INTERFACES";

/// What the numbers stand for under which the programs count, in one network namespace each.
fn numbering_path() -> Result<PathBuf, XdpError> {
    let namespace = namespace::current()?;
    Ok(PathBuf::from(format!("/run/agent-fw/xdp-labels-{namespace}.json")))
}

/// The interfaces that agent-fw's program is on.
pub fn attachments() -> Result<Vec<Attachment>, XdpError> {
    let (pins, loaded) = (Pin::list()?, unpinned::loaded());
    let mut attached = Vec::new();
    if pins.is_empty() && loaded.is_empty() {
        return Ok(attached);
    }
    let known: BTreeMap<u32, Known> = pins.iter().filter_map(known).collect();
    // Only a program that counts on the gate asks whose a frame is.
    let seen = known.values().any(|known| known.enforced.gate).then(Surroundings::read);
    let seen = seen.transpose()?;
    for interface in link::list()? {
        for AttachPoint { hook, program, ahead, is_pinned } in hook::ours(&interface, &loaded)? {
            let of = known.get(&program).filter(|of| of.enforced != Enforced::UNKNOWN);
            let (policy, gate) =
                (of.map(|of| of.enforced.policy), of.is_some_and(|of| of.enforced.gate));
            let mistake = of.zip(seen.as_ref());
            let mistake = mistake.and_then(|(of, seen)| of.own.mistake(&interface, seen));
            let behind = hook.mode().is_none().then(|| foreign(&interface)).flatten();
            let interface = interface.clone();
            attached.push(Attachment {
                interface,
                hook,
                program,
                behind,
                ahead,
                policy,
                gate,
                is_pinned,
                mistake: mistake.filter(|_| gate),
            });
        }
    }
    Ok(attached)
}

/// What pins tell of a program.
struct Known {
    enforced: Enforced,
    own: OwnList,
}

/// A pinned program's number, and what is known of it.
fn known(pin: &Pin) -> Option<(u32, Known)> {
    let (Pin::Program(enforced) | Pin::Classifier(enforced)) = pin else { return None };
    let program = bpf::Program::from_pin(&pin.path()).ok()?;
    let own = OwnList::of(&program, *enforced);
    Some((program.number, Known { enforced: *enforced, own }))
}

/// The XDP program of an interface that has not ours, in words.
fn foreign(interface: &Interface) -> Option<String> {
    let attached = interface.xdp?;
    let program = loaded_programs().flatten().find(|info| info.id() == attached.program);
    let name = program.and_then(|info| info.name_as_str().map(|name| format!(" `{name}`")));
    let name = name.unwrap_or_default();
    Some(format!("{} XDP program {}{name}", attached.place, attached.program))
}

/// The interfaces that a policy is to be enforced at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Targets {
    interfaces: Vec<Interface>,
    may_use_tcx: bool,
}

impl Targets {
    /// These interfaces.
    pub fn of(interfaces: Vec<Interface>) -> Result<Self, XdpError> {
        Ok(Self { interfaces, may_use_tcx: true })
    }

    /// The same, to be served as by a kernel that has no TCX.
    #[must_use]
    pub fn without_tcx(self) -> Self {
        Self { may_use_tcx: false, ..self }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.interfaces.iter().map(|interface| interface.name.as_str())
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
                    && attachment.hook.serves(mode)
                    && (attachment.policy, attachment.gate) == (Some(policy), gate)
            })
        };
        self.interfaces.len() == attached.len() && self.interfaces.iter().all(serves)
    }

    /// Where the program goes on each of them.
    fn sites(self, mode: XdpMode) -> Result<Vec<Site>, XdpError> {
        let site = |interface: Interface| {
            if !interface.is_ethernet {
                let obstacle = Obstacle::NotEthernet;
                return Err(XdpError::Interface { interface: interface.name, obstacle });
            }
            let tcx = self.may_use_tcx && hook::has_tcx(&interface);
            let ours = hook::ours(&interface, &BTreeSet::new())?;
            let hook = hook::choose(&interface, &ours, mode, tcx);
            Ok(Site { interface, hook, ours: ours.iter().map(|place| place.hook).collect() })
        };
        self.interfaces.into_iter().map(site).collect()
    }
}

/// Where on an interface the program goes, and where ours was before.
#[derive(Clone, Debug)]
struct Site {
    interface: Interface,
    hook: Hook,
    ours: Vec<Hook>,
}

impl Site {
    /// Ours at XDP in another mode, which has to go first: the kernel takes one mode at a time.
    fn displaced(&self) -> Option<Hook> {
        let is_xdp = |hook: &&Hook| hook.mode().is_some() && **hook != self.hook;
        self.hook.mode().and_then(|_| self.ours.iter().find(is_xdp).copied())
    }
}

/// A policy's programs in the kernel, on no interface yet.
#[must_use = "what is prepared is to be attached or abandoned"]
pub struct Prepared {
    before: Option<Programs>,
    programs: Programs,
    numbering: Numberings,
    sites: Vec<Site>,
}

/// A change that can be taken back until it is settled.
#[must_use = "a change is to be settled or taken back"]
pub struct Change {
    prepared: Prepared,
    taken: Vec<Step>,
}

/// A step that was begun. Taking it back is right however far it went.
enum Step {
    /// The new program was put in the place of the previous one.
    Exchange(Site),
    /// It was attached, where another mode's program was or none.
    Attach(Site),
}

/// Loads a policy's programs for these interfaces, and pins them. No interface is touched.
pub fn prepare(
    lowered: &AgentPolicy,
    gate: bool,
    targets: Targets,
    mode: XdpMode,
) -> Result<Prepared, XdpError> {
    pin::make_directory()?;
    unpinned::adopt()?;
    let before = Programs::of_before()?;
    match load_all(lowered, gate, targets, mode) {
        Ok((programs, numbering, sites)) => Ok(Prepared { before, programs, numbering, sites }),
        Err(error) => {
            restore_pins(before, None)?;
            Err(error)
        }
    }
}

/// Puts the policy's program on these interfaces. If that fails at one of them, it is taken back at
/// the others.
pub fn attach(
    lowered: &AgentPolicy,
    gate: bool,
    targets: Targets,
    mode: XdpMode,
) -> Result<Change, XdpError> {
    prepare(lowered, gate, targets, mode)?.attach()
}

impl Prepared {
    /// Whether some interface is without a program for a moment: where its mode changes.
    pub fn leaves_a_gap(&self) -> bool {
        self.sites.iter().any(|site| site.displaced().is_some())
    }

    /// Puts the programs on their interfaces. If that fails at one of them, it is taken back at the
    /// others.
    pub fn attach(self) -> Result<Change, XdpError> {
        let mut change = Change { prepared: self, taken: Vec::new() };
        match change.take() {
            Ok(()) => Ok(change),
            Err(error) => {
                change.undo()?;
                Err(error)
            }
        }
    }

    /// Lets go of the programs.
    pub fn abandon(self) -> Result<(), XdpError> {
        restore_pins(self.before, Some(&self.programs))
    }
}

/// Loads and pins all that the policy needs; no interface is touched yet.
fn load_all(
    lowered: &AgentPolicy,
    gate: bool,
    targets: Targets,
    mode: XdpMode,
) -> Result<(Programs, Numberings, Vec<Site>), XdpError> {
    let sites = targets.sites(mode)?;
    let seen = Surroundings::read()?;
    if !gate {
        demand_nobody_is_cut_off(&sites, &seen)?;
    }
    let mut numbering = numbering();
    let mut plan = plan(lowered, gate, &mut numbering.labels)?;
    for Site { interface, .. } in &sites {
        let number = numbering.interfaces.number(&interface.name);
        let slot = number.ok_or(XdpError::TooManyInterfaces)?.index();
        // A bond has its program run at its ports.
        for port in with_ports(interface, &seen) {
            plan.slots.entry(port.index).or_insert(slot);
        }
        plan.slots.insert(interface.index, slot);
    }
    make_room(MapName::Labels, plan.labels.len())?;
    make_room(MapName::Tally, numbering.interfaces.len())?;
    let image = Image::new(&plan)?;
    let mut ebpf = load_pinned(&image)?;
    reset(&mut ebpf, &numbering)?;
    fill_interfaces(&mut ebpf, &sites, &seen)?;
    let enforced = Enforced { policy: lowered.policy.hash(), gate };
    let programs = load_programs(&mut ebpf, &sites, enforced)?;
    Ok((programs, numbering, sites))
}

/// Loads and pins the programs that these sites need.
fn load_programs(
    ebpf: &mut Ebpf,
    sites: &[Site],
    enforced: Enforced,
) -> Result<Programs, XdpError> {
    let own = ebpf.take_map(INTERFACES).ok_or(LoadError::NoMap(INTERFACES))?;
    let (mut xdp, mut classifier) = (None, None);
    for (name, program) in ebpf.programs_mut() {
        match name {
            XDP if sites.iter().any(|site| site.hook.mode().is_some()) => {
                load_program(program).map_err(XdpError::Program)?;
                xdp = Some(program.try_into().map_err(XdpError::Program)?);
            }
            CLASSIFIER if sites.iter().any(|site| site.hook.mode().is_none()) => {
                load_program(program).map_err(XdpError::Program)?;
                classifier = Some(program.try_into().map_err(XdpError::Program)?);
            }
            _ => {}
        }
    }
    Programs::pinned(enforced, xdp, classifier, &own)
}

/// Puts the pins of the previous programs in the place of the new ones'.
fn restore_pins(before: Option<Programs>, new: Option<&Programs>) -> Result<(), XdpError> {
    if let Some(new) = new {
        new.unpin()?;
    }
    match before {
        Some(mut before) => before.pin(),
        // Links without a program's pin still filter: they stay, and so do their counters.
        None if Pin::list()?.iter().all(|pin| matches!(pin, Pin::Map(_))) => remove(),
        None => Ok(()),
    }
}

impl Change {
    fn take(&mut self) -> Result<(), XdpError> {
        let Prepared { programs, sites, .. } = &mut self.prepared;
        for site in sites {
            if site.ours.contains(&site.hook) {
                self.taken.push(Step::Exchange(site.clone()));
                hook::exchange(programs, &site.interface, site.hook)?;
            } else {
                self.taken.push(Step::Attach(site.clone()));
                if let Some(displaced) = site.displaced() {
                    hook::release(site.interface.index, displaced)?;
                }
                hook::attach(programs, &site.interface, site.hook)?;
            }
        }
        Ok(())
    }

    /// Takes the change back: what was enforced before is enforced again. All steps are tried; the
    /// first failure is told.
    pub fn undo(mut self) -> Result<(), XdpError> {
        let mut undone = Ok(());
        for step in std::mem::take(&mut self.taken).into_iter().rev() {
            undone = undone.and(self.undo_step(&step));
        }
        undone.and(self.prepared.abandon())
    }

    fn undo_step(&mut self, step: &Step) -> Result<(), XdpError> {
        let (Step::Exchange(site) | Step::Attach(site)) = step;
        match (step, site.displaced(), &mut self.prepared.before) {
            (Step::Exchange(_), _, Some(before)) => {
                hook::exchange(before, &site.interface, site.hook)
            }
            // What was there has no pin, and cannot be put back: the new one, which is in its place
            // or not, is more than nothing.
            (Step::Exchange(_), _, None) => Ok(()),
            (Step::Attach(_), Some(displaced), Some(before)) => {
                hook::release(site.interface.index, site.hook)?;
                hook::attach(before, &site.interface, displaced)
            }
            _ => hook::release(site.interface.index, site.hook),
        }
    }

    /// Makes the change last: takes the program off hooks that are not to have it, and lets go of
    /// the previous one, and of maps whose layout was another version's.
    pub fn settle(self) -> Result<(), XdpError> {
        let Prepared { programs, numbering, sites, .. } = self.prepared;
        let of_site = |site: &Site| hook::pins(site.interface.index, site.hook);
        let mut kept: Vec<Pin> = sites.iter().flat_map(of_site).collect();
        kept.extend(programs.pins());
        kept.extend(MapName::ALL.map(Pin::Map));
        for pin in Pin::list()?.iter().filter(|pin| !kept.contains(pin)) {
            pin.release()?;
        }
        let Numberings { labels, interfaces } = numbering;
        let settled = Numberings { labels: labels.settled(), interfaces: interfaces.settled() };
        let text = serde_json::to_string(&settled).map_err(anyhow::Error::from)?;
        Ok(file::write(&numbering_path()?, &text)?)
    }
}

/// Takes the program off every interface, those that have gone included, and removes every pin.
pub fn remove() -> Result<(), XdpError> {
    let released = pin::release_all();
    // Also where pins cannot be seen, or not be removed.
    unpinned::release()?;
    released?;
    Ok(file::remove(&numbering_path()?)?)
}

/// What stands for what since the last policy. Where that is lost, the counts begin anew.
pub(super) fn numbering() -> Numberings {
    let text = numbering_path().ok().and_then(|path| file::read(&path).ok().flatten());
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Lets go of counters where they are too few for the next policy.
fn make_room(map: MapName, places: usize) -> Result<(), XdpError> {
    let pin = Pin::Map(map);
    match MapInfo::from_pin(pin.path()) {
        Ok(info) if (info.max_entries() as usize) < places => pin.remove(),
        _ => Ok(()),
    }
}

fn load_pinned(image: &Image) -> Result<Ebpf, XdpError> {
    let mut loader = EbpfLoader::new();
    for map in MapName::ALL {
        loader.map_pin_path(map.in_object(), Pin::Map(map).path());
    }
    Ok(load(image, OBJECT, loader)?)
}

/// Zero for numbers that stand for something new.
fn reset(ebpf: &mut Ebpf, numbering: &Numberings) -> Result<(), LoadError> {
    zero::<LabelTally>(ebpf, MapName::Labels, numbering.labels.fresh())?;
    zero::<Tally>(ebpf, MapName::Tally, numbering.interfaces.fresh())
}

fn zero<T: Pod + Default>(
    ebpf: &mut Ebpf,
    map: MapName,
    places: impl Iterator<Item = u16>,
) -> Result<(), LoadError> {
    let name = map.in_object();
    let failed = |error| LoadError::Map(name, error);
    let map = ebpf.map_mut(name).ok_or(LoadError::NoMap(name))?;
    let mut counts = PerCpuArray::<_, T>::try_from(map).map_err(failed)?;
    for place in places {
        let cpus = counts.get(&place.into(), 0).map_err(failed)?.len();
        let zeros = PerCpuValues::try_from(vec![T::default(); cpus]);
        counts
            .set(place.into(), zeros.map_err(|error| failed(error.into()))?, 0)
            .map_err(failed)?;
    }
    Ok(())
}

/// Tells the program which frames are certain to be this host's, once and for all.
fn fill_interfaces(ebpf: &mut Ebpf, sites: &[Site], seen: &Surroundings) -> Result<(), XdpError> {
    let failed = |error| LoadError::Map(INTERFACES, error);
    let map = ebpf.map_mut(INTERFACES).ok_or(LoadError::NoMap(INTERFACES))?;
    let mut known = HashMap::<_, u32, OwnFrames>::try_from(&mut *map).map_err(failed)?;
    for interface in sites.iter().flat_map(|site| with_ports(&site.interface, seen)) {
        if let Some(own) = own_frames(interface, seen) {
            known.insert(interface.index, own, 0).map_err(failed)?;
        }
    }
    freeze(map).map_err(|error| failed(error.into()))?;
    Ok(())
}

/// The interfaces that an interface's program may run at: itself, and a bond's ports.
pub(super) fn with_ports<'a>(
    interface: &'a Interface,
    seen: &'a Surroundings,
) -> impl Iterator<Item = &'a Interface> {
    let is_bond = interface.kind() == Some("bond");
    let is_port = move |port: &&Interface| is_bond && port.master() == Some(interface.index);
    std::iter::once(interface).chain(seen.interfaces.iter().filter(is_port))
}

/// Fails where a program that stands alone would drop others' frames.
fn demand_nobody_is_cut_off(sites: &[Site], seen: &Surroundings) -> Result<(), XdpError> {
    let all = sites.iter().flat_map(|site| objections(&site.interface, seen));
    let all: Vec<Objection> = all.collect();
    if all.is_empty() { Ok(()) } else { Err(XdpError::Alone(all)) }
}
