//! From an [`Image`] to the messages of one transaction.
#![allow(unsafe_code, reason = "nftnl does not wrap interval sets, objects, or most expressions")]

use super::TABLE_NAME;
use super::decode::Live;
use super::epoch::Epoch;
use crate::nft::expression::{Expression, MetaKey, PayloadBase, Program};
use crate::nft::table::{Chain, Counter, Elements, Hook, Image, Set};
use crate::policy::{Ordinal, Range};
use nftnl::{Batch, MsgType, NlMsg, ProtoFamily};
use nftnl_sys::{self as sys, libc};
use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

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
    let table = TableMessage { comment: None };
    transaction.add(Part::Named("table", crate::nft::TABLE), &table);
    transaction.delete(Part::Named("table", crate::nft::TABLE), &table);
    transaction
}

/// Makes the table, instead of one that may be there.
pub(super) fn creation(image: &Image) -> Transaction<'_> {
    let mut transaction = deletion();
    let table = TableMessage { comment: Some(&image.comment) };
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
            if !rule.comment.is_empty() && built.set_comment(c_string(&rule.comment)).is_err() {
                unreachable!("the compiler makes no comment longer than nftables allows");
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

/// A text for libnftnl. Names and comments are made by us and hold no zero bytes; what follows
/// one would be cut off, as C does.
fn c_string(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

/// An object that libnftnl allocated, freed when it goes.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*const T),
}

impl<T> Owned<T> {
    /// Takes an object over. libnftnl returns null only when memory is exhausted, for which there
    /// is no better answer than to stop.
    ///
    /// # Safety
    /// `object` must be null, or owned by the caller and such that `free` frees it.
    unsafe fn new(object: *mut T, free: unsafe extern "C" fn(*const T)) -> Self {
        Self { object: NonNull::new(object).expect("memory for a netlink message"), free }
    }

    fn as_ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` took the object over together with the function that frees it.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// Begins a message of the family `inet`.
///
/// # Safety
/// `buffer` must have room for the largest netlink message, as [`NlMsg::write`] demands.
unsafe fn header(buffer: *mut c_void, kind: i32, flags: i32, sequence: u32) -> *mut libc::nlmsghdr {
    let (kind, family) = (kind as u16, ProtoFamily::Inet as u16);
    let flags = (flags | libc::NLM_F_ACK) as u16;
    // SAFETY: passed on to the caller.
    unsafe { sys::nftnl_nlmsg_build_hdr(buffer.cast::<c_char>(), kind, family, flags, sequence) }
}

/// The comment of a table or object, as nft keeps it in the user data: a type, a length and the
/// text with a zero at its end.
fn user_data(comment: &str) -> Vec<u8> {
    const COMMENT: u8 = sys::NFTNL_UDATA_TABLE_COMMENT as u8;
    let text = c_string(comment);
    let bytes = text.as_bytes_with_nul();
    let length = u8::try_from(bytes.len()).unwrap_or(0);
    let mut data = vec![COMMENT, length];
    data.extend_from_slice(&bytes[..usize::from(length)]);
    data
}

/// The table itself.
struct TableMessage<'a> {
    comment: Option<&'a str>,
}

// SAFETY: a table's message is its name and at most 257 bytes of user data.
unsafe impl NlMsg for TableMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let kind = match kind {
            MsgType::Add => libc::NFT_MSG_NEWTABLE,
            MsgType::Del => libc::NFT_MSG_DELTABLE,
        };
        // SAFETY: the caller gives a buffer that is large enough; the table is freed by `Owned`,
        // and libnftnl copies the name and the user data that it is given.
        unsafe {
            let table = Owned::new(sys::nftnl_table_alloc(), sys::nftnl_table_free);
            let table_ptr = table.as_ptr();
            sys::nftnl_table_set_str(
                table_ptr,
                attribute(sys::NFTNL_TABLE_NAME),
                TABLE_NAME.as_ptr(),
            );
            if let Some(comment) = self.comment {
                let data = user_data(comment);
                let (bytes, length) = (data.as_ptr().cast(), data.len() as u32);
                sys::nftnl_table_set_data(
                    table_ptr,
                    attribute(sys::NFTNL_TABLE_USERDATA),
                    bytes,
                    length,
                );
            }
            let header = header(buffer, kind, 0, sequence);
            sys::nftnl_table_nlmsg_build_payload(header, table_ptr);
        }
    }
}

/// All rules of the table.
struct AllRulesMessage;

// SAFETY: the message is the table's name.
unsafe impl NlMsg for AllRulesMessage {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the rule is freed by `Owned`,
        // and libnftnl copies the name that it is given.
        unsafe {
            let rule = Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free);
            let number = attribute(sys::NFTNL_RULE_TABLE);
            sys::nftnl_rule_set_str(rule.as_ptr(), number, TABLE_NAME.as_ptr());
            let header = header(buffer, libc::NFT_MSG_DELRULE, 0, sequence);
            sys::nftnl_rule_nlmsg_build_payload(header, rule.as_ptr());
        }
    }
}

/// libnftnl's attribute numbers are small; its functions take them as u16.
const fn attribute(number: u32) -> u16 {
    number as u16
}

/// A named counter.
struct CounterMessage<'a>(&'a Counter);

// SAFETY: a counter's message is two names, two numbers and at most 257 bytes of user data.
unsafe impl NlMsg for CounterMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELOBJ, 0),
        };
        let Counter { name, comment, count } = self.0;
        let (name, data) = (c_string(name), user_data(comment));
        // SAFETY: the caller gives a buffer that is large enough; the object is freed by `Owned`,
        // and libnftnl copies the names and the user data that it is given.
        unsafe {
            let object = Owned::new(sys::nftnl_obj_alloc(), sys::nftnl_obj_free);
            let object_ptr = object.as_ptr();
            let set_str = |number, text: *const c_char| {
                sys::nftnl_obj_set_str(object_ptr, attribute(number), text);
            };
            set_str(sys::NFTNL_OBJ_TABLE, TABLE_NAME.as_ptr());
            set_str(sys::NFTNL_OBJ_NAME, name.as_ptr());
            // The type first: the attributes that follow are the type's own.
            sys::nftnl_obj_set_u32(object_ptr, attribute(sys::NFTNL_OBJ_TYPE), NFT_OBJECT_COUNTER);
            sys::nftnl_obj_set_u64(object_ptr, attribute(sys::NFTNL_OBJ_CTR_PKTS), count.packets);
            sys::nftnl_obj_set_u64(object_ptr, attribute(sys::NFTNL_OBJ_CTR_BYTES), count.bytes);
            sys::nftnl_obj_set_data(
                object_ptr,
                attribute(sys::NFTNL_OBJ_USERDATA),
                data.as_ptr().cast(),
                data.len() as u32,
            );
            let header = header(buffer, kind, flags, sequence);
            sys::nftnl_obj_nlmsg_build_payload(header, object_ptr);
        }
    }
}

/// `NFT_OBJECT_COUNTER` of linux/netfilter/nf_tables.h.
pub(super) const NFT_OBJECT_COUNTER: u32 = 1;
/// `NFT_SET_INTERVAL` of linux/netfilter/nf_tables.h.
pub(super) const NFT_SET_INTERVAL: u32 = 4;
/// `NFT_SET_ELEM_INTERVAL_END` of linux/netfilter/nf_tables.h.
pub(super) const INTERVAL_END: u32 = 1;

/// The number by which nft knows a key's type, and the key's length in bytes. The kernel does not
/// look at the number; `nft list` does.
/// <https://git.netfilter.org/nftables/tree/include/datatype.h>
pub(super) const fn key_type(elements: &Elements) -> (u32, u32) {
    match elements {
        Elements::V4(_) => (7, 4),
        Elements::V6(_) => (8, 16),
        Elements::Mac(_) => (9, 6),
        Elements::Port(_) => (13, 2),
    }
}

/// A named set, without its elements.
struct SetMessage<'a> {
    name: CString,
    elements: &'a Elements,
}

// SAFETY: a set's message is two names and a few numbers.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        let (key_type, key_length) = key_type(self.elements);
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned`, and
        // libnftnl copies the names that it is given.
        unsafe {
            let set = named_set(&self.name);
            let set_u32 = |number, value| {
                sys::nftnl_set_set_u32(set.as_ptr(), attribute(number), value);
            };
            // The kernel wants a number that is unique in the transaction; names do the rest.
            set_u32(sys::NFTNL_SET_ID, sequence);
            set_u32(sys::NFTNL_SET_FLAGS, NFT_SET_INTERVAL);
            set_u32(sys::NFTNL_SET_KEY_TYPE, key_type);
            set_u32(sys::NFTNL_SET_KEY_LEN, key_length);
            let header = header(buffer, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, sequence);
            sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr());
        }
    }
}

