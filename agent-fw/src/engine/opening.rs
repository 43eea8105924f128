//! What a policy would open that the last good one restricts. A file that was cut off, or a line
//! that was lost, reads like a policy that wants it so.

use crate::configuration::{Compiled, Configuration};
use crate::model::rule::Direction;
use crate::model::{Policy, Port, Range, RangeSet};
use crate::system::sockets::Protocol;
use std::fmt;

/// Something that would no longer be restricted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opening {
    /// A TCP port that is closed to all but some sources.
    Port(Port),
    /// A direction in which what no rule admits is dropped.
    Direction(Direction),
    /// Ports that rules deny.
    Denied(Direction, Protocol, RangeSet<Port>),
    /// What a key of `policy.toml` restricts, in a file that may have been cut off before it.
    Key(&'static str),
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "TCP port {port}"),
            Self::Direction(Direction::Incoming) => f.write_str("incoming connections"),
            Self::Direction(Direction::Outgoing) => f.write_str("outgoing connections"),
            Self::Denied(direction, protocol, ports) => {
                let way = match direction {
                    Direction::Incoming => "",
                    Direction::Outgoing => " of others",
                };
                write!(f, "{protocol} port {ports}{way}")
            }
            Self::Key(key) => write!(f, "what `{key}` does"),
        }
    }
}

/// A policy, with what it was compiled from.
pub type Known = (Configuration, Compiled);

/// What `before` restricts and `after` does not.
pub fn openings(before: &Known, after: &Known) -> Vec<Opening> {
    let closed = closed_ports(after);
    let ports = closed_ports(before).into_iter().filter(|port| !closed.contains(port));
    let mut found: Vec<Opening> = ports.map(Opening::Port).collect();
    for direction in [Direction::Incoming, Direction::Outgoing] {
        let Some(firewall) = &before.1.firewall else { continue };
        let adds_engine_rules = after.0.enforces_engine_rules();
        let after = after.1.firewall.clone().unwrap_or_default();
        if firewall.closes(direction) {
            found.extend((!after.closes(direction)).then_some(Opening::Direction(direction)));
            continue;
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let [is_open, was_open] = [&after, firewall]
                .map(|firewall| firewall.open_ports(direction, protocol.number()));
            let mut denied = is_open.difference(&was_open);
            if protocol == Protocol::Tcp && direction == Direction::Incoming {
                // The relay's port has been judged.
                denied = denied.difference(&Range::single(Port::RELAY).into());
            }
            if adds_engine_rules {
                // They are asked for by name.
                denied = denied.difference(&ports_of_engine_rules());
            }
            if !denied.is_empty() {
                found.push(Opening::Denied(direction, protocol, denied));
            }
        }
    }
    if after.0.lacks_end {
        found.extend(lost_keys(&before.0, &after.0).map(Opening::Key));
    }
    found
}

/// DNS and DHCP.
fn ports_of_engine_rules() -> RangeSet<Port> {
    [53, 67, 68].map(|port| Range::single(Port(port))).into_iter().collect()
}

/// The keys that restrict something in `before` and have gone in `after`.
fn lost_keys(before: &Configuration, after: &Configuration) -> impl Iterator<Item = &'static str> {
    // Early drop and programs drop what a rule of the host would send on to others, before it does.
    let is_lost = |of: fn(&Configuration) -> bool| of(before) && !of(after);
    // A file without the key means all rules of its files.
    let unassigned =
        before.all_rules == Some(false) && after.all_rules.is_none() && !after.rules.is_empty();
    [
        ("except", is_lost(|known| !known.except.is_empty())),
        ("allow_mac", is_lost(|known| !known.allow_mac.is_empty())),
        ("outbound_to", is_lost(|known| !known.outbound_to.is_empty())),
        ("assigned", is_lost(|known| !known.assigned.is_empty())),
        ("all_rules", unassigned),
        ("udp_stateful", is_lost(|known| known.stateful().udp)),
        ("icmp_stateful", is_lost(|known| known.stateful().icmp)),
        ("early_drop", is_lost(|known| known.early_drop)),
        ("backend", is_lost(|known| known.backend.has_programs())),
    ]
    .into_iter()
    .filter_map(|(key, is_lost)| is_lost.then_some(key))
}

