//! The policy as an XDP program on each interface: what is not admitted is dropped at the driver.
//!
//! `image` is pure: a policy becomes tables. `attach` is the kernel's side of it.

mod attach;
mod detach;
mod error;
mod image;
mod labels;
mod state;

pub use attach::{Change, DIRECTORY, Targets, attach, attachments, counters, remove};
pub use error::{Obstacle, XdpError};
pub use image::{Inexpressible, plan};
pub use labels::{Numbering, Words};
pub use state::{Admitted, Attachment, Counters};

/// The program, as `cargo xtask build` has built it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENT_FW_OBJECT"));