/// A set that is to be deleted, by its name in the kernel.
struct SetName<'a>(&'a str);

// SAFETY: the message is two names.
unsafe impl NlMsg for SetName<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned`.
        unsafe {
            let set = named_set(&c_string(self.0));
            let header = header(buffer, libc::NFT_MSG_DELSET, 0, sequence);
            sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr());
        }
    }
}

fn named_set(name: &std::ffi::CStr) -> Owned<sys::nftnl_set> {
    // SAFETY: the set is freed by `Owned`; libnftnl copies the names that it is given.
    unsafe {
        let set = Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free);
        let (table, own) = (attribute(sys::NFTNL_SET_TABLE), attribute(sys::NFTNL_SET_NAME));
        sys::nftnl_set_set_str(set.as_ptr(), table, TABLE_NAME.as_ptr());
        sys::nftnl_set_set_str(set.as_ptr(), own, name.as_ptr());
        set
    }
}

/// One element as the kernel keeps it: the start of a range or the first value behind it.
struct Bound {
    key: [u8; 16],
    length: u32,
    end: bool,
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

/// How many ranges fit into one attribute, whose length is a u16: two elements, each of which is
/// a nest (4), a key (4 + 4 + 16) and flags (8).
const RANGES_IN_A_MESSAGE: usize = (u16::MAX as usize - 64) / (2 * (4 + 24 + 8));

/// The start of a range, and what follows it unless it reaches to the end of all values.
fn bounds<T: Ordinal, const N: usize>(
    range: &Range<T>,
    bytes: impl Fn(T) -> [u8; N],
) -> impl Iterator<Item = Bound> {
    let bound = |value: T, end| {
        let mut key = [0; 16];
        key[..N].copy_from_slice(&bytes(value));
        Bound { key, length: N as u32, end }
    };
    let start = bound(range.first(), false);
    let end = range.last().next().map(|behind| bound(behind, true));
    std::iter::once(start).chain(end)
}

/// Elements of a set, as many as fit into a message.
struct ElementsMessage<'a> {
    set: &'a CString,
    bounds: Vec<Bound>,
}

// SAFETY: `RANGES_IN_A_MESSAGE` bounds the elements to what one attribute holds, for which
// `NlMsg` guarantees room.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned` with
        // the elements that were added to it; libnftnl copies the names and keys that it is given.
        unsafe {
            let set = named_set(self.set);
            for bound in &self.bounds {
                sys::nftnl_set_elem_add(set.as_ptr(), element(bound).as_ptr());
            }
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let header = header(buffer, libc::NFT_MSG_NEWSETELEM, flags, sequence);
            sys::nftnl_set_elems_nlmsg_build_payload(header, set.as_ptr());
        }
    }
}

