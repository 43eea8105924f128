//! The compiler behind `agent-fw`: words to rules, rules to a policy, a policy to the kernel.

pub mod cli;
pub mod configuration;
pub mod connectivity;
pub mod engine;
pub mod firewall;
pub mod host_firewall;
pub mod netlink;
pub mod nft;
pub mod outbound;
pub mod policy;
pub mod rule;
pub mod source;
pub mod system;
pub mod trace;
pub mod verify;
#[cfg_attr(not(feature = "xdp"), path = "xdp/absent.rs")]
pub mod xdp;
