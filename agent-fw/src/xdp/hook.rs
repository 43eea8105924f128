//! Where on an interface the program goes: XDP, or the tc hook right behind it where another program
//! has XDP.

use super::error::{Obstacle, XdpError, errno};
use super::pin::{Pin, failed};
use super::program::Programs;
use super::state::{Hook, mode_of, place_of};
use crate::input::options::XdpMode;
use crate::netlink::bpf::Link;
use crate::netlink::link::{AttachedXdp, Interface};
use crate::netlink::tc::{Filter, HANDLE, PRIORITY};
use crate::netlink::{bpf, tc};
use aya::programs::TcAttachType;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::xdp::{self, XdpLink};
use std::collections::BTreeSet;
use std::path::Path;

/// The tc hook's program in the object: by this name, a filter is ours.
pub(super) const CLASSIFIER: &str = "agent_fw_tc";

/// A place where our program is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AttachPoint {
    pub(super) hook: Hook,
    pub(super) program: u32,
    /// Programs at the same hook that come before ours, and could let a packet pass it.
    pub(super) ahead: usize,
    /// Whether a pin of this network namespace holds it there.
    pub(super) is_pinned: bool,
}

/// Where our programs are on this interface now, by the pins and by the numbers of all programs in
/// the kernel that are ours.
pub(super) fn ours(
    interface: &Interface,
    loaded: &BTreeSet<u32>,
) -> Result<Vec<AttachPoint>, XdpError> {
    let places = [
        ours_at_xdp(interface, loaded),
        ours_at_tcx(interface, loaded),
        ours_below_clsact(interface, loaded)?,
    ];
    Ok(places.into_iter().flatten().collect())
}

/// `None` where none is, or the link is that of an interface which has gone.
fn ours_at_xdp(interface: &Interface, loaded: &BTreeSet<u32>) -> Option<AttachPoint> {
    let AttachedXdp { place, program } = interface.xdp?;
    let is_pinned = linked(&Pin::Link(interface.index)) == Some(program);
    let is_ours = is_pinned || loaded.contains(&program);
    is_ours.then_some(AttachPoint { hook: Hook::Xdp(place), program, ahead: 0, is_pinned })
}

fn ours_at_tcx(interface: &Interface, loaded: &BTreeSet<u32>) -> Option<AttachPoint> {
    let pinned = linked(&Pin::Tcx(interface.index));
    if pinned.is_none() && loaded.is_empty() {
        return None;
    }
    let all = bpf::tcx(interface.index).ok()?;
    let find = |program: u32| all.iter().position(|other| *other == program);
    let by_pin = pinned.and_then(|program| Some((program, find(program)?, true)));
    let by_number = || {
        let is_ours = |(_, program): &(usize, &u32)| loaded.contains(program);
        let (ahead, program) = all.iter().enumerate().find(is_ours)?;
        Some((*program, ahead, false))
    };
    let (program, ahead, is_pinned) = by_pin.or_else(by_number)?;
    Some(AttachPoint { hook: Hook::Tcx, program, ahead, is_pinned })
}

fn ours_below_clsact(
    interface: &Interface,
    loaded: &BTreeSet<u32>,
) -> Result<Option<AttachPoint>, XdpError> {
    let is_pinned = Pin::Filter(interface.index).is_there();
    if !is_pinned && loaded.is_empty() {
        return Ok(None);
    }
    let filters = tc::filters(interface.index)?;
    let is_loaded = |filter: &Filter| filter.program.is_some_and(|number| loaded.contains(&number));
    let found = filters.iter().position(|f| is_ours(f) && (is_pinned || is_loaded(f)));
    let place = found.and_then(|ahead| {
        let program = filters.get(ahead)?.program?;
        Some(AttachPoint { hook: Hook::Clsact, program, ahead, is_pinned })
    });
    Ok(place)
}

fn is_ours(filter: &Filter) -> bool {
    filter.priority == PRIORITY
        && filter.handle == HANDLE
        && filter.name.as_deref() == Some(CLASSIFIER)
}

/// The program that a pinned link has.
fn linked(pin: &Pin) -> Option<u32> {
    linked_at(&pin.path())
}

fn linked_at(path: &Path) -> Option<u32> {
    Some(Link::from_pin(path).ok()?.program)
}

