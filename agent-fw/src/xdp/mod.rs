//! The policy as an XDP program on each interface: what is not admitted is dropped at the driver.
//!
//! `compile` is pure: a policy becomes tables. `attach` is the kernel's side of it: `hook` knows where
//! on an interface a program goes, `pin` what outlives this process.

mod alone;
mod attach;
mod compile;
mod counter_ids;
mod counters;
mod drop_events;
mod error;
mod hook;
mod own_frames;
mod own_list;
mod pin;
mod program;
mod state;
mod unpinned;

pub use alone::{Objection, objections};
pub use attach::{Change, Prepared, Targets, attach, attachments, prepare, remove};
pub use compile::{Unencodable, plan};
pub use counter_ids::{Numbering, Words};
pub use counters::counters;
pub use drop_events::Watch;
pub use error::{Obstacle, XdpError};
pub use own_frames::own_frames;
pub use pin::DIRECTORY;
pub use state::{Admitted, Attachment, Counters, Hook, OfInterface, RefusedPacket};

/// The program, as `cargo xtask build` has built it.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/agent-fw.o"));

/// The program, in a build that has one.
pub fn object() -> Option<&'static [u8]> {
    Some(OBJECT)
}
