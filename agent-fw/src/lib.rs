//! The compiler behind `agent-fw`: words to rules, rules to a policy, a policy to the kernel.

pub mod cli;
pub mod configuration;
pub mod engine;
pub mod host_firewall;
pub mod input;
pub mod model;
pub mod netlink;
pub mod nft;
pub mod system;
pub mod trace;
pub mod verify;
#[cfg_attr(not(feature = "xdp"), path = "xdp/absent.rs")]
pub mod xdp;
