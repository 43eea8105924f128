//! Every base chain of the host.

use crate::netlink::nfnetlink::{Connection, Kind, find, number, text};
use crate::trace::events::ChainRef;
use std::collections::BTreeMap;

/// Where a base chain hangs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// The hook, in a word.
    pub hook: &'static str,
    /// The priority: lower comes earlier.
    pub priority: i32,
}

/// Every base chain, by its place.
pub(super) fn list(connection: &mut Connection) -> anyhow::Result<BTreeMap<ChainRef, Base>> {
    /// Numbers of linux/netfilter/nf_tables.h.
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    let every_family = 0;
    let chains = connection.dump(Kind::GetChain, every_family, &[])?;
    let base = |message: &crate::netlink::nfnetlink::Message| {
        let hook = message.find(HOOK)?;
        let priority = number(find(hook, 2)?)?.cast_signed();
        let hook = name_of(message.family, number(find(hook, 1)?)?);
        let (table, chain) = (text(message.find(TABLE)?), text(message.find(NAME)?));
        Some((ChainRef { family: message.family, table, chain }, Base { hook, priority }))
    };
    Ok(chains.iter().filter_map(base).collect())
}

/// Every chain, base or not.
pub(crate) fn chains(connection: &mut Connection) -> anyhow::Result<Vec<ChainRef>> {
    let chains = connection.dump(Kind::GetChain, 0, &[])?;
    let place = |message: &crate::netlink::nfnetlink::Message| {
        let (table, chain) = (message.text(1)?, message.text(3)?);
        Some(ChainRef { family: message.family, table, chain })
    };
    Ok(chains.iter().filter_map(place).collect())
}

fn name_of(family: u8, hook: u32) -> &'static str {
    const NETDEV: u8 = 5;
    match hook {
        0 if family == NETDEV => "ingress",
        1 if family == NETDEV => "egress",
        0 => "prerouting",
        1 => "input",
        2 => "forward",
        3 => "output",
        4 => "postrouting",
        5 => "ingress",
        _ => "another hook",
    }
}