/// Makes an element; the caller owns it.
fn element(bound: &Bound) -> NonNull<sys::nftnl_set_elem> {
    // SAFETY: the element is not null; libnftnl copies the key, of which the length is given.
    unsafe {
        let element = NonNull::new(sys::nftnl_set_elem_alloc()).expect("memory for an element");
        let element_ptr = element.as_ptr();
        sys::nftnl_set_elem_set(
            element_ptr,
            attribute(sys::NFTNL_SET_ELEM_KEY),
            bound.key.as_ptr().cast(),
            bound.length,
        );
        if bound.end {
            let flags = attribute(sys::NFTNL_SET_ELEM_FLAGS);
            sys::nftnl_set_elem_set_u32(element_ptr, flags, INTERVAL_END);
        }
        element
    }
}

/// An expression, with the epoch of the sets that it may look into.
struct InEpoch<'a> {
    expression: &'a Expression,
    epoch: Epoch,
}

impl nftnl::expr::Expression for InEpoch<'_> {
    fn to_expr(&self, _: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        match self.expression {
            Expression::Meta(key) => Builder::new(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, meta_key(*key))
                .u32(sys::NFTNL_EXPR_META_DREG, REGISTER),
            Expression::Payload(payload) => Builder::new(c"payload")
                .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, payload_base(payload.base))
                .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, payload.offset)
                .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, payload.length)
                .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, REGISTER),
            Expression::CompareEqual(data) => compare(libc::NFT_CMP_EQ, data),
            Expression::CompareAtMost(data) => compare(libc::NFT_CMP_LTE, data),
            Expression::Lookup { set } => Builder::new(c"lookup")
                .u32(sys::NFTNL_EXPR_LOOKUP_SREG, REGISTER)
                .text(sys::NFTNL_EXPR_LOOKUP_SET, &self.epoch.name_of(set)),
            Expression::Count { counter } => Builder::new(c"objref")
                .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER)
                .text(sys::NFTNL_EXPR_OBJREF_IMM_NAME, counter),
            Expression::FibDestinationType => Builder::new(c"fib")
                .u32(sys::NFTNL_EXPR_FIB_DREG, REGISTER)
                .u32(sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_ADDRTYPE)
                .u32(sys::NFTNL_EXPR_FIB_FLAGS, FIB_F_DADDR),
            Expression::Limit { rate, burst } => Builder::new(c"limit")
                .u64(sys::NFTNL_EXPR_LIMIT_RATE, *rate)
                .u64(sys::NFTNL_EXPR_LIMIT_UNIT, ONE_SECOND)
                .u32(sys::NFTNL_EXPR_LIMIT_BURST, *burst)
                .u32(sys::NFTNL_EXPR_LIMIT_TYPE, LIMIT_PACKETS),
            Expression::Log { prefix, level } => Builder::new(c"log")
                .text(sys::NFTNL_EXPR_LOG_PREFIX, prefix)
                .u32(sys::NFTNL_EXPR_LOG_LEVEL, *level),
            Expression::Accept => verdict(libc::NF_ACCEPT),
            Expression::Drop => verdict(libc::NF_DROP),
            Expression::Jump { chain } => {
                verdict(libc::NFT_JUMP).text(sys::NFTNL_EXPR_IMM_CHAIN, chain)
            }
            Expression::Goto { chain } => {
                verdict(libc::NFT_GOTO).text(sys::NFTNL_EXPR_IMM_CHAIN, chain)
            }
        }
        .0
    }
}