/// The ports that are closed to all but some sources, as [`judge`](super::judge) judges a policy.
fn closed_ports((configuration, compiled): &Known) -> Vec<Port> {
    let gate = Policy::closes(&compiled.lowered.policy).then_some(Port(configuration.port));
    let relay = compiled.relay.as_ref().is_some_and(Policy::closes).then_some(Port::RELAY);
    gate.into_iter().chain(relay).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::options::{Backend, Mode};
    use crate::input::outbound::Outbound;
    use crate::input::{Catalogue, ListFile, Lists};
    use crate::model::{AddressSet, MacMatch};

    const RULES: &str = r#"[
        {"name": "Manager", "action": "force-allow", "priority": "4", "direction": "incoming",
         "frameType": "ip", "protocol": "tcp", "sourceIPType": "single",
         "sourceIPValue": "198.51.100.7", "destinationPortType": "multiple",
         "destinationPortMultiple": ["4118"]},
        {"name": "No SSH", "action": "deny", "priority": "4", "direction": "incoming",
         "frameType": "ip", "protocol": "tcp", "destinationPortType": "multiple",
         "destinationPortMultiple": ["22"]}]"#;

    fn compiled(text: &str) -> anyhow::Result<Known> {
        let configuration = Configuration::parse("policy.toml", text)?;
        let mut lists = Lists::default();
        lists.keep("/rules.json".into(), RULES.to_owned());
        let compiled = configuration.compile(&Catalogue::published()?, &lists)?;
        Ok((configuration, compiled))
    }

    /// Policies that restrict by each of their keys.
    fn policies() -> Vec<Configuration> {
        let from = |text: &str| Configuration {
            allow_from: vec![text.parse().expect("a source")],
            ..Configuration::default()
        };
        let region = || from("region:us-1");
        vec![
            region(),
            Configuration { except: vec!["18.97.19.0/28".parse().expect("a source")], ..region() },
            Configuration {
                allow_mac: vec!["02:00:00:00:00:01".parse().expect("a MAC")],
                ..region()
            },
            Configuration { port: 4119, early_drop: true, log: true, ..region() },
            Configuration { port: 41180, backend: Backend::Both, ..region() },
            Configuration {
                relay: vec!["10.0.0.0/8".parse().expect("a source")],
                outbound: Outbound::DefaultDeny,
                outbound_to: vec!["dns-server=192.0.2.53".parse().expect("a service")],
                ..region()
            },
            Configuration {
                rules: vec![ListFile::Path("/rules.json".into())],
                policy: true,
                engine_rules: Some(true),
                ..region()
            },
            Configuration { direction: Mode::AgentInitiated, ..Configuration::default() },
            Configuration { allow_wide: true, ..from("0.0.0.0/1") },
        ]
    }

    /// The addresses that are admitted, and whether a MAC address is asked for besides.
    fn admitted((_, compiled): &Known, macs: bool) -> AddressSet {
        let admissions = compiled.lowered.policy.admissions().iter();
        let of = admissions.filter(|admission| (admission.macs != MacMatch::Any) == macs);
        of.fold(AddressSet::default(), |all, admission| all.union(&admission.addresses))
    }

    #[test]
    fn a_policy_that_was_cut_off_at_any_byte_is_refused_or_opens_nothing() {
        for configuration in policies() {
            let text = configuration.to_toml();
            let whole = compiled(&text).expect("written by us");
            assert!(!whole.0.lacks_end && openings(&whole, &whole).is_empty());
            for end in 0..text.trim_end().len() {
                let Ok(cut) = compiled(&text[..end]) else { continue };
                assert!(cut.0.lacks_end, "taken for whole: {}", &text[..end]);
                if !openings(&whole, &cut).is_empty() {
                    continue;
                }
                let kept = |of: fn(&Known) -> bool| of(&cut) || !of(&whole);
                for macs in [false, true] {
                    let more = admitted(&cut, macs).difference(&admitted(&whole, macs));
                    assert!(more.is_empty(), "admits more: {}", &text[..end]);
                }
                assert_eq!(cut.0.port, whole.0.port, "{}", &text[..end]);
                assert!(cut.1.lowered.policy.closes(), "{}", &text[..end]);
                assert_eq!(cut.1.relay, whole.1.relay, "{}", &text[..end]);
                assert!(kept(|known| known.0.early_drop), "{}", &text[..end]);
                assert!(kept(|known| known.0.backend.has_programs()), "{}", &text[..end]);
                for direction in [Direction::Incoming, Direction::Outgoing] {
                    let open = |known: &Known| {
                        let firewall = known.1.firewall.clone().unwrap_or_default();
                        firewall.open_ports(direction, Protocol::Tcp.number())
                    };
                    assert!(open(&cut).difference(&open(&whole)).is_empty(), "{}", &text[..end]);
                }
            }
        }
    }

    #[test]
    fn a_port_that_a_rule_denied_is_opened_without_the_rule() {
        let mut policy = policies().remove(6);
        let before = compiled(&policy.to_toml()).expect("valid");
        policy.policy = false;
        let after = compiled(&policy.to_toml()).expect("valid");
        let opened = openings(&before, &after);
        assert_eq!(opened.iter().map(ToString::to_string).collect::<Vec<_>>(), ["TCP port 22"]);
    }
}
