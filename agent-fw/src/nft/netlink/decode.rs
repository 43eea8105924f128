//! From the kernel's table to an [`Image`], reading nothing but the kernel.
#![allow(unsafe_code, reason = "nftnl wraps no dumps; libnftnl's parsers are called directly")]

use super::TABLE_NAME;
use super::epoch::Epoch;
use super::socket::{Dump, NetlinkError, Socket};
use crate::nft::expression::{Expression, MetaKey, Payload, PayloadBase, Program};
use crate::nft::table::{BaseChain, Chain, Count, Counter, Elements, Hook, Image, Set};
use crate::nft::{Stamp, ruleset::GATE};
use crate::policy::{MacAddr, Ordinal, Port, Range};
use nftnl_sys::{self as sys, libc};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ptr::NonNull;

/// How often a read is tried again when the ruleset changes meanwhile.
const ATTEMPTS: usize = 20;

/// The table as it is in the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Live {
    /// What of it agent-fw could have put there.
    pub image: Image,
    /// What it certainly has not put there, in words.
    pub strays: Vec<String>,
    /// Sets of an update that did not come to its end, by their names in the kernel. No rule uses
    /// them.
    pub leftovers: Vec<String>,
    /// Which names the sets in use have.
    pub(super) epoch: Epoch,
}

impl Live {
    /// The stamp: which policy the table says that it enforces.
    pub fn stamp(&self) -> Option<Stamp> {
        let gate = self.image.chains.iter().find(|chain| chain.name == GATE)?;
        Stamp::parse(&gate.rules.first()?.comment)
    }
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// All but the elements of sets.
    Outline,
    /// All.
    Everything,
}

/// Reads the table as of one moment.
pub(super) fn read(socket: &mut Socket, depth: Depth) -> Result<Option<Live>, NetlinkError> {
    for _ in 0..ATTEMPTS {
        let before = generation(socket)?;
        match read_once(socket, depth)? {
            Some(live) if generation(socket)? == before => return Ok(live),
            _ => {}
        }
    }
    Err(NetlinkError::KeptChanging)
}

/// `None` when the ruleset changed while it was read.
fn read_once(socket: &mut Socket, depth: Depth) -> Result<Option<Option<Live>>, NetlinkError> {
    let mut reader = Reader { socket, strays: Vec::new(), torn: false };
    let Some(comment) = reader.table()? else { return Ok(Some(None)) };
    let counters = reader.counters()?;
    let mut sets = reader.sets(depth)?;
    let mut chains = reader.chains()?;
    reader.flowtables()?;
    let Reader { mut strays, torn, .. } = reader;
    let epoch = epoch_in_use(&mut chains, &mut strays);
    let leftovers = leftovers(&mut sets, epoch);
    let image = Image { comment, counters, sets, chains };
    Ok((!torn).then_some(Some(Live { image, strays, leftovers, epoch })))
}

/// Gives the sets that rules look into the compiler's names, and tells of which epoch they are.
fn epoch_in_use(chains: &mut [Chain<Program>], strays: &mut Vec<String>) -> Epoch {
    let mut epochs = Vec::new();
    let rules = chains.iter_mut().flat_map(|chain| &mut chain.rules);
    for expression in rules.flat_map(|rule| &mut rule.expressions) {
        if let Expression::Lookup { set } = expression {
            let (name, epoch) = Epoch::split(set);
            epochs.push(epoch);
            *set = name.to_owned();
        }
    }
    let in_use = epochs.first().copied().unwrap_or_default();
    if epochs.iter().any(|epoch| *epoch != in_use) {
        strays.push("rules that look into the sets of two updates".to_owned());
    }
    in_use
}

/// Takes the sets of the epoch that is not in use out, and gives the others the compiler's names.
fn leftovers(sets: &mut Vec<Set>, in_use: Epoch) -> Vec<String> {
    let left = sets.extract_if(.., |set| Epoch::split(&set.name).1 != in_use);
    let left = left.map(|set| set.name).collect();
    for set in sets {
        Epoch::split(&set.name).0.to_owned().clone_into(&mut set.name);
    }
    left
}

