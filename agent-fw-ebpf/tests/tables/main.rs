//! The tables of sources: what is looked up in them, and what is read back from them.

#![allow(clippy::cast_possible_truncation, reason = "an address is cut into halves")]

mod contents;
mod lookup;
mod ranges;
