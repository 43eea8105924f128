//! The messages that nftnl does not have: tables with comments, interval sets, objects.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use crate::model::TableName;
use crate::model::{Ordinal, Range};
use crate::nft::kernel::uapi::{
    INTERVAL_END, NFT_OBJECT_COUNTER, NFT_SET_INTERVAL, NFT_SET_LEARNED, family, key_type,
    table_name,
};
use crate::nft::table::{Counter, Elements, MEMORIES, MEMORY};
use nftnl::{MsgType, NlMsg};
use nftnl_sys::{self as sys, libc};
use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

/// A text for libnftnl. Names and comments are made by us and hold no zero bytes; what follows
/// one would be cut off, as C does.
pub(super) fn c_string(text: &str) -> CString {
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

/// Begins a message about something in a table.
///
/// # Safety
/// `buffer` must have room for the largest netlink message, as [`NlMsg::write`] demands.
unsafe fn header(
    table: TableName,
    buffer: *mut c_void,
    kind: i32,
    flags: i32,
    sequence: u32,
) -> *mut libc::nlmsghdr {
    let (kind, family) = (kind as u16, family(table) as u16);
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
pub(super) struct TableMessage<'a> {
    pub(super) table: TableName,
    pub(super) comment: Option<&'a str>,
    pub(super) flags: u32,
    /// Whether it is an error that there is one.
    pub(super) is_new: bool,
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
            let object = Owned::new(sys::nftnl_table_alloc(), sys::nftnl_table_free);
            let table_ptr = object.as_ptr();
            sys::nftnl_table_set_str(
                table_ptr,
                attribute(sys::NFTNL_TABLE_NAME),
                table_name(self.table).as_ptr(),
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
            if self.flags != 0 {
                let flags = attribute(sys::NFTNL_TABLE_FLAGS);
                sys::nftnl_table_set_u32(table_ptr, flags, self.flags);
            }
            let flags = if self.is_new { libc::NLM_F_CREATE | libc::NLM_F_EXCL } else { 0 };
            let header = header(self.table, buffer, kind, flags, sequence);
            sys::nftnl_table_nlmsg_build_payload(header, table_ptr);
        }
    }
}

/// All rules of the table.
pub(super) struct AllRulesMessage(pub(super) TableName);

// SAFETY: the message is the table's name.
unsafe impl NlMsg for AllRulesMessage {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the rule is freed by `Owned`,
        // and libnftnl copies the name that it is given.
        unsafe {
            let rule = Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free);
            let number = attribute(sys::NFTNL_RULE_TABLE);
            sys::nftnl_rule_set_str(rule.as_ptr(), number, table_name(self.0).as_ptr());
            let header = header(self.0, buffer, libc::NFT_MSG_DELRULE, 0, sequence);
            sys::nftnl_rule_nlmsg_build_payload(header, rule.as_ptr());
        }
    }
}

/// libnftnl's attribute numbers are small; its functions take them as u16.
pub(super) const fn attribute(number: u32) -> u16 {
    number as u16
}

/// A named counter.
pub(super) struct CounterMessage<'a>(pub(super) TableName, pub(super) &'a Counter);

// SAFETY: a counter's message is two names, two numbers and at most 257 bytes of user data.
unsafe impl NlMsg for CounterMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELOBJ, 0),
        };
        let Self(table, Counter { name, comment, count }) = *self;
        let (name, data) = (c_string(name), user_data(comment));
        // SAFETY: the caller gives a buffer that is large enough; the object is freed by `Owned`,
        // and libnftnl copies the names and the user data that it is given.
        unsafe {
            let object = Owned::new(sys::nftnl_obj_alloc(), sys::nftnl_obj_free);
            let object_ptr = object.as_ptr();
            let set_str = |number, text: *const c_char| {
                sys::nftnl_obj_set_str(object_ptr, attribute(number), text);
            };
            set_str(sys::NFTNL_OBJ_TABLE, table_name(table).as_ptr());
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
            let header = header(table, buffer, kind, flags, sequence);
            sys::nftnl_obj_nlmsg_build_payload(header, object_ptr);
        }
    }
}

/// A named set, without its elements.
pub(super) struct SetMessage<'a> {
    pub(super) table: TableName,
    pub(super) name: CString,
    pub(super) elements: &'a Elements,
}

