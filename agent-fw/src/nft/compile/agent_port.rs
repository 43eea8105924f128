//! From a policy to an nftables ruleset.

use crate::model::Family;
use crate::model::rule::AgentPolicy;
use crate::model::{DefaultAction, OriginMap, Policy, TableName};
use crate::nft::compile::sources::{LookupCost, Sources, Stage};
use crate::nft::counters::{LEFT, LabelCounters, REFUSED, REFUSED_EARLY};
use crate::nft::stamp::Stamp;
use crate::nft::statement::{End, Rule, Statement};
use crate::nft::table::{BaseChain, Chain, Elements, Hook, Key, Set, Table};
use crate::nft::{GATE_PRIORITY, Image, LATE_PRIORITY, counters};

/// A table whose rules a person can read.
pub type Ruleset = Table<Rule>;

/// What a ruleset does besides deciding.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Extras {
    /// Drops refused packets at `prerouting` already, before connection tracking spends time on
    /// them. There a packet that is to be redirected still shows the port it was sent to, so the
    /// gate at `input` stays.
    pub early_drop: bool,
    /// Writes refused packets to the kernel's log, [`LOG_RATE`] a second.
    pub log: bool,
}

/// The base chain at `input`: the authoritative check.
pub(crate) const GATE: &str = "gate";
/// The base chain at the end of `input`: it sees the packets that somebody has made into ones to the
/// agent's port behind the gate (IPVS, a rule that sets the port).
const LATE: &str = "late";
/// The base chain at the end of `output`, which learns what this host itself sends to the port.
const SENT: &str = "sent";
/// The chain that admits that, where it comes in.
const OWN: &str = "own";
/// The base chain at `prerouting`, with `early_drop`.
const EARLY: &str = "early";
/// The chain for packets to the agent's port.
const AGENT_PORT: &str = "agent_port";
/// The set of the agent's ports, where there are several.
const PORTS: &str = "agent_ports";

/// Where this host itself talks to the port from, just now: what [`SENT`] has learned.
const OWN_V4: &str = "own_v4";
const OWN_V6: &str = "own_v6";
const OWN_PORTS: &str = "own_ports";
/// The number of TCP, and its flags.
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The comment of agent-fw's tables.
pub(crate) const COMMENT: &str = "made by agent-fw, which replaces it whole";

/// Refused packets that are logged in a second, so that a flood does not fill the disk.
pub const LOG_RATE: u64 = 10;
pub(crate) const LOG_BURST: u32 = 5;
const LOG_PREFIX: &str = "agent-fw refused: ";

impl Ruleset {
    /// Compiles a policy.
    pub fn compile(lowered: &AgentPolicy, extras: Extras) -> Self {
        let AgentPolicy { policy, ledger } = lowered;
        let labels = LabelCounters::new(ledger);
        let mut sets = ports(policy);
        sets.extend(own_sets());
        let sources = sources(policy, ledger, &labels, &mut sets);
        let mut chains = gate(policy, &sources, extras);
        chains.extend(own(policy));
        if policy.drops_others() {
            chains.extend(closed(Stage::Late, policy, &sources, extras));
        }
        let mut counters = labels.counters;
        counters.extend(counters::of_others(policy));
        if extras.early_drop && policy.drops_others() {
            chains.extend(closed(Stage::Early, policy, &sources, extras));
            counters.push(counters::of_early_drops());
        }
        Self { name: TableName::Gate, comment: COMMENT.to_owned(), counters, sets, chains }
    }

    /// How the sources of a policy are looked up, and what that costs.
    pub fn lookup_costs(lowered: &AgentPolicy) -> Vec<LookupCost> {
        let AgentPolicy { policy, ledger } = lowered;
        let sources = sources(policy, ledger, &LabelCounters::new(ledger), &mut Vec::new());
        sources.iter().flat_map(Sources::costs).collect()
    }

    /// The ruleset in the kernel's terms.
    pub fn into_image(self) -> Image {
        self.map_rules(Rule::into_program)
    }
}

/// The sources of each admission, and their sets.
fn sources(
    policy: &Policy,
    ledger: &OriginMap,
    labels: &LabelCounters,
    sets: &mut Vec<Set>,
) -> Vec<Sources> {
    let admissions = policy.admissions().iter().enumerate();
    admissions
        .map(|(index, admission)| Sources::new(index, admission, ledger, labels, sets))
        .collect()
}