/// The number of the ruleset's present state: every transaction makes a new one.
fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    /// `NFTA_GEN_ID` of linux/netfilter/nf_tables.h.
    const ID: u16 = 1;
    let mut generation = None;
    let ask = |sequence| request(libc::NFT_MSG_GETGEN, 0, sequence, |_| ());
    socket.dump(ask, |message| {
        let value = attribute_of(message, ID);
        generation = value.and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        Ok(())
    })?;
    generation.ok_or_else(|| NetlinkError::Unexpected("no generation of the ruleset".to_owned()))
}

fn attribute_of(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = super::encode::attributes(message.get(20..)?);
    all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A message of the family `inet` that asks for something; `payload` writes what.
fn request(
    kind: c_int,
    flags: c_int,
    sequence: u32,
    payload: impl FnOnce(*mut libc::nlmsghdr),
) -> Vec<u8> {
    let mut buffer = vec![0_u64; nftnl::nft_nlmsg_maxsize() as usize / 8 + 1];
    // SAFETY: the buffer has room for the largest message and is aligned for its header. The
    // length that the header has at the end is that of what was written.
    unsafe {
        let header = sys::nftnl_nlmsg_build_hdr(
            buffer.as_mut_ptr().cast(),
            kind as u16,
            libc::NFPROTO_INET as u16,
            (flags | libc::NLM_F_ACK) as u16,
            sequence,
        );
        payload(header);
        let length = (*header).nlmsg_len as usize;
        std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length).to_vec()
    }
}

/// Reads one table, piece by piece.
struct Reader<'a> {
    socket: &'a mut Socket,
    strays: Vec<String>,
    torn: bool,
}

