//! From an [`Image`] to the messages of transactions.

mod expression;
mod message;

use super::TABLE_NAME;
use super::decode::Live;
use super::epoch::Epoch;
use super::interface::{TABLE_OWNER, TABLE_PERSIST, attributes};
use crate::nft::expression::Program;
use crate::nft::table::{Chain, Elements, Hook, Image, Set};
use crate::policy::{Ordinal, Range};
use expression::InEpoch;
use message::{
    AllRulesMessage, CounterMessage, ElementsMessage, RANGES_IN_A_MESSAGE, SetMessage, SetName,
    TableMessage, bounds, c_string,
};
use nftnl::{Batch, MsgType, NlMsg, ProtoFamily};
use std::ffi::CString;

/// A transaction: its messages, and what each of them is about.
pub(super) struct Transaction<'a> {
    pub(super) batch: Batch,
    pub(super) parts: Parts<'a>,
}

impl<'a> Transaction<'a> {
    fn new() -> Self {
        // Pages of 1 MiB: the kernel takes 1024 of them in one message.
        Self { batch: Batch::with_page_size(1 << 20), parts: Parts::default() }
    }

    fn add<T: NlMsg>(&mut self, part: Part<'a>, message: &T) {
        self.batch.add(message, MsgType::Add);
        self.parts.0.push(part);
    }

    fn delete<T: NlMsg>(&mut self, part: Part<'a>, message: &T) {
        self.batch.add(message, MsgType::Del);
        self.parts.0.push(part);
    }
}

/// What each message of a transaction is about, for errors.
#[derive(Default)]
pub(super) struct Parts<'a>(Vec<Part<'a>>);

enum Part<'a> {
    Named(&'static str, &'a str),
    Rule(&'a str, usize),
    /// Elements of a set, from this range on.
    Elements(&'a Set, usize),
}

impl Parts<'_> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The name of what the message at `index` is about; of its element, where that is known.
    pub(super) fn name(&self, index: usize, element: Option<usize>) -> String {
        match (self.0.get(index), element) {
            (None, _) => "the transaction".to_owned(),
            (Some(Part::Named(kind, name)), _) => format!("{kind} {name}"),
            (Some(Part::Rule(chain, rule)), _) => format!("rule {} of chain {chain}", rule + 1),
            (Some(Part::Elements(set, _)), None) => format!("elements of set {}", set.name),
            (Some(Part::Elements(set, first)), Some(element)) => {
                // Each range is two elements, its start and its end; only the last may lack one.
                let range = set.elements.notation(first + element / 2);
                format!("element {} of set {}", range.as_deref().unwrap_or("?"), set.name)
            }
        }
    }
}

/// Deletes the table, whether or not it is there: deleting what was just added cannot fail.
pub(super) fn deletion() -> Transaction<'static> {
    let mut transaction = Transaction::new();
    let table = TableMessage { comment: None, flags: 0 };
    transaction.add(Part::Named("table", crate::nft::TABLE), &table);
    transaction.delete(Part::Named("table", crate::nft::TABLE), &table);
    transaction
}

/// Makes the table, instead of one that may be there.
pub(super) fn creation(image: &Image) -> Transaction<'_> {
    creation_with(image, 0)
}

/// Makes the table likewise, and makes it the connection's own. It outlives the connection.
pub(super) fn owned_creation(image: &Image) -> Transaction<'_> {
    creation_with(image, TABLE_OWNER | TABLE_PERSIST)
}

/// Makes a table that has outlived its owner the connection's own.
pub(super) fn adoption(comment: &str) -> Transaction<'_> {
    let mut transaction = Transaction::new();
    let table = TableMessage { comment: Some(comment), flags: TABLE_OWNER | TABLE_PERSIST };
    transaction.add(Part::Named("table", crate::nft::TABLE), &table);
    transaction
}

