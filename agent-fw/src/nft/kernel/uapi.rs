//! Numbers of the kernel's interface that libnftnl and libc do not name, and its attributes.
#![allow(
    clippy::cast_sign_loss,
    reason = "libc has the kernel's small positive constants as signed numbers"
)]

use crate::model::TableName;
use crate::nft::expression::{CtKey, MetaKey, PayloadBase};
use crate::nft::table::{Elements, Hook, Key};
use nftnl::ProtoFamily;
use nftnl_sys::libc;
use std::ffi::CStr;

/// `NFT_OBJECT_COUNTER` of linux/netfilter/nf_tables.h.
pub(super) const NFT_OBJECT_COUNTER: u32 = 1;
/// `NFT_SET_INTERVAL` of linux/netfilter/nf_tables.h.
pub(super) const NFT_SET_INTERVAL: u32 = 4;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: rules add elements, which expire.
pub(super) const NFT_SET_LEARNED: u32 = 0x10 | 0x20;
/// `NFT_DYNSET_OP_UPDATE`.
pub(super) const DYNSET_UPDATE: u32 = 1;
/// `NFT_SET_ELEM_INTERVAL_END` of linux/netfilter/nf_tables.h.
pub(super) const INTERVAL_END: u32 = 1;

/// The number by which nft knows a key's type, and the key's length in bytes. The kernel does not
/// look at the number; `nft list` does.
/// <https://git.netfilter.org/nftables/tree/include/datatype.h>
pub(super) const fn key_type(elements: &Elements) -> (u32, u32) {
    match elements {
        Elements::V4(_) | Elements::HashedV4(_) | Elements::Learned(Key::V4) => (7, 4),
        Elements::V6(_) | Elements::HashedV6(_) | Elements::Learned(Key::V6) => (8, 16),
        Elements::Mac(_) => (9, 6),
        Elements::Port(_) | Elements::Learned(Key::Port) => (13, 2),
    }
}

/// `NFT_REG_1`.
pub(super) const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// `NFT_FIB_RESULT_ADDRTYPE` of linux/netfilter/nf_tables.h.
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
/// `NFTA_FIB_F_SADDR` of linux/netfilter/nf_tables.h.
pub(super) const FIB_F_SADDR: u32 = 1;
/// `NFTA_FIB_F_DADDR` of linux/netfilter/nf_tables.h.
pub(super) const FIB_F_DADDR: u32 = 2;
/// The unit of a limit's rate, in seconds.
pub(super) const ONE_SECOND: u64 = 1;
/// `NFT_LIMIT_PKTS` of linux/netfilter/nf_tables.h.
pub(super) const LIMIT_PACKETS: u32 = 0;

/// `NFT_META_IIFKIND` of linux/netfilter/nf_tables.h.
const META_IIFKIND: libc::c_int = 26;

pub(super) const fn meta_key(key: MetaKey) -> u32 {
    (match key {
        MetaKey::InputInterface => libc::NFT_META_IIF,
        MetaKey::OutputInterface => libc::NFT_META_OIF,
        MetaKey::InputInterfaceType => libc::NFT_META_IIFTYPE,
        MetaKey::InputInterfaceKind => META_IIFKIND,
        MetaKey::NetworkProtocol => libc::NFT_META_NFPROTO,
        MetaKey::TransportProtocol => libc::NFT_META_L4PROTO,
    }) as u32
}

/// `enum nft_ct_keys` of linux/netfilter/nf_tables.h.
pub(super) const fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Direction => 1,
        CtKey::Status => 2,
        CtKey::Labels => CT_LABELS,
    }
}

/// `NFT_CT_LABELS`.
pub(super) const CT_LABELS: u32 = 13;

/// The kernel's name of a table.
pub(super) const fn table_name(table: TableName) -> &'static CStr {
    match table {
        TableName::Gate => c"agent_fw",
        TableName::Firewall | TableName::Arp => c"agent_fw_policy",
        TableName::Twin => c"agent_fw_guard",
    }
}

pub(super) const fn family(table: TableName) -> ProtoFamily {
    match table {
        TableName::Gate | TableName::Firewall | TableName::Twin => ProtoFamily::Inet,
        TableName::Arp => ProtoFamily::Arp,
    }
}

/// The number of a hook, which is another one for ARP (`NF_ARP_IN`, `NF_ARP_OUT` of
/// linux/netfilter_arp.h) than for IP; nftnl names the numbers as IP does.
pub(super) const fn hook(table: TableName, hook: Hook) -> nftnl::Hook {
    match (table, hook) {
        (TableName::Arp, Hook::Input) | (_, Hook::Prerouting) => nftnl::Hook::PreRouting,
        (TableName::Arp, Hook::Output) | (_, Hook::Input) => nftnl::Hook::In,
        (_, Hook::Output) => nftnl::Hook::Out,
    }
}

pub(super) const fn payload_base(base: PayloadBase) -> u32 {
    (match base {
        PayloadBase::Link => libc::NFT_PAYLOAD_LL_HEADER,
        PayloadBase::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
        PayloadBase::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    }) as u32
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

/// `NFT_TABLE_F_DORMANT` of linux/netfilter/nf_tables.h.
pub(super) const TABLE_DORMANT: u32 = 1;
/// `NFT_TABLE_F_OWNER`: only the connection that has set it may change the table (Linux 5.12).
pub(super) const TABLE_OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`: the table outlives its owner (Linux 6.9).
pub(super) const TABLE_PERSIST: u32 = 4;
