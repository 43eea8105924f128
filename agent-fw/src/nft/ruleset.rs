//! From a policy to an nftables ruleset.

use super::statement::{Family, Rule, Statement};
use super::table::{BaseChain, Chain, Count, Counter, Elements, Hook, Set, Table};
use super::{GATE_PRIORITY, Image};
use crate::policy::{
    Admission, Label, LabelIndex, Ledger, MacMatch, Ordinal, Others, Policy, PolicyHash, Range,
};
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
const GATE: &str = "gate";
/// The chain for packets to the agent's port.
const AGENT_PORT: &str = "agent_port";
/// The base chain at `prerouting`, with `early_drop`.
const EARLY: &str = "early";
/// The chain for packets to the agent's port at `prerouting`.
const EARLY_AGENT_PORT: &str = "early_agent_port";

/// The counter of dropped packets.
pub const REFUSED: &str = "refused";
/// The counter of packets that were dropped at `prerouting`.
pub const REFUSED_EARLY: &str = "refused_early";
/// The counter of packets that were left to the host's other rules.
pub const LEFT: &str = "left_to_others";

/// Refused packets that are logged in a second, so that a flood does not fill the disk.
pub const LOG_RATE: u64 = 10;
const LOG_BURST: u32 = 5;
const LOG_PREFIX: &str = "agent-fw refused: ";

/// nftables allows 128 bytes of comment, with the zero at its end.
const MAX_COMMENT: usize = 127;
/// Longer than any region's name; a kernel object's name may have 255 bytes.
const MAX_NAME: usize = 120;

impl Ruleset {
    /// Compiles a policy.
    pub fn compile(lowered: &Lowered, extras: Extras) -> Self {
        let Lowered { policy, ledger } = lowered;
        let labels = Labels::new(ledger);
        let mut counters = labels.counters.clone();
        let mut sets = Vec::new();
        if let [range] = policy.ports().ranges()
            && range.first() == range.last()
        {
            // One port is compared with, in the rule itself.
        } else {
            let elements = Elements::Port(policy.ports().ranges().to_vec());
            sets.push(Set { name: PORTS.to_owned(), elements });
        }
        let lookups: Vec<_> = policy
            .admissions()
            .iter()
            .enumerate()
            .map(|(index, admission)| {
                let mut lookups = Lookups::new(index, admission, ledger, extras, &mut sets);
                lookups.everyone = lookups.everyone.map(|label| labels.index_of(label));
                lookups
            })
            .collect();
        sets.iter_mut().for_each(|set| labels.point_at_counters(set));
        let mut chains = gate(policy, &lookups, &counters, extras);
        counters.extend(others_counter(policy));
        if extras.early_drop && policy.closes() {
            chains.extend(early(policy, &lookups));
            counters.push(counter(REFUSED_EARLY, "dropped before routing"));
        }
        Self { comment: Stamp::of(policy).to_string(), counters, sets, chains }
    }

    /// The ruleset in the kernel's terms.
    pub fn into_image(self) -> Image {
        self.map_rules(|rule| rule.expressions())
    }
}

/// What the table's comment says: which policy it enforces, and which version compiled it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The version of agent-fw.
    pub version: String,
    /// The policy's hash.
    pub policy: PolicyHash,
}

impl Stamp {
    /// The stamp of this program on `policy`.
    pub fn of(policy: &Policy) -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), policy: policy.hash() }
    }

    /// Reads the stamp from a table's comment.
    pub fn parse(comment: &str) -> Option<Self> {
        let (version, policy) = comment.strip_prefix("agent-fw ")?.split_once(" policy ")?;
        Some(Self { version: version.to_owned(), policy: policy.parse().ok()? })
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "agent-fw {} policy {}", self.version, self.policy)
    }
}

const PORTS: &str = "agent_ports";

fn counter(name: &str, comment: &str) -> Counter {
    Counter { name: name.to_owned(), comment: comment.to_owned(), count: Count::default() }
}

