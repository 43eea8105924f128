//! From a firewall policy to the tables that enforce it: one for IP, one for ARP where a rule
//! names it.

use crate::model::MacMatch;
use crate::model::firewall::{Criteria, Firewall, ICMPV6, Rule, TCP};
use crate::model::rule::{Action, Direction};
use crate::model::{Family, TableName};
use crate::nft;
use crate::nft::compile::address_lookup::AddressLookup;
use crate::nft::compile::alternatives::{families, protocols};
use crate::nft::compile::sets::Sets;
use crate::nft::{
    BaseChain, COMMENT, Chain, ConnectionState, Count, Counter, End, Hook, LOG_BURST, LOG_RATE,
    Ruleset, Statement, comment, identifier,
};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Behind connection tracking (-200) and the port that NAT gives an outgoing packet (-100), so that
/// packets have the addresses and ports that they really go to; before every usual filter (0).
pub const PRIORITY: i32 = -10;

/// The chain that a Bypass goes on to where its connections are labelled.
const BYPASS: &str = "bypass";
/// The chain that a Deny goes on to where what is dropped is logged.
const DENY: &str = "deny";

const DIRECTIONS: [Direction; 2] = [Direction::Incoming, Direction::Outgoing];

impl Firewall {
    /// The tables. With `log`, dropped packets are written to the kernel's log.
    pub fn tables(&self, log: bool) -> Vec<Ruleset> {
        let names = if self.rules().iter().any(|rule| rule.criteria.arp) {
            &[TableName::Firewall, TableName::Arp][..]
        } else {
            &[TableName::Firewall]
        };
        names.iter().map(|name| Compiler::new(self, *name, log).table()).collect()
    }
}

/// A table in the making.
struct Compiler<'a> {
    firewall: &'a Firewall,
    name: TableName,
    log: bool,
    counters: Vec<Counter>,
    sets: Sets,
    /// Chains that rules go on to where they look addresses up.
    branches: Vec<Chain<nft::Rule>>,
}

/// Conditions that hold all together.
struct Conditions {
    /// The protocol that they ask for, if it is one.
    protocol: Option<u8>,
    plain: Vec<Statement>,
    /// Addresses that one rule cannot compare with.
    lookups: Vec<Rc<AddressLookup>>,
}

impl<'a> Compiler<'a> {
    fn new(firewall: &'a Firewall, name: TableName, log: bool) -> Self {
        let (counters, branches) = (Vec::new(), Vec::new());
        Self { firewall, name, log, counters, sets: Sets::default(), branches }
    }

    fn table(mut self) -> Ruleset {
        let mut chains: Vec<_> = DIRECTIONS.map(|direction| self.base(direction)).into();
        chains.extend(DIRECTIONS.into_iter().filter_map(|direction| self.refuse(direction)));
        if self.labels() {
            let label = [Statement::Connection(ConnectionState::Opens), Statement::LabelConnection];
            chains.push(chain(BYPASS, vec![rule(label), rule([Statement::Accept])]));
        }
        if self.log {
            chains.push(chain(DENY, vec![log("denied"), rule([Statement::Drop])]));
        }
        let Self { name, counters, sets, branches, .. } = self;
        chains.extend(branches);
        Ruleset { name, comment: COMMENT.to_owned(), counters, sets: sets.into_sets(), chains }
    }

    fn is_arp(&self) -> bool {
        self.name == TableName::Arp
    }

    fn labels(&self) -> bool {
        !self.is_arp() && self.firewall.labels()
    }

    fn restricts(&self, direction: Direction) -> bool {
        if self.is_arp() {
            self.firewall.restricts_arp(direction)
        } else {
            self.firewall.restricts(direction)
        }
    }

    /// The chain that sees all packets of a direction.
    fn base(&mut self, direction: Direction) -> Chain<nft::Rule> {
        let hook = match direction {
            Direction::Incoming => Hook::Input,
            Direction::Outgoing => Hook::Output,
        };
        let mut rules = self.loopback(direction);
        let firewall = self.firewall;
        for of in firewall.rules().iter().filter(|rule| rule.direction == direction) {
            let ways = if self.is_arp() { self.arp(&of.criteria) } else { self.ip(of) };
            if ways.is_empty() || of.criteria.is_empty() {
                continue;
            }
            let actions = self.actions(of);
            for way in ways {
                let then = [self.connection(of, way.protocol), actions.clone()].concat();
                rules.extend(self.rules(way, &then));
            }
        }
        if self.restricts(direction) {
            rules.extend(self.close(direction));
        }
        Chain {
            name: direction.to_string(),
            base: Some(BaseChain { hook, priority: PRIORITY }),
            rules,
        }
    }

