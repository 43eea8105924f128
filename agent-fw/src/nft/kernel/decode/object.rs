//! libnftnl's tables, sets, chains, rules and objects: made, read and freed.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use super::element::{Element, Form};
use crate::model::TableName;
use crate::nft::foreign::ForeignBase;
use crate::nft::kernel::socket::{Header, NetlinkError};
use crate::nft::kernel::uapi::{NFT_SET_INTERVAL, NFT_SET_LEARNED, key_type};
use crate::nft::table::{BaseChain, Elements, Hook, Key, MEMORIES, MEMORY, Prefixes};
use nftnl_sys::{self as sys, libc};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

/// What differs between libnftnl's kinds of objects: how they are made, read and freed.
pub(super) trait Kind {
    unsafe fn allocate() -> *mut Self;
    unsafe fn free(object: *mut Self);
    unsafe fn parse(message: *const libc::nlmsghdr, object: *mut Self) -> c_int;
    unsafe fn is_set(object: *mut Self, attribute: u16) -> bool;
    unsafe fn set_str(object: *mut Self, attribute: u16, text: *const c_char);
    unsafe fn str(object: *mut Self, attribute: u16) -> *const c_char;
    unsafe fn u32(object: *mut Self, attribute: u16) -> u32;
    unsafe fn data(object: *mut Self, attribute: u16, length: *mut u32) -> *const c_void;
}

macro_rules! kind {
    ($type:ident, $alloc:ident, $free:ident, $parse:ident, $is_set:ident, $set_str:ident,
     $get_str:ident, $get_u32:ident, $get_data:ident) => {
        impl Kind for sys::$type {
            unsafe fn allocate() -> *mut Self {
                // SAFETY: takes nothing.
                unsafe { sys::$alloc() }
            }
            unsafe fn free(object: *mut Self) {
                // SAFETY: passed on to the caller.
                unsafe { sys::$free(object) }
            }
            unsafe fn parse(message: *const libc::nlmsghdr, object: *mut Self) -> c_int {
                // SAFETY: passed on to the caller.
                unsafe { sys::$parse(message, object) }
            }
            unsafe fn is_set(object: *mut Self, attribute: u16) -> bool {
                // SAFETY: passed on to the caller.
                unsafe { sys::$is_set(object, attribute) }
            }
            unsafe fn set_str(object: *mut Self, attribute: u16, text: *const c_char) {
                // SAFETY: passed on to the caller.
                let _ = unsafe { sys::$set_str(object, attribute, text) };
            }
            unsafe fn str(object: *mut Self, attribute: u16) -> *const c_char {
                // SAFETY: passed on to the caller.
                unsafe { sys::$get_str(object, attribute) }
            }
            unsafe fn u32(object: *mut Self, attribute: u16) -> u32 {
                // SAFETY: passed on to the caller.
                unsafe { sys::$get_u32(object, attribute) }
            }
            unsafe fn data(object: *mut Self, attribute: u16, length: *mut u32) -> *const c_void {
                // SAFETY: passed on to the caller.
                unsafe { sys::$get_data(object, attribute, length) }
            }
        }
    };
}

kind!(
    nftnl_table,
    nftnl_table_alloc,
    nftnl_table_free,
    nftnl_table_nlmsg_parse,
    nftnl_table_is_set,
    nftnl_table_set_str,
    nftnl_table_get_str,
    nftnl_table_get_u32,
    nftnl_table_get_data
);
kind!(
    nftnl_obj,
    nftnl_obj_alloc,
    nftnl_obj_free,
    nftnl_obj_nlmsg_parse,
    nftnl_obj_is_set,
    nftnl_obj_set_str,
    nftnl_obj_get_str,
    nftnl_obj_get_u32,
    nftnl_obj_get_data
);
kind!(
    nftnl_set,
    nftnl_set_alloc,
    nftnl_set_free,
    nftnl_set_nlmsg_parse,
    nftnl_set_is_set,
    nftnl_set_set_str,
    nftnl_set_get_str,
    nftnl_set_get_u32,
    nftnl_set_get_data
);
kind!(
    nftnl_chain,
    nftnl_chain_alloc,
    nftnl_chain_free,
    nftnl_chain_nlmsg_parse,
    nftnl_chain_is_set,
    nftnl_chain_set_str,
    nftnl_chain_get_str,
    nftnl_chain_get_u32,
    nftnl_chain_get_data
);
kind!(
    nftnl_rule,
    nftnl_rule_alloc,
    nftnl_rule_free,
    nftnl_rule_nlmsg_parse,
    nftnl_rule_is_set,
    nftnl_rule_set_str,
    nftnl_rule_get_str,
    nftnl_rule_get_u32,
    nftnl_rule_get_data
);

