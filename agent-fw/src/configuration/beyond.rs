//! What is enforced beyond who reaches the agent's port: as rules of a firewall policy, in tables of
//! their own.

use crate::configuration::Configuration;
use crate::input::connectivity::{CAVEAT, Role};
use crate::input::options::Mode;
use crate::input::outbound::{Destination, Outbound, Places};
use crate::input::{Catalogue, Lists, Warning, outbound, resolve};
use crate::model::firewall::Firewall;
use crate::model::rule::{
    Action, Addresses, Direction, Endpoint, Match, Rule, closing_rule, engine_rules, hidden_rule,
    is_limited, near_misses,
};
use crate::model::{Admission, DefaultAction, MacMatch, Policy, Port, Range, firewall};
use anyhow::bail;

impl Configuration {
    /// Whether the rules of the vendor's engine are enforced, as a part of a whole policy.
    pub fn enforces_engine_rules(&self) -> bool {
        self.policy && self.engine_rules.unwrap_or(false)
    }

    /// Refuses what contradicts itself.
    pub(super) fn check_beyond(&self) -> anyhow::Result<()> {
        let restricts_outbound = self.outbound != Outbound::Untouched;
        for (is_given, flag) in [
            (self.policy, "--policy"),
            (!self.relay.is_empty(), "--relay"),
            (restricts_outbound, "--restrict-outbound"),
        ] {
            if is_given && !self.backend.has_table() {
                bail!("{flag} needs tables of nf_tables: --backend must be nft or both");
            }
        }
        if !self.relay.is_empty() && Port(self.port) == Port::RELAY {
            bail!("the agent cannot listen on the relay's port {}: change --port", Port::RELAY);
        }
        if !restricts_outbound && !self.outbound_to.is_empty() {
            bail!("--outbound-to is for --restrict-outbound or --default-deny-outbound: add one");
        }
        outbound::check(self.role(), &self.outbound_to)
    }

    /// What this host is: a relay contains an agent.
    fn role(&self) -> Role {
        if self.relay.is_empty() { Role::Agent } else { Role::Relay }
    }

    /// What --restrict-outbound says, in the vendor's vocabulary.
    pub(super) fn outbound_rules(
        &self,
        catalogue: &Catalogue,
        lists: &Lists,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<Vec<Rule>> {
        if self.outbound == Outbound::Untouched {
            return Ok(Vec::new());
        }
        let mut places = Places::new();
        let mut proxies = Vec::new();
        for Destination { service, at, port } in &self.outbound_to {
            let resolved = resolve("--outbound-to", at.as_slice(), catalogue, lists)?;
            notices.extend(resolved.notices);
            match port {
                Some(port) => proxies.push(outbound::rule_for_proxy(*port, resolved.addresses)),
                None => places.entry(service.clone()).or_default().extend(resolved.addresses),
            }
        }
        Ok(outbound::rules(self.role(), &places)?.into_iter().chain(proxies).collect())
    }

    /// What --relay says, in the vendor's vocabulary: these sources reach the relay's port, and so
    /// do answers; nobody else does.
    pub(super) fn relay_rules(
        &self,
        catalogue: &Catalogue,
        lists: &Lists,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<Vec<Rule>> {
        if self.relay.is_empty() {
            return Ok(Vec::new());
        }
        let resolved = resolve("--relay", &self.relay, catalogue, lists)?;
        notices.extend(resolved.notices);
        let addresses = Addresses(resolved.addresses);
        let closing = (!addresses.all().is_all()).then(|| closing_rule(Port::RELAY));
        let source = Endpoint { addresses: Match::Is(addresses), ..Endpoint::ANY };
        let admitting = Rule {
            name: format!("TCP port {}, --relay", Port::RELAY),
            action: Action::ForceAllow,
            source,
            ..hidden_rule(Port::RELAY)
        };
        Ok(std::iter::once(admitting).chain(closing).collect())
    }

    /// Who reaches the relay's port, where --relay says so.
    pub(super) fn relay_policy(&self, firewall: &Firewall) -> Option<Policy> {
        let addresses = firewall.sources_of(Port::RELAY);
        let by_address = Admission { macs: MacMatch::Any, addresses };
        let ports = Range::single(Port::RELAY).into();
        (!self.relay.is_empty()).then(|| Policy::new(ports, DefaultAction::Drop, [by_address]))
    }

    /// The rules that replace the hidden rule.
    fn replacing<'r>(&self, rules: &'r [Rule]) -> impl Iterator<Item = &'r Rule> {
        let (port, closes) = (Port(self.port), self.direction == Mode::AgentInitiated);
        rules.iter().filter(move |rule| !closes && near_misses(rule, port).is_empty())
    }

