//! How one policy differs from another, in sources, ports and rules: what a person has to know who is
//! about to put the one in the place of the other.

use super::{Compiled, Configuration};
use crate::model::firewall::Rule;
use crate::model::{
    AddressSet, Admission, MacAddr, MacMatch, Notation, Ordinal, Origin, OriginMap, Policy, Port,
    Range, RangeSet,
};
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// So many ranges of one kind are named before the rest is only counted.
const NAMED: usize = 8;

/// A difference between two policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The agent's port, or the relay's, is restricted, which it was not.
    Restricted(Port),
    /// It is restricted no longer.
    Unrestricted(Port),
    /// Another port is restricted in its place.
    Moved {
        /// The port that every source reaches then.
        from: Port,
        /// The port that is restricted.
        to: Port,
    },
    /// Sources of a port are admitted that were not.
    Admitted(Sources),
    /// Sources are not admitted that were.
    Refused(Sources),
    /// A rule of a whole firewall policy is new.
    RuleAdded(String),
    /// It is there no longer.
    RuleRemoved(String),
    /// It says something else, or stands elsewhere.
    RuleChanged(String),
    /// A key of `policy.toml` has another value.
    Key {
        /// Which.
        key: &'static str,
        /// What it was.
        before: String,
        /// What it is.
        after: String,
    },
}

/// Sources of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sources {
    /// The port.
    pub port: Port,
    /// By what they are admitted.
    pub by: Origin,
    /// The ranges, in the shortest notation; `None` where it is every address.
    pub ranges: Option<Vec<String>>,
    /// The MAC addresses that this is about; `None` for any.
    pub macs: Option<RangeSet<MacAddr>>,
}

/// When it is so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tense {
    /// It would be so.
    Would,
    /// It was made so.
    Was,
}

impl Difference {
    /// The difference in a sentence.
    pub fn in_words(&self, tense: Tense) -> String {
        let [be, no_longer, differ] = match tense {
            Tense::Would => ["would be ", "would no longer be", "would differ"],
            Tense::Was => ["", "no longer", "changed"],
        };
        match self {
            Self::Restricted(port) => format!("TCP port {port} {be}closed to all but:"),
            Self::Unrestricted(port) => {
                format!("TCP port {port} {no_longer} restricted: every source reaches it")
            }
            Self::Moved { from, to } => format!(
                "TCP port {to} {be}restricted instead of {from}, which every source reaches then"
            ),
            Self::Admitted(sources) => {
                format!("{sources} {be}admitted to TCP port {}", sources.port)
            }
            Self::Refused(sources) => {
                format!("{sources} {no_longer} admitted to TCP port {}", sources.port)
            }
            Self::RuleAdded(name) => format!("rule `{name}` {be}added"),
            Self::RuleRemoved(name) => format!("rule `{name}` {be}removed"),
            Self::RuleChanged(name) => format!("rule `{name}` {differ}"),
            Self::Key { key, before, after } => format!("{key} {be}{after}, and was {before}"),
        }
    }

    /// Whether a source is refused that was admitted.
    pub fn drops_a_source(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Restricted(_))
    }
}

impl Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ranges {
            None => f.write_str("every source")?,
            Some(ranges) => {
                let (named, rest) = ranges.split_at(ranges.len().min(NAMED));
                f.write_str(&named.join(", "))?;
                if !rest.is_empty() {
                    let [s, count] =
                        [if rest.len() == 1 { "" } else { "s" }, &rest.len().to_string()];
                    write!(f, " and {count} more range{s}")?;
                }
                if !matches!(self.by, Origin::Address | Origin::Any) {
                    write!(f, " ({})", self.by)?;
                }
            }
        }
        let words = |macs: &RangeSet<MacAddr>| {
            let ranges = macs.ranges().iter().map(ToString::to_string);
            ranges.take(NAMED).collect::<Vec<_>>().join(", ")
        };
        match &self.macs {
            None => Ok(()),
            // Those but a few.
            Some(macs) if macs.complement().ranges().len() < macs.ranges().len() => {
                write!(f, ", but for MAC address {},", words(&macs.complement()))
            }
            Some(macs) => write!(f, " with MAC address {}", words(macs)),
        }
    }
}