/// Whether the program of the link that is pinned at `path` is on this interface, or, where it is a
/// mark, a filter of ours.
pub(super) fn is_attached(interface: &Interface, path: &Path) -> bool {
    let Some(program) = linked_at(path) else {
        return tc::filters(interface.index).is_ok_and(|filters| filters.iter().any(is_ours));
    };
    interface.xdp.is_some_and(|attached| attached.program == program)
        || bpf::tcx(interface.index).is_ok_and(|all| all.contains(&program))
}

/// Where the program belongs on an interface that has ours at these places. `tcx`: whether the
/// kernel has TCX.
pub(super) fn choose(
    interface: &Interface,
    ours: &[AttachPoint],
    mode: XdpMode,
    tcx: bool,
) -> Hook {
    let is_at = |hook: Hook| ours.iter().any(|place| place.hook == hook);
    let xdp_is_ours = ours.iter().any(|place| matches!(place.hook, Hook::Xdp(_)));
    match interface.xdp {
        Some(_) if !xdp_is_ours && (is_at(Hook::Clsact) || !tcx) => Hook::Clsact,
        Some(_) if !xdp_is_ours => Hook::Tcx,
        _ => Hook::Xdp(place_of(mode)),
    }
}

/// Whether the kernel has TCX (from Linux 6.6).
pub(super) fn has_tcx(interface: &Interface) -> bool {
    bpf::tcx(interface.index).is_ok()
}

/// What holds the program at a hook of this interface, and is released with it.
pub(super) fn pins(index: u32, hook: Hook) -> Vec<Pin> {
    match hook {
        Hook::Xdp(_) => vec![Pin::Link(index)],
        Hook::Tcx => vec![Pin::Tcx(index)],
        Hook::Clsact => vec![Pin::Filter(index), Pin::Clsact(index)],
    }
}

/// Takes the program off a hook.
pub(super) fn release(index: u32, hook: Hook) -> Result<(), XdpError> {
    pins(index, hook).iter().try_for_each(Pin::release)
}

/// Puts the program in the place of the one that is at this hook, in one step.
pub(super) fn exchange(
    programs: &mut Programs,
    interface: &Interface,
    hook: Hook,
) -> Result<(), XdpError> {
    let index = interface.index;
    match hook {
        Hook::Xdp(_) => {
            let (path, program) = (Pin::Link(index).path(), programs.xdp()?);
            let link = XdpLink::try_from(open(&Pin::Link(index))?)
                .map_err(failed(&path, "is no XDP link"))?;
            let exchanged = program.attach_to_link(link).and_then(|id| program.take_link(id));
            // The pin holds the link, which needs no descriptor of ours.
            exchanged.map(drop).map_err(failed(&path, "cannot be given another program"))
        }
        Hook::Tcx => {
            let (path, program) = (Pin::Tcx(index).path(), programs.classifier()?);
            let link = SchedClassifierLink::try_from(open(&Pin::Tcx(index))?)
                .map_err(failed(&path, "is no TCX link"))?;
            let exchanged = program.attach_to_link(link).and_then(|id| program.take_link(id));
            exchanged.map(drop).map_err(failed(&path, "cannot be given another program"))
        }
        Hook::Clsact => {
            let program = programs.classifier()?;
            let filter = SchedClassifierLink::attached(
                &interface.name,
                TcAttachType::Ingress,
                PRIORITY,
                TcHandle::from(HANDLE),
                None,
            );
            let filter = filter.map_err(|error| XdpError::Host(error.into()))?;
            let exchanged = program.attach_to_link(filter).and_then(|id| program.take_link(id));
            exchanged
                .map(std::mem::forget)
                .map_err(|error| obstacle(interface, hook, errno(&error)))
        }
    }
}

fn open(pin: &Pin) -> Result<FdLink, XdpError> {
    let path = pin.path();
    Ok(PinnedLink::from_pin(&path).map_err(failed(&path, "cannot be read"))?.into())
}