fn others_counter(policy: &Policy) -> Option<Counter> {
    match policy.others() {
        _ if policy.admits_everyone() => None,
        Others::Drop => Some(counter(REFUSED, "from other sources, dropped")),
        Others::Continue => Some(counter(LEFT, "from other sources, left to other rules")),
    }
}

/// The counters of a ledger's labels.
struct Labels {
    counters: Vec<Counter>,
    /// For each label, its counter.
    index: Vec<LabelIndex>,
}

impl Labels {
    /// Two labels share a counter if they only differ in what a name in nftables cannot hold.
    fn new(ledger: &Ledger) -> Self {
        let mut labels = Self { counters: Vec::new(), index: Vec::new() };
        for label in ledger.labels() {
            let name = counter_name(label);
            let known = labels.counters.iter().position(|counter| counter.name == name);
            let index = known.unwrap_or_else(|| {
                labels.counters.push(counter(&name, &comment(&label.to_string())));
                labels.counters.len() - 1
            });
            labels.index.push(LabelIndex::try_from(index).unwrap_or(LabelIndex::MAX));
        }
        labels
    }

    fn index_of(&self, label: LabelIndex) -> LabelIndex {
        self.index.get(usize::from(label)).copied().unwrap_or(LabelIndex::MAX)
    }

    /// Makes elements that lead to labels lead to counters.
    fn point_at_counters(&self, set: &mut Set) {
        if self.index.iter().enumerate().all(|(label, &index)| label == usize::from(index)) {
            return;
        }
        match &mut set.elements {
            Elements::V4(elements) => {
                elements.iter_mut().for_each(|(_, label)| *label = self.index_of(*label));
            }
            Elements::V6(elements) => {
                elements.iter_mut().for_each(|(_, label)| *label = self.index_of(*label));
            }
            _ => {}
        }
    }
}

/// The name of the counter for a label: letters, digits, `-`, `_` and `.`, beginning with a letter.
pub fn counter_name(label: &Label) -> String {
    let name = match label {
        Label::Region(name) => format!("from_region_{name}"),
        Label::File(path) => format!("from_file_{}", path.to_string_lossy().trim_start_matches('/')),
        Label::Address => "from_addresses".to_owned(),
        Label::Any => "from_any".to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().map(|c| if plain(c) { c } else { '_' }).take(MAX_NAME).collect()
}

/// A comment as nftables takes it: without quotes and control characters, not too long.
fn comment(words: &str) -> String {
    words
        .chars()
        .map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '?' })
        .take(MAX_COMMENT)
        .collect()
}

/// Ranges in one set. The kernel reads a set out from its beginning for every 32 KiB of answer,
/// so that a set of a million ranges takes minutes to read; parts of this size take a second in
/// all, and are faster to search.
const PART: usize = 4096;

/// The sets that an admission is looked up in.
struct Lookups {
    macs: Option<String>,
    v4: Sources,
    v6: Sources,
    /// The one counter of every address, where no set is needed.
    everyone: Option<LabelIndex>,
}

/// How the addresses of one family are looked up.
enum Sources {
    /// There are none.
    None,
    /// In a set.
    Set(String),
    /// In a map that leads to the chains for parts of them.
    Parts { map: String, early_map: String, sets: Vec<String> },
}

