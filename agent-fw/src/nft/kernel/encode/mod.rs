//! From an [`Image`] to the messages of transactions.

mod expression;
mod message;

use super::decode::LiveTable;
use super::generation::Generation;
use crate::model::TableName;
use crate::model::{Ordinal, Range};
use crate::nft::expression::Program;
use crate::nft::kernel::set_generation::SetGeneration;
use crate::nft::kernel::uapi::{TABLE_OWNER, TABLE_PERSIST, attributes, family, hook, table_name};
use crate::nft::table::{Chain, Counter, Elements, Image, Set};
use expression::InEpoch;
use message::{
    AllRulesMessage, CounterMessage, ElementsMessage, RANGES_IN_A_MESSAGE, SetMessage, SetName,
    TableMessage, bounds, c_string, value,
};
use nftnl::{Batch, MsgType, NlMsg};
use std::ffi::CString;

/// A transaction: its messages, and what each of them is about.
pub(super) struct Transaction<'a> {
    pub(super) batch: Batch,
    pub(super) parts: Parts<'a>,
    /// The only state of the ruleset in which the kernel takes it; any, without one.
    pub(super) generation: Option<Generation>,
}

impl<'a> Transaction<'a> {
    pub(super) fn new() -> Self {
        Self::at(None)
    }

    /// One that the kernel refuses if the ruleset is of another generation than this.
    pub(super) fn at(generation: Option<Generation>) -> Self {
        // Pages of 1 MiB: the kernel takes 1024 of them in one message.
        Self { batch: Batch::with_page_size(1 << 20), parts: Parts::default(), generation }
    }

    fn push_add<T: NlMsg>(&mut self, part: Part<'a>, message: &T) {
        self.batch.add(message, MsgType::Add);
        self.parts.0.push(part);
    }

    fn push_delete<T: NlMsg>(&mut self, part: Part<'a>, message: &T) {
        self.batch.add(message, MsgType::Del);
        self.parts.0.push(part);
    }

    /// Deletes a table, whether or not it is there: deleting what was just added cannot fail.
    pub(super) fn delete(&mut self, table: TableName) {
        let message = TableMessage { table, comment: None, flags: 0, is_new: false };
        self.push_add(Part::Named("table", table.name()), &message);
        self.push_delete(Part::Named("table", table.name()), &message);
    }

    /// Makes the table, instead of one that may be there.
    pub(super) fn create(&mut self, image: &'a Image) {
        self.create_with(image, 0);
    }

    /// Makes the table likewise, and makes it the connection's own. It outlives the connection.
    pub(super) fn create_owned(&mut self, image: &'a Image) {
        self.create_with(image, TABLE_OWNER | TABLE_PERSIST);
    }

    /// Makes the table likewise, as the connection's own, with which it ends.
    pub(super) fn create_for_now(&mut self, image: &'a Image) {
        self.create_with(image, TABLE_OWNER);
    }

    /// Makes a table that has outlived its owner the connection's own.
    pub(super) fn adopt(&mut self, image: &'a Image) {
        let (table, comment) = (image.name, Some(image.comment.as_str()));
        let message =
            TableMessage { table, comment, flags: TABLE_OWNER | TABLE_PERSIST, is_new: false };
        self.push_add(Part::Named("table", table.name()), &message);
    }

    /// Makes the table, and fails if there is one.
    pub(super) fn create_new(&mut self, image: &'a Image) {
        self.create_table(image, 0, true);
    }

    fn create_with(&mut self, image: &'a Image, flags: u32) {
        self.delete(image.name);
        self.create_table(image, flags, false);
    }

    fn create_table(&mut self, image: &'a Image, flags: u32, is_new: bool) {
        let (table, comment) = (image.name, Some(image.comment.as_str()));
        let message = TableMessage { table, comment, flags, is_new };
        self.push_add(Part::Named("table", image.name.name()), &message);
        for counter in &image.counters {
            let message = CounterMessage(image.name, counter);
            self.push_add(Part::Named("counter", &counter.name), &message);
        }
        self.add_sets(image, SetGeneration::default());
        let table = nftnl::Table::new(table_name(image.name), family(image.name));
        let chains = chain_messages(image, &table);
        for (chain, message) in image.chains.iter().zip(&chains) {
            self.push_add(Part::Named("chain", &chain.name), message);
        }
        self.add_rules(image, &chains, SetGeneration::default());
    }

