//! What a person chooses between.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who opens the connections between agent and manager.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Both: the agent listens.
    #[default]
    Bidirectional,
    /// The manager: the agent listens.
    ManagerInitiated,
    /// The agent: nobody needs to reach it, and the port is closed to all.
    AgentInitiated,
}

impl Mode {
    /// All of them, the vendor's default first.
    pub const ALL: [Self; 3] = [Self::AgentInitiated, Self::Bidirectional, Self::ManagerInitiated];

    /// What a host needs inbound, in words.
    pub const fn inbound(self) -> &'static str {
        match self {
            Self::AgentInitiated => "nothing inbound; the agent does not listen",
            Self::Bidirectional | Self::ManagerInitiated => {
                "inbound TCP 4118 from the region's subnets"
            }
        }
    }

    /// What speaks for it.
    pub const fn merit(self) -> &'static str {
        match self {
            Self::AgentInitiated => {
                "the vendor's default, which its documents strongly recommend not to change: no \
                 port is open to anybody"
            }
            Self::Bidirectional => {
                "the manager reaches the agent at once, and the agent sends its heartbeat itself"
            }
            Self::ManagerInitiated => {
                "the manager reaches the agent at once, and opens the heartbeat's connection, too"
            }
        }
    }

    /// What speaks against it.
    pub const fn demerit(self) -> &'static str {
        match self {
            Self::AgentInitiated => {
                "changed settings reach the agent, and logs the manager, only with the next \
                 heartbeat, every 10 minutes"
            }
            Self::Bidirectional => "a port has to be open inbound, and to be restricted",
            Self::ManagerInitiated => {
                "a port has to be open inbound, and to be restricted; without it, no heartbeat \
                 comes, and the computer is shown as offline"
            }
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bidirectional => "bidirectional",
            Self::ManagerInitiated => "manager-initiated",
            Self::AgentInitiated => "agent-initiated",
        })
    }
}

/// What enforces the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A table of nf_tables.
    #[default]
    Nft,
    /// An XDP program on each interface, alone.
    Xdp,
    /// The program, and the table behind it.
    Both,
}

impl Backend {
    /// Whether there is to be a table.
    pub fn has_table(self) -> bool {
        matches!(self, Self::Nft | Self::Both)
    }

    /// Whether there are to be programs.
    pub fn has_programs(self) -> bool {
        matches!(self, Self::Xdp | Self::Both)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Xdp => "xdp",
            Self::Both => "both",
        })
    }
}

/// How an XDP program is put on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the driver.
    #[default]
    Native,
    /// In the network stack, whatever the driver; slower than nftables.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}