    /// What this host sends to itself is not filtered. What comes in by the loopback interface may
    /// be somebody else's, sent there by MPLS: it has to be from an address of this host, too.
    fn loopback(&self, direction: Direction) -> Vec<nft::Rule> {
        let accepted =
            |statements: &[Statement]| rule(statements.iter().cloned().chain([Statement::Accept]));
        match direction {
            Direction::Outgoing => vec![accepted(&[Statement::ToLoopback])],
            // ARP goes no further than a link.
            Direction::Incoming if self.is_arp() => vec![accepted(&[Statement::FromLoopback])],
            Direction::Incoming => vec![
                accepted(&[Statement::FromLoopback, Statement::FromThisHost]),
                accepted(&[
                    Statement::FromLoopback,
                    Statement::Is(Family::V6),
                    Statement::FromLinkLocal,
                ]),
            ],
        }
    }

    /// What becomes of packets that no rule is about, in a restrictive direction.
    fn close(&self, direction: Direction) -> Vec<nft::Rule> {
        let refuse = Statement::Goto(refusal(direction));
        if self.is_arp() {
            return vec![rule([refuse])];
        }
        let reply = Statement::Connection(ConnectionState::Reply);
        let bypassed = Statement::Connection(ConnectionState::OpenedByBypass);
        let icmpv6 = [Statement::Is(Family::V6), Statement::ProtocolIs(ICMPV6), Statement::Accept];
        let mut rules = vec![rule(icmpv6)];
        if self.labels() {
            rules.push(rule([reply.clone(), bypassed, refuse.clone()]));
        }
        rules.push(rule([reply, Statement::Accept]));
        rules.push(rule([refuse]));
        rules
    }

    /// The chain that drops what no rule has admitted, in a restrictive direction.
    fn refuse(&mut self, direction: Direction) -> Option<Chain<nft::Rule>> {
        if !self.restricts(direction) {
            return None;
        }
        let count = self.count(&refusal(direction), &format!("{direction}, admitted by no rule"));
        let drop = rule([count, Statement::Drop]);
        let rules = if self.log { vec![log("refused"), drop] } else { vec![drop] };
        Some(chain(&refusal(direction), rules))
    }

    /// What a rule does.
    fn actions(&mut self, of: &Rule) -> Vec<Statement> {
        let Rule { name, action, priority, direction, .. } = of;
        let words = format!("{direction}, priority {priority}, {action}: {name}");
        let count = self.count(&of.counter_name(), &words);
        match action {
            Action::Bypass if self.labels() => vec![count, Statement::Goto(BYPASS.to_owned())],
            Action::Bypass | Action::ForceAllow | Action::Allow => vec![count, Statement::Accept],
            Action::LogOnly => {
                let prefix = comment(&format!("agent-fw rule {name}: "));
                vec![count, limit(), Statement::Log { prefix }]
            }
            Action::Deny if self.log => vec![count, Statement::Goto(DENY.to_owned())],
            Action::Deny => vec![count, Statement::Drop],
        }
    }

    /// What a packet has to be to its connection, which an Allow asks of packets of this protocol.
    fn connection(&self, of: &Rule, protocol: Option<u8>) -> Vec<Statement> {
        if of.action != Action::Allow || self.is_arp() {
            return Vec::new();
        }
        let is_stateful = self.firewall.inspected().of(of).any(|number| protocol == Some(number));
        if !is_stateful {
            return vec![Statement::Connection(ConnectionState::Valid)];
        }
        let reply = Statement::Connection(ConnectionState::Reply);
        let with_state = Statement::Connection(ConnectionState::OpenedWithState);
        std::iter::once(reply).chain(self.labels().then_some(with_state)).collect()
    }

    /// A counter of its own, by a name that is free.
    fn count(&mut self, name: &str, words: &str) -> Statement {
        let plain = identifier(name);
        let is_free = |name: &String| self.counters.iter().all(|counter| counter.name != *name);
        let mut names = (2..).map(|number| format!("{plain}_{number}"));
        let name = if is_free(&plain) { Some(plain.clone()) } else { names.find(is_free) };
        let name = name.unwrap_or(plain.clone());
        let counter =
            Counter { name: name.clone(), comment: comment(words), count: Count::default() };
        self.counters.push(counter);
        Statement::Count(name)
    }

    /// The rules that do `then` with packets that meet these conditions.
    fn rules(&mut self, conditions: Conditions, then: &[Statement]) -> Vec<nft::Rule> {
        let Conditions { protocol, plain, lookups } = conditions;
        let Some((first, others)) = lookups.split_first() else {
            return vec![rule(plain.into_iter().chain(then.iter().cloned()))];
        };
        if others.is_empty() {
            let name = self.branch_name();
            return first.rules(&name, &plain, then, &mut self.branches);
        }
        // Found by the first, a packet is looked up by the next in a chain of its own.
        let family = plain.iter().find(|plain| matches!(plain, Statement::Is(_))).cloned();
        let plain_next = family.into_iter().collect();
        let next = Conditions { protocol, plain: plain_next, lookups: others.to_vec() };
        let rules = self.rules(next, then);
        let next = self.branch_name();
        self.branches.push(chain(&next, rules));
        let name = self.branch_name();
        first.rules(&name, &plain, &[Statement::Jump(next)], &mut self.branches)
    }

