//! IP addresses as numbers, and the tables that each version of IP is looked up in.

use crate::PassReason;
use crate::config::{Config, Known};
use crate::label::Label;
use crate::table::Tables;

/// An IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4(pub u32);

/// An IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6 {
    /// The first 64 bits.
    pub high: u64,
    /// The last 64 bits.
    pub low: u64,
}

/// What the decision needs of an address, whichever its version.
pub trait Address: Copy {
    /// The label of the list that the address is on.
    fn label(self, config: &Config, tables: &impl Tables) -> Result<Option<Label>, PassReason>;
    /// The address as one of IPv6, IPv4's mapped below `::ffff:0:0/96`.
    fn to_v6(self) -> V6;
    /// Whether it is one of IPv4.
    const IS_V4: bool;
}

impl Address for V4 {
    const IS_V4: bool = true;

    #[inline(always)]
    fn label(self, config: &Config, tables: &impl Tables) -> Result<Option<Label>, PassReason> {
        match config.v4().known() {
            Known::None => Ok(None),
            Known::All(label) => Ok(label),
            Known::Table(shape) => tables.find_v4(shape, self),
            Known::Blocks(shape, label) => tables.find_v4_by_block(shape, label, self),
        }
    }

    #[inline(always)]
    fn to_v6(self) -> V6 {
        V6 { high: 0, low: 0xffff_0000_0000 | u64::from(self.0) }
    }
}

impl Address for V6 {
    const IS_V4: bool = false;

    #[inline(always)]
    fn label(self, config: &Config, tables: &impl Tables) -> Result<Option<Label>, PassReason> {
        match config.v6().known() {
            // IPv6 has no blocks.
            Known::None | Known::Blocks(..) => Ok(None),
            Known::All(label) => Ok(label),
            Known::Table(shape) => tables.find_v6(shape, config.v6_deep(), self),
        }
    }

    #[inline(always)]
    fn to_v6(self) -> V6 {
        self
    }
}