    /// Makes the sets of `image` ready in the other epoch than that of `live`, where no rule refers
    /// to them yet; and takes away what an update left there that did not come to its end.
    pub(super) fn prepare(&mut self, image: &'a Image, live: &'a LiveTable) {
        for name in &live.leftovers {
            self.push_delete(Part::Named("set", name), &SetName(image.name, name));
        }
        self.add_sets(image, live.epoch.other());
    }

    /// Takes back what [`Self::prepare`] has made.
    pub(super) fn abandon(&mut self, image: &'a Image, live: &LiveTable) {
        for set in &image.sets {
            let name = live.epoch.other().name_of(&set.name);
            self.push_delete(Part::Named("set", &set.name), &SetName(image.name, &name));
        }
    }

    /// Exchanges the contents of the table at one instant, after [`Self::prepare`]. The table
    /// itself, the base chains and the counters that both have stay.
    ///
    /// Were a base chain replaced by another, a packet could pass the new one before the
    /// transaction and the old one behind it, and so be seen by neither; a chain that stays has its
    /// rules exchanged at once. And a counter that stays loses nothing.
    pub(super) fn exchange(&mut self, image: &'a Image, live: &'a LiveTable) {
        let name = image.name;
        let table = nftnl::Table::new(table_name(name), family(name));
        self.push_delete(Part::Named("rules of table", name.name()), &AllRulesMessage(name));
        let old = &live.image;
        for chain in old.chains.iter().filter(|chain| !is_base_chain_of(chain, image)) {
            let message = nftnl::Chain::new(c_string(&chain.name), &table);
            self.push_delete(Part::Named("chain", &chain.name), &message);
        }
        for set in &old.sets {
            let in_use = live.epoch.name_of(&set.name);
            self.push_delete(Part::Named("set", &set.name), &SetName(name, &in_use));
        }
        for counter in old.counters.iter().filter(|old| image.counter(&old.name).is_none()) {
            let message = CounterMessage(name, counter);
            self.push_delete(Part::Named("counter", &counter.name), &message);
        }
        for counter in image.counters.iter().filter(|new| old.counter(&new.name).is_none()) {
            let known = renamed(counter, image, old);
            let carried =
                Counter { count: known.map_or(counter.count, |k| k.count), ..counter.clone() };
            self.push_add(Part::Named("counter", &counter.name), &CounterMessage(name, &carried));
        }
        let chains = chain_messages(image, &table);
        for (chain, message) in image.chains.iter().zip(&chains) {
            if !is_base_chain_of(chain, old) {
                self.push_add(Part::Named("chain", &chain.name), message);
            }
        }
        self.add_rules(image, &chains, live.epoch.other());
    }

    fn add_sets(&mut self, image: &'a Image, epoch: SetGeneration) {
        let table = image.name;
        for set in &image.sets {
            let name = c_string(&epoch.name_of(&set.name));
            let message = SetMessage { table, name, elements: &set.elements };
            self.push_add(Part::Named("set", &set.name), &message);
            self.add_elements(table, set, &message.name);
        }
    }