/// How `after` differs from `before`; without one, from a host that nobody restricts.
pub fn differences(
    before: Option<(&Configuration, &Compiled)>,
    after: (&Configuration, &Compiled),
) -> Vec<Difference> {
    let (words, compiled) = after;
    let known = before.map(|(_, compiled)| compiled);
    let gate =
        |compiled: &Compiled| (compiled.lowered.policy.clone(), compiled.lowered.ledger.clone());
    let mut found = of_port(known.map(gate), Some(gate(compiled)));
    let relay = |compiled: &Compiled| Some((compiled.relay.clone()?, OriginMap::default()));
    found.extend(of_port(known.and_then(relay), relay(compiled)));
    found.extend(of_rules(known, compiled));
    let default = Configuration::default();
    let before = before.map_or(&default, |(words, _)| words);
    found.extend(of_keys(&settings(before), &settings(words)));
    if found.is_empty() {
        // The words may have changed though no packet is decided otherwise.
        found.extend(of_keys(&lists(before), &lists(words)));
    }
    found
}

/// What is said of a port, and by which words.
type Said = (Policy, OriginMap);

/// The port of a policy: each is about one.
fn port_of((policy, _): &Said) -> Port {
    policy.ports().ranges().first().map_or(Port::AGENT, Range::first)
}

fn of_port(before: Option<Said>, after: Option<Said>) -> Vec<Difference> {
    let before = before.filter(|(policy, _)| !policy.admits_everyone());
    let after = after.filter(|(policy, _)| !policy.admits_everyone());
    match (&before, &after) {
        (None, None) => Vec::new(),
        (Some(before), None) => vec![Difference::Unrestricted(port_of(before))],
        (Some(before), Some(after)) if port_of(before) == port_of(after) => between(before, after),
        (Some(before), Some(after)) => {
            let moved = Difference::Moved { from: port_of(before), to: port_of(after) };
            std::iter::once(moved).chain(between(before, after)).collect()
        }
        (None, Some(after)) => {
            let admitted = admitted(after);
            std::iter::once(Difference::Restricted(port_of(after))).chain(admitted).collect()
        }
    }
}

/// All that are admitted.
fn admitted(said: &Said) -> Vec<Difference> {
    let nobody = Policy::new(said.0.ports().clone(), said.0.others(), []);
    between(&(nobody, OriginMap::default()), said)
}

fn between(before: &Said, after: &Said) -> Vec<Difference> {
    let port = port_of(after);
    let gained = more(&after.0, &before.0);
    let lost = more(&before.0, &after.0);
    let told = |parts: Vec<(AddressSet, Option<RangeSet<MacAddr>>)>, ledger: &OriginMap| {
        let of = parts
            .into_iter()
            .flat_map(|(addresses, macs)| by_origin(ledger, &addresses, port, macs.as_ref()));
        of.collect::<Vec<Sources>>()
    };
    let gained = told(gained, &after.1).into_iter().map(Difference::Admitted);
    let lost = told(lost, &before.1).into_iter().map(Difference::Refused);
    gained.chain(lost).collect()
}

/// Whom one policy admits and the other does not; each part with its MAC addresses.
fn more(this: &Policy, other: &Policy) -> Vec<(AddressSet, Option<RangeSet<MacAddr>>)> {
    let macs = |admission: &Admission| match &admission.macs {
        MacMatch::Any => None,
        MacMatch::Only(macs) => Some(macs.clone()),
    };
    let mut parts = Vec::new();
    for admission in this.admissions() {
        let mut rest = admission.addresses.clone();
        for known in other.admissions() {
            let both = rest.intersection(&known.addresses);
            rest = rest.difference(&known.addresses);
            let left = match (macs(admission), macs(known)) {
                (_, None) => continue,
                (None, Some(known)) => known.complement(),
                (Some(these), Some(known)) => these.difference(&known),
            };
            if !both.is_empty() && !left.is_empty() {
                parts.push((both, Some(left)));
            }
        }
        if !rest.is_empty() {
            parts.push((rest, macs(admission)));
        }
    }
    parts
}