    /// One of them that limits more than its source, if there is one.
    fn limited<'r>(&self, rules: &'r [Rule]) -> Option<&'r Rule> {
        self.replacing(rules).find(|rule| is_limited(rule))
    }

    /// Whether some source is admitted within such limits alone.
    pub(super) fn limits(&self, rules: &[Rule]) -> bool {
        let admits_all = |rule: &Rule| {
            let macs = rule.source.macs == Match::Any;
            macs && match &rule.source.addresses {
                Match::Any => true,
                Match::Is(addresses) => addresses.all().is_all(),
                Match::Not(addresses) => addresses.all().is_empty(),
            }
        };
        self.limited(rules).is_some()
            && !self.replacing(rules).any(|rule| !is_limited(rule) && admits_all(rule))
    }

    /// The rules that are enforced as they are written: with --policy all of the files'; without it
    /// those that replace the hidden rule, where one of them limits more than its source; and what
    /// flags say about other ports.
    pub(super) fn firewall(
        &self,
        rules: &[Rule],
        flags: &[Rule],
    ) -> anyhow::Result<Option<Firewall>> {
        let limited = self.limited(rules);
        if let Some(Rule { name, .. }) = limited {
            if !self.backend.has_table() {
                bail!(
                    "rule `{name}` limits more than its source, which needs tables of nf_tables: \
                     --backend must be nft or both"
                );
            }
            if self.otherwise == DefaultAction::Continue {
                bail!(
                    "rule `{name}` limits more than its source, which means nothing where others \
                     are left to other rules: --otherwise must be drop"
                );
            }
        }
        let closing = limited.map(|_| closing_rule(Port(self.port)));
        let written: Vec<&Rule> = match limited {
            _ if self.policy => rules.iter().collect(),
            Some(_) => self.replacing(rules).collect(),
            None if flags.is_empty() => return Ok(None),
            None => Vec::new(),
        };
        let denies = self.outbound == Outbound::DefaultDeny;
        // What the agent answers is needed, and a Bypass has no state by which it would get out.
        let is_bypass = |rule: &&Rule| denies && rule.action == Action::Bypass;
        let bypasses = self.replacing(rules).filter(is_bypass);
        let bypasses = bypasses.filter(|rule| written.contains(rule));
        let answers: Vec<Rule> = bypasses.map(outbound::answers_to).collect();
        let engine = if self.enforces_engine_rules() { &engine_rules()[..] } else { &[] };
        // Behind the others: of two rules that say the same, the written one decides.
        let all = written.into_iter().chain(&closing).chain(flags).chain(&answers).chain(engine);
        let firewall = Firewall::new(all)?.stateful(self.stateful());
        Ok(Some(if denies { firewall.denying(Direction::Outgoing) } else { firewall }))
    }
}

/// What the user should know of a firewall policy.
pub(super) fn remarks(firewall: &Firewall) -> Vec<Warning> {
    let low = firewall.low_bypasses().map(|rule| {
        format!(
            "rule `{}`: one page of the vendor's says that Bypass has priority 4 alone; it is \
             evaluated with priority {}",
            rule.name, rule.priority
        )
    });
    // That the engine's rules say nothing new is no news to who has not written them.
    let own: Vec<_> = engine_rules().iter().flat_map(firewall::Rule::new).collect();
    let idle = firewall.idle_rules();
    let idle = idle.iter().filter(|idle| !own.contains(idle.rule)).map(ToString::to_string);
    let narrowed = outbound::narrows_443(firewall).then(|| {
        format!(
            "outgoing TCP 443 is not open to every address. {CAVEAT} --restrict-outbound keeps it \
             open"
        )
    });
    low.chain(idle).chain(narrowed).map(|said| Warning::FirewallRule { said }).collect()
}
