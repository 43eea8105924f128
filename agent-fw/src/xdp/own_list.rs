//! The list by which a program knows this host's frames, as the kernel has it, beside what it should be.
//! The list has a pin: to ask for a map by its number takes CAP_SYS_ADMIN, which units do not have.

use super::attach::with_ports;
use super::own_frames::own_frames;
use super::pin::{Enforced, Pin};
use crate::netlink::bpf::Program;
use crate::netlink::link::Interface;
use crate::netlink::surroundings::Surroundings;
use agent_fw_ebpf::{Mac, OwnFrames};
use aya::maps::{HashMap, Map, MapData};
use std::collections::BTreeMap;

/// By the index of an interface, the frames that are taken for this host's; `None` where no pin shows
/// the list.
pub(super) struct OwnList(Option<BTreeMap<u32, OwnFrames>>);

impl OwnList {
    /// The one of a pinned program.
    pub(super) fn of(program: &Program, enforced: Enforced) -> Self {
        Self(read(program, enforced))
    }

    /// What it has otherwise than it should be at an interface, in words: the frames are those of the
    /// interface, or of one of its ports.
    pub(super) fn mistake(&self, interface: &Interface, seen: &Surroundings) -> Option<String> {
        let Some(found) = &self.0 else {
            return Some("has no pin that shows which frames it takes for this host's".to_owned());
        };
        with_ports(interface, seen).find_map(|at| {
            let (found, due) = (found.get(&at.index).copied(), own_frames(at, seen));
            let port = if at.index == interface.index {
                String::new()
            } else {
                format!(" of its port {}", at.name)
            };
            let [takes, should_be] = [found, due].map(words);
            (found != due)
                .then(|| format!("takes {takes}{port} for this host's, should be {should_be}"))
        })
    }
}

fn read(program: &Program, enforced: Enforced) -> Option<BTreeMap<u32, OwnFrames>> {
    let pinned = MapData::from_pin(Pin::OwnFrames(enforced).path()).ok()?;
    // Somebody may have pinned another map there.
    let number = pinned.info().ok()?.id();
    if !program.has_map(number) {
        return None;
    }
    let list = HashMap::<_, u32, OwnFrames>::try_from(Map::from_map_data(pinned).ok()?).ok()?;
    list.iter().collect::<Result<_, _>>().ok()
}

/// Frames that are taken for this host's, in words.
fn words(own: Option<OwnFrames>) -> String {
    let Some(own) = own else { return "no frames".to_owned() };
    let mut words = format!("frames to {}", Mac::from_bits(own.mac));
    if own.has(OwnFrames::RULES) {
        words += " whose destination the main table has";
    }
    if !own.has(OwnFrames::ALONE) {
        words += ", shared with others,";
    }
    words
}