/// Attaches the program to a hook that has none of ours.
pub(super) fn attach(
    programs: &mut Programs,
    interface: &Interface,
    hook: Hook,
) -> Result<(), XdpError> {
    // What an interrupted installation or an interface that has gone has left.
    release(interface.index, hook)?;
    match hook {
        Hook::Xdp(place) => {
            let mode = match mode_of(place) {
                XdpMode::Native => xdp::XdpMode::Driver,
                XdpMode::Generic => xdp::XdpMode::Skb,
            };
            let program = programs.xdp()?;
            let attached = program.attach_to_if_index(interface.index, mode);
            let link = attached
                .and_then(|id| program.take_link(id))
                .map_err(|error| obstacle(interface, hook, errno(&error)))?;
            // Without a link, dropping it has detached the program again.
            keep(FdLink::try_from(link).ok(), interface, &Pin::Link(interface.index))
        }
        Hook::Tcx => {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            let program = programs.classifier()?;
            let attached =
                program.attach_with_options(&interface.name, TcAttachType::Ingress, order);
            let link = attached
                .and_then(|id| program.take_link(id))
                .map_err(|error| obstacle(interface, hook, errno(&error)))?;
            keep(FdLink::try_from(link).ok(), interface, &Pin::Tcx(interface.index))
        }
        Hook::Clsact => attach_below_clsact(programs, interface),
    }
}

fn keep(link: Option<FdLink>, interface: &Interface, pin: &Pin) -> Result<(), XdpError> {
    let no_link =
        || XdpError::Interface { interface: interface.name.clone(), obstacle: Obstacle::NoLink };
    let path = pin.path();
    link.ok_or_else(no_link)?.pin(&path).map(drop).map_err(failed(&path, "cannot be pinned"))
}

/// The marks come first: should we be killed between two steps, they tell what is to be removed.
fn attach_below_clsact(programs: &mut Programs, interface: &Interface) -> Result<(), XdpError> {
    let fault = |errno| obstacle(interface, Hook::Clsact, errno);
    Pin::Filter(interface.index).mark()?;
    Pin::Clsact(interface.index).mark()?;
    if !tc::add_clsact(interface.index).map_err(fault)? {
        // It was there: it is somebody else's.
        Pin::Clsact(interface.index).remove()?;
    }
    let first = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: TcHandle::from(HANDLE),
        classid: None,
    });
    let program = programs.classifier()?;
    let attached = program.attach_with_options(&interface.name, TcAttachType::Ingress, first);
    let filter = attached.and_then(|id| program.take_link(id));
    // Dropped, it would take the filter away.
    filter.map(std::mem::forget).map_err(|error| fault(errno(&error)))
}

fn obstacle(interface: &Interface, hook: Hook, errno: nix::errno::Errno) -> XdpError {
    let obstacle = match hook {
        Hook::Xdp(_) => Obstacle::at_xdp(errno, interface.mtu),
        Hook::Tcx | Hook::Clsact => Obstacle::AtTc { hook, errno },
    };
    XdpError::Interface { interface: interface.name.clone(), obstacle }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::link::XdpPlace;

    fn interface(xdp: Option<u32>) -> Interface {
        let attached = |program| AttachedXdp { place: XdpPlace::Native, program };
        Interface { xdp: xdp.map(attached), ..Interface::default() }
    }

    fn at(hook: Hook) -> [AttachPoint; 1] {
        [AttachPoint { hook, program: 7, ahead: 0, is_pinned: true }]
    }

    #[test]
    fn the_program_goes_to_xdp_unless_anothers_is_there() {
        let (native, generic) = (Hook::Xdp(XdpPlace::Native), Hook::Xdp(XdpPlace::Generic));
        let choose =
            |xdp, ours: &[AttachPoint], mode, tcx| choose(&interface(xdp), ours, mode, tcx);
        assert_eq!(choose(None, &[], XdpMode::Native, true), native);
        assert_eq!(choose(None, &[], XdpMode::Generic, true), generic);
        assert_eq!(choose(Some(7), &at(native), XdpMode::Generic, true), generic);
        assert_eq!(choose(Some(3), &[], XdpMode::Native, true), Hook::Tcx);
        assert_eq!(choose(Some(3), &[], XdpMode::Native, false), Hook::Clsact);
    }

    #[test]
    fn a_program_at_the_tc_hook_stays_as_it_is_while_anothers_is_at_xdp_and_no_longer() {
        let (native, clsact) = (Hook::Xdp(XdpPlace::Native), at(Hook::Clsact));
        assert_eq!(choose(&interface(Some(3)), &clsact, XdpMode::Native, true), Hook::Clsact);
        assert_eq!(choose(&interface(None), &clsact, XdpMode::Native, true), native);
        assert_eq!(choose(&interface(None), &at(Hook::Tcx), XdpMode::Native, true), native);
    }
}
