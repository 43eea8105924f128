//! The kernel's nf_tables, spoken to over netlink with libnftnl.
//!
//! `encode` and `decode` share nothing but the kernel's own vocabulary, so that a fault in one is
//! not excused by the same fault in the other.

mod decode;
mod encode;
mod epoch;
mod interface;
mod socket;

pub use decode::{Live, Tenure};
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

    /// Puts `image` in the place of the table that is there: whatever fails, that one stays in
    /// force. No packet is decided on by anything but the old rules or the new ones, and none is
    /// missed; counters of the same name go on.
    pub fn replace(&mut self, image: &Image) -> Result<(), NetlinkError> {
        match self.read_outline()? {
            None => self.socket.transact(encode::creation(image)),
            Some(live) if live.strays.is_empty() && live.image.comment == image.comment => {
                self.update(image, &live)
            }
            // What is not ours is best met by deleting it with the table.
            Some(live) => {
                let mut image = image.clone();
                image.carry_counts(&live.image);
                self.socket.transact(encode::creation(&image))
            }
        }
    }

    fn update(&mut self, image: &Image, live: &Live) -> Result<(), NetlinkError> {
        let preparation = encode::preparation(image, live);
        if preparation.parts.len() > 0 {
            self.socket.transact(preparation)?;
        }
        let exchanged = self.socket.transact(encode::exchange(image, live));
        if exchanged.is_err() && !image.sets.is_empty() {
            // If this fails too, the sets are in nobody's way: the next update removes them.
            drop(self.socket.transact(encode::abandonment(image, live)));
        }
        exchanged
    }

    /// Makes the table that is there this connection's own: until it ends, nobody else can change
    /// or delete the table, and it stays when it has ended. Tells whether the kernel can do that
    /// (Linux 6.9).
    pub fn own(&mut self) -> Result<bool, NetlinkError> {
        let Some(outline) = self.read_outline()? else { return Ok(false) };
        let owned = match outline.tenure {
            Tenure::Owned => return Ok(true),
            Tenure::Orphan => self.socket.transact(encode::adoption(&outline.image.comment)),
            // Whether it outlives its owner is settled when a table is made.
            Tenure::Free => {
                let Some(live) = self.read()? else { return Ok(false) };
                self.socket.transact(encode::owned_creation(&live.image))
            }
        };
        match owned {
            Ok(()) => Ok(true),
            Err(error) if error.is_unsupported() => Ok(false),
            Err(error) => Err(error),
        }
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
