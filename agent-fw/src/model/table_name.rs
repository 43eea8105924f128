//! The tables that agent-fw has in the kernel, by family and name.

use std::fmt;

/// A table of agent-fw's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TableName {
    /// Who reaches the agent's port.
    Gate,
    /// A whole firewall policy, as far as it is about IP.
    Firewall,
    /// What that policy says of ARP, which no table of the family `inet` sees.
    Arp,
    /// The gate a second time, the guard's own, on kernels where no process can own the gate itself
    /// and leave it behind.
    Twin,
}

impl TableName {
    /// Those that hold a policy. A twin holds none of its own, and is its guard's matter.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Firewall, Self::Arp];

    /// Its name, without the family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gate => "agent_fw",
            Self::Firewall | Self::Arp => "agent_fw_policy",
            Self::Twin => "agent_fw_guard",
        }
    }

    /// Its family: what packets it sees.
    pub const fn family(self) -> &'static str {
        match self {
            Self::Gate | Self::Firewall | Self::Twin => "inet",
            Self::Arp => "arp",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family(), self.name())
    }
}