    /// The name of the next chain that rules go on to.
    fn branch_name(&self) -> String {
        format!("branch_{}", self.branches.len() + 1)
    }

    /// The conditions under which an ARP frame is meant; none if it never is.
    fn arp(&mut self, criteria: &Criteria) -> Vec<Conditions> {
        let of_macs = |plain| Conditions { protocol: None, plain, lookups: Vec::new() };
        if criteria.arp { vec![of_macs(self.macs(criteria))] } else { vec![] }
    }

    /// The conditions under which an IP packet is meant: any of these, each of them all together.
    fn ip(&mut self, rule: &Rule) -> Vec<Conditions> {
        let criteria = &rule.criteria;
        let apart: BTreeSet<u8> = self.firewall.inspected().of(rule).collect();
        let mut ways = Vec::new();
        for family in families(criteria) {
            let mut place = Vec::new();
            let mut lookups = Vec::new();
            if let Some(family) = family {
                place.push(Statement::Is(family));
                for lookup in self.addresses(criteria, family) {
                    // What one rule can say stands among its other conditions.
                    match lookup.condition() {
                        Some(only) => place.push(only.clone()),
                        None => lookups.push(Rc::new(lookup)),
                    }
                }
            }
            place.extend(self.macs(criteria));
            for (protocol, mut conditions) in protocols(criteria, family, &apart) {
                conditions.extend(self.transport(criteria, protocol));
                let plain = place.iter().cloned().chain(conditions).collect();
                ways.push(Conditions { protocol, plain, lookups: lookups.clone() });
            }
        }
        ways
    }

    fn addresses(&mut self, criteria: &Criteria, family: Family) -> Vec<AddressLookup> {
        let ends = [(End::Source, &criteria.source), (End::Destination, &criteria.destination)];
        let named = ends.map(|(end, place)| self.sets.addresses(end, family, &place.addresses));
        named.into_iter().flatten().collect()
    }

    fn macs(&mut self, criteria: &Criteria) -> Vec<Statement> {
        let ends = [(End::Source, &criteria.source), (End::Destination, &criteria.destination)];
        let named = ends.map(|(end, place)| match &place.macs {
            MacMatch::Any => None,
            MacMatch::Only(macs) => Some(self.sets.macs(end, macs)),
        });
        named.into_iter().flatten().collect()
    }

    fn transport(&mut self, criteria: &Criteria, protocol: Option<u8>) -> Vec<Statement> {
        let ends = [(End::Source, &criteria.source), (End::Destination, &criteria.destination)];
        let has_both = ends.iter().all(|(_, place)| place.ports.is_some());
        let ports = ends.map(|(end, place)| {
            let ports = place.ports.as_ref()?;
            // Of two comparisons side by side, `nft -f` makes one: the text would give the kernel
            // another table.
            let is_looked_up = has_both && end == End::Source;
            let port = if is_looked_up { Sets::port_set } else { Sets::ports };
            Some(port(&mut self.sets, end, ports))
        });
        // Flags bind TCP: UDP beside it matches without them.
        let flags = criteria.tcp_flags.filter(|_| protocol == Some(TCP));
        let flags = flags.map(|flags| Statement::TcpFlags {
            mask: flags.mask,
            value: flags.value,
            not: flags.not,
        });
        let icmp = criteria.icmp.map(|icmp| {
            let bytes = std::iter::once(icmp.kind).chain(icmp.code).collect();
            Statement::IcmpHeader { bytes, not: icmp.not }
        });
        ports.into_iter().chain([flags, icmp]).flatten().collect()
    }
}

fn refusal(direction: Direction) -> String {
    format!("refused_{direction}")
}

fn rule(statements: impl IntoIterator<Item = Statement>) -> nft::Rule {
    nft::Rule::new(statements)
}

fn chain(name: &str, rules: Vec<nft::Rule>) -> Chain<nft::Rule> {
    Chain { name: name.to_owned(), base: None, rules }
}

fn limit() -> Statement {
    Statement::Limit { rate: LOG_RATE, burst: LOG_BURST }
}

/// Writes some of the packets that come so far to the log.
fn log(what: &str) -> nft::Rule {
    rule([limit(), Statement::Log { prefix: format!("agent-fw {what}: ") }])
}
