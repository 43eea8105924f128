//! What the user wants, as flags say it and `policy.toml` keeps it.

mod beyond;
pub mod change;
mod command_line;
mod edit;
mod file;
mod rule_files;

pub use command_line::quoted;
pub use edit::Edit;
pub use file::is_edited;

use crate::input::options::{Backend, Mode, XdpMode};
use crate::input::outbound::{Destination, Outbound};
use crate::input::{Catalogue, ListFile, Lists, MacSource, Source, Warning, resolve, resolve_macs};
use crate::model::firewall::Firewall;
use crate::model::rule::{
    Addresses, AgentPolicy, Endpoint, Match, Rule, closed, hidden_rule, lower,
};
use crate::model::{AddressSet, DefaultAction, Origin, Policy, Port};
use crate::nft::{Extras, Image, Ruleset};
use crate::system::file::Trust;
use anyhow::bail;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A policy in the user's words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a line of policy.toml of its own")]
pub struct Configuration {
    /// Sources that are admitted. Without MAC addresses, "any" is what the agent's hidden rule
    /// says; none then is no policy, so that a lost line never opens the port.
    pub allow_from: Vec<Source>,
    /// Sources that are taken out of all that are admitted, whatever admits them.
    pub except: Vec<Source>,
    /// MAC addresses that are admitted; none means any.
    pub allow_mac: Vec<MacSource>,
    /// Files of rules in the vendor's vocabulary. The sources of those that replace the agent's
    /// hidden rule are admitted, too.
    pub rules: Vec<ListFile>,
    /// Files that say which of these rules are assigned to this host.
    pub assigned: Vec<ListFile>,
    /// The manager's policy that is meant, by its name or number, where files have several.
    pub assigned_policy: String,
    /// Whether rules of a manager hold that nobody has assigned to this host. A file without this key
    /// is of a version that knew no assignments: they do.
    pub all_rules: Option<bool>,
    /// Whether rules are left out that agent-fw cannot enforce, where that cannot open anything.
    pub skip_unsupported: bool,
    /// Whether all rules of these files are enforced, as a whole firewall policy.
    pub policy: bool,
    /// Whether the rules of the vendor's engine are part of that policy. A file without this key is of
    /// a version that had none of them: they are not.
    pub engine_rules: Option<bool>,
    /// Whether incoming UDP that an Allow of that policy admits has to be a reply. A file without this
    /// key is of a version in which it had not.
    pub udp_stateful: Option<bool>,
    /// Whether the same holds of ICMP.
    pub icmp_stateful: bool,
    /// Whether fields of rules that agent-fw does not know are ignored.
    pub lenient: bool,
    /// Sources that reach the port of a relay, TCP 4122, and nobody else does; none: it is left
    /// alone.
    pub relay: Vec<Source>,
    /// What becomes of connections that this host opens.
    pub outbound: Outbound,
    /// Where services of the deployment's own are that this host opens connections to.
    pub outbound_to: Vec<Destination>,
    /// The port that the agent listens on.
    pub port: u16,
    /// Who opens the connections.
    pub direction: Mode,
    /// What becomes of other sources.
    pub otherwise: DefaultAction,
    /// Whether refused packets are dropped before routing already.
    pub early_drop: bool,
    /// Whether refused packets are logged.
    pub log: bool,
    /// What enforces it.
    pub backend: Backend,
    /// The interfaces that XDP programs are put on; none means every physical one that is up.
    pub interfaces: Vec<String>,
    /// How they are put there.
    pub xdp_mode: XdpMode,
    /// Whether single ranges may be wider than a /8, or a /16 of IPv6.
    pub allow_wide: bool,
    /// Whether lists and rule files are read though others than root can change them.
    pub trust_file_modes: bool,
    /// Whether a version wrote it that asked for no such consent: it stays in force, with a warning.
    #[serde(skip)]
    pub is_legacy: bool,
    /// Whether it was read from a file without the last line that tells a whole one from one that
    /// was cut off.
    #[serde(skip)]
    pub lacks_end: bool,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            allow_from: Vec::new(),
            except: Vec::new(),
            allow_mac: Vec::new(),
            rules: Vec::new(),
            assigned: Vec::new(),
            assigned_policy: String::new(),
            all_rules: None,
            skip_unsupported: false,
            policy: false,
            engine_rules: None,
            udp_stateful: None,
            icmp_stateful: false,
            lenient: false,
            relay: Vec::new(),
            outbound: Outbound::default(),
            outbound_to: Vec::new(),
            port: Port::AGENT.0,
            direction: Mode::default(),
            otherwise: DefaultAction::default(),
            early_drop: false,
            log: false,
            backend: Backend::default(),
            interfaces: Vec::new(),
            xdp_mode: XdpMode::default(),
            allow_wide: false,
            trust_file_modes: false,
            is_legacy: false,
            lacks_end: false,
        }
    }
}

