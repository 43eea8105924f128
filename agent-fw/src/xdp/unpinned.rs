//! Our programs on interfaces that no pin of this network namespace explains: another BPF file
//! system covers the one with the pins, it cannot be written to, or the interface was in another
//! namespace meanwhile. The kernel is asked for them, which takes CAP_SYS_ADMIN: without it, there
//! are the pins alone.

use super::error::XdpError;
use super::hook::{self, AttachPoint, CLASSIFIER};
use super::pin::{Enforced, MapName, Pin, failed};
use super::state::Hook;
use crate::netlink::bpf::{Link, LinkKind, Program};
use crate::netlink::link::Interface;
use crate::netlink::{bpf, link, tc};
use anyhow::anyhow;
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// XDP's program in the object.
pub(super) const XDP: &str = "agent_fw_xdp";

/// The numbers of all programs in the kernel that are agent-fw's, of whatever build and network
/// namespace; none where it may not be asked. A program is known by its name and those of its maps:
/// its tag changes with each build.
pub(super) fn loaded() -> BTreeSet<u32> {
    let is_ours = |number: &u32| {
        let program = Program::of(*number);
        program.and_then(|program| is_ours(&program)).unwrap_or_default()
    };
    bpf::programs().unwrap_or_default().into_iter().filter(is_ours).collect()
}

fn is_ours(program: &Program) -> io::Result<bool> {
    if ![XDP, CLASSIFIER].contains(&program.name.as_str()) {
        return Ok(false);
    }
    let maps = program.map_names()?;
    Ok([MapName::Tally, MapName::Samples]
        .iter()
        .all(|map| maps.iter().any(|name| name == map.in_object())))
}

/// Where on this namespace's interfaces such programs are.
fn places() -> Result<Vec<(Interface, AttachPoint)>, XdpError> {
    let loaded = loaded();
    let mut found = Vec::new();
    if loaded.is_empty() {
        return Ok(found);
    }
    for interface in link::list()? {
        let places = hook::ours(&interface, &loaded)?.into_iter();
        found.extend(
            places.filter(|place| !place.is_pinned).map(|place| (interface.clone(), place)),
        );
    }
    Ok(found)
}

/// The link that has the program in its place.
fn link_of(interface: &Interface, place: &AttachPoint) -> io::Result<Option<Link>> {
    let kind = match place.hook {
        Hook::Xdp(_) => LinkKind::Xdp,
        Hook::Tcx => LinkKind::Tcx,
        Hook::Clsact => return Ok(None),
    };
    let wanted = (kind, interface.index, place.program);
    let is_wanted = |link: &Link| (link.kind, link.interface, link.program) == wanted;
    Ok(bpf::links()?.into_iter().find(is_wanted))
}

/// Pins them as ours, so that they are exchanged, put back and taken off like others.
pub(super) fn adopt() -> Result<(), XdpError> {
    for (interface, place) in places()? {
        let pin = match place.hook {
            Hook::Xdp(_) => Pin::Link(interface.index),
            Hook::Tcx => Pin::Tcx(interface.index),
            Hook::Clsact => Pin::Filter(interface.index),
        };
        let path = pin.path();
        let cannot = || failed(&path, "cannot be made");
        let program = Program::of(place.program).map_err(cannot())?;
        if let Some(link) = link_of(&interface, &place).map_err(cannot())? {
            let same =
                |pin: &Pin| Link::from_pin(&pin.path()).is_ok_and(|l| l.number == link.number);
            if let Some(other) = Pin::list()?.iter().find(|pin| same(pin)) {
                // The interface has another number than it had.
                fs::rename(other.path(), &path).map_err(cannot())?;
            } else {
                pin.remove()?;
                link.pin(&path).map_err(cannot())?;
            }
        } else if place.hook == Hook::Clsact && !pin.is_there() {
            // A mark: what it holds is of no matter.
            program.pin(&path).map_err(cannot())?;
        }
        let is_known = |pin: &Pin| matches!(pin, Pin::Program(_) | Pin::Classifier(_));
        if !Pin::list()?.iter().any(is_known) {
            let pin = match place.hook {
                Hook::Xdp(_) => Pin::Program(Enforced::UNKNOWN),
                Hook::Tcx | Hook::Clsact => Pin::Classifier(Enforced::UNKNOWN),
            };
            program.pin(&pin.path()).map_err(failed(&pin.path(), "cannot be made"))?;
        }
    }
    Ok(())
}

/// Takes them off.
pub(super) fn release() -> Result<(), XdpError> {
    for (interface, place) in places()? {
        let detached = match (place.hook, link_of(&interface, &place)) {
            (Hook::Clsact, _) => tc::remove_filter(interface.index).map_err(Into::into),
            (_, Ok(Some(link))) => link.detach().map_err(anyhow::Error::from),
            (_, Ok(None)) => Err(anyhow!("it has no link")),
            (_, Err(error)) => Err(error.into()),
        };
        detached.map_err(|error| {
            let AttachPoint { hook, program, .. } = place;
            let what = format!("cannot take program {program} off {hook} on {}", interface.name);
            XdpError::Host(error.context(what))
        })?;
    }
    Ok(())
}