    fn add_rules(&mut self, image: &'a Image, chains: &[nftnl::Chain<'_>], epoch: SetGeneration) {
        for (chain, message) in image.chains.iter().zip(chains) {
            for (index, rule) in chain.rules.iter().enumerate() {
                let mut built = nftnl::Rule::new(message);
                for expression in &rule.expressions {
                    built.add_expr(&InEpoch { expression, epoch });
                }
                if !rule.comment.is_empty() {
                    // One that is too long is somebody else's, from a table that is being
                    // restored. It decides nothing.
                    let _ = built.set_comment(c_string(&rule.comment));
                }
                self.push_add(Part::Rule(&chain.name, index), &built);
            }
        }
    }

    fn add_elements(&mut self, table: TableName, set: &'a Set, name: &CString) {
        match &set.elements {
            Elements::V4(ranges) => self.add_ranges(table, set, name, ranges, |v4| v4.octets()),
            Elements::V6(ranges) => self.add_ranges(table, set, name, ranges, |v6| v6.octets()),
            Elements::Mac(ranges) => self.add_ranges(table, set, name, ranges, |mac| mac.0),
            Elements::Port(ranges) => {
                self.add_ranges(table, set, name, ranges, |port| port.0.to_be_bytes());
            }
            Elements::HashedV4(prefixes) => {
                self.add_values(table, set, name, &prefixes.first, |v4| v4.octets());
            }
            Elements::HashedV6(prefixes) => {
                self.add_values(table, set, name, &prefixes.first, |v6| v6.octets());
            }
            Elements::Learned(_) => {}
        }
    }

    fn add_values<T: Copy, const N: usize>(
        &mut self,
        table: TableName,
        set: &'a Set,
        name: &CString,
        values: &[T],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        for (index, part) in values.chunks(RANGES_IN_A_MESSAGE).enumerate() {
            let bounds = part.iter().map(|one| value(bytes(*one))).collect();
            let message = ElementsMessage { table, set: name, bounds };
            self.push_add(Part::Elements(set, index * RANGES_IN_A_MESSAGE), &message);
        }
    }

    fn add_ranges<T: Ordinal, const N: usize>(
        &mut self,
        table: TableName,
        set: &'a Set,
        name: &CString,
        ranges: &[Range<T>],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        for (index, part) in ranges.chunks(RANGES_IN_A_MESSAGE).enumerate() {
            let bounds = part.iter().flat_map(|range| bounds(range, &bytes)).collect();
            let message = ElementsMessage { table, set: name, bounds };
            self.push_add(Part::Elements(set, index * RANGES_IN_A_MESSAGE), &message);
        }
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
                let of_each = match &set.elements {
                    Elements::HashedV4(_) | Elements::HashedV6(_) => 1,
                    _ => 2,
                };
                let element = set.elements.notation(first + element / of_each);
                format!("element {} of set {}", element.as_deref().unwrap_or("?"), set.name)
            }
        }
    }
}

/// The counter that an older version called otherwise: what it counts is said in the same words, and
/// nothing new has its name.
fn renamed<'a>(counter: &Counter, image: &Image, old: &'a Image) -> Option<&'a Counter> {
    let same =
        |known: &&Counter| known.comment == counter.comment && image.counter(&known.name).is_none();
    let mut known = old.counters.iter().filter(same);
    known.next().filter(|_| known.next().is_none())
}

/// Whether `image` has this chain, too, as a base chain at the same place.
fn is_base_chain_of(chain: &Chain<Program>, image: &Image) -> bool {
    let same = |other: &Chain<Program>| other.name == chain.name && other.base == chain.base;
    chain.base.is_some() && image.chains.iter().any(same)
}

fn chain_messages<'a>(image: &Image, table: &'a nftnl::Table) -> Vec<nftnl::Chain<'a>> {
    let message = |chain: &Chain<Program>| {
        let mut message = nftnl::Chain::new(c_string(&chain.name), table);
        if let Some(base) = chain.base {
            message.set_hook(hook(image.name, base.hook), base.priority);
            message.set_type(nftnl::ChainType::Filter);
            message.set_policy(nftnl::Policy::Accept);
        }
        message
    };
    image.chains.iter().map(message).collect()
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
        let image = Image {
            name: TableName::Gate,
            comment: String::new(),
            counters: vec![],
            sets: vec![set],
            chains: vec![],
        };
        let mut transaction = Transaction::new();
        transaction.create(&image);
        let batch = transaction.batch.finalize();
        let mut elements = 0;
        for message in batch.iter().flat_map(mnl::NlMessages::new) {
            let message = message.expect("well-formed");
            let list = attributes(&message[20..]).find(|(kind, _)| *kind == 3);
            elements += list.map_or(0, |(_, list)| attributes(list).count());
        }
        assert_eq!(elements, 200_000);
    }
}
