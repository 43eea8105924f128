//! A laboratory of network namespaces with real TCP, in which `agent-fw` is tested, shown
//! and measured.
//!
//! A [`Lab`] is a host of its own: its network, `/run`, `/sys` and `/etc` are private to one
//! thread and to the processes which that thread starts, and vanish with it. [`Peer`]s are
//! other hosts, each behind a veth pair. Nothing here knows agent-fw's code: the lab sees
//! the command from outside, as a user does.
//!
//! ```no_run
//! use std::time::Duration;
//! use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, connect};
//!
//! # fn main() -> anyhow::Result<()> {
//! Lab::run(|lab| {
//!     let manager = lab.peer("manager")?;
//!     let source = "34.205.5.1".parse()?;
//!     manager.add_address(source)?;
//!     let _agent = Listener::bind(4118)?;
//!
//!     agent_fw(["install", "--allow-from", "region:us-1", "--no-boot"])?.success()?;
//!
//!     let agent = manager.host_address(source, 4118);
//!     let outcome = manager.enter(|| connect(source, agent, Duration::from_millis(700)))??;
//!     assert_eq!(outcome, Outcome::Talked);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! A socket belongs to the namespace in which it is made, wherever it is used afterwards. So
//! listeners, conversations and wires are made inside [`Peer::enter`] and may leave it.

mod command;
mod effort;
#[cfg(test)]
mod filter;
mod firewalld;
mod knock;
mod lab;
mod mac;
mod namespace;
mod outcome;
mod package;
pub mod packet;
mod peer;
mod ping;
pub mod prefixes;
mod silent;
mod tcp;
mod udp;
pub mod vm;
mod wait;
mod wire;

pub use command::{
    Finished, agent_fw, agent_fw_path, built_agent_fw_path, command, feed, kill_agent_fw_after,
    output, run,
};
pub use effort::{EMULATED, RARE, WHOLE, is_emulated, is_whole, rounds};
pub use firewalld::Firewalld;
pub use knock::{knock, while_knocking};
pub use lab::Lab;
pub use mac::MacAddr;
pub use namespace::Namespace;
pub use outcome::Outcome;
pub use package::{PACKAGES, package};
pub use peer::Peer;
pub use ping::ping;
pub use silent::{Silence, SilentFiles, has_silent_files};
pub use tcp::{Conversation, Listener, connect};
pub use udp::{UdpEcho, ask, bind_udp};
pub use wire::Wire;
