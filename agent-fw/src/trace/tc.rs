//! Programs and filters at an interface's tc hook, which may end a packet before nf_tables sees it.

use super::driver::{self, TcAction};
use crate::netlink::bpf::Program;
use crate::netlink::link::Interface;
use crate::netlink::{bpf, tc};

/// What at the interface's entrance may have ended the frame, in words: first what does so when it
/// is run on it, and if nothing does, everything that is there.
pub(super) fn suspects(interface: &Interface, frame: &[u8]) -> Vec<String> {
    let all = attached(interface.index);
    let ends = |program: &u32| {
        driver::ask_classifier(*program, frame, interface.index).is_ok_and(|a| a == TcAction::Ends)
    };
    let guilty = all.iter().find(|(_, program)| program.as_ref().is_some_and(ends));
    match guilty {
        Some((name, _)) => vec![name.clone()],
        None => all.into_iter().map(|(name, _)| name).collect(),
    }
}

/// The programs and filters at an interface's tc hook for what comes in, in words.
pub fn tc_programs(interface: u32) -> Vec<String> {
    attached(interface).into_iter().map(|(name, _)| name).collect()
}

/// Each in words and, where it is a program, with its number.
fn attached(interface: u32) -> Vec<(String, Option<u32>)> {
    let mut all = Vec::new();
    for program in bpf::tcx(interface).unwrap_or_default() {
        let name = Program::of(program).map_or("without a name".to_owned(), |program| program.name);
        all.push((format!("tc program {name} (number {program})"), Some(program)));
    }
    for filter in tc::filters(interface).unwrap_or_default() {
        let tc::Filter { priority, kind, name, program, .. } = filter;
        let name = name.map_or_else(String::new, |name| format!(" {name}"));
        all.push((format!("tc filter {kind}{name} of priority {priority}"), program));
    }
    all
}
