//! The compiler behind `agent-fw`: words to rules, rules to a policy, a policy to the kernel.

pub mod command;
pub mod configuration;
pub mod connectivity;
pub mod contact;
pub mod engine;
pub mod exception;
pub mod firewall;
pub mod host;
pub mod nft;
pub mod outbound;
pub mod policy;
pub mod probe;
pub mod rule;
pub mod source;
pub mod tls;
pub mod truth;
#[cfg_attr(not(feature = "xdp"), path = "xdp/absent.rs")]
pub mod xdp;