/// An object of libnftnl, freed when it goes.
pub(super) struct Object<T: Kind>(NonNull<T>);

impl<T: Kind> Drop for Object<T> {
    fn drop(&mut self) {
        // SAFETY: the object was made by `allocate` and belongs to `self` alone.
        unsafe { T::free(self.0.as_ptr()) }
    }
}

impl<T: Kind> Object<T> {
    pub(super) fn new() -> Self {
        // SAFETY: takes nothing.
        Self(NonNull::new(unsafe { T::allocate() }).expect("memory for a netlink message"))
    }

    pub(super) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }

    pub(super) fn set_str(&self, number: u32, text: &CStr) {
        // SAFETY: the object is live, and libnftnl copies the text.
        unsafe { T::set_str(self.as_ptr(), number as u16, text.as_ptr()) }
    }

    pub(super) fn parse(&self, message: &[u8]) -> Result<(), NetlinkError> {
        // SAFETY: the message is whole (its length was checked against its header) and aligned as
        // the receive buffer is; the object is live.
        let result = unsafe { T::parse(message.as_ptr().cast(), self.as_ptr()) };
        if result < 0 {
            let kind = Header::parse(message).kind;
            return Err(NetlinkError::Unexpected(format!("a message of type {kind:#x}")));
        }
        Ok(())
    }

    pub(super) fn has(&self, number: u32) -> bool {
        // SAFETY: the object is live.
        unsafe { T::is_set(self.as_ptr(), number as u16) }
    }

    pub(super) fn u32(&self, number: u32) -> Option<u32> {
        // SAFETY: the object is live, and the attribute is set.
        self.has(number).then(|| unsafe { T::u32(self.as_ptr(), number as u16) })
    }

    pub(super) fn text(&self, number: u32) -> Option<String> {
        if !self.has(number) {
            return None;
        }
        // SAFETY: the object is live and the attribute, a text, is set; it is copied at once.
        unsafe { owned_text(T::str(self.as_ptr(), number as u16)) }
    }

    /// The comment that nft keeps in user data, or nothing.
    pub(super) fn comment(&self, number: u32) -> String {
        if !self.has(number) {
            return String::new();
        }
        let mut length = 0;
        // SAFETY: the object is live and the attribute is set; libnftnl gives the length with it.
        let bytes = unsafe {
            let data = T::data(self.as_ptr(), number as u16, &raw mut length);
            if data.is_null() {
                return String::new();
            }
            std::slice::from_raw_parts(data.cast::<u8>(), length as usize).to_vec()
        };
        let text = match bytes.as_slice() {
            [0, length, text @ ..] if text.len() >= usize::from(*length) => {
                &text[..usize::from(*length)]
            }
            _ => return String::new(),
        };
        String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
    }
}

