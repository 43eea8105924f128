//! Programs and filters at an interface's tc hook, which may end a packet before nf_tables sees it.

use super::driver::{self, TcAction};
use super::path::Conclusion;
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

/// What becomes of a frame at an interface's exit; nothing, where all that is there lets it pass.
pub(super) fn at_exit(interface: &Interface, frame: &[u8]) -> Option<Conclusion> {
    let programs = bpf::tcx_of_egress(interface.index).unwrap_or_default();
    let filters = tc::filters_of_egress(interface.index).unwrap_or_default();
    let harmless = filters.iter().map(|filter| filter.never_ends);
    let harmless: Vec<bool> = vec![false; programs.len()].into_iter().chain(harmless).collect();
    let all = in_words(programs, filters).into_iter().zip(harmless);
    all.filter(|(_, is_harmless)| !is_harmless).find_map(|((name, program), _)| {
        let at = format!("at the exit of {}", interface.name);
        let asked = program.map(|number| driver::ask_classifier(number, frame, interface.index));
        match asked {
            Some(Ok(TcAction::Passes)) => None,
            Some(Ok(TcAction::Ends)) => Some(Conclusion::ByProgram(format!("{at}, by {name}"))),
            Some(Err(error)) => {
                let why = format!("{name} {at} could not be run on the packet ({error})");
                Some(Conclusion::NotKnown(why))
            }
            None => Some(Conclusion::NotKnown(format!(
                "whether {name} {at} lets the packet out cannot be asked"
            ))),
        }
    })
}

/// Each in words and, where it is a program, with its number.
fn attached(interface: u32) -> Vec<(String, Option<u32>)> {
    let filters = tc::filters(interface).unwrap_or_default();
    in_words(bpf::tcx(interface).unwrap_or_default(), filters)
}

fn in_words(programs: Vec<u32>, filters: Vec<tc::Filter>) -> Vec<(String, Option<u32>)> {
    let mut all = Vec::new();
    for program in programs {
        let name = Program::of(program).map_or("without a name".to_owned(), |program| program.name);
        all.push((format!("tc program {name} (number {program})"), Some(program)));
    }
    for filter in filters {
        let tc::Filter { priority, kind, name, program, .. } = filter;
        let name = name.map_or_else(String::new, |name| format!(" {name}"));
        all.push((format!("tc filter {kind}{name} of priority {priority}"), program));
    }
    all
}