impl Reader<'_> {
    fn dump(
        &mut self,
        kind: c_int,
        flags: c_int,
        payload: impl FnOnce(*mut libc::nlmsghdr),
        read: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        let dump = self.socket.dump(|sequence| request(kind, flags, sequence, payload), read)?;
        self.torn |= dump == Dump::Torn;
        Ok(dump)
    }

    /// The table's comment, or `None` if there is no table.
    fn table(&mut self) -> Result<Option<String>, NetlinkError> {
        let mut found = None;
        let ask = |header| {
            let table = Object::table();
            table.set_str(sys::NFTNL_TABLE_NAME, TABLE_NAME);
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_table_nlmsg_build_payload(header, table.as_ptr()) };
        };
        let dump = self.dump(libc::NFT_MSG_GETTABLE, 0, ask, |message| {
            let table = Object::table();
            table.parse(message)?;
            found =
                Some((table.comment(sys::NFTNL_TABLE_USERDATA), table.u32(sys::NFTNL_TABLE_FLAGS)));
            Ok(())
        })?;
        let Some((comment, flags)) = found.filter(|_| dump != Dump::Absent) else {
            return Ok(None);
        };
        // A dormant table enforces nothing; an owned one is somebody else's.
        if flags.unwrap_or(0) != 0 {
            self.strays.push(format!("flags {:#x} of the table", flags.unwrap_or(0)));
        }
        Ok(Some(comment))
    }

    fn counters(&mut self) -> Result<Vec<Counter>, NetlinkError> {
        let (mut counters, mut strays) = (Vec::new(), Vec::new());
        let ask = |header| {
            let object = Object::object();
            object.set_str(sys::NFTNL_OBJ_TABLE, TABLE_NAME);
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_obj_nlmsg_build_payload(header, object.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETOBJ, libc::NLM_F_DUMP, ask, |message| {
            // Before libnftnl, which does not know every type of object.
            if !is_of_our_table(message) {
                return Ok(());
            }
            let object = Object::object();
            let parsed = object.parse(message);
            let name = object.text(sys::NFTNL_OBJ_NAME).unwrap_or_default();
            let kind = object.u32(sys::NFTNL_OBJ_TYPE);
            if parsed.is_err() || kind != Some(super::encode::NFT_OBJECT_COUNTER) {
                strays.push(format!("object {}", name.escape_debug()));
                return Ok(());
            }
            let count = Count {
                packets: object.u64(sys::NFTNL_OBJ_CTR_PKTS).unwrap_or(0),
                bytes: object.u64(sys::NFTNL_OBJ_CTR_BYTES).unwrap_or(0),
            };
            let comment = object.comment(sys::NFTNL_OBJ_USERDATA);
            counters.push(Counter { name, comment, count });
            Ok(())
        })?;
        self.strays.append(&mut strays);
        Ok(counters)
    }

    fn sets(&mut self, depth: Depth) -> Result<Vec<Set>, NetlinkError> {
        let (mut sets, mut strays) = (Vec::new(), Vec::new());
        let ask = |header| {
            let set = Object::set();
            set.set_str(sys::NFTNL_SET_TABLE, TABLE_NAME);
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETSET, libc::NLM_F_DUMP, ask, |message| {
            let set = Object::set();
            set.parse(message)?;
            if !is_of_our_table(message) {
                return Ok(());
            }
            let name = set.text(sys::NFTNL_SET_NAME).unwrap_or_default();
            match set.elements_type() {
                Some(elements) => sets.push(Set { name, elements }),
                None => strays.push(format!("set {} of another type", name.escape_debug())),
            }
            Ok(())
        })?;
        self.strays.append(&mut strays);
        if depth == Depth::Everything {
            for set in &mut sets {
                self.elements(set)?;
            }
        }
        Ok(sets)
    }

    /// Reads the elements of `set`, which has none yet.
    fn elements(&mut self, set: &mut Set) -> Result<(), NetlinkError> {
        let name = CString::new(set.name.as_str()).unwrap_or_default();
        let ask = |header| {
            let named = Object::set();
            named.set_str(sys::NFTNL_SET_TABLE, TABLE_NAME);
            named.set_str(sys::NFTNL_SET_NAME, &name);
            // SAFETY: both are live; the buffer has room for two names.
            unsafe { sys::nftnl_set_elems_nlmsg_build_payload(header, named.as_ptr()) };
        };
        let mut bounds = Bounds::new(&set.elements);
        self.dump(libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP, ask, |message| {
            let part = Object::set();
            // SAFETY: the message is whole and aligned, and the set is live.
            let parsed =
                unsafe { sys::nftnl_set_elems_nlmsg_parse(message.as_ptr().cast(), part.as_ptr()) };
            if parsed < 0 {
                return Err(NetlinkError::Unexpected(format!("elements of set {}", set.name)));
            }
            part.for_each_element(|element| bounds.add(element));
            Ok(())
        })?;
        let (elements, faults) = bounds.into_elements();
        set.elements = elements;
        let name = set.name.escape_debug().to_string();
        self.strays.extend(faults.into_iter().map(|fault| format!("{fault} of set {name}")));
        Ok(())
    }

    fn chains(&mut self) -> Result<Vec<Chain<Program>>, NetlinkError> {
        let (mut chains, mut strays) = (Vec::new(), Vec::new());
        self.dump(
            libc::NFT_MSG_GETCHAIN,
            libc::NLM_F_DUMP,
            |_| (),
            |message| {
                if !is_of_our_table(message) {
                    return Ok(());
                }
                let chain = Object::chain();
                chain.parse(message)?;
                let name = chain.text(sys::NFTNL_CHAIN_NAME).unwrap_or_default();
                match chain.base() {
                    Ok(base) => chains.push(Chain { name, base, rules: Vec::new() }),
                    Err(what) => {
                        strays.push(format!("chain {} {what}", name.escape_debug()));
                        chains.push(Chain { name, base: None, rules: Vec::new() });
                    }
                }
                Ok(())
            },
        )?;
        self.strays.append(&mut strays);
        self.rules(&mut chains)?;
        Ok(chains)
    }

    fn rules(&mut self, chains: &mut [Chain<Program>]) -> Result<(), NetlinkError> {
        let mut strays = Vec::new();
        let ask = |header| {
            let rule = Object::rule();
            rule.set_str(sys::NFTNL_RULE_TABLE, TABLE_NAME);
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_rule_nlmsg_build_payload(header, rule.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, ask, |message| {
            if !is_of_our_table(message) {
                return Ok(());
            }
            let rule = Object::rule();
            let parsed = rule.parse(message);
            let name = rule.text(sys::NFTNL_RULE_CHAIN).unwrap_or_default();
            let chain = chains.iter_mut().find(|chain| chain.name == name);
            let expressions = parsed.ok().and_then(|()| rule.expressions());
            match (chain, expressions) {
                (Some(chain), Some(expressions)) => {
                    let comment = rule.comment(sys::NFTNL_RULE_USERDATA);
                    chain.rules.push(Program { expressions, comment });
                }
                (Some(chain), None) => {
                    let place = chain.rules.len() + 1;
                    strays.push(format!("rule {place} of chain {}", name.escape_debug()));
                    // Keeps the places of the rules that follow.
                    chain.rules.push(Program::default());
                }
                (None, _) => strays.push(format!("a rule of chain {}", name.escape_debug())),
            }
            Ok(())
        })?;
        self.strays.append(&mut strays);
        Ok(())
    }

    /// Flowtables let packets pass the hooks by; agent-fw has none.
    fn flowtables(&mut self) -> Result<(), NetlinkError> {
        /// `NFT_MSG_GETFLOWTABLE` and `NFTA_FLOWTABLE_NAME` of linux/netfilter/nf_tables.h.
        const GET: c_int = 23;
        const NAME: u16 = 2;
        let mut strays = Vec::new();
        let result = self.dump(
            GET,
            libc::NLM_F_DUMP,
            |_| (),
            |message| {
                if is_of_our_table(message) {
                    let name = attribute_of(message, NAME).unwrap_or_default();
                    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name));
                    strays.push(format!("flowtable {}", name.escape_debug()));
                }
                Ok(())
            },
        );
        self.strays.append(&mut strays);
        result.map(drop)
    }
}

