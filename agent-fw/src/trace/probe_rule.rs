//! What the rules of the trace's table ask and do, as nf_tables' expressions.

use super::records::Recorded;
use crate::netlink::message::attribute;
use crate::netlink::nfnetlink::{named, nested, numbered};

/// What a packet is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Icmp,
    IcmpV6,
}

impl Protocol {
    /// Where in the transport's header, or behind it, is the number that a packet is known by:
    /// TCP's sequence number, the first bytes that UDP carries, a part of the IP header that ICMP
    /// quotes.
    pub(super) fn place_of_number(self) -> u32 {
        match self {
            Self::Tcp => 4,
            Self::Udp | Self::IcmpV6 => 8,
            Self::Icmp => 10,
        }
    }
}

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
pub(super) const DROP: u32 = 0;

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    [named(1, name), nested(2, data)].concat()
}

/// Protocol numbers.
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP_V6: u8 = 58;

pub(super) fn is_of(protocol: Protocol) -> Vec<Vec<u8>> {
    transport_is(match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Icmp => ICMP,
        Protocol::IcmpV6 => ICMP_V6,
    })
}

pub(super) fn transport_is(number: u8) -> Vec<Vec<u8>> {
    /// `NFT_META_L4PROTO`.
    const PROTOCOL: u32 = 16;
    let load = expression("meta", &[numbered(2, PROTOCOL), numbered(1, REGISTER)]);
    vec![load, equals(&[number])]
}

/// Four bytes of the transport header are this.
pub(super) fn sequence_is(offset: u32, value: u32) -> Vec<Vec<u8>> {
    /// `NFT_PAYLOAD_TRANSPORT_HEADER`.
    const TRANSPORT: u32 = 2;
    let place =
        [numbered(1, REGISTER), numbered(2, TRANSPORT), numbered(3, offset), numbered(4, 4)];
    vec![expression("payload", &place), equals(&value.to_be_bytes())]
}

fn equals(data: &[u8]) -> Vec<u8> {
    /// `NFT_CMP_EQ`.
    const EQUAL: u32 = 0;
    let data = nested(3, &[attribute(1, data)]);
    expression("cmp", &[numbered(1, REGISTER), numbered(2, EQUAL), data])
}

/// The kernel is to tell every step of the packet from here on.
pub(super) fn trace() -> Vec<Vec<u8>> {
    /// `NFT_META_NFTRACE`.
    const TRACE: u32 = 12;
    let one = nested(2, &[attribute(1, &[1])]);
    vec![
        expression("immediate", &[numbered(1, REGISTER), one]),
        expression("meta", &[numbered(2, TRACE), numbered(3, REGISTER)]),
    ]
}

pub(super) fn verdict(code: u32) -> Vec<u8> {
    let verdict = nested(2, &[nested(2, &[numbered(1, code)])]);
    expression("immediate", &[numbered(1, VERDICT_REGISTER), verdict])
}

/// Writes something of the packet's connection down in its mark, which every event tells. Does
/// nothing where it has no connection.
pub(super) fn record(what: Recorded) -> Vec<Vec<u8>> {
    /// `NFT_CT_STATUS` and so on; `NFT_META_MARK`.
    const CT_STATUS: u32 = 2;
    const CT_SOURCE_PORT: u32 = 11;
    const CT_DESTINATION_PORT: u32 = 12;
    const CT_MARK: u32 = 3;
    const CT_LABELS: u32 = 13;
    const CT_ZONE: u32 = 17;
    const MARK: u32 = 3;
    /// `NFT_REG32_00`, the first quarter of the first register.
    const FIRST_WORD: u32 = 8;
    let load =
        |key, more: Vec<u8>| expression("ct", &[numbered(2, key), numbered(1, REGISTER), more]);
    // The direction.
    let (original, reply) = (attribute(3, &[0]), attribute(3, &[1]));
    let (load, word) = match what {
        Recorded::Status => (load(CT_STATUS, Vec::new()), 0),
        Recorded::AskedPort => (load(CT_DESTINATION_PORT, original), 0),
        Recorded::OwnPort => (load(CT_SOURCE_PORT, reply), 0),
        Recorded::Mark => (load(CT_MARK, Vec::new()), 0),
        Recorded::OriginalZone => (load(CT_ZONE, original), 0),
        Recorded::ReplyZone => (load(CT_ZONE, reply), 0),
        Recorded::Labels(word) => (load(CT_LABELS, Vec::new()), word),
    };
    let store = expression("meta", &[numbered(2, MARK), numbered(3, FIRST_WORD + word)]);
    vec![load, store]
}