fn creation_with(image: &Image, flags: u32) -> Transaction<'_> {
    let mut transaction = deletion();
    let table = TableMessage { comment: Some(&image.comment), flags };
    transaction.add(Part::Named("table", crate::nft::TABLE), &table);
    for counter in &image.counters {
        transaction.add(Part::Named("counter", &counter.name), &CounterMessage(counter));
    }
    add_sets(&mut transaction, image, Epoch::default());
    let table = nftnl::Table::new(TABLE_NAME, ProtoFamily::Inet);
    let chains: Vec<_> = image.chains.iter().map(|chain| chain_message(chain, &table)).collect();
    for (chain, message) in image.chains.iter().zip(&chains) {
        transaction.add(Part::Named("chain", &chain.name), message);
    }
    add_rules(&mut transaction, image, &chains, Epoch::default());
    transaction
}

/// Makes the sets of `image` ready in the other epoch than that of `live`, where no rule refers to
/// them yet; and takes away what an update left there that did not come to its end.
pub(super) fn preparation<'a>(image: &'a Image, live: &'a Live) -> Transaction<'a> {
    let mut transaction = Transaction::new();
    for name in &live.leftovers {
        transaction.delete(Part::Named("set", name), &SetName(name));
    }
    add_sets(&mut transaction, image, live.epoch.other());
    transaction
}

/// Takes back a [`preparation`].
pub(super) fn abandonment<'a>(image: &'a Image, live: &Live) -> Transaction<'a> {
    let mut transaction = Transaction::new();
    for set in &image.sets {
        let name = live.epoch.other().name_of(&set.name);
        transaction.delete(Part::Named("set", &set.name), &SetName(&name));
    }
    transaction
}

/// Exchanges the contents of the table at one instant, after a [`preparation`]. The table itself,
/// the base chains and the counters that both have stay.
///
/// Were a base chain replaced by another, a packet could pass the new one before the transaction
/// and the old one behind it, and so be seen by neither; a chain that stays has its rules exchanged
/// at once. And a counter that stays loses nothing.
pub(super) fn exchange<'a>(image: &'a Image, live: &'a Live) -> Transaction<'a> {
    let mut transaction = Transaction::new();
    let table = nftnl::Table::new(TABLE_NAME, ProtoFamily::Inet);
    transaction.delete(Part::Named("rules of table", crate::nft::TABLE), &AllRulesMessage);
    let old = &live.image;
    for chain in old.chains.iter().filter(|chain| !is_base_chain_of(chain, image)) {
        let message = nftnl::Chain::new(c_string(&chain.name), &table);
        transaction.delete(Part::Named("chain", &chain.name), &message);
    }
    for set in &old.sets {
        let name = live.epoch.name_of(&set.name);
        transaction.delete(Part::Named("set", &set.name), &SetName(&name));
    }
    for counter in old.counters.iter().filter(|old| image.counter(&old.name).is_none()) {
        transaction.delete(Part::Named("counter", &counter.name), &CounterMessage(counter));
    }
    for counter in image.counters.iter().filter(|new| old.counter(&new.name).is_none()) {
        transaction.add(Part::Named("counter", &counter.name), &CounterMessage(counter));
    }
    let chains: Vec<_> = image.chains.iter().map(|chain| chain_message(chain, &table)).collect();
    for (chain, message) in image.chains.iter().zip(&chains) {
        if !is_base_chain_of(chain, old) {
            transaction.add(Part::Named("chain", &chain.name), message);
        }
    }
    add_rules(&mut transaction, image, &chains, live.epoch.other());
    transaction
}

/// Whether `image` has this chain, too, as a base chain at the same place.
fn is_base_chain_of(chain: &Chain<Program>, image: &Image) -> bool {
    let same = |other: &Chain<Program>| other.name == chain.name && other.base == chain.base;
    chain.base.is_some() && image.chains.iter().any(same)
}

fn add_sets<'a>(transaction: &mut Transaction<'a>, image: &'a Image, epoch: Epoch) {
    for set in &image.sets {
        let name = epoch.name_of(&set.name);
        let message = SetMessage { name: c_string(&name), elements: &set.elements };
        transaction.add(Part::Named("set", &set.name), &message);
        add_elements(transaction, set, &message.name);
    }
}