/// Whether a message is about something in our table. Tables, chains, rules, sets, objects and
/// flowtables all have the table's name as their first attribute.
fn is_of_our_table(message: &[u8]) -> bool {
    const TABLE: u16 = 1;
    attribute_of(message, TABLE).is_some_and(|name| name == TABLE_NAME.to_bytes_with_nul())
}

/// What differs between libnftnl's kinds of objects: how they are made, read and freed.
trait Kind {
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
struct Object<T: Kind>(NonNull<T>);

impl<T: Kind> Drop for Object<T> {
    fn drop(&mut self) {
        // SAFETY: the object was made by `allocate` and belongs to `self` alone.
        unsafe { T::free(self.0.as_ptr()) }
    }
}

impl<T: Kind> Object<T> {
    fn new() -> Self {
        // SAFETY: takes nothing.
        Self(NonNull::new(unsafe { T::allocate() }).expect("memory for a netlink message"))
    }

    fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }

    fn set_str(&self, number: u32, text: &CStr) {
        // SAFETY: the object is live, and libnftnl copies the text.
        unsafe { T::set_str(self.as_ptr(), number as u16, text.as_ptr()) }
    }

    fn parse(&self, message: &[u8]) -> Result<(), NetlinkError> {
        // SAFETY: the message is whole (its length was checked against its header) and aligned as
        // the receive buffer is; the object is live.
        let result = unsafe { T::parse(message.as_ptr().cast(), self.as_ptr()) };
        if result < 0 {
            let kind = super::socket::Header::parse(message).kind;
            return Err(NetlinkError::Unexpected(format!("a message of type {kind:#x}")));
        }
        Ok(())
    }

    fn has(&self, number: u32) -> bool {
        // SAFETY: the object is live.
        unsafe { T::is_set(self.as_ptr(), number as u16) }
    }

    fn u32(&self, number: u32) -> Option<u32> {
        // SAFETY: the object is live, and the attribute is set.
        self.has(number).then(|| unsafe { T::u32(self.as_ptr(), number as u16) })
    }