impl Lookups {
    fn new(
        index: usize,
        admission: &Admission,
        ledger: &Ledger,
        extras: Extras,
        sets: &mut Vec<Set>,
    ) -> Self {
        // The first admission is usually the only one; it has the plain names.
        let suffix = if index == 0 { String::new() } else { format!("_{}", index + 1) };
        let macs = match &admission.macs {
            MacMatch::Any => None,
            MacMatch::Only(macs) => {
                let name = format!("source_macs{suffix}");
                let elements = Elements::Mac(macs.ranges().to_vec());
                sets.push(Set { name: name.clone(), elements });
                Some(name)
            }
        };
        let everyone = everyone(admission, ledger);
        if everyone.is_some() {
            return Self { macs, v4: Sources::None, v6: Sources::None, everyone };
        }
        let v4 = ledger.v4().restrict(&admission.addresses.v4).into_entries();
        let v6 = ledger.v6().restrict(&admission.addresses.v6).into_entries();
        let early = extras.early_drop;
        let name = format!("sources_v4{suffix}");
        let v4 = Sources::new(name, v4, early, sets, Elements::V4, Elements::ChainsV4);
        let name = format!("sources_v6{suffix}");
        let v6 = Sources::new(name, v6, early, sets, Elements::V6, Elements::ChainsV6);
        Self { macs, v4, v6, everyone: None }
    }

    fn families(&self) -> [(Family, &Sources); 2] {
        [(Family::V4, &self.v4), (Family::V6, &self.v6)]
    }

    fn from_macs(&self) -> Option<Statement> {
        self.macs.clone().map(Statement::FromAnyMacOf)
    }
}

