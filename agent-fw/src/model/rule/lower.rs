//! From rules to a policy: the one road that flags and rule files share.

use super::{Addresses, Endpoint, Match, Rule, hidden_rule, near_misses};
use crate::model::{
    AddressSet, Admission, DefaultAction, MacAddr, MacMatch, Origin, OriginMap, Policy, Port,
    Range, RangeSet,
};

/// Why a rule that replaces the hidden one cannot be compiled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("rule `{rule}`: {limit}")]
pub struct LowerError {
    /// The rule's name.
    pub rule: String,
    /// What about it cannot be kept.
    pub limit: Unsupported,
}

/// A limit of a rule that agent-fw cannot keep, and therefore refuses instead of ignoring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsupported {
    /// It has a schedule.
    #[error("schedules are not supported; remove `scheduleID` from the rule")]
    Schedule,
    /// It has a context.
    #[error("contexts are not supported; remove `contextID` from the rule")]
    Context,
}

/// What rules come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentPolicy {
    /// Who reaches the port.
    pub policy: Policy,
    /// By which words.
    pub ledger: OriginMap,
}

impl AgentPolicy {
    /// The same, but for these addresses, which are admitted by nothing.
    #[must_use]
    pub fn without(self, excepted: &AddressSet) -> Self {
        if excepted.is_empty() {
            return self;
        }
        let Self { policy, ledger } = self;
        let left = |admission: &Admission| Admission {
            macs: admission.macs.clone(),
            addresses: admission.addresses.difference(excepted),
        };
        let left: Vec<Admission> = policy.admissions().iter().map(left).collect();
        let left = left.into_iter().filter(|admission| !admission.addresses.is_empty());
        Self {
            policy: Policy::new(policy.ports().clone(), policy.others(), left),
            ledger: ledger.restrict(&excepted.complement()),
        }
    }
}

/// Compiles the rules that replace the hidden rule, or the hidden rule itself when none does.
/// The sources of several such rules are united. What a rule limits besides ([`is_limited`]) is not
/// in the policy: it admits all of the rule's sources, and tables of their own enforce the rest.
pub fn lower(
    rules: Vec<Rule>,
    listening: Port,
    others: DefaultAction,
) -> Result<AgentPolicy, LowerError> {
    let mut replacing: Vec<Rule> =
        rules.into_iter().filter(|rule| near_misses(rule, listening).is_empty()).collect();
    if replacing.is_empty() {
        replacing.push(hidden_rule(listening));
    }
    let mut admissions = Vec::new();
    let mut sources = Vec::new();
    for rule in replacing {
        if let Some(limit) = inexpressible(&rule) {
            return Err(LowerError { rule: rule.name, limit });
        }
        let addresses = admitted_addresses(rule.source.addresses);
        admissions
            .push(Admission { macs: admitted_macs(rule.source.macs), addresses: addresses.all() });
        sources.extend(addresses.0);
    }
    let policy = Policy::new(Range::single(listening).into(), others, admissions);
    Ok(AgentPolicy { policy, ledger: OriginMap::new(sources) })
}

/// The policy under which nobody reaches the port: in agent-initiated mode nobody needs to.
pub fn closed(listening: Port) -> AgentPolicy {
    let policy = Policy::new(Range::single(listening).into(), DefaultAction::Drop, []);
    AgentPolicy { policy, ledger: OriginMap::default() }
}

/// Whether a rule that replaces the hidden one limits more than the packet's source.
pub fn is_limited(rule: &Rule) -> bool {
    let Endpoint { addresses, macs, .. } = &rule.destination;
    *addresses != Match::Any
        || *macs != Match::Any
        || rule.source.ports != Match::Any
        || rule.tcp_flags.is_some()
        || rule.icmp.is_some()
}

/// The first limit of a rule that agent-fw cannot keep.
pub(super) fn inexpressible(rule: &Rule) -> Option<Unsupported> {
    if rule.schedule.is_some() {
        Some(Unsupported::Schedule)
    } else if rule.context.is_some() {
        Some(Unsupported::Context)
    } else {
        None
    }
}

fn admitted_addresses(addresses: Match<Addresses>) -> Addresses {
    match addresses {
        Match::Any => Addresses(vec![(Origin::Any, AddressSet::all())]),
        Match::Is(addresses) => addresses,
        Match::Not(addresses) => {
            // Counted under what named the exceptions.
            let label = addresses.0.first().map_or(Origin::Any, |(label, _)| label.clone());
            Addresses(vec![(label, addresses.all().complement())])
        }
    }
}