    fn text(&self, number: u32) -> Option<String> {
        if !self.has(number) {
            return None;
        }
        // SAFETY: the object is live and the attribute, a text, is set; it is copied at once.
        unsafe { owned_text(T::str(self.as_ptr(), number as u16)) }
    }

    /// The comment that nft keeps in user data, or nothing.
    fn comment(&self, number: u32) -> String {
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
unsafe fn owned_text(text: *const c_char) -> Option<String> {
    // SAFETY: passed on to the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

impl Object<sys::nftnl_table> {
    fn table() -> Self {
        Self::new()
    }
}

impl Object<sys::nftnl_obj> {
    fn object() -> Self {
        Self::new()
    }

    fn u64(&self, number: u32) -> Option<u64> {
        // SAFETY: the object is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_obj_get_u64(self.as_ptr(), number as u16) })
    }
}

impl Object<sys::nftnl_set> {
    fn set() -> Self {
        Self::new()
    }

    /// An empty set of this one's type, if agent-fw has sets of that type.
    fn elements_type(&self) -> Option<Elements> {
        use super::encode::{NFT_SET_INTERVAL, key_type};
        let elements = match self.u32(sys::NFTNL_SET_KEY_TYPE)? {
            7 => Elements::V4(Vec::new()),
            8 => Elements::V6(Vec::new()),
            9 => Elements::Mac(Vec::new()),
            13 => Elements::Port(Vec::new()),
            _ => return None,
        };
        let fits = self.u32(sys::NFTNL_SET_KEY_LEN) == Some(key_type(&elements).1)
            && self.u32(sys::NFTNL_SET_FLAGS) == Some(NFT_SET_INTERVAL);
        fits.then_some(elements)
    }

    fn for_each_element(&self, mut each: impl FnMut(&Element)) {
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
    fn chain() -> Self {
        Self::new()
    }

    /// Where the chain hangs, or in words why agent-fw has no such chain.
    fn base(&self) -> Result<Option<BaseChain>, String> {
        let Some(hook) = self.u32(sys::NFTNL_CHAIN_HOOKNUM) else { return Ok(None) };
        let hook = match hook.cast_signed() {
            libc::NF_INET_PRE_ROUTING => Hook::Prerouting,
            libc::NF_INET_LOCAL_IN => Hook::Input,
            other => return Err(format!("at hook {other}")),
        };
        let kind = self.text(sys::NFTNL_CHAIN_TYPE).unwrap_or_default();
        if kind != "filter" {
            return Err(format!("of type {kind}"));
        }
        if self.u32(sys::NFTNL_CHAIN_POLICY) != Some(libc::NF_ACCEPT as u32) {
            return Err("whose policy is drop".to_owned());
        }
        // SAFETY: the chain is live; a chain with a hook has a priority.
        let priority =
            unsafe { sys::nftnl_chain_get_s32(self.as_ptr(), sys::NFTNL_CHAIN_PRIO as u16) };
        Ok(Some(BaseChain { hook, priority }))
    }
}

impl Object<sys::nftnl_rule> {
    fn rule() -> Self {
        Self::new()
    }

    /// The rule's instructions, or `None` if one of them is none of agent-fw's.
    fn expressions(&self) -> Option<Vec<Expression>> {
        unsafe extern "C" fn collect(expression: *mut sys::nftnl_expr, into: *mut c_void) -> c_int {
            // SAFETY: `into` is the vector below, borrowed for the duration of the iteration.
            let collected = unsafe { &mut *into.cast::<Option<Vec<Expression>>>() };
            let decoded = NonNull::new(expression).and_then(|e| LiveExpression(e).decode());
            match (collected.as_mut(), decoded) {
                (Some(all), Some(decoded)) => all.push(decoded),
                _ => *collected = None,
            }
            0
        }
        let mut collected: Option<Vec<Expression>> = Some(Vec::new());
        // SAFETY: the rule is live, and `collect` uses the pointer only as what it is.
        unsafe {
            sys::nftnl_expr_foreach(self.as_ptr(), Some(collect), (&raw mut collected).cast());
        }
        collected
    }
}

/// An expression of a rule, borrowed from it.
struct LiveExpression(NonNull<sys::nftnl_expr>);

impl LiveExpression {
    fn has(&self, number: u32) -> bool {
        // SAFETY: the expression is live.
        unsafe { sys::nftnl_expr_is_set(self.0.as_ptr(), number as u16) }
    }

    fn u32(&self, number: u32) -> Option<u32> {
        // SAFETY: the expression is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_expr_get_u32(self.0.as_ptr(), number as u16) })
    }

    fn u64(&self, number: u32) -> Option<u64> {
        // SAFETY: the expression is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_expr_get_u64(self.0.as_ptr(), number as u16) })
    }

    fn text(&self, number: u32) -> Option<String> {
        if !self.has(number) {
            return None;
        }
        // SAFETY: the expression is live and the attribute, a text, is set; it is copied at once.
        unsafe { owned_text(sys::nftnl_expr_get_str(self.0.as_ptr(), number as u16)) }
    }

    fn bytes(&self, number: u32) -> Option<Vec<u8>> {
        if !self.has(number) {
            return None;
        }
        let mut length = 0;
        // SAFETY: the expression is live and the attribute is set; libnftnl gives the length.
        unsafe {
            let data =
                sys::nftnl_expr_get(self.0.as_ptr(), number as u16, &raw mut length).cast::<u8>();
            (!data.is_null()).then(|| std::slice::from_raw_parts(data, length as usize).to_vec())
        }
    }

    fn uses_register(&self, number: u32) -> Option<()> {
        (self.u32(number)? == super::encode::REGISTER).then_some(())
    }

    /// What it does, if agent-fw has such an instruction.
    fn decode(&self) -> Option<Expression> {
        match self.text(sys::NFTNL_EXPR_NAME)?.as_str() {
            "meta" => self.meta(),
            "payload" => self.payload(),
            "cmp" => self.compare(),
            "lookup" => self.lookup(),
            "objref" => self.count(),
            "fib" => self.fib(),
            "limit" => self.limit(),
            "log" => self.log(),
            "immediate" => self.verdict(),
            _ => None,
        }
    }

    fn meta(&self) -> Option<Expression> {
        use super::encode::meta_key;
        self.uses_register(sys::NFTNL_EXPR_META_DREG)?;
        let key = self.u32(sys::NFTNL_EXPR_META_KEY)?;
        let known = [
            MetaKey::InputInterface,
            MetaKey::InputInterfaceType,
            MetaKey::NetworkProtocol,
            MetaKey::TransportProtocol,
        ];
        known.into_iter().find(|&known| meta_key(known) == key).map(Expression::Meta)
    }

    fn payload(&self) -> Option<Expression> {
        use super::encode::payload_base;
        self.uses_register(sys::NFTNL_EXPR_PAYLOAD_DREG)?;
        let base = self.u32(sys::NFTNL_EXPR_PAYLOAD_BASE)?;
        let known = [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport];
        Some(Expression::Payload(Payload {
            base: known.into_iter().find(|&known| payload_base(known) == base)?,
            offset: self.u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET)?,
            length: self.u32(sys::NFTNL_EXPR_PAYLOAD_LEN)?,
        }))
    }

    fn compare(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_CMP_SREG)?;
        let data = self.bytes(sys::NFTNL_EXPR_CMP_DATA)?;
        match self.u32(sys::NFTNL_EXPR_CMP_OP)?.cast_signed() {
            libc::NFT_CMP_EQ => Some(Expression::CompareEqual(data)),
            libc::NFT_CMP_LTE => Some(Expression::CompareAtMost(data)),
            _ => None,
        }
    }

    fn lookup(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_LOOKUP_SREG)?;
        if self.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS).is_some_and(|flags| flags != 0) {
            return None;
        }
        if self.has(sys::NFTNL_EXPR_LOOKUP_DREG) {
            return None;
        }
        Some(Expression::Lookup { set: self.text(sys::NFTNL_EXPR_LOOKUP_SET)? })
    }