/// The set of the agent's ports, unless there is one port, which the rule itself compares with.
fn ports(policy: &Policy) -> Vec<Set> {
    match to_agent_port(policy) {
        Statement::TcpToAnyOf(name) => {
            vec![Set { name, elements: Elements::Port(policy.ports().ranges().to_vec()) }]
        }
        _ => vec![],
    }
}

fn to_agent_port(policy: &Policy) -> Statement {
    match policy.ports().ranges() {
        [range] if range.first() == range.last() => Statement::TcpTo(range.first()),
        _ => Statement::TcpToAnyOf(PORTS.to_owned()),
    }
}

fn gate(policy: &Policy, sources: &[Sources], extras: Extras) -> Vec<Chain<Rule>> {
    let stamp = Stamp::of(policy).to_string();
    let jump = Statement::Jump(Stage::Gate.chain(AGENT_PORT));
    let base = Chain {
        name: GATE.to_owned(),
        base: Some(BaseChain { hook: Hook::Input, priority: GATE_PRIORITY }),
        rules: vec![Rule::new([to_agent_port(policy), jump]).with_comment(stamp)],
    };
    let mut branches = Vec::new();
    let admit = sources.iter().flat_map(|sources| sources.rules(Stage::Gate, &mut branches));
    let rules = exempt().into_iter().chain(admit).chain(others(policy, extras)).collect();
    let decide = Chain { name: Stage::Gate.chain(AGENT_PORT), base: None, rules };
    [base, decide].into_iter().chain(branches).collect()
}

/// Writes some of the packets that come so far to the log.
fn log() -> Rule {
    Rule::new([
        Statement::Limit { rate: LOG_RATE, burst: LOG_BURST },
        Statement::Log { prefix: LOG_PREFIX.to_owned() },
    ])
}

/// What becomes of those that no rule before has admitted.
fn others(policy: &Policy, extras: Extras) -> Vec<Rule> {
    match policy.others() {
        _ if policy.admits_everyone() => vec![],
        DefaultAction::Continue => vec![Rule::new([Statement::Count(LEFT.to_owned())])],
        DefaultAction::Drop => {
            let refuse = Rule::new([Statement::Count(REFUSED.to_owned()), Statement::Drop]);
            if extras.log { vec![log(), refuse] } else { vec![refuse] }
        }
    }
}

/// Another chain that decides as the gate does, elsewhere: what it drops, the gate has not seen as a
/// packet to the port, or will not see.
fn closed(stage: Stage, policy: &Policy, sources: &[Sources], extras: Extras) -> Vec<Chain<Rule>> {
    let to_port = to_agent_port(policy);
    let jump = Statement::Jump(stage.chain(AGENT_PORT));
    let (name, hook, priority, counter, to_port) = match stage {
        Stage::Early => {
            let here = vec![to_port, Statement::ToThisHost];
            (EARLY, Hook::Prerouting, GATE_PRIORITY, REFUSED_EARLY, here)
        }
        Stage::Gate | Stage::Late => (LATE, Hook::Input, LATE_PRIORITY, REFUSED, vec![to_port]),
    };
    let base = Chain {
        name: name.to_owned(),
        base: Some(BaseChain { hook, priority }),
        rules: vec![Rule::new(to_port.into_iter().chain([jump]))],
    };
    let mut branches = Vec::new();
    let admit = sources.iter().flat_map(|sources| sources.rules(stage, &mut branches));
    let refuse = Rule::new([Statement::Count(counter.to_owned()), Statement::Drop]);
    let log = extras.log.then(log);
    let rules = exempt().into_iter().chain(admit).chain(log).chain([refuse]).collect();
    let decide = Chain { name: stage.chain(AGENT_PORT), base: None, rules };
    [base, decide].into_iter().chain(branches).collect()
}

/// What this host sends to itself is not filtered. It comes in by loopback, or by a VRF's own
/// device; but so does what others send by MPLS, or to an interface of the VRF, and they can forge
/// this host's addresses. So it has to have been sent just now.
fn exempt() -> [Rule; 2] {
    [Statement::FromLoopback, Statement::FromVrf]
        .map(|by| Rule::new([by, Statement::Jump(OWN.to_owned())]))
}