/// # Safety
/// `text` must be null or end with a zero.
pub(super) unsafe fn owned_text(text: *const c_char) -> Option<String> {
    // SAFETY: passed on to the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

impl Object<sys::nftnl_table> {
    pub(super) fn table() -> Self {
        Self::new()
    }
}

impl Object<sys::nftnl_obj> {
    pub(super) fn counter() -> Self {
        Self::new()
    }

    pub(super) fn u64(&self, number: u32) -> Option<u64> {
        // SAFETY: the object is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_obj_get_u64(self.as_ptr(), number as u16) })
    }
}

impl Object<sys::nftnl_set> {
    pub(super) fn set() -> Self {
        Self::new()
    }

    /// An empty set of this one's type, if agent-fw has sets of that type.
    pub(super) fn elements_type(&self) -> Option<Elements> {
        match self.flags() {
            NFT_SET_INTERVAL => self.elements_of_key_type(),
            NFT_SET_LEARNED => self.learned(),
            0 => match self.elements_of_key_type()? {
                Elements::V4(_) => Some(Elements::HashedV4(Prefixes::new())),
                Elements::V6(_) => Some(Elements::HashedV6(Prefixes::new())),
                _ => None,
            },
            _ => None,
        }
    }

    fn learned(&self) -> Option<Elements> {
        let key = match self.elements_of_key_type()? {
            Elements::V4(_) => Key::V4,
            Elements::V6(_) => Key::V6,
            Elements::Port(_) => Key::Port,
            _ => return None,
        };
        // SAFETY: the set is live; the attribute is 0 where it is not set.
        let timeout =
            unsafe { sys::nftnl_set_get_u64(self.as_ptr(), sys::NFTNL_SET_TIMEOUT as u16) };
        let is_ours = u128::from(timeout) == MEMORY.as_millis()
            && self.u32(sys::NFTNL_SET_DESC_SIZE) == Some(MEMORIES);
        is_ours.then_some(Elements::Learned(key))
    }

    /// An empty set of this one's type, if its elements can be read all the same.
    pub(super) fn foreign_elements_type(&self) -> Option<(Elements, Form)> {
        /// `NFT_SET_ANONYMOUS` and `NFT_SET_CONSTANT` of linux/netfilter/nf_tables.h.
        const HARMLESS: u32 = 1 | 2;
        let form = match self.flags() & !HARMLESS {
            0 => Form::Values,
            NFT_SET_INTERVAL => Form::Intervals,
            _ => return None,
        };
        Some((self.elements_of_key_type()?, form))
    }

    fn flags(&self) -> u32 {
        self.u32(sys::NFTNL_SET_FLAGS).unwrap_or(0)
    }

    fn elements_of_key_type(&self) -> Option<Elements> {
        let elements = match self.u32(sys::NFTNL_SET_KEY_TYPE)? {
            7 => Elements::V4(Vec::new()),
            8 => Elements::V6(Vec::new()),
            9 => Elements::Mac(Vec::new()),
            13 => Elements::Port(Vec::new()),
            _ => return None,
        };
        (self.u32(sys::NFTNL_SET_KEY_LEN) == Some(key_type(&elements).1)).then_some(elements)
    }

    pub(super) fn for_each_element(&self, mut each: impl FnMut(&Element)) {
        // SAFETY: the set is live while its elements are iterated over; each element belongs to
        // it and is looked at only during the call.
        unsafe {
            let iterator = sys::nftnl_set_elems_iter_create(self.as_ptr());
            if iterator.is_null() {
                return;
            }
            while let Some(element) = NonNull::new(sys::nftnl_set_elems_iter_next(iterator)) {
                each(&Element(element));
            }
            sys::nftnl_set_elems_iter_destroy(iterator);
        }
    }
}

impl Object<sys::nftnl_chain> {
    pub(super) fn chain() -> Self {
        Self::new()
    }

    /// Where the chain hangs, or why agent-fw has no such chain.
    pub(super) fn base(
        &self,
        table: TableName,
    ) -> Result<Option<BaseChain>, (ForeignBase, String)> {
        let Some(hook) = self.u32(sys::NFTNL_CHAIN_HOOKNUM) else { return Ok(None) };
        // SAFETY: the chain is live; a chain with a hook has a priority.
        let priority =
            unsafe { sys::nftnl_chain_get_s32(self.as_ptr(), sys::NFTNL_CHAIN_PRIO as u16) };
        let chain = self.text(sys::NFTNL_CHAIN_NAME).unwrap_or_default();
        let kind = self.text(sys::NFTNL_CHAIN_TYPE).unwrap_or_default();
        let drops = self.u32(sys::NFTNL_CHAIN_POLICY) != Some(libc::NF_ACCEPT as u32);
        // ARP has its own numbers: 0 for what comes in, 1 for what goes out.
        let known = match (table, hook.cast_signed()) {
            (TableName::Arp, 0) => Ok(Hook::Input),
            (TableName::Arp, 1) => Ok(Hook::Output),
            (TableName::Arp, other) => Err(format!("at hook {other}")),
            (_, libc::NF_INET_PRE_ROUTING) => Ok(Hook::Prerouting),
            (_, libc::NF_INET_LOCAL_IN) => Ok(Hook::Input),
            (_, libc::NF_INET_LOCAL_OUT) => Ok(Hook::Output),
            (_, other) => Err(format!("at hook {other}")),
        };
        let known = known
            .and_then(|hook| (kind == "filter").then_some(hook).ok_or(format!("of type {kind}")))
            .and_then(|hook| (!drops).then_some(hook).ok_or("whose policy is drop".to_owned()));
        match known {
            Ok(hook) => Ok(Some(BaseChain { hook, priority })),
            Err(what) => Err((ForeignBase { chain, hook, priority, kind, drops }, what)),
        }
    }
}

impl Object<sys::nftnl_rule> {
    pub(super) fn rule() -> Self {
        Self::new()
    }
}