    fn count(&self) -> Option<Expression> {
        let kind = self.u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE)?;
        let counter = self.text(sys::NFTNL_EXPR_OBJREF_IMM_NAME)?;
        (kind == super::encode::NFT_OBJECT_COUNTER).then_some(Expression::Count { counter })
    }

    fn fib(&self) -> Option<Expression> {
        use super::encode::{FIB_F_DADDR, FIB_RESULT_ADDRTYPE};
        self.uses_register(sys::NFTNL_EXPR_FIB_DREG)?;
        let fits = self.u32(sys::NFTNL_EXPR_FIB_RESULT)? == FIB_RESULT_ADDRTYPE
            && self.u32(sys::NFTNL_EXPR_FIB_FLAGS)? == FIB_F_DADDR;
        fits.then_some(Expression::FibDestinationType)
    }

    fn limit(&self) -> Option<Expression> {
        use super::encode::{LIMIT_PACKETS, ONE_SECOND};
        let fits = self.u64(sys::NFTNL_EXPR_LIMIT_UNIT)? == ONE_SECOND
            && self.u32(sys::NFTNL_EXPR_LIMIT_TYPE)? == LIMIT_PACKETS
            && self.u32(sys::NFTNL_EXPR_LIMIT_FLAGS).unwrap_or(0) == 0;
        let rate = self.u64(sys::NFTNL_EXPR_LIMIT_RATE)?;
        let burst = self.u32(sys::NFTNL_EXPR_LIMIT_BURST)?;
        fits.then_some(Expression::Limit { rate, burst })
    }

    fn log(&self) -> Option<Expression> {
        let flags = self.u32(sys::NFTNL_EXPR_LOG_FLAGS).unwrap_or(0);
        if flags != 0 || self.has(sys::NFTNL_EXPR_LOG_GROUP) {
            return None;
        }
        let prefix = self.text(sys::NFTNL_EXPR_LOG_PREFIX)?;
        Some(Expression::Log { prefix, level: self.u32(sys::NFTNL_EXPR_LOG_LEVEL)? })
    }

    fn verdict(&self) -> Option<Expression> {
        if self.u32(sys::NFTNL_EXPR_IMM_DREG)? != libc::NFT_REG_VERDICT as u32 {
            return None;
        }
        match self.u32(sys::NFTNL_EXPR_IMM_VERDICT)?.cast_signed() {
            libc::NF_ACCEPT => Some(Expression::Accept),
            libc::NF_DROP => Some(Expression::Drop),
            libc::NFT_JUMP => {
                Some(Expression::Jump { chain: self.text(sys::NFTNL_EXPR_IMM_CHAIN)? })
            }
            libc::NFT_GOTO => {
                Some(Expression::Goto { chain: self.text(sys::NFTNL_EXPR_IMM_CHAIN)? })
            }
            _ => None,
        }
    }
}