fn own_sets() -> [Set; 3] {
    [(OWN_V4, Key::V4), (OWN_V6, Key::V6), (OWN_PORTS, Key::Port)]
        .map(|(name, key)| Set { name: name.to_owned(), elements: Elements::Learned(key) })
}

/// The chains that learn what this host sends to the port, and admit it.
///
/// Nothing that a packet carries tells a host's own from a forged one, nor does the kernel keep
/// where it came from: `fib` knows no addresses of a VRF before Linux 6.16 and no link-local ones,
/// `meta sdif` of an own packet in a VRF is the VRF only for IPv4, and connection tracking is not
/// switched on by us.
fn own(policy: &Policy) -> [Chain<Rule>; 2] {
    let families = [(Family::V4, OWN_V4), (Family::V6, OWN_V6)];
    // A stranger can have this host send from a port of his choice to the agent's: answers to
    // forged packets. Those teach nothing.
    let flags = |mask, value, not| Statement::TcpFlags { mask, value, not };
    let begins_or_goes_on = [flags(SYN | ACK, SYN | ACK, true), flags(RST, 0, false)];
    let learn = families.map(|(family, set)| {
        let learn = [
            Statement::Is(family),
            Statement::LearnSource(family, set.to_owned()),
            Statement::LearnSourcePort(OWN_PORTS.to_owned()),
        ];
        Rule::new([to_agent_port(policy)].into_iter().chain(begins_or_goes_on.clone()).chain(learn))
    });
    let admit = families.map(|(family, set)| {
        Rule::new([
            Statement::Is(family),
            Statement::AddressIn(End::Source, family, set.to_owned()),
            Statement::PortIn(End::Source, OWN_PORTS.to_owned()),
            Statement::Accept,
        ])
    });
    // A connection of this host's own that has slept is reset without having been learned. Forged, a
    // reset does no more than one from a listed source, which can be forged anywhere.
    let reset = [Statement::FromLoopback, Statement::ProtocolIs(TCP), flags(SYN | RST, RST, false)];
    let reset =
        [vec![Statement::FromThisHost], vec![Statement::Is(Family::V6), Statement::FromLinkLocal]]
            .map(|from| Rule::new(reset.iter().cloned().chain(from).chain([Statement::Accept])));
    let base = Some(BaseChain { hook: Hook::Output, priority: LATE_PRIORITY });
    [
        Chain { name: SENT.to_owned(), base, rules: learn.into() },
        Chain { name: OWN.to_owned(), base: None, rules: admit.into_iter().chain(reset).collect() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressSet, Admission, MacMatch, Origin, Port, Range};
    use crate::nft::{Expression, Program};
    use std::net::Ipv4Addr;

    /// A gate with so many single sources, far from each other.
    fn gate(sources: u32) -> Image {
        let single = |number: u32| Range::single(Ipv4Addr::from_bits(0x0a00_0000 + 2 * number));
        let v4 = (0..sources).map(single).collect();
        let addresses = AddressSet { v4, ..AddressSet::default() };
        let admission = Admission { macs: MacMatch::Any, addresses: addresses.clone() };
        let policy =
            Policy::new(Range::single(Port::AGENT).into(), DefaultAction::Drop, [admission]);
        let ledger = OriginMap::new([(Origin::Address, addresses)]);
        Ruleset::compile(&AgentPolicy { policy, ledger }, Extras::default()).into_image()
    }

    #[test]
    fn a_gate_that_admits_nobody_has_every_set_that_it_looks_into() {
        for sources in [1, 3, 300_000] {
            let closed = gate(sources).into_twin().into_closed();
            let rules: Vec<(&str, &Program)> = closed
                .chains
                .iter()
                .flat_map(|chain| chain.rules.iter().map(|rule| (chain.name.as_str(), rule)))
                .collect();
            for (chain, rule) in rules {
                for expression in &rule.expressions {
                    if let Expression::Lookup { set } | Expression::Learn { set } = expression {
                        assert!(closed.sets.iter().any(|known| known.name == *set), "{rule}");
                    }
                }
                let accepts = rule.expressions.contains(&Expression::Accept);
                assert!(!accepts || chain == OWN, "{sources} sources, chain {chain}: {rule}");
            }
        }
    }
}