// SAFETY: a set's message is two names and a few numbers.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        let (key_type, key_length) = key_type(self.elements);
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned`, and
        // libnftnl copies the names that it is given.
        unsafe {
            let set = named_set(self.table, &self.name);
            let set_u32 = |number, value| {
                sys::nftnl_set_set_u32(set.as_ptr(), attribute(number), value);
            };
            // The kernel wants a number that is unique in the transaction; names do the rest.
            set_u32(sys::NFTNL_SET_ID, sequence);
            match self.elements {
                Elements::Learned(_) => {
                    set_u32(sys::NFTNL_SET_FLAGS, NFT_SET_LEARNED);
                    set_u32(sys::NFTNL_SET_DESC_SIZE, MEMORIES);
                    let timeout = MEMORY.as_millis() as u64;
                    let number = attribute(sys::NFTNL_SET_TIMEOUT);
                    sys::nftnl_set_set_u64(set.as_ptr(), number, timeout);
                }
                // With a size the kernel takes its fastest hash, which does not grow.
                Elements::HashedV4(_) | Elements::HashedV6(_) => {
                    set_u32(sys::NFTNL_SET_FLAGS, 0);
                    set_u32(sys::NFTNL_SET_DESC_SIZE, self.elements.len() as u32);
                }
                Elements::V4(_) | Elements::V6(_) | Elements::Mac(_) | Elements::Port(_) => {
                    set_u32(sys::NFTNL_SET_FLAGS, NFT_SET_INTERVAL);
                }
            }
            set_u32(sys::NFTNL_SET_KEY_TYPE, key_type);
            set_u32(sys::NFTNL_SET_KEY_LEN, key_length);
            // Nothing is added to a set that somebody else has made under this name, and may use.
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let kind = libc::NFT_MSG_NEWSET;
            let header = header(self.table, buffer, kind, flags, sequence);
            sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr());
        }
    }
}

/// A set that is to be deleted, by its name in the kernel.
pub(super) struct SetName<'a>(pub(super) TableName, pub(super) &'a str);

// SAFETY: the message is two names.
unsafe impl NlMsg for SetName<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned`.
        unsafe {
            let set = named_set(self.0, &c_string(self.1));
            let header = header(self.0, buffer, libc::NFT_MSG_DELSET, 0, sequence);
            sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr());
        }
    }
}

fn named_set(table: TableName, name: &std::ffi::CStr) -> Owned<sys::nftnl_set> {
    // SAFETY: the set is freed by `Owned`; libnftnl copies the names that it is given.
    unsafe {
        let set = Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free);
        let (of, own) = (attribute(sys::NFTNL_SET_TABLE), attribute(sys::NFTNL_SET_NAME));
        sys::nftnl_set_set_str(set.as_ptr(), of, table_name(table).as_ptr());
        sys::nftnl_set_set_str(set.as_ptr(), own, name.as_ptr());
        set
    }
}

/// One element as the kernel keeps it: a value, the start of a range, or the first value behind it.
pub(super) struct Bound {
    key: [u8; 16],
    length: u32,
    end: bool,
}

/// How many ranges fit into one attribute, whose length is a u16: two elements, each of which is
/// a nest (4), a key (4 + 4 + 16) and flags (8).
pub(super) const RANGES_IN_A_MESSAGE: usize = (u16::MAX as usize - 64) / (2 * (4 + 24 + 8));

/// A value in a set of single values.
pub(super) fn value<const N: usize>(bytes: [u8; N]) -> Bound {
    let mut key = [0; 16];
    key[..N].copy_from_slice(&bytes);
    Bound { key, length: N as u32, end: false }
}

/// The start of a range, and what follows it unless it reaches to the end of all values.
pub(super) fn bounds<T: Ordinal, const N: usize>(
    range: &Range<T>,
    bytes: impl Fn(T) -> [u8; N],
) -> impl Iterator<Item = Bound> {
    let bound = |ordinal: T, end| Bound { end, ..value(bytes(ordinal)) };
    let start = bound(range.first(), false);
    let end = range.last().next().map(|behind| bound(behind, true));
    std::iter::once(start).chain(end)
}

/// Elements of a set, as many as fit into a message.
pub(super) struct ElementsMessage<'a> {
    pub(super) table: TableName,
    pub(super) set: &'a CString,
    pub(super) bounds: Vec<Bound>,
}

// SAFETY: `RANGES_IN_A_MESSAGE` bounds the elements to what one attribute holds, for which
// `NlMsg` guarantees room.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer that is large enough; the set is freed by `Owned` with
        // the elements that were added to it; libnftnl copies the names and keys that it is given.
        unsafe {
            let set = named_set(self.table, self.set);
            for bound in &self.bounds {
                sys::nftnl_set_elem_add(set.as_ptr(), element(bound).as_ptr());
            }
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let kind = libc::NFT_MSG_NEWSETELEM;
            let header = header(self.table, buffer, kind, flags, sequence);
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