/// An element of a set, borrowed from it.
struct Element(NonNull<sys::nftnl_set_elem>);

impl Element {
    fn has(&self, number: u32) -> bool {
        // SAFETY: the element is live.
        unsafe { sys::nftnl_set_elem_is_set(self.0.as_ptr(), number as u16) }
    }

    fn key<const N: usize>(&self) -> Option<[u8; N]> {
        let mut length = 0;
        // SAFETY: the element is live; libnftnl gives the key's length with it.
        unsafe {
            let number = sys::NFTNL_SET_ELEM_KEY as u16;
            let key = sys::nftnl_set_elem_get(self.0.as_ptr(), number, &raw mut length);
            let fits = !key.is_null() && length as usize == N;
            fits.then(|| *key.cast::<[u8; N]>())
        }
    }

    fn is_end(&self) -> bool {
        let flags = sys::NFTNL_SET_ELEM_FLAGS;
        // SAFETY: the element is live, and the attribute is set.
        self.has(flags)
            && unsafe { sys::nftnl_set_elem_get_u32(self.0.as_ptr(), flags as u16) }
                & super::encode::INTERVAL_END
                != 0
    }

    /// Whether it has something that no element of agent-fw's has.
    fn is_foreign(&self) -> bool {
        [
            sys::NFTNL_SET_ELEM_TIMEOUT,
            sys::NFTNL_SET_ELEM_EXPR,
            sys::NFTNL_SET_ELEM_EXPRESSIONS,
            sys::NFTNL_SET_ELEM_KEY_END,
            sys::NFTNL_SET_ELEM_DATA,
            sys::NFTNL_SET_ELEM_VERDICT,
            sys::NFTNL_SET_ELEM_OBJREF,
        ]
        .into_iter()
        .any(|number| self.has(number))
    }
}

