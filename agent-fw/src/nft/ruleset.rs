//! From a policy to an nftables ruleset.

use super::counters::{self, LEFT, LabelCounters, REFUSED, REFUSED_EARLY};
use super::sources::{Sources, Stage};
use super::stamp::Stamp;
use super::statement::{Rule, Statement};
use super::table::{BaseChain, Chain, Elements, Hook, Set, Table};
use super::{GATE_PRIORITY, Image, TableName};
use crate::policy::{Others, Policy};
use crate::rule::Lowered;

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
pub(super) const GATE: &str = "gate";
/// The base chain at `prerouting`, with `early_drop`.
const EARLY: &str = "early";
/// The chain for packets to the agent's port.
const AGENT_PORT: &str = "agent_port";
/// The set of the agent's ports, where there are several.
const PORTS: &str = "agent_ports";

/// The comment of agent-fw's tables.
pub(crate) const COMMENT: &str = "made by agent-fw, which replaces it whole";

/// Refused packets that are logged in a second, so that a flood does not fill the disk.
pub const LOG_RATE: u64 = 10;
pub(crate) const LOG_BURST: u32 = 5;
const LOG_PREFIX: &str = "agent-fw refused: ";

impl Ruleset {
    /// Compiles a policy.
    pub fn compile(lowered: &Lowered, extras: Extras) -> Self {
        let Lowered { policy, ledger } = lowered;
        let labels = LabelCounters::new(ledger);
        let mut sets = ports(policy);
        let admissions = policy.admissions().iter().enumerate();
        let sources: Vec<Sources> = admissions
            .map(|(index, admission)| Sources::new(index, admission, ledger, &labels, &mut sets))
            .collect();
        let mut chains = gate(policy, &sources, extras);
        let mut counters = labels.counters;
        counters.extend(counters::of_others(policy));
        if extras.early_drop && policy.closes() {
            chains.extend(early(policy, &sources, extras));
            counters.push(counters::of_early_drops());
        }
        Self { name: TableName::Gate, comment: COMMENT.to_owned(), counters, sets, chains }
    }

    /// The ruleset in the kernel's terms.
    pub fn into_image(self) -> Image {
        self.map_rules(Rule::into_program)
    }
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
        rules: vec![
            Rule::new([Statement::FromLoopback, Statement::Accept]).with_comment(stamp),
            Rule::new([to_agent_port(policy), jump]),
        ],
    };
    let mut branches = Vec::new();
    let admit = sources.iter().flat_map(|sources| sources.rules(Stage::Gate, &mut branches));
    let rules = admit.chain(others(policy, extras)).collect();
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
        Others::Continue => vec![Rule::new([Statement::Count(LEFT.to_owned())])],
        Others::Drop => {
            let refuse = Rule::new([Statement::Count(REFUSED.to_owned()), Statement::Drop]);
            if extras.log { vec![log(), refuse] } else { vec![refuse] }
        }
    }
}

fn early(policy: &Policy, sources: &[Sources], extras: Extras) -> Vec<Chain<Rule>> {
    let jump = Statement::Jump(Stage::Early.chain(AGENT_PORT));
    let base = Chain {
        name: EARLY.to_owned(),
        base: Some(BaseChain { hook: Hook::Prerouting, priority: GATE_PRIORITY }),
        rules: vec![
            Rule::new([Statement::FromLoopback, Statement::Accept]),
            Rule::new([to_agent_port(policy), Statement::ToThisHost, jump]),
        ],
    };
    let mut branches = Vec::new();
    let admit = sources.iter().flat_map(|sources| sources.rules(Stage::Early, &mut branches));
    let refuse = Rule::new([Statement::Count(REFUSED_EARLY.to_owned()), Statement::Drop]);
    let log = extras.log.then(log);
    let rules = admit.chain(log).chain([refuse]).collect();
    let decide = Chain { name: Stage::Early.chain(AGENT_PORT), base: None, rules };
    [base, decide].into_iter().chain(branches).collect()
}