/// Addresses by the words that admit them.
fn by_origin(
    ledger: &OriginMap,
    addresses: &AddressSet,
    port: Port,
    macs: Option<&RangeSet<MacAddr>>,
) -> Vec<Sources> {
    let of =
        |by: Origin, ranges: Option<Vec<String>>| Sources { port, by, ranges, macs: macs.cloned() };
    if addresses.is_all() {
        return vec![of(Origin::Any, None)];
    }
    let ledger = ledger.restrict(addresses);
    let mut parts: BTreeMap<u16, AddressSet> = BTreeMap::new();
    for (label, v4) in by_label(ledger.v4().entries()) {
        parts.entry(label).or_default().v4 = v4;
    }
    for (label, v6) in by_label(ledger.v6().entries()) {
        parts.entry(label).or_default().v6 = v6;
    }
    let label =
        |index: u16| ledger.labels().get(usize::from(index)).cloned().unwrap_or(Origin::Any);
    let named: AddressSet = AddressSet {
        v4: parts.values().flat_map(|set| set.v4.ranges()).copied().collect(),
        v6: parts.values().flat_map(|set| set.v6.ranges()).copied().collect(),
    };
    let found = parts.iter().map(|(index, set)| of(label(*index), Some(notations(set))));
    let mut found: Vec<Sources> = found.collect();
    let rest = addresses.difference(&named);
    if !rest.is_empty() {
        found.push(of(Origin::Address, Some(notations(&rest))));
    }
    found
}

/// The ranges of each label.
fn by_label<T: Ordinal>(entries: &[(Range<T>, u16)]) -> BTreeMap<u16, RangeSet<T>> {
    let mut ranges: BTreeMap<u16, Vec<Range<T>>> = BTreeMap::new();
    for (range, label) in entries {
        ranges.entry(*label).or_default().push(*range);
    }
    ranges.into_iter().map(|(label, ranges)| (label, ranges.into_iter().collect())).collect()
}

fn notations(set: &AddressSet) -> Vec<String> {
    let v4 = set.v4.ranges().iter().map(Notation::notation);
    v4.chain(set.v6.ranges().iter().map(Notation::notation)).collect()
}

/// What differs in the rules of whole firewall policies.
fn of_rules(before: Option<&Compiled>, after: &Compiled) -> Vec<Difference> {
    let rules = |compiled: &Compiled| {
        let rules = compiled.firewall.iter().flat_map(|firewall| firewall.rules().to_vec());
        let mut named: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        rules.for_each(|rule| named.entry(rule.name.clone()).or_default().push(rule));
        named
    };
    let (before, after) = (before.map(rules).unwrap_or_default(), rules(after));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.cloned().map(Difference::RuleRemoved).collect::<Vec<_>>();
    let other = after.iter().filter_map(|(name, rules)| match before.get(name) {
        None => Some(Difference::RuleAdded(name.clone())),
        Some(known) => (known != rules).then(|| Difference::RuleChanged(name.clone())),
    });
    other.chain(gone).collect()
}

/// A key and its value, as `policy.toml` has it.
type Setting = (&'static str, String);

/// What is no list of sources, nor of rules.
fn settings(words: &Configuration) -> Vec<Setting> {
    let Configuration { direction, otherwise, backend, xdp_mode, outbound, .. } = words;
    vec![
        ("direction", direction.to_string()),
        ("otherwise", otherwise.to_string()),
        ("backend", backend.to_string()),
        ("interfaces", joined(&words.interfaces)),
        ("xdp_mode", xdp_mode.to_string()),
        ("outbound", outbound.to_string()),
        ("outbound_to", joined(&words.outbound_to)),
        ("early_drop", words.early_drop.to_string()),
        ("log", words.log.to_string()),
        ("policy", words.policy.to_string()),
        ("engine_rules", words.enforces_engine_rules().to_string()),
        ("udp_stateful", words.stateful().udp.to_string()),
        ("icmp_stateful", words.stateful().icmp.to_string()),
        ("assigned_policy", words.assigned_policy.clone()),
        // Without files, there is nothing that it is about.
        ("all_rules", (!words.rules.is_empty() && words.all_rules != Some(false)).to_string()),
        ("skip_unsupported", words.skip_unsupported.to_string()),
        ("lenient", words.lenient.to_string()),
        ("allow_wide", words.allow_wide.to_string()),
        ("trust_file_modes", words.trust_file_modes.to_string()),
    ]
}

/// The lists of sources, and of files of rules.
fn lists(words: &Configuration) -> Vec<Setting> {
    vec![
        ("allow_from", joined(&words.allow_from)),
        ("except", joined(&words.except)),
        ("allow_mac", joined(&words.allow_mac)),
        ("rules", joined(words.rules.iter().cloned().map(String::from))),
        ("assigned", joined(words.assigned.iter().cloned().map(String::from))),
        ("relay", joined(&words.relay)),
    ]
}

fn joined<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { "empty".to_owned() } else { values.join(", ") }
}