/// The bounds of a set's ranges as they come, in whatever order.
enum Bounds {
    V4(Edges<Ipv4Addr>),
    V6(Edges<Ipv6Addr>),
    Mac(Edges<MacAddr>),
    Port(Edges<Port>),
}

/// The starts of ranges, and the values behind their ends.
struct Edges<T> {
    starts: Vec<T>,
    ends: Vec<T>,
    faults: Vec<String>,
}

impl Bounds {
    fn new(elements: &Elements) -> Self {
        match elements {
            Elements::V4(_) => Self::V4(Edges::new()),
            Elements::V6(_) => Self::V6(Edges::new()),
            Elements::Mac(_) => Self::Mac(Edges::new()),
            Elements::Port(_) => Self::Port(Edges::new()),
        }
    }

    fn add(&mut self, element: &Element) {
        match self {
            Self::V4(edges) => edges.add(element, |key: [u8; 4]| key.into()),
            Self::V6(edges) => edges.add(element, |key: [u8; 16]| key.into()),
            Self::Mac(edges) => edges.add(element, MacAddr),
            Self::Port(edges) => edges.add(element, |key| Port(u16::from_be_bytes(key))),
        }
    }

    fn into_elements(self) -> (Elements, Vec<String>) {
        match self {
            Self::V4(mut edges) => (Elements::V4(edges.ranges()), edges.faults),
            Self::V6(mut edges) => (Elements::V6(edges.ranges()), edges.faults),
            Self::Mac(mut edges) => (Elements::Mac(edges.ranges()), edges.faults),
            Self::Port(mut edges) => (Elements::Port(edges.ranges()), edges.faults),
        }
    }
}

impl<T: Ordinal> Edges<T> {
    fn new() -> Self {
        Self { starts: Vec::new(), ends: Vec::new(), faults: Vec::new() }
    }

    fn add<const N: usize>(&mut self, element: &Element, value: impl Fn([u8; N]) -> T) {
        match element.key().map(value) {
            None => self.faults.push("an element of another length".to_owned()),
            Some(value) if element.is_foreign() => {
                self.faults.push(format!("element {value:?} with data"));
            }
            Some(value) if element.is_end() => self.ends.push(value),
            Some(value) => self.starts.push(value),
        }
    }

    /// Pairs each start with the next end behind it. nft itself puts an end in front of all
    /// ranges, which pairs with nothing.
    fn ranges(&mut self) -> Vec<Range<T>> {
        let (mut starts, mut ends) =
            (std::mem::take(&mut self.starts), std::mem::take(&mut self.ends));
        starts.sort_unstable_by_key(|start| start.bits());
        ends.sort_unstable_by_key(|end| end.bits());
        let mut ranges = Vec::with_capacity(starts.len());
        let mut ends = ends.into_iter().peekable();
        let mut starts = starts.into_iter().peekable();
        while let Some(first) = starts.next() {
            while ends.next_if(|end| *end <= first).is_some() {}
            // A range ends where it says, at the next start, or with all values.
            let behind = match (ends.peek().copied(), starts.peek().copied()) {
                (Some(end), Some(next)) => Some(end.min(next)),
                (end, next) => end.or(next),
            };
            let last = behind.and_then(Ordinal::previous).unwrap_or(T::MAX);
            ranges.extend(Range::new(first, last));
        }
        ranges
    }
}