/// A configuration, compiled.
#[derive(Clone, PartialEq, Debug)]
pub struct Compiled {
    /// The policy, and by which words it admits whom.
    pub lowered: AgentPolicy,
    /// The nftables ruleset that enforces it.
    pub ruleset: Ruleset,
    /// Who reaches the relay's port, where that is restricted: by --relay, and by rules of a whole
    /// policy.
    pub relay: Option<Policy>,
    /// Whether admitted sources are limited further, as a rule says, by the tables of these.
    pub limited: bool,
    /// The rules that are enforced as they are written, beyond who reaches the port, if there are
    /// such.
    pub firewall: Option<Firewall>,
    /// The nftables rulesets that enforce that one.
    pub firewall_tables: Vec<Ruleset>,
    /// Where the addresses of each label come from.
    pub provenance: BTreeMap<Origin, String>,
    /// What the user should know.
    pub notices: Vec<Warning>,
}

impl Compiled {
    /// All tables, in the kernel's terms.
    pub fn images(&self) -> Vec<Image> {
        let rulesets = std::iter::once(&self.ruleset).chain(&self.firewall_tables);
        rulesets.cloned().map(Ruleset::into_image).collect()
    }
}

impl Configuration {
    /// Refuses what contradicts itself.
    pub fn check(&self) -> anyhow::Result<()> {
        // The rules of a whole policy are about more than the agent's port.
        let rules = !self.rules.is_empty() && !self.policy;
        let restricted = rules || !self.allow_from.is_empty() || !self.allow_mac.is_empty();
        for (is_given, flag) in [
            (self.policy, "--policy enforces"),
            (!self.assigned.is_empty(), "--assigned chooses among"),
            (!self.assigned_policy.is_empty(), "--assigned-policy chooses among"),
        ] {
            if is_given && self.rules.is_empty() {
                bail!("{flag} the rules of files: name one with --rules");
            }
        }
        self.check_beyond()?;
        if let Some(name) = self.interfaces.iter().find(|name| !is_interface_name(name)) {
            bail!("`{}` is no name of an interface", name.escape_debug());
        }
        if self.except.contains(&Source::Any) {
            bail!(
                "--except any would leave nobody who reaches the port; --direction agent-initiated \
                 closes it to every source"
            );
        }
        if self.direction == Mode::AgentInitiated && !self.except.is_empty() {
            bail!(
                "in agent-initiated mode the port is closed to all: there is nothing that --except \
                 could take out"
            );
        }
        if self.port == 0 {
            bail!("port 0 is no port; the agent's is {} unless you changed it", Port::AGENT);
        }
        if self.direction == Mode::AgentInitiated && restricted {
            bail!(
                "in agent-initiated mode nobody needs to reach the agent, and the port is closed \
                 to all; leave out --allow-from and --allow-mac, enforce --rules as a whole \
                 --policy or leave them out, too, or choose another --direction"
            );
        }
        if self.otherwise == DefaultAction::Continue && self.direction == Mode::AgentInitiated {
            bail!("in agent-initiated mode the port is closed to all: --otherwise must be drop");
        }
        if self.otherwise == DefaultAction::Continue && self.early_drop {
            bail!("--early-drop drops, --otherwise continue does not: choose one of them");
        }
        if self.backend == Backend::Nft
            && (!self.interfaces.is_empty() || self.xdp_mode != XdpMode::default())
        {
            bail!(
                "--interface and --xdp-mode are for XDP programs; --backend xdp or --backend both \
                 puts them on interfaces"
            );
        }
        if self.backend == Backend::Xdp && (self.early_drop || self.log) {
            bail!(
                "--early-drop and --log are for the nftables table; choose --backend both, or \
                 leave them out"
            );
        }
        Ok(())
    }