fn of_keys<'a>(before: &'a [Setting], after: &'a [Setting]) -> impl Iterator<Item = Difference> {
    let pairs = before.iter().zip(after).filter(|(before, after)| before != after);
    pairs
        .map(|((key, before), (_, after))| Difference::Key {
            key,
            before: before.clone(),
            after: after.clone(),
        })
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Catalogue, Lists};
    use crate::model::DefaultAction;

    fn compiled(words: &Configuration) -> Compiled {
        let catalogue = Catalogue::published().expect("built in");
        words.compile(&catalogue, &Lists::default()).expect("compiled")
    }

    fn of(sources: &[&str]) -> Configuration {
        Configuration {
            allow_from: sources.iter().map(|text| text.parse().expect("a source")).collect(),
            ..Configuration::default()
        }
    }

    fn said(before: Option<&Configuration>, after: &Configuration) -> Vec<String> {
        let known = before.map(compiled);
        let before = before.zip(known.as_ref());
        let found = differences(before, (after, &compiled(after)));
        found.iter().map(|difference| difference.in_words(Tense::Would)).collect()
    }

    #[test]
    fn sources_that_come_and_go_are_named_exactly() {
        let before = of(&["192.0.2.0/24", "2001:db8::1"]);
        assert_eq!(
            said(Some(&before), &of(&["192.0.2.0/25", "203.0.113.9", "2001:db8::1"])),
            [
                "203.0.113.9 would be admitted to TCP port 4118",
                "192.0.2.128/25 would no longer be admitted to TCP port 4118",
            ]
        );
        let mut except = of(&["192.0.2.0/24", "2001:db8::1"]);
        except.except = vec!["192.0.2.7".parse().expect("a source")];
        assert_eq!(
            said(Some(&before), &except),
            ["192.0.2.7 would no longer be admitted to TCP port 4118"]
        );
        assert!(said(Some(&before), &before).is_empty());
    }

    #[test]
    fn a_region_is_named() {
        let found = said(Some(&of(&["192.0.2.1"])), &of(&["192.0.2.1", "region:gb-1"]));
        assert!(found[0].contains("(region gb-1) would be admitted"), "{found:?}");
    }

    #[test]
    fn a_first_policy_closes_the_port_and_any_opens_it() {
        let found = said(None, &of(&["192.0.2.1"]));
        assert_eq!(
            found,
            [
                "TCP port 4118 would be closed to all but:",
                "192.0.2.1 would be admitted to TCP port 4118"
            ]
        );
        let found = said(Some(&of(&["192.0.2.1"])), &of(&["any"]));
        assert_eq!(found, ["TCP port 4118 would no longer be restricted: every source reaches it"]);
    }

    #[test]
    fn another_port_is_told_apart_from_other_sources() {
        let moved = Configuration { port: 4200, ..of(&["192.0.2.1"]) };
        assert_eq!(
            said(Some(&of(&["192.0.2.1", "192.0.2.3"])), &moved),
            [
                "TCP port 4200 would be restricted instead of 4118, which every source reaches then",
                "192.0.2.3 would no longer be admitted to TCP port 4200",
            ]
        );
    }

    #[test]
    fn mac_addresses_are_told_apart() {
        let mac = |text: &str| text.parse().expect("a MAC address");
        let mut one = of(&["192.0.2.1"]);
        one.allow_mac = vec![mac("02:00:00:00:00:01")];
        assert_eq!(
            said(Some(&of(&["192.0.2.1"])), &one),
            [
                "192.0.2.1, but for MAC address 02:00:00:00:00:01, would no longer be admitted to TCP \
              port 4118"
            ]
        );
        let mut other = of(&["192.0.2.1"]);
        other.allow_mac = vec![mac("02:00:00:00:00:02")];
        assert_eq!(
            said(Some(&one), &other),
            [
                "192.0.2.1 with MAC address 02:00:00:00:00:02 would be admitted to TCP port 4118",
                "192.0.2.1 with MAC address 02:00:00:00:00:01 would no longer be admitted to TCP \
                 port 4118",
            ]
        );
    }

    #[test]
    fn other_keys_and_words_without_effect_are_named() {
        let before = of(&["192.0.2.0/24"]);
        let mut after = of(&["192.0.2.0/24"]);
        (after.log, after.otherwise) = (true, DefaultAction::Continue);
        let found = said(Some(&before), &after);
        assert_eq!(
            found,
            ["otherwise would be continue, and was drop", "log would be true, and was false"]
        );
        let found = said(Some(&before), &of(&["192.0.2.0/24", "192.0.2.7"]));
        assert_eq!(found, ["allow_from would be 192.0.2.0/24, 192.0.2.7, and was 192.0.2.0/24"]);
    }
}