impl Sources {
    fn new<T: Ordinal>(
        name: String,
        entries: Vec<(Range<T>, LabelIndex)>,
        early: bool,
        sets: &mut Vec<Set>,
        elements: fn(Vec<(Range<T>, LabelIndex)>) -> Elements,
        chains: fn(Vec<(Range<T>, String)>) -> Elements,
    ) -> Self {
        if entries.is_empty() {
            return Self::None;
        }
        if entries.len() <= PART {
            sets.push(Set { name: name.clone(), elements: elements(entries) });
            return Self::Set(name);
        }
        let (map, early_map) = (format!("{name}_parts"), format!("{name}_early_parts"));
        let (mut jumps, mut early_jumps, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (index, part) in entries.chunks(PART).enumerate() {
            let set = format!("{name}_part_{}", index + 1);
            let span = part.first().zip(part.last());
            let span = span.and_then(|((a, _), (b, _))| Range::new(a.first(), b.last()));
            jumps.extend(span.map(|span| (span, set.clone())));
            early_jumps.extend(span.map(|span| (span, early_chain(&set))));
            sets.push(Set { name: set.clone(), elements: elements(part.to_vec()) });
            names.push(set);
        }
        sets.push(Set { name: map.clone(), elements: chains(jumps) });
        if early {
            sets.push(Set { name: early_map.clone(), elements: chains(early_jumps) });
        }
        Self::Parts { map, early_map, sets: names }
    }
}

/// The name of the chain for a part of the sources at `prerouting`.
fn early_chain(set: &str) -> String {
    format!("early_{set}")
}

/// The one label of an admission of every address, if it has just one.
fn everyone(admission: &Admission, ledger: &Ledger) -> Option<LabelIndex> {
    match (ledger.v4().entries(), ledger.v6().entries()) {
        ([(_, v4)], [(_, v6)]) if admission.addresses.is_all() && v4 == v6 => Some(*v4),
        _ => None,
    }
}

fn to_agent_port(policy: &Policy) -> Statement {
    match policy.ports().ranges() {
        [range] if range.first() == range.last() => Statement::TcpTo(range.first()),
        _ => Statement::TcpToAnyOf { set: PORTS.to_owned() },
    }
}

fn gate(
    policy: &Policy,
    lookups: &[Lookups],
    counters: &[Counter],
    extras: Extras,
) -> Vec<Chain<Rule>> {
    let base = Chain {
        name: GATE.to_owned(),
        base: Some(BaseChain { hook: Hook::Input, priority: GATE_PRIORITY }),
        rules: vec![
            Rule(vec![Statement::FromLoopback, Statement::Accept]),
            Rule(vec![to_agent_port(policy), Statement::Jump(AGENT_PORT)]),
        ],
    };
    let (mut rules, mut parts) = (Vec::new(), Vec::new());
    for lookup in lookups {
        if let Some(counter) = lookup.everyone.and_then(|index| counters.get(usize::from(index))) {
            let count = Statement::Count(counter.name.clone());
            let admit = [count, Statement::Accept];
            rules.push(Rule(lookup.from_macs().into_iter().chain(admit).collect()));
        }
        for (family, sources) in lookup.families() {
            let mut rule = vec![Statement::Is(family)];
            rule.extend(lookup.from_macs());
            let admit = |set: &String| {
                [Statement::CountBySource(family, set.clone()), Statement::Accept]
            };
            match sources {
                Sources::None => continue,
                Sources::Set(set) => rule.extend(admit(set)),
                Sources::Parts { map, sets, .. } => {
                    rule.push(Statement::JumpBySource(family, map.clone()));
                    parts.extend(sets.iter().map(|set| part(set.clone(), family, admit(set))));
                }
            }
            rules.push(Rule(rule));
        }
    }
    rules.extend(others(policy, extras));
    let mut chains = vec![base, Chain { name: AGENT_PORT.to_owned(), base: None, rules }];
    chains.append(&mut parts);
    chains
}

/// The chain for a part of the sources of one family.
fn part(name: String, family: Family, admit: [Statement; 2]) -> Chain<Rule> {
    let rule = std::iter::once(Statement::Is(family)).chain(admit).collect();
    Chain { name, base: None, rules: vec![Rule(rule)] }
}

/// What becomes of those that no rule before has admitted.
fn others(policy: &Policy, extras: Extras) -> Vec<Rule> {
    let log = Rule(vec![
        Statement::Limit { rate: LOG_RATE, burst: LOG_BURST },
        Statement::Log { prefix: LOG_PREFIX },
    ]);
    match policy.others() {
        _ if policy.admits_everyone() => vec![],
        Others::Continue => vec![Rule(vec![Statement::Count(LEFT.to_owned())])],
        Others::Drop => {
            let refuse = Rule(vec![Statement::Count(REFUSED.to_owned()), Statement::Drop]);
            if extras.log { vec![log, refuse] } else { vec![refuse] }
        }
    }
}

fn early(policy: &Policy, lookups: &[Lookups]) -> Vec<Chain<Rule>> {
    let to_agent = vec![
        to_agent_port(policy),
        Statement::ToThisHost,
        Statement::Jump(EARLY_AGENT_PORT),
    ];
    let base = Chain {
        name: EARLY.to_owned(),
        base: Some(BaseChain { hook: Hook::Prerouting, priority: GATE_PRIORITY }),
        rules: vec![
            Rule(vec![Statement::FromLoopback, Statement::Accept]),
            Rule(to_agent),
        ],
    };
    let (mut rules, mut parts) = (Vec::new(), Vec::new());
    for lookup in lookups {
        if lookup.everyone.is_some() {
            let admit = lookup.from_macs().into_iter().chain([Statement::Accept]);
            rules.push(Rule(admit.collect()));
        }
        for (family, sources) in lookup.families() {
            let mut rule = vec![Statement::Is(family)];
            rule.extend(lookup.from_macs());
            let admit =
                |set: &String| [Statement::FromAnyOf(family, set.clone()), Statement::Accept];
            match sources {
                Sources::None => continue,
                Sources::Set(set) => rule.extend(admit(set)),
                Sources::Parts { early_map, sets, .. } => {
                    rule.push(Statement::JumpBySource(family, early_map.clone()));
                    let chain = |set: &String| part(early_chain(set), family, admit(set));
                    parts.extend(sets.iter().map(chain));
                }
            }
            rules.push(Rule(rule));
        }
    }
    rules.push(Rule(vec![Statement::Count(REFUSED_EARLY.to_owned()), Statement::Drop]));
    let mut chains = vec![base, Chain { name: EARLY_AGENT_PORT.to_owned(), base: None, rules }];
    chains.append(&mut parts);
    chains
}