    /// Whose lists and rule files are read.
    pub fn trust(&self) -> Trust {
        if self.trust_file_modes || self.is_legacy { Trust::Anybody } else { Trust::Owned }
    }

    /// Looks up regions, reads lists, and compiles.
    pub fn compile(&self, catalogue: &Catalogue, lists: &Lists) -> anyhow::Result<Compiled> {
        self.check()?;
        let port = Port(self.port);
        let mut notices = Vec::new();
        let mut rules = self.rules(catalogue, lists, &mut notices)?;
        let closes = self.direction == Mode::AgentInitiated;
        rules.extend(self.rules_of_files(rules.is_empty() && !closes, lists, &mut notices)?);
        let mut flags = self.relay_rules(catalogue, lists, &mut notices)?;
        flags.extend(self.outbound_rules(catalogue, lists, &mut notices)?);
        let firewall = self.firewall(&rules, &flags)?;
        let limited = self.limits(&rules);
        notices.extend(firewall.iter().flat_map(beyond::remarks));
        if self.policy && self.engine_rules.is_none() {
            notices.push(Warning::NoEngineRules);
        }
        let lacks_stateful = firewall.as_ref().is_some_and(|of| self.lacks_stateful(of));
        notices.extend(lacks_stateful.then_some(Warning::StatelessUdp));
        let lowered = if closes { closed(port) } else { lower(rules, port, self.otherwise)? };
        let lowered = lowered.without(&self.excepted(catalogue, lists, &mut notices)?);
        let relay = firewall.as_ref().and_then(|firewall| self.relay_policy(firewall));
        let is_said = !self.restricts();
        self.check_breadth(&lowered.policy, is_said, &mut notices)?;
        if let Some(relay) = &relay {
            self.check_breadth(relay, self.relay.contains(&Source::Any), &mut notices)?;
        }
        notices.extend(self.unconfirmed_lists(lists));
        notices.extend(self.lacks_end.then_some(Warning::LacksEnd));
        let extras = Extras { early_drop: self.early_drop, log: self.log };
        let ruleset = Ruleset::compile(&lowered, extras);
        let firewall_tables =
            firewall.as_ref().map(|firewall| firewall.tables(self.log)).unwrap_or_default();
        let label = |label: &Origin| (label.clone(), provenance(label, catalogue));
        let provenance = lowered.ledger.labels().iter().map(label).collect();
        Ok(Compiled {
            lowered,
            ruleset,
            relay,
            limited,
            firewall,
            firewall_tables,
            provenance,
            notices,
        })
    }