fn add_rules<'a>(
    transaction: &mut Transaction<'a>,
    image: &'a Image,
    chains: &[nftnl::Chain<'_>],
    epoch: Epoch,
) {
    for (chain, message) in image.chains.iter().zip(chains) {
        for (index, rule) in chain.rules.iter().enumerate() {
            let mut built = nftnl::Rule::new(message);
            for expression in &rule.expressions {
                built.add_expr(&InEpoch { expression, epoch });
            }
            if !rule.comment.is_empty() {
                // One that is too long is somebody else's, from a table that is being restored. It
                // decides nothing.
                let _ = built.set_comment(c_string(&rule.comment));
            }
            transaction.add(Part::Rule(&chain.name, index), &built);
        }
    }
}

fn chain_message<'a>(chain: &Chain<Program>, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
    let mut message = nftnl::Chain::new(c_string(&chain.name), table);
    if let Some(base) = chain.base {
        let hook = match base.hook {
            Hook::Prerouting => nftnl::Hook::PreRouting,
            Hook::Input => nftnl::Hook::In,
        };
        message.set_hook(hook, base.priority);
        message.set_type(nftnl::ChainType::Filter);
        message.set_policy(nftnl::Policy::Accept);
    }
    message
}

fn add_elements<'a>(transaction: &mut Transaction<'a>, set: &'a Set, name: &CString) {
    match &set.elements {
        Elements::V4(ranges) => add_ranges(transaction, set, name, ranges, |v4| v4.octets()),
        Elements::V6(ranges) => add_ranges(transaction, set, name, ranges, |v6| v6.octets()),
        Elements::Mac(ranges) => add_ranges(transaction, set, name, ranges, |mac| mac.0),
        Elements::Port(ranges) => {
            add_ranges(transaction, set, name, ranges, |port| port.0.to_be_bytes());
        }
    }
}

fn add_ranges<'a, T: Ordinal, const N: usize>(
    transaction: &mut Transaction<'a>,
    set: &'a Set,
    name: &CString,
    ranges: &[Range<T>],
    bytes: impl Fn(T) -> [u8; N],
) {
    for (index, part) in ranges.chunks(RANGES_IN_A_MESSAGE).enumerate() {
        let bounds = part.iter().flat_map(|range| bounds(range, &bytes)).collect();
        let message = ElementsMessage { set: name, bounds };
        transaction.add(Part::Elements(set, index * RANGES_IN_A_MESSAGE), &message);
    }
}

/// Which element of a message of elements lies at `offset` in it.
pub(super) fn element_at(message: &[u8], offset: usize) -> Option<usize> {
    /// `NFTA_SET_ELEM_LIST_ELEMENTS` of linux/netfilter/nf_tables.h.
    const ELEMENTS: u16 = 3;
    // A netlink header (16 bytes) and the one of netfilter (4).
    let list = attributes(message.get(20..)?).find(|(kind, _)| *kind == ELEMENTS)?.1;
    let start = |value: &[u8]| value.as_ptr().addr() - message.as_ptr().addr();
    attributes(list).position(|(_, value)| start(value) + value.len() > offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn all_elements_of_a_large_set_are_in_messages_that_hold_them() {
        let ranges =
            (0..100_000_u128).map(|n| Range::single(Ipv6Addr::from_bits(n << 8))).collect();
        let set = Set { name: "sources".to_owned(), elements: Elements::V6(ranges) };
        let image =
            Image { comment: String::new(), counters: vec![], sets: vec![set], chains: vec![] };
        let batch = creation(&image).batch.finalize();
        let mut elements = 0;
        for message in batch.iter().flat_map(mnl::NlMessages::new) {
            let message = message.expect("well-formed");
            let list = attributes(&message[20..]).find(|(kind, _)| *kind == 3);
            elements += list.map_or(0, |(_, list)| attributes(list).count());
        }
        assert_eq!(elements, 200_000);
    }
}
