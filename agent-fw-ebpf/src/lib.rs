//! What becomes of a frame: the packet parser, the tables of sources and the decision, the same
//! code in the kernel and on the host.
//!
//! [`try_decide`] is the whole program, and [`decide_at_a_glance`] a short cut for what most frames
//! are. They give a [`Verdict`], or the reason why the frame is none of the program's business or
//! beyond it; such frames pass, and what cannot be decided here is decided by the kernel's own
//! firewall behind.
//!
//! User space describes a policy as a [`Plan`], makes an [`Image`] of it, and has that loaded.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::inline_always,
    reason = "a call costs BPF a frame of its small stack, and hides bounds from the verifier"
)]
#![allow(clippy::cast_possible_truncation, reason = "bits are cut out of words on purpose")]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

mod address;
mod config;
#[cfg(not(target_arch = "bpf"))]
mod contents;
mod datagram;
mod decision;
pub mod ethernet;
mod fast_path;
#[cfg(not(target_arch = "bpf"))]
mod image;
mod ipv4;
mod ipv6;
#[cfg(target_arch = "bpf")]
pub mod kernel;
mod label;
#[cfg(all(feature = "aya", not(target_arch = "bpf")))]
mod load;
mod packet;
#[cfg(not(target_arch = "bpf"))]
mod sections;
pub mod table;
mod tally;
mod tcp;

pub use address::{Address, V4, V6};
pub use config::{Config, Lengths, Sources, Span};
#[cfg(not(target_arch = "bpf"))]
pub use contents::{Contents, Decisions};
pub use decision::{
    Host, PassReason, Plain, Recipient, Verdict, decide_at_a_glance, mac_key, try_decide,
};
pub use ethernet::Mac;
#[cfg(not(target_arch = "bpf"))]
pub use image::{Image, Plan, PlanError};
pub use label::Label;
#[cfg(all(feature = "aya", not(target_arch = "bpf")))]
pub use load::{LoadError, freeze, load, load_program, read_table};
pub use packet::{Packet, Wire};
#[cfg(not(target_arch = "bpf"))]
pub use sections::{SECTIONS, Section, SectionError, with_sections};
pub use tally::{LabelTally, LocalDestinationCache, OwnFrames, Sample, Tally};