    /// Refuses ranges so wide that they may be a slip, unless somebody has consented, or said "any".
    fn check_breadth(
        &self,
        policy: &Policy,
        is_said: bool,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<()> {
        let wide = policy.wide_ranges().join(", ");
        if self.allow_wide || is_said || wide.is_empty() {
            return Ok(());
        }
        let wide = format!("{wide}, which may reach TCP port {},", policy.ports());
        if self.is_legacy {
            notices.push(Warning::Unconfirmed { what: wide, key: "allow_wide" });
            return Ok(());
        }
        bail!(
            "{wide} is wider than a /8 of IPv4 or a /16 of IPv6, and so may be a slip; if it is \
             meant, say --allow-wide, or allow_wide = true in policy.toml"
        )
    }

    /// The lists of an older version's policy that others can change, to which nobody has consented.
    fn unconfirmed_lists(&self, lists: &Lists) -> Option<Warning> {
        let asked = self.asks_who_can_change_lists();
        let read = self.lists().filter(|list| asked && lists.is_others(list));
        let names: Vec<String> = read.map(ToString::to_string).collect();
        let what = format!("{}, which others than root can change,", names.join(", "));
        (!names.is_empty()).then_some(Warning::Unconfirmed { what, key: "trust_file_modes" })
    }

    /// Whether it is an older version's, which took lists whoever can change them.
    pub fn asks_who_can_change_lists(&self) -> bool {
        self.is_legacy && !self.trust_file_modes
    }

    /// Whether it says nothing about who is admitted.
    pub fn names_nobody(&self) -> bool {
        self.allow_from.is_empty() && self.allow_mac.is_empty() && self.rules.is_empty()
    }

    /// Whether it names who is admitted, so that others are not.
    pub fn restricts(&self) -> bool {
        let any = self.allow_from.contains(&Source::Any)
            || self.allow_from.is_empty() && self.rules.is_empty();
        !any || !self.allow_mac.is_empty() || self.direction == Mode::AgentInitiated
    }

    /// Whether it names who reaches the relay's port, so that others do not.
    pub fn restricts_relay(&self) -> bool {
        !self.relay.is_empty() && !self.relay.contains(&Source::Any)
    }

    /// The files that it names: lists, and rules.
    pub fn lists(&self) -> impl Iterator<Item = &ListFile> {
        let services = self.outbound_to.iter().filter_map(|destination| destination.at.as_ref());
        let sources = self.allow_from.iter().chain(&self.except).chain(&self.relay);
        let sources = sources.chain(services);
        let sources = sources.filter_map(Source::list);
        let macs = self.allow_mac.iter().filter_map(MacSource::list);
        sources.chain(macs).chain(&self.rules).chain(&self.assigned)
    }

    /// Whether the list at `path` is one of its sources.
    pub fn names_list(&self, path: &Path) -> bool {
        self.lists().any(|list| matches!(list, ListFile::Path(named) if named == path))
    }

    /// The addresses that are admitted by nothing.
    fn excepted(
        &self,
        catalogue: &Catalogue,
        lists: &Lists,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<AddressSet> {
        let resolved = resolve("--except", &self.except, catalogue, lists)?;
        notices.extend(resolved.notices);
        Ok(Addresses(resolved.addresses).all())
    }

    /// The flags as a rule in the vendor's vocabulary; none if they restrict nothing, since then
    /// nothing replaces the agent's hidden rule.
    fn rules(
        &self,
        catalogue: &Catalogue,
        lists: &Lists,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<Vec<Rule>> {
        let mut source = Endpoint::ANY;
        if !self.allow_from.is_empty() {
            let resolved = resolve("--allow-from", &self.allow_from, catalogue, lists)?;
            notices.extend(resolved.notices);
            source.addresses = Match::Is(Addresses(resolved.addresses));
        }
        if !self.allow_mac.is_empty() {
            let (macs, said) = resolve_macs(&self.allow_mac, lists)?;
            notices.extend(said);
            source.macs = Match::Is(macs);
        }
        if source == Endpoint::ANY {
            return Ok(vec![]);
        }
        let name = "--allow-from, --allow-mac".to_owned();
        Ok(vec![Rule { name, source, ..hidden_rule(Port(self.port)) }])
    }
}

/// Whether an interface can have this name, or this other name: a name of a file in sysfs.
fn is_interface_name(name: &str) -> bool {
    // `ALTIFNAMSIZ` of linux/if.h, with the zero at the end.
    const LONGEST: usize = 127;
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
    !matches!(name, "" | "." | "..") && name.len() <= LONGEST && name.chars().all(is_plain)
}

fn provenance(label: &Origin, catalogue: &Catalogue) -> String {
    match label {
        Origin::Region(name) => catalogue.get(name).map_or_else(
            |_| label.to_string(),
            |region| {
                let (place, source, date) = (&region.place, &region.source, &region.as_of);
                format!("region {name}, {place}: {source}, {date}")
            },
        ),
        label => label.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Packet, Transport, Verdict};

    fn restricted() -> Configuration {
        let allow_from = vec!["192.0.2.0/24".parse().expect("a source")];
        Configuration { allow_from, ..Configuration::default() }
    }

    #[test]
    fn contradictions_are_refused() {
        let agent = Configuration { direction: Mode::AgentInitiated, ..restricted() };
        assert!(agent.check().is_err());
        let others = DefaultAction::Continue;
        let early = Configuration { early_drop: true, otherwise: others, ..restricted() };
        assert!(early.check().is_err());
    }

    #[test]
    fn in_agent_initiated_mode_the_port_is_closed_to_all() {
        let catalogue = Catalogue::published().expect("valid");
        let mode = Configuration { direction: Mode::AgentInitiated, ..Configuration::default() };
        let compiled = mode.compile(&catalogue, &Lists::default()).expect("compiled");
        let packet = Packet {
            loopback: false,
            source: std::net::Ipv4Addr::new(34, 205, 5, 1).into(),
            mac: None,
            transport: Transport::Tcp(Port::AGENT),
        };
        assert_eq!(compiled.lowered.policy.decide(&packet), Verdict::Drop);
    }
}
