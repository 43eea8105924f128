//! Reads a table piece by piece, each by a question of its own.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use super::element::{Bounds, Form};
use super::object::Object;
use super::{Depth, Ownership};
use crate::model::TableName;
use crate::nft::expression::Program;
use crate::nft::foreign::{Foreign, ForeignRule};
use crate::nft::kernel::generation::Generation;
use crate::nft::kernel::set_generation::SetGeneration;
use crate::nft::kernel::socket::{Dump, NetlinkError, Socket};
use crate::nft::kernel::uapi::{
    NFT_OBJECT_COUNTER, TABLE_DORMANT, TABLE_OWNER, TABLE_PERSIST, attributes, family, table_name,
};
use crate::nft::table::{Chain, Count, Counter, Set};
use nftnl::ProtoFamily;
use nftnl_sys::{self as sys, libc};
use std::ffi::{CString, c_int};

/// Reads one table, piece by piece.
pub(super) struct Reader<'a> {
    socket: &'a mut Socket,
    name: TableName,
    /// What agent-fw certainly has not put there, in words.
    pub(super) strays: Vec<String>,
    /// What could be read of that.
    pub(super) foreign: Foreign,
    /// Whether the ruleset changed meanwhile.
    pub(super) torn: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(socket: &'a mut Socket, name: TableName) -> Self {
        Self { socket, name, strays: Vec::new(), foreign: Foreign::default(), torn: false }
    }

    fn dump(
        &mut self,
        kind: c_int,
        flags: c_int,
        payload: impl FnOnce(*mut libc::nlmsghdr),
        read: impl FnMut(&[u8]) -> Result<(), NetlinkError>,
    ) -> Result<Dump, NetlinkError> {
        let family = family(self.name);
        let ask = |sequence| request(kind, flags, family, sequence, payload);
        let dump = self.socket.dump(ask, read)?;
        self.torn |= dump == Dump::Torn;
        Ok(dump)
    }

    /// The table's comment and who may change it, or `None` if there is no table.
    pub(super) fn table(&mut self) -> Result<Option<(String, Ownership)>, NetlinkError> {
        let table = self.name;
        let mut found = None;
        let ask = |header| {
            let object = Object::table();
            object.set_str(sys::NFTNL_TABLE_NAME, table_name(table));
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_table_nlmsg_build_payload(header, object.as_ptr()) };
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
        let flags = flags.unwrap_or(0);
        if flags & TABLE_DORMANT != 0 {
            self.strays.push("the flag dormant: the table enforces nothing".to_owned());
            self.foreign.dormant = true;
        }
        let tenure = match flags & !TABLE_DORMANT {
            0 => Ownership::Free,
            TABLE_PERSIST => Ownership::Orphan,
            flags if flags == TABLE_PERSIST | TABLE_OWNER => Ownership::Owned,
            // An owner's alone, it goes with its owner's connection.
            flags => {
                self.strays.push(format!("flags {flags:#x} of the table"));
                Ownership::Free
            }
        };
        Ok(Some((comment, tenure)))
    }

    pub(super) fn counters(&mut self) -> Result<Vec<Counter>, NetlinkError> {
        let table = self.name;
        let (mut counters, mut strays) = (Vec::new(), Vec::new());
        let ask = |header| {
            let object = Object::counter();
            object.set_str(sys::NFTNL_OBJ_TABLE, table_name(table));
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_obj_nlmsg_build_payload(header, object.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETOBJ, libc::NLM_F_DUMP, ask, |message| {
            // Before libnftnl, which does not know every type of object.
            if !is_of(table, message) {
                return Ok(());
            }
            let object = Object::counter();
            let parsed = object.parse(message);
            let name = object.text(sys::NFTNL_OBJ_NAME).unwrap_or_default();
            let kind = object.u32(sys::NFTNL_OBJ_TYPE);
            if parsed.is_err() || kind != Some(NFT_OBJECT_COUNTER) {
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

    pub(super) fn sets(&mut self, depth: Depth) -> Result<Vec<Set>, NetlinkError> {
        let table = self.name;
        let (mut sets, mut strays) = (Vec::new(), Vec::new());
        let (mut foreign, mut opaque) = (Vec::new(), Vec::new());
        let ask = |header| {
            let set = Object::set();
            set.set_str(sys::NFTNL_SET_TABLE, table_name(table));
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_set_nlmsg_build_payload(header, set.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETSET, libc::NLM_F_DUMP, ask, |message| {
            let set = Object::set();
            set.parse(message)?;
            if !is_of(table, message) {
                return Ok(());
            }
            let name = set.text(sys::NFTNL_SET_NAME).unwrap_or_default();
            match (set.elements_type(), set.foreign_elements_type()) {
                (Some(elements), _) => sets.push(Set { name, elements }),
                (None, of_type) => {
                    strays.push(format!("set {} of another type", name.escape_debug()));
                    match of_type {
                        Some((elements, form)) => foreign.push((Set { name, elements }, form)),
                        None => opaque.push(name),
                    }
                }
            }
            Ok(())
        })?;
        self.strays.append(&mut strays);
        self.foreign.opaque_sets.append(&mut opaque);
        if depth == Depth::Everything {
            for set in &mut sets {
                self.elements(set, Form::Intervals)?;
            }
            for (set, form) in &mut foreign {
                self.elements(set, *form)?;
            }
            self.foreign.sets = foreign.into_iter().map(|(set, _)| set).collect();
        }
        Ok(sets)
    }

    /// Reads the elements of `set`, which has none yet.
    fn elements(&mut self, set: &mut Set, form: Form) -> Result<(), NetlinkError> {
        let table = self.name;
        let name = CString::new(set.name.as_str()).unwrap_or_default();
        let ask = |header| {
            let named = Object::set();
            named.set_str(sys::NFTNL_SET_TABLE, table_name(table));
            named.set_str(sys::NFTNL_SET_NAME, &name);
            // SAFETY: both are live; the buffer has room for two names.
            unsafe { sys::nftnl_set_elems_nlmsg_build_payload(header, named.as_ptr()) };
        };
        let mut bounds = Bounds::new(&set.elements, form);
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
        if !faults.is_empty() {
            self.foreign.opaque_sets.push(SetGeneration::split(&set.name).0.to_owned());
        }
        let name = set.name.escape_debug().to_string();
        self.strays.extend(faults.into_iter().map(|fault| format!("{fault} of set {name}")));
        Ok(())
    }

    pub(super) fn chains(&mut self) -> Result<Vec<Chain<Program>>, NetlinkError> {
        let table = self.name;
        let (mut chains, mut strays) = (Vec::new(), Vec::new());
        let mut bases = Vec::new();
        self.dump(
            libc::NFT_MSG_GETCHAIN,
            libc::NLM_F_DUMP,
            |_| (),
            |message| {
                if !is_of(table, message) {
                    return Ok(());
                }
                let chain = Object::chain();
                chain.parse(message)?;
                let name = chain.text(sys::NFTNL_CHAIN_NAME).unwrap_or_default();
                match chain.base(table) {
                    Ok(base) => chains.push(Chain { name, base, rules: Vec::new() }),
                    Err((base, what)) => {
                        bases.push(base);
                        strays.push(format!("chain {} {what}", name.escape_debug()));
                        chains.push(Chain { name, base: None, rules: Vec::new() });
                    }
                }
                Ok(())
            },
        )?;
        self.strays.append(&mut strays);
        self.foreign.bases = bases;
        self.rules(&mut chains)?;
        Ok(chains)
    }

    fn rules(&mut self, chains: &mut [Chain<Program>]) -> Result<(), NetlinkError> {
        let table = self.name;
        let (mut strays, mut rules) = (Vec::new(), Vec::new());
        let ask = |header| {
            let rule = Object::rule();
            rule.set_str(sys::NFTNL_RULE_TABLE, table_name(table));
            // SAFETY: both are live; the buffer has room for a table's name.
            unsafe { sys::nftnl_rule_nlmsg_build_payload(header, rule.as_ptr()) };
        };
        self.dump(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, ask, |message| {
            if !is_of(table, message) {
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
                    let place = chain.rules.len();
                    strays.push(format!("rule {} of chain {}", place + 1, name.escape_debug()));
                    let instructions = rule.instructions();
                    rules.push(ForeignRule { chain: name, place, instructions });
                    // Keeps the places of the rules that follow.
                    chain.rules.push(Program::default());
                }
                (None, _) => strays.push(format!("a rule of chain {}", name.escape_debug())),
            }
            Ok(())
        })?;
        self.strays.append(&mut strays);
        self.foreign.rules = rules;
        Ok(())
    }

    /// Flowtables let packets pass the hooks by; agent-fw has none.
    pub(super) fn flowtables(&mut self) -> Result<(), NetlinkError> {
        /// `NFT_MSG_GETFLOWTABLE` and `NFTA_FLOWTABLE_NAME` of linux/netfilter/nf_tables.h.
        const GET: c_int = 23;
        const NAME: u16 = 2;
        let table = self.name;
        let mut strays = Vec::new();
        let result = self.dump(
            GET,
            libc::NLM_F_DUMP,
            |_| (),
            |message| {
                if is_of(table, message) {
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

/// Whether a message is about something in this table. Tables, chains, rules, sets, objects and
/// flowtables all have the table's name as their first attribute.
fn is_of(table: TableName, message: &[u8]) -> bool {
    const TABLE: u16 = 1;
    attribute_of(message, TABLE).is_some_and(|name| name == table_name(table).to_bytes_with_nul())
}

/// The ruleset's present state.
pub(crate) fn generation(socket: &mut Socket) -> Result<Generation, NetlinkError> {
    /// `NFTA_GEN_ID` of linux/netfilter/nf_tables.h.
    const ID: u16 = 1;
    let mut generation = None;
    let ask =
        |sequence| request(libc::NFT_MSG_GETGEN, 0, family(TableName::Gate), sequence, |_| ());
    socket.dump(ask, |message| {
        let value = attribute_of(message, ID);
        generation = value.and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
        Ok(())
    })?;
    let unknown = || NetlinkError::Unexpected("no generation of the ruleset".to_owned());
    generation.map(Generation).ok_or_else(unknown)
}

fn attribute_of(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = attributes(message.get(20..)?);
    all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A message that asks for something; `payload` writes what.
fn request(
    kind: c_int,
    flags: c_int,
    family: ProtoFamily,
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
            family as u16,
            (flags | libc::NLM_F_ACK) as u16,
            sequence,
        );
        payload(header);
        let length = (*header).nlmsg_len as usize;
        std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length).to_vec()
    }
}
