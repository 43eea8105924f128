//! The kernel's nf_tables, spoken to over netlink with libnftnl.
//!
//! `encode` and `decode` share nothing but the kernel's own vocabulary, so that a fault in one is
//! not excused by the same fault in the other.

mod decode;
mod encode;
mod generation;
mod set_generation;
mod socket;
mod uapi;

pub use decode::{LiveTable, Ownership};
pub use generation::Generation;
pub use socket::NetlinkError;

use super::table::Image;
use crate::model::TableName;
use encode::Transaction;
use nix::errno::Errno;
use socket::Socket;

/// What a connection keeps from everybody else's hands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeldTables {
    /// All of agent-fw's tables.
    Tables,
    /// A twin of the gate.
    Twin,
    /// Nothing: there is nothing, or the kernel is too old.
    Nothing,
}

/// What holds while a table is anybody's to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cover {
    /// The same as before.
    Whole,
    /// The port is closed to every source: there is no room for more.
    Closed,
    /// Nothing: there is nothing to be kept, or the kernel is too old.
    Nothing,
}

/// What becomes of agent-fw's tables that are there and not wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// They are deleted.
    Goes,
    /// They stay as they are.
    Stays,
}

/// A connection to the nf_tables of this network namespace.
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens the connection. Needs no privilege; everything else does (`CAP_NET_ADMIN`).
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Puts `images` in the place of the tables of agent-fw's that are there, all of them at one
    /// instant; those that are not among them go. Whatever fails, what was there stays in force. No
    /// packet is decided on by anything but the old rules or the new ones, and none is missed;
    /// counters of the same name go on.
    pub fn replace(&mut self, images: &[Image]) -> Result<(), NetlinkError> {
        self.replace_if(None, images, Rest::Goes)
    }

    /// The state of the ruleset now.
    pub fn generation(&mut self) -> Result<Generation, NetlinkError> {
        decode::generation(&mut self.socket)
    }

    /// The same as [`Self::replace`], without the lock: unless the ruleset is of this generation
    /// until the last of it is committed, nothing is exchanged ([`NetlinkError::Overtaken`]).
    pub fn replace_at(
        &mut self,
        generation: Generation,
        images: &[Image],
        rest: Rest,
    ) -> Result<(), NetlinkError> {
        self.replace_if(Some(generation), images, rest)
    }

    fn replace_if(
        &mut self,
        generation: Option<Generation>,
        images: &[Image],
        rest: Rest,
    ) -> Result<(), NetlinkError> {
        let live = self.outline()?;
        let before = |name| live.iter().find(|live| live.image.name == name);
        let mut created = Vec::new();
        let mut updated = Vec::new();
        for image in images {
            match before(image.name) {
                Some(live)
                    if live.strays.is_empty()
                        && live.image.comment == image.comment
                        // They may belong to whoever has the lock and is about to use them.
                        && (generation.is_none() || live.leftovers.is_empty()) =>
                {
                    updated.push((image, live));
                }
                // What is not ours is best met by deleting it with the table.
                live => {
                    let mut image = image.clone();
                    live.inspect(|live| image.carry_counts(&live.image));
                    created.push(image);
                }
            }
        }
        let mut preparation = Transaction::at(generation);
        for (image, live) in &updated {
            preparation.prepare(image, live);
        }
        let prepared = preparation.parts.len() > 0;
        if prepared {
            self.socket.transact(preparation)?;
        }
        let prepared_at = generation.map(Generation::next);
        let mut exchange = Transaction::at(if prepared { prepared_at } else { generation });
        let is_wanted = |name| rest == Rest::Stays || images.iter().any(|image| image.name == name);
        let names = live.iter().map(|live| live.image.name);
        names.filter(|name| !is_wanted(*name)).for_each(|name| exchange.delete(name));
        for image in &created {
            exchange.create(image);
        }
        for (image, live) in &updated {
            exchange.exchange(image, live);
        }
        let exchanged = self.socket.transact(exchange);
        if exchanged.is_err() && prepared {
            // If this fails too, the sets are in nobody's way: the next update removes them.
            let mut abandonment = Transaction::new();
            for (image, live) in &updated {
                abandonment.abandon(image, live);
            }
            drop(self.socket.transact(abandonment));
        }
        exchanged
    }

    /// Makes the tables that are there this connection's own: until it ends, nobody else can change
    /// or delete them, and they stay when it has ended (Linux 6.9). Where the kernel cannot do that,
    /// makes a twin of the gate that is its own and ends with it (Linux 5.12).
    pub fn own(&mut self) -> Result<HeldTables, NetlinkError> {
        let tables = self.read_tables()?;
        if self.own_all(&tables)? {
            return Ok(HeldTables::Tables);
        }
        let Some(gate) = tables.iter().find(|live| live.image.name == TableName::Gate) else {
            return Ok(HeldTables::Nothing);
        };
        let twin = gate.image.clone().into_twin();
        let mut transaction = Transaction::new();
        transaction.create_for_now(&twin);
        Ok(if self.succeeds(transaction)? { HeldTables::Twin } else { HeldTables::Nothing })
    }

    /// Makes a twin of the gate that ends with this connection (Linux 5.12); where that takes more
    /// memory than there is, one that admits nobody.
    pub fn cover(&mut self) -> Result<Cover, NetlinkError> {
        let Some(gate) = self.read()? else { return Ok(Cover::Nothing) };
        let twin = gate.image.into_twin();
        let mut whole = Transaction::new();
        whole.create_for_now(&twin);
        match self.socket.transact(whole) {
            Ok(()) => return Ok(Cover::Whole),
            Err(error) if error.is_ownership_unknown() => return Ok(Cover::Nothing),
            Err(_) => {}
        }
        let closed = twin.into_closed();
        let mut closing = Transaction::new();
        closing.create_for_now(&closed);
        self.socket.transact(closing).map(|()| Cover::Closed)
    }

    fn own_all(&mut self, tables: &[LiveTable]) -> Result<bool, NetlinkError> {
        let mut transaction = Transaction::new();
        for live in tables {
            match live.tenure {
                Ownership::Owned => {}
                Ownership::Orphan => transaction.adopt(&live.image),
                // Whether it outlives its owner is settled when a table is made.
                Ownership::Free => transaction.create_owned(&live.image),
            }
        }
        if transaction.parts.len() == 0 {
            return Ok(!tables.is_empty());
        }
        self.succeeds(transaction)
    }

    /// Whether the kernel knows how to do it.
    fn succeeds(&mut self, transaction: Transaction<'_>) -> Result<bool, NetlinkError> {
        match self.socket.transact(transaction) {
            Ok(()) => Ok(true),
            Err(error) if error.is_ownership_unknown() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether some table of agent-fw's is there.
    pub fn has_tables(&mut self) -> Result<bool, NetlinkError> {
        Ok(!self.outline()?.is_empty())
    }

    /// Makes these tables, where none of them is there; false where somebody has made one of them.
    /// Nothing that is there is changed.
    pub fn create(&mut self, images: &[Image]) -> Result<bool, NetlinkError> {
        let mut transaction = Transaction::new();
        for image in images {
            transaction.create_new(image);
        }
        match self.socket.transact(transaction) {
            Err(NetlinkError::Refused { errno: Errno::EEXIST, .. }) => Ok(false),
            created => created.map(|()| true),
        }
    }

    /// Deletes agent-fw's tables. That there is none is no error.
    pub fn delete(&mut self) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        // Not every kernel has tables of the family `arp`: only what is there is deleted.
        for live in self.outline()? {
            transaction.delete(live.image.name);
        }
        if transaction.parts.len() > 0 { self.socket.transact(transaction) } else { Ok(()) }
    }

    /// Reads the gate's table with everything in it, as of one moment; `None` if there is none.
    pub fn read(&mut self) -> Result<Option<LiveTable>, NetlinkError> {
        decode::read(&mut self.socket, TableName::Gate, decode::Depth::Everything)
    }

    /// Reads all of agent-fw's tables that are there, each as of one moment.
    pub fn read_tables(&mut self) -> Result<Vec<LiveTable>, NetlinkError> {
        self.read_all(decode::Depth::Everything)
    }

    /// The same, without the elements of sets.
    pub fn outline(&mut self) -> Result<Vec<LiveTable>, NetlinkError> {
        self.read_all(decode::Depth::Outline)
    }

    fn read_all(&mut self, depth: decode::Depth) -> Result<Vec<LiveTable>, NetlinkError> {
        let mut tables = Vec::new();
        for name in TableName::ALL {
            tables.extend(decode::read(&mut self.socket, name, depth)?);
        }
        Ok(tables)
    }
}
