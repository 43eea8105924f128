//! Which firewall's rule stops a packet.

use crate::model::TableName;
use crate::netlink::nfnetlink::Connection;
use crate::trace::events::ChainRef;
use crate::trace::path::{Conclusion, Decider, PacketTrace};
use crate::trace::{base_chains, iptables_legacy};
use serde::{Deserialize, Serialize};

/// A firewall of this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firewall {
    /// firewalld, with either backend, and the zone that the packet came to.
    Firewalld(Option<String>),
    /// ufw.
    Ufw,
    /// Rules of the program iptables in nf_tables, with the base chain that dropped the packet.
    Iptables(ChainRef),
    /// Rules of iptables-legacy, which nf_tables does not trace, for one version of IP.
    IptablesLegacy {
        /// Of iptables-legacy, not of ip6tables-legacy.
        is_v4: bool,
    },
    /// A ruleset of nft, with the base chain that dropped the packet.
    Nftables(ChainRef),
}

impl std::fmt::Display for Firewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Firewalld(Some(zone)) => write!(f, "firewalld (zone {zone})"),
            Self::Firewalld(None) => f.write_str("firewalld"),
            Self::Ufw => f.write_str("ufw"),
            Self::Iptables(_) => f.write_str("iptables"),
            Self::IptablesLegacy { .. } => f.write_str("iptables-legacy"),
            Self::Nftables(base) => write!(f, "nftables (chain {base})"),
        }
    }
}

impl Firewall {
    /// The firewall that stopped a packet; `None` where no other one did.
    pub fn that_stopped(road: &PacketTrace, is_v4: bool) -> anyhow::Result<Option<Self>> {
        let chains = base_chains::chains(&mut Connection::open()?)?;
        Ok(match &road.conclusion {
            Conclusion::Dropped(index) => {
                let decision = road.decisions.get(*index);
                decision.and_then(|decision| {
                    let firewall = Self::of(&decision.at, &chains)?;
                    Some(match (firewall, &decision.decider) {
                        (Self::Firewalld(_), Decider::Rule { at, .. }) => {
                            Self::Firewalld(zone(&at.chain).map(str::to_owned))
                        }
                        (firewall, _) => firewall,
                    })
                })
            }
            Conclusion::Legacy(_) => {
                Some(Self::of_legacy(&iptables_legacy::saved(is_v4, &[]), is_v4))
            }
            Conclusion::Vanished(_) if iptables_legacy::has_tables() => {
                Some(Self::of_legacy(&iptables_legacy::saved(is_v4, &[]), is_v4))
            }
            _ => None,
        })
    }

    /// The firewall that a base chain belongs to, by what else is in its table.
    fn of(base: &ChainRef, chains: &[ChainRef]) -> Option<Self> {
        let is_beside =
            |place: &&ChainRef| place.family == base.family && place.table == base.table;
        let has = |name: &str| chains.iter().filter(is_beside).any(|p| p.chain.starts_with(name));
        // The names by which iptables calls its tables and chains, whatever backend it has.
        let is_iptables = ["filter", "mangle", "raw", "security"].contains(&base.table.as_str())
            && ["INPUT", "PREROUTING"].contains(&base.chain.as_str());
        Some(match base.table.as_str() {
            ours if TableName::ALL.iter().any(|table| table.name() == ours) => return None,
            twin if twin == TableName::Twin.name() => return None,
            "firewalld" => Self::Firewalld(None),
            _ if is_iptables && (has("ufw-") || has("ufw6-")) => Self::Ufw,
            _ if is_iptables && (has("IN_public") || has("INPUT_ZONES")) => Self::Firewalld(None),
            _ if is_iptables => Self::Iptables(base.clone()),
            _ => Self::Nftables(base.clone()),
        })
    }

    /// The firewall that has made these rules, as `iptables-legacy-save` writes them.
    fn of_legacy(rules: &str, is_v4: bool) -> Self {
        let has = |name: &str| rules.lines().any(|line| line.starts_with(&format!(":{name}")));
        if has("ufw-") || has("ufw6-") {
            Self::Ufw
        } else if has("INPUT_ZONES") {
            Self::Firewalld(None)
        } else {
            Self::IptablesLegacy { is_v4 }
        }
    }

    /// Whether it keeps what it is told for the next boot, by itself.
    pub fn keeps_rules(&self) -> bool {
        matches!(self, Self::Firewalld(_) | Self::Ufw)
    }

