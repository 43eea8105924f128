//! What the user should know, though it does not stand in the way.

use super::{HostBits, OBSOLETE};
use std::fmt;

/// Something that the user should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// Prefixes had bits set beyond their length.
    HostBits {
        /// The source.
        source: String,
        /// Which.
        host_bits: HostBits,
    },
    /// A list has no items.
    EmptyList {
        /// The list.
        list: String,
    },
    /// A field of a rule file is not known, and ignored as asked.
    IgnoredField {
        /// The field.
        place: String,
    },
    /// A field of a rule file has no effect where it stands.
    IdleField {
        /// The field.
        place: String,
        /// Why.
        why: String,
    },
    /// A rule of a file says nothing about the agent's port.
    OtherRule {
        /// The rule, and why.
        meaning: String,
    },
    /// Something about a rule of a firewall policy.
    FirewallRule {
        /// What.
        said: String,
    },
    /// A policy of an older version has what a newer one asks for consent to.
    Unconfirmed {
        /// What.
        what: String,
        /// The key of policy.toml that consents.
        key: &'static str,
    },
    /// A policy.toml has a whole firewall policy, and does not say whether the rules of the vendor's
    /// engine are part of it.
    NoEngineRules,
    /// A policy.toml has rules of a manager, and does not say whether they hold though nobody has
    /// assigned them to this host.
    AllRules,
    /// A policy.toml has a whole firewall policy, and does not say whether UDP is stateful.
    StatelessUdp,
    /// A policy.toml does not end with the line that tells a whole one from one that was cut off.
    LacksEnd,
    /// A country has two regions, of which one is named.
    Sibling {
        /// The one.
        region: String,
        /// The other.
        other: &'static str,
    },
    /// The vendor's block of before 2019 is admitted.
    Obsolete {
        /// The source.
        source: String,
    },
}

impl Warning {
    /// Whether it is said for as long as it is so, not only when the policy is compiled.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Unconfirmed { .. }
                | Self::NoEngineRules
                | Self::AllRules
                | Self::StatelessUdp
                | Self::LacksEnd
        )
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostBits { source, host_bits } if host_bits.line == 0 => {
                write!(f, "{source}: the host bits were masked off: {}", host_bits.meant)
            }
            Self::HostBits { source, host_bits } => {
                let HostBits { count, line, written, meant } = host_bits;
                write!(f, "{source}: the host bits of {count} prefixes were masked off, ")?;
                write!(f, "the first on line {line}: {written} means {meant}")
            }
            Self::IgnoredField { place } => write!(f, "{place}: unknown field, ignored"),
            Self::IdleField { place, why } => write!(f, "{place}: {why}"),
            Self::OtherRule { meaning: said } | Self::FirewallRule { said } => f.write_str(said),
            Self::EmptyList { list } => write!(f, "{list}: the list is empty and admits nobody"),
            Self::Unconfirmed { what, key } => write!(
                f,
                "an older version installed this policy, and {what} would need consent now: it \
                 stays in force; {key} = true in policy.toml gives it"
            ),
            Self::NoEngineRules => f.write_str(
                "policy.toml does not say whether the rules of the vendor's engine (DNS, DHCP, ICMP \
                 type 3 code 4) are part of the policy: they are not, as before; engine_rules = \
                 true adds them, false keeps it so without this note",
            ),
            Self::AllRules => f.write_str(
                "policy.toml does not say whether rules with an ID of a manager hold that nothing \
                 assigns to this host: they do, as before; all_rules = true keeps it so without \
                 this note, false asks for an assignment",
            ),
            Self::StatelessUdp => f.write_str(
                "policy.toml does not say whether UDP is stateful: an Allow admits unsolicited \
                 UDP, as before; udp_stateful = true admits replies alone, as the vendor's engine \
                 does, false keeps it so without this note",
            ),
            Self::LacksEnd => f.write_str(
                "policy.toml has no last line that tells a whole file from one that was cut off; \
                 it is taken as it is. If it is whole, end it with the line `# End of policy`",
            ),
            Self::Sibling { region, other } => write!(
                f,
                "region:{region} is not region:{other}: the vendor's page for the country lists \
                 the subnets of both together. The manager's address (`workload.{region}. ...`) \
                 tells which one it is"
            ),
            Self::Obsolete { source } => write!(
                f,
                "{source} admits {OBSOLETE}, the block of \"Deep Security as a Service\" until \
                 about 2019. It is obsolete: no region uses it now, somebody else may. Name the \
                 region instead (region:NAME)."
            ),
        }
    }
}
