//! What brings packets to the agent, or to whatever stands for it, where no chain of agent-fw's can
//! see them as packets to the agent's port: rules of this host that send the port elsewhere, or
//! something else to the agent's socket.

mod legacy;
mod rule;

use super::detour::Detour;
use super::entrance_detours;
use super::reach::Reach;
use super::rewriting::{self, Rewriting};
use super::rule_text::{elements, verdicts, words_of};
use crate::model::{AddressSet, Ordinal as _, Port, RangeSet};
use crate::netlink::listeners;
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, text};
use crate::netlink::routes::local_addresses;
use crate::trace::base_chains::Base;
use crate::trace::events::ChainRef;
use crate::trace::{base_chains, iptables_legacy};
use legacy::of_lines;
use rule::{Ask, Rule, Told};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The ways past the gate that this host has, as far as its rules and programs tell. `last` is the
/// priority at `input` where packets to these ports are decided on for the last time.
pub fn detours(ports: &RangeSet<Port>, last: i32) -> anyhow::Result<Vec<Detour>> {
    let mut connection = Connection::open()?;
    let bases = base_chains::list(&mut connection)?;
    let every_family = 0;
    let rules = connection.dump(Kind::GetRule, every_family, &[])?;
    let mut found = Vec::new();
    // A table of agent-fw's sees packets nearly last of all, with the port that they have then.
    let is_lone = !bases.keys().any(|base| base.table == GATE);
    let here = rewriting::addresses();
    let known = Known { ports, here: &here, local: &local_addresses(), takes: takes_handed(ports) };
    let mut read = Vec::new();
    for message in &rules {
        let (Some(table), Some(chain)) = (message.text(1), message.text(2)) else { continue };
        let at = ChainRef { family: message.family, table, chain };
        if OURS.contains(&at.table.as_str()) {
            continue;
        }
        let mut rule = Rule::new(&known);
        let mut rewriting = Rewriting::new(ports, &here);
        for (_, expression) in attributes(message.find(EXPRESSIONS).unwrap_or_default()) {
            let name = find(expression, 1).map(text).unwrap_or_default();
            let data = find(expression, 2).unwrap_or_default();
            rule.add(&name, data, &mut |ask| match ask {
                Ask::Set(set) => Told::Keys(elements(&mut connection, &at, set)),
                Ask::Verdicts(map) => Told::Chains(verdicts(&mut connection, &at, map)),
            });
            rewriting.add(&name, data);
        }
        read.push((at, rule, rewriting, message));
    }
    let jumps = |needs_port: bool| {
        let read = read.iter().filter(move |(_, rule, ..)| rule.is_about_port || !needs_port);
        read.flat_map(|(at, rule, ..)| rule.jumps.iter().map(move |to| (at, to.as_str())))
    };
    let (reach, reach_with_port) =
        (Reach::of(&bases, &jumps(false)), Reach::of(&bases, &jumps(true)));
    for (at, rule, rewriting, message) in &read {
        // Of two chains with one priority, it is not known which comes first.
        let is_last = |base: &Base| base.hook == "input" && base.priority >= last;
        let is_incoming = |base: &Base| !matches!(base.hook, "output" | "postrouting");
        if rewriting.rewrites() && is_lone && reach.bases(at).iter().any(is_incoming) {
            found.push(Detour::Rewritten { rule: describe(&mut connection, at, message) });
        } else if rewriting.rewrites() && reach.bases(at).iter().any(is_last) {
            found.push(Detour::RewrittenLast { rule: describe(&mut connection, at, message) });
        }
        if let Some(make) = rule.concerns(reach_with_port.bases(at)) {
            found.push(make(describe(&mut connection, at, message)));
        }
    }
    let rewriting = Rewriting::new(ports, &here);
    if iptables_legacy::has_tables() {
        for is_v4 in [true, false] {
            let saved = iptables_legacy::saved(is_v4, &[]);
            found.extend(of_lines(&saved, &known));
            for line in saved.lines().filter(|line| is_lone && rewriting.is_line(line)) {
                found.push(Detour::Rewritten { rule: format!("iptables-legacy: {line}") });
            }
        }
    }
    let balanced =
        if is_lone || last < IPVS_PRIORITY { rewriting::balanced(&rewriting) } else { Vec::new() };
    for rule in balanced {
        found.push(if is_lone {
            Detour::Rewritten { rule }
        } else {
            Detour::RewrittenLast { rule }
        });
    }
    if is_lone {
        found.extend(rewriting::unpacked().into_iter().map(|from| Detour::Unpacked { from }));
    }
    found.extend(entrance_detours::delivered());
    found.extend(entrance_detours::at_entrances(ports, is_lone)?);
    found.extend(choosers());
    Ok(found)
}

/// Where IPVS takes packets, at `input` (`NF_IP_PRI_NAT_SRC - 2`).
const IPVS_PRIORITY: i32 = 98;
/// The gate's table.
const GATE: &str = "agent_fw";
/// agent-fw's tables, of whatever family.
const OURS: [&str; 3] = [GATE, "agent_fw_policy", "agent_fw_guard"];
/// `NFTA_RULE_EXPRESSIONS`.
const EXPRESSIONS: u16 = 4;

fn describe(connection: &mut Connection, at: &ChainRef, message: &Message) -> String {
    format!("{at}: {}", words_of(connection, at, message))
}

/// Whether a rule with TPROXY can hand packets to a socket of these ports: only one that has asked for
/// them (`IP_TRANSPARENT`) gets any. Where none listens, it is not known which will.
fn takes_handed(ports: &RangeSet<Port>) -> bool {
    let Ok(listeners) = listeners::list() else { return true };
    let mut ours =
        listeners.iter().filter(|listener| ports.contains(Port(listener.port))).peekable();
    ours.peek().is_none() || ours.any(|listener| listener.is_transparent)
}

/// What is known of the host.
struct Known<'a> {
    ports: &'a RangeSet<Port>,
    /// The addresses of interfaces.
    here: &'a BTreeSet<IpAddr>,
    /// The addresses at which this host takes packets.
    local: &'a AddressSet,
    /// Whether a socket of the ports takes what TPROXY hands it.
    takes: bool,
}

/// Whether some port meets the condition.
fn any(ports: &RangeSet<Port>, meets: impl Fn(u16) -> bool) -> bool {
    let all = |range: &crate::model::Range<Port>| {
        std::iter::successors(Some(range.first()), |port| port.next())
            .take_while(move |port| *port <= range.last())
            .any(|port| meets(port.0))
    };
    ports.ranges().iter().any(all)
}

/// BPF programs that choose sockets. Which of them is attached where, the kernel tells of none.
#[cfg(feature = "xdp")]
fn choosers() -> Vec<Detour> {
    use aya::programs::loaded_programs;
    use aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP;
    let is_one =
        |program: &aya::programs::ProgramInfo| program.program_type() == BPF_PROG_TYPE_SK_LOOKUP;
    let chosen = |program: aya::programs::ProgramInfo| Detour::Chosen {
        program: program.id(),
        name: program.name_as_str().unwrap_or("without a name").to_owned(),
    };
    loaded_programs().filter_map(Result::ok).filter(is_one).map(chosen).collect()
}

#[cfg(not(feature = "xdp"))]
fn choosers() -> Vec<Detour> {
    Vec::new()
}