/// `NFT_REG_1`.
pub(super) const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// `NFT_FIB_RESULT_ADDRTYPE` of linux/netfilter/nf_tables.h.
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR` of linux/netfilter/nf_tables.h.
pub(super) const FIB_F_DADDR: u32 = 2;
/// The unit of a limit's rate, in seconds.
pub(super) const ONE_SECOND: u64 = 1;
/// `NFT_LIMIT_PKTS` of linux/netfilter/nf_tables.h.
pub(super) const LIMIT_PACKETS: u32 = 0;

pub(super) const fn meta_key(key: MetaKey) -> u32 {
    (match key {
        MetaKey::InputInterface => libc::NFT_META_IIF,
        MetaKey::InputInterfaceType => libc::NFT_META_IIFTYPE,
        MetaKey::NetworkProtocol => libc::NFT_META_NFPROTO,
        MetaKey::TransportProtocol => libc::NFT_META_L4PROTO,
    }) as u32
}

pub(super) const fn payload_base(base: PayloadBase) -> u32 {
    (match base {
        PayloadBase::Link => libc::NFT_PAYLOAD_LL_HEADER,
        PayloadBase::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
        PayloadBase::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    }) as u32
}

fn compare(operation: i32, data: &[u8]) -> Builder {
    Builder::new(c"cmp")
        .u32(sys::NFTNL_EXPR_CMP_SREG, REGISTER)
        .u32(sys::NFTNL_EXPR_CMP_OP, operation as u32)
        .bytes(sys::NFTNL_EXPR_CMP_DATA, data)
}

fn verdict(code: i32) -> Builder {
    Builder::new(c"immediate")
        .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
        // A verdict is a signed number that the interface takes as u32.
        .u32(sys::NFTNL_EXPR_IMM_VERDICT, code.cast_unsigned())
}

/// An expression of libnftnl in the making. Whoever takes it out owns it.
struct Builder(NonNull<sys::nftnl_expr>);

impl Builder {
    fn new(name: &std::ffi::CStr) -> Self {
        // SAFETY: the name ends with a zero. Null would mean that libnftnl does not know the
        // expression; version 1.2.4, which the build demands, knows all that we use.
        let expression = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
        Self(NonNull::new(expression).expect("an expression that libnftnl knows"))
    }

    fn u32(self, number: u32, value: u32) -> Self {
        // SAFETY: `self.0` is a live expression; an unknown attribute is ignored.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute(number), value) };
        self
    }

    fn u64(self, number: u32, value: u64) -> Self {
        // SAFETY: `self.0` is a live expression; an unknown attribute is ignored.
        unsafe { sys::nftnl_expr_set_u64(self.0.as_ptr(), attribute(number), value) };
        self
    }

    fn bytes(self, number: u32, data: &[u8]) -> Self {
        let (bytes, length) = (data.as_ptr().cast(), data.len() as u32);
        // SAFETY: `self.0` is a live expression, and libnftnl copies the bytes.
        unsafe { sys::nftnl_expr_set(self.0.as_ptr(), attribute(number), bytes, length) };
        self
    }

    fn text(self, number: u32, text: &str) -> Self {
        let text = c_string(text);
        // SAFETY: `self.0` is a live expression, and libnftnl copies the text.
        unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute(number), text.as_ptr()) };
        self
    }
}

/// The attributes in a run of netlink attributes: each its type, without flags, and its value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & !(NESTED | NETWORK_ORDER);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` of linux/netlink.h.
const NESTED: u16 = 1 << 15;
const NETWORK_ORDER: u16 = 1 << 14;

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
