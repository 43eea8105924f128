//! The policy as an XDP program on each interface: what is not admitted is dropped at the driver.
//!
//! `image` is pure: a policy becomes tables.

mod image;
mod labels;

pub use image::{Inexpressible, plan};
pub use labels::{Numbering, Words};

/// The program, as `cargo xtask build` has built it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENT_FW_OBJECT"));
