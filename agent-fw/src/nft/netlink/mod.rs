//! The kernel's nf_tables, spoken to over netlink with libnftnl.
//!
//! `encode` and `decode` share nothing but the kernel's own vocabulary, so that a fault in one is
//! not excused by the same fault in the other.

mod decode;
mod encode;
mod socket;

pub use decode::Live;
pub use socket::NetlinkError;

use super::TABLE;
use super::table::Image;
use socket::Socket;

/// A connection to the nf_tables of this network namespace.
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens the connection. Needs no privilege; everything else does (`CAP_NET_ADMIN`).
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Replaces the table by `image` in one transaction: whatever fails, the table that was there
    /// stays. Counters begin with the counts that `image` has.
    pub fn replace(&mut self, image: &Image) -> Result<(), NetlinkError> {
        self.socket.transact(encode::replacement(image))
    }

    /// Deletes the table. That there is none is no error.
    pub fn delete(&mut self) -> Result<(), NetlinkError> {
        self.socket.transact(encode::deletion())
    }

    /// Reads the table with everything in it, as of one moment; `None` if there is none.
    pub fn read(&mut self) -> Result<Option<Live>, NetlinkError> {
        decode::read(&mut self.socket, decode::Depth::Everything)
    }

    /// Reads the table without the elements of its sets: enough for its stamp and its counters.
    pub fn read_outline(&mut self) -> Result<Option<Live>, NetlinkError> {
        decode::read(&mut self.socket, decode::Depth::Outline)
    }
}

/// The kernel's name of the table, for libnftnl.
const TABLE_NAME: &std::ffi::CStr = c"agent_fw";
const _: () = assert!(TABLE.len() == TABLE_NAME.count_bytes());