    /// How the exception lasts, where that takes more.
    pub fn lasting(&self) -> Option<String> {
        match self {
            Self::Firewalld(_) | Self::Ufw => None,
            Self::Iptables(_) | Self::IptablesLegacy { .. } => Some(
                "it lasts until the next boot; netfilter-persistent save keeps it (package \
                 iptables-persistent)"
                    .to_owned(),
            ),
            Self::Nftables(base) => Some(match line_of(base) {
                Some(line) => format!(
                    "it lasts until the ruleset is loaded again; {NFTABLES} has this chain from \
                     line {line} on: put the rule behind its line `type filter …`"
                ),
                None => "it lasts until the ruleset is loaded again; put the rule at the \
                         beginning of this chain where your ruleset is kept"
                    .to_owned(),
            }),
        }
    }
}

/// The zone whose chain this is, as firewalld calls it: `filter_IN_public`, `IN_public_allow`.
fn zone(chain: &str) -> Option<&str> {
    let (_, rest) = chain.split_once("IN_")?;
    // firewalld's policies between zones are named so.
    let rest = Some(rest).filter(|rest| !rest.starts_with("policy_"))?;
    let parts = ["_pre", "_log", "_deny", "_allow", "_post"];
    let zone = parts.iter().find_map(|part| rest.strip_suffix(part)).unwrap_or(rest);
    // A name that could be something else to a shell is not written out.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (!zone.is_empty() && zone.chars().all(is_plain)).then_some(zone)
}

/// Where distributions keep nft's ruleset.
const NFTABLES: &str = "/etc/nftables.conf";

/// The line at which the chain begins in the ruleset's file.
fn line_of(base: &ChainRef) -> Option<usize> {
    let text = std::fs::read_to_string(NFTABLES).ok()?;
    find_chain(&text, base)
}

fn find_chain(text: &str, base: &ChainRef) -> Option<usize> {
    let mut is_in_table = false;
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["table", .., name, "{"] => is_in_table = *name == base.table,
            ["chain", name, ..] if is_in_table && *name == base.chain => return Some(index + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(family: u8, table: &str, chain: &str) -> ChainRef {
        ChainRef { family, table: table.to_owned(), chain: chain.to_owned() }
    }

    #[test]
    fn firewalls_are_known_by_what_is_in_their_tables() {
        let input = place(2, "filter", "INPUT");
        let of = |chains: &[ChainRef]| Firewall::of(&input, chains);
        assert_eq!(of(std::slice::from_ref(&input)), Some(Firewall::Iptables(input.clone())));
        let ufw = [input.clone(), place(2, "filter", "ufw-before-input")];
        assert_eq!(of(&ufw), Some(Firewall::Ufw));
        // ufw's chains in another family's table say nothing of this one.
        assert_eq!(
            of(&[place(10, "filter", "ufw6-before-input")]),
            Some(Firewall::Iptables(input.clone()))
        );
        let firewalld = [input.clone(), place(2, "filter", "INPUT_ZONES")];
        assert_eq!(of(&firewalld), Some(Firewall::Firewalld(None)));
        let named = place(1, "firewalld", "filter_INPUT");
        assert_eq!(Firewall::of(&named, &[]), Some(Firewall::Firewalld(None)));
        let host = place(1, "host", "input");
        assert_eq!(Firewall::of(&host, &[]), Some(Firewall::Nftables(host.clone())));
        assert_eq!(Firewall::of(&place(1, "agent_fw", "gate"), &[]), None);
    }

    #[test]
    fn who_has_made_legacy_rules_is_known_by_their_chains() {
        let of = |rules: &str| Firewall::of_legacy(rules, true);
        assert_eq!(of(":INPUT DROP [0:0]"), Firewall::IptablesLegacy { is_v4: true });
        assert_eq!(of("*filter\n:INPUT DROP [0:0]\n:ufw-before-input - [0:0]"), Firewall::Ufw);
        assert_eq!(of(":INPUT_ZONES - [0:0]"), Firewall::Firewalld(None));
    }

    #[test]
    fn the_zone_is_read_from_firewallds_names() {
        for chain in ["filter_IN_public", "IN_public", "filter_IN_public_allow", "IN_public_post"] {
            assert_eq!(zone(chain), Some("public"), "{chain}");
        }
        assert_eq!(zone("filter_INPUT"), None);
        assert_eq!(zone("filter_IN_policy_allow-host-ipv6_allow"), None);
        assert_eq!(zone("IN_a;b"), None);
    }

    #[test]
    fn a_chain_is_found_in_the_rulesets_file() {
        let text = "#!/usr/sbin/nft -f\nflush ruleset\ntable ip nat {\n\tchain input {\n\t}\n}\n\
                    table inet host {\n\tchain input {\n\t\ttype filter hook input priority 0;\n";
        assert_eq!(find_chain(text, &place(1, "host", "input")), Some(8));
        assert_eq!(find_chain(text, &place(1, "host", "forward")), None);
    }
}
