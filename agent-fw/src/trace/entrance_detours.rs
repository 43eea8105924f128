//! What brings packets past the gate before any chain has seen them, or beside all of them: what the
//! kernel takes out of UDP, and programs and filters at an interface's entrance.

use super::detour::Detour;
use crate::model::{Port, RangeSet};
use crate::netlink::bpf::{self, Program};
use crate::netlink::link::Interface;
use crate::netlink::{fou, link, tc};

/// The name of agent-fw's own program at the tc hook.
const OWN: &str = "agent_fw_tc";

/// UDP ports of which what comes out is TCP.
pub(super) fn delivered() -> Vec<Detour> {
    let all = fou::ports().unwrap_or_default().into_iter();
    let ports = all.filter(|port| port.carries.may_be_tcp());
    ports.map(|port| Detour::Delivered { udp: port.number, is_v4: port.is_v4 }).collect()
}

/// Programs and filters of others. `is_lone`: whether no table of agent-fw's sees what they change.
pub(super) fn at_entrances(ports: &RangeSet<Port>, is_lone: bool) -> anyhow::Result<Vec<Detour>> {
    let mut found = Vec::new();
    for interface in link::list()? {
        let filters = tc::filters(interface.index)?;
        let programs = bpf::tcx(interface.index).unwrap_or_default().into_iter();
        let programs = programs.chain(filters.iter().filter_map(|filter| filter.program));
        found.extend(programs.filter_map(|number| program(number, &interface)));
        for filter in &filters {
            let at = format!(
                "tc filter {} of priority {} at the entrance of {}",
                filter.kind, filter.priority, interface.name
            );
            let is_ours = |port: &Option<u16>| port.is_none_or(|port| ports.contains(Port(port)));
            if is_lone && filter.changes.ports.iter().any(is_ours) {
                found.push(Detour::Rewritten { rule: at });
            } else if filter.changes.others {
                found.push(Detour::Classified { by: at });
            }
        }
    }
    Ok(found)
}

/// A program of others; none where it is agent-fw's, or its name is not told.
fn program(number: u32, interface: &Interface) -> Option<Detour> {
    let name = Program::of(number).ok()?.name;
    let by = format!(
        "tc program {} (number {number}) at the entrance of {}",
        name.escape_debug(),
        interface.name
    );
    (name != OWN).then_some(Detour::Classified { by })
}