fn admitted_macs(macs: Match<RangeSet<MacAddr>>) -> MacMatch {
    match macs {
        Match::Any => MacMatch::Any,
        Match::Is(macs) => MacMatch::Only(macs),
        Match::Not(macs) => MacMatch::Only(macs.complement()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::parse_item;
    use crate::model::rule::{Action, Protocol};
    use crate::model::{Packet, Transport, Verdict};

    fn addresses(text: &str) -> AddressSet {
        [parse_item(text).expect("an item").range].into_iter().collect()
    }

    fn rule_from(text: &str) -> Rule {
        let addresses = Addresses(vec![(Origin::Address, addresses(text))]);
        let source = Endpoint { addresses: Match::Is(addresses), ..Endpoint::ANY };
        Rule { name: text.to_owned(), source, ..hidden_rule(Port::AGENT) }
    }

    fn verdict(policy: &Policy, source: &str) -> Verdict {
        let transport = Transport::Tcp(Port::AGENT);
        let source = source.parse().expect("an address");
        policy.decide(&Packet { loopback: false, source, mac: None, transport })
    }

    #[test]
    fn without_a_replacing_rule_the_hidden_rule_admits_everyone() {
        let near_miss = Rule { protocol: Match::Is(Protocol::TcpUdp), ..rule_from("192.0.2.1") };
        for rules in [vec![], vec![near_miss]] {
            let lowered = lower(rules, Port::AGENT, DefaultAction::Drop).expect("lowered");
            assert!(lowered.policy.admits_everyone());
            assert_eq!(lowered.ledger.labels(), [Origin::Any]);
        }
    }

    #[test]
    fn a_replacing_rule_closes_the_port_to_all_but_its_sources() {
        let lowered = lower(vec![rule_from("192.0.2.0/24")], Port::AGENT, DefaultAction::Drop)
            .expect("lowered");
        assert_eq!(verdict(&lowered.policy, "192.0.2.7"), Verdict::Accept);
        assert_eq!(verdict(&lowered.policy, "198.51.100.7"), Verdict::Drop);
        assert_eq!(verdict(&lowered.policy, "2001:db8::1"), Verdict::Drop);
    }

    #[test]
    fn the_sources_of_several_replacing_rules_are_united() {
        let force = Rule { action: Action::ForceAllow, ..rule_from("2001:db8::/32") };
        let rules = vec![rule_from("192.0.2.0/24"), force];
        let lowered = lower(rules, Port::AGENT, DefaultAction::Continue).expect("lowered");
        assert_eq!(verdict(&lowered.policy, "192.0.2.7"), Verdict::Accept);
        assert_eq!(verdict(&lowered.policy, "2001:db8::1"), Verdict::Accept);
        assert_eq!(verdict(&lowered.policy, "2001:db9::1"), Verdict::Continue);
    }

    #[test]
    fn a_negated_source_admits_everything_else() {
        let mut rule = rule_from("192.0.2.0/24");
        let Match::Is(named) = rule.source.addresses else { unreachable!("named above") };
        rule.source.addresses = Match::Not(named);
        let lowered = lower(vec![rule], Port::AGENT, DefaultAction::Drop).expect("lowered");
        assert_eq!(verdict(&lowered.policy, "192.0.2.7"), Verdict::Drop);
        assert_eq!(verdict(&lowered.policy, "2001:db8::1"), Verdict::Accept);
    }

    #[test]
    fn a_replacing_rule_with_a_limit_that_cannot_be_kept_is_refused() {
        let refused = |change: fn(&mut Rule)| {
            let mut rule = rule_from("192.0.2.1");
            change(&mut rule);
            lower(vec![rule], Port::AGENT, DefaultAction::Drop).expect_err("refused").limit
        };
        assert_eq!(refused(|rule| rule.schedule = Some(7)), Unsupported::Schedule);
        assert_eq!(refused(|rule| rule.context = Some(7)), Unsupported::Context);
    }

    #[test]
    fn what_limits_more_than_the_source_is_told_from_what_does_not() {
        let mut rule = rule_from("192.0.2.1");
        assert!(!is_limited(&rule));
        rule.source.ports = Match::Is(Range::single(Port(1)).into());
        assert!(is_limited(&rule));
        let to = Endpoint { addresses: Match::Is(Addresses::default()), ..Endpoint::ANY };
        assert!(is_limited(&Rule { destination: to, ..rule_from("192.0.2.1") }));
    }
}
