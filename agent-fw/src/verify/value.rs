//! What a rule reads of a packet, and what comparing it says of the packet.

use super::comparison::{Members, Test};
use crate::model::packet_set::{Condition, Connection, ETHERNET, Field, NO, State, YES, only};
use crate::model::{AddressSet, Range, RangeSet};
use crate::nft::{Comparison, CtKey, Key, MetaKey, OPENED_BY_BYPASS, Payload, PayloadBase};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What the register holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Value {
    what: What,
    /// The bits that were kept of it; `None` for all.
    mask: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    /// A field, as a number of so many bytes in the machine's order.
    Number(Field, usize),
    /// The first bytes of a field that has as many as the second number says.
    Bytes(Field, usize, usize),
    /// What kind of device the interface is.
    Kind,
    Family,
    /// The first bytes of an address.
    V4(End, usize),
    V6(End, usize),
    Connection(CtKey),
    /// What a rule itself has put there.
    Constant(Vec<u8>),
    Other(Payload),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Source,
    Destination,
}

impl End {
    fn condition(self, set: AddressSet) -> Condition {
        match self {
            Self::Source => Condition::Source(set),
            Self::Destination => Condition::Destination(set),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Number(field, _) | What::Bytes(field, ..) => f.write_str(match field {
                Field::InputInterface => "the interface",
                Field::OutputInterface => "the interface that it goes out through",
                Field::Hardware => "the interface's type",
                Field::SourceType => "the source's type",
                Field::DestinationType => "the destination's type",
                Field::Protocol => "the protocol",
                Field::SourceMac | Field::DestinationMac => "a MAC address",
                Field::SourcePort => "the source port",
                Field::DestinationPort => "the port",
                Field::TcpFlags => "the TCP flags",
                _ => "a field",
            }),
            What::Kind => f.write_str("the interface's kind"),
            What::Family => f.write_str("the version of IP"),
            What::V4(end, _) => write!(f, "an IPv4 {end}"),
            What::V6(end, _) => write!(f, "an IPv6 {end}"),
            What::Connection(_) => f.write_str("the connection"),
            What::Constant(_) => f.write_str("a constant"),
            What::Other(Payload { base, offset, length }) => {
                write!(f, "{length} bytes of the {base} header at {offset}")
            }
        }
    }
}

impl Value {
    pub(super) const DESTINATION_TYPE: Self =
        Self { what: What::Number(Field::DestinationType, 4), mask: None };
    pub(super) const SOURCE_TYPE: Self =
        Self { what: What::Number(Field::SourceType, 4), mask: None };

    /// A fact about the packet.
    pub(super) fn meta(key: MetaKey) -> Self {
        let what = match key {
            MetaKey::OutputInterface => What::Number(Field::OutputInterface, 4),
            MetaKey::InputInterface => What::Number(Field::InputInterface, 4),
            MetaKey::InputInterfaceType => What::Number(Field::Hardware, 2),
            MetaKey::InputInterfaceKind => What::Kind,
            MetaKey::NetworkProtocol => What::Family,
            MetaKey::TransportProtocol => What::Bytes(Field::Protocol, 1, 1),
        };
        Self { what, mask: None }
    }

    /// A fact about the packet's connection.
    pub(super) fn connection(key: CtKey) -> Self {
        Self { what: What::Connection(key), mask: None }
    }

    pub(super) fn constant(bytes: &[u8]) -> Self {
        Self { what: What::Constant(bytes.to_vec()), mask: None }
    }

    /// Bytes of the packet; of ARP's own header none is known.
    pub(super) fn payload(payload: Payload, is_arp: bool) -> Self {
        let length = payload.length as usize;
        let what = match (payload.base, payload.offset) {
            (PayloadBase::Link, 6) if length == 6 => What::Bytes(Field::SourceMac, 6, 6),
            (PayloadBase::Link, 0) if length == 6 => What::Bytes(Field::DestinationMac, 6, 6),
            _ if is_arp => What::Other(payload),
            (PayloadBase::Transport, 0) if length <= 2 => What::Bytes(Field::SourcePort, length, 2),
            (PayloadBase::Transport, 2) if length <= 2 => {
                What::Bytes(Field::DestinationPort, length, 2)
            }
            (PayloadBase::Transport, 13) if length == 1 => What::Bytes(Field::TcpFlags, 1, 1),
            (PayloadBase::Network, 12) if length <= 4 => What::V4(End::Source, length),
            (PayloadBase::Network, 16) if length <= 4 => What::V4(End::Destination, length),
            (PayloadBase::Network, 8) if length <= 16 => What::V6(End::Source, length),
            (PayloadBase::Network, 24) if length <= 16 => What::V6(End::Destination, length),
            _ => What::Other(payload),
        };
        Self { what, mask: None }
    }

    pub(super) fn mask(&mut self, mask: &[u8]) {
        self.mask = Some(match &self.mask {
            Some(before) => before.iter().zip(mask).map(|(a, b)| a & b).collect(),
            None => mask.to_vec(),
        });
    }

    /// Whether it is the label alone that a Bypass sets.
    pub(super) fn is_bypass_label(&self) -> bool {
        matches!(&self.what, What::Constant(bytes) if *bytes == bypass_label())
            && self.mask.is_none()
    }

    /// Whether it is what connection tracking knows.
    pub(super) fn is_of_connection(&self) -> bool {
        matches!(self.what, What::Connection(_))
    }

    /// Whether it is a connection's labels.
    pub(super) fn is_label(&self) -> bool {
        self.what == What::Connection(CtKey::Labels)
    }

    /// Whether it is the interface that the packet goes out through.
    pub(super) fn is_output(&self) -> bool {
        matches!(self.what, What::Number(Field::OutputInterface, _))
    }

    /// The packets in which it means what it says; `None` for all.
    pub(super) fn scope(&self) -> Option<Condition> {
        let comes_in =
            || Condition::Field(Field::InputInterface, Field::InputInterface.all_but(NO));
        match self.what {
            What::V4(end, _) => Some(end.condition(family(true))),
            What::V6(end, _) => Some(end.condition(family(false))),
            What::Bytes(Field::SourceMac | Field::DestinationMac, ..) => {
                Some(Condition::Field(Field::Hardware, only(ETHERNET)))
            }
            What::Kind | What::Number(Field::Hardware, _) => Some(comes_in()),
            _ => None,
        }
    }

    /// The packets that pass the test, or in words why that is not known.
    pub(super) fn condition(&self, test: &Test) -> Result<Condition, String> {
        let known = match (&self.what, test) {
            (What::Other(_), _) => return Err(format!("it looks at {self}")),
            (
                What::Bytes(Field::SourcePort, 2, _),
                Test::In(Members::Learned(Key::Port), is_in),
            ) => Some(is_so(Field::OwnPort, *is_in)),
            (What::V4(End::Source, 4), Test::In(Members::Learned(Key::V4), is_in))
            | (What::V6(End::Source, 16), Test::In(Members::Learned(Key::V6), is_in)) => {
                Some(is_so(Field::OwnSource, *is_in))
            }
            (What::Number(field, length), _) => {
                self.number(test, *length).map(|set| Condition::Field(*field, set))
            }
            (What::Bytes(field, length, width), _) => {
                self.bytes(test, *length, *width).map(|set| Condition::Field(*field, set))
            }
            (What::Kind, Test::Equal(kind)) if kind == VRF => Some(is_so(Field::Vrf, true)),
            (What::Kind, Test::Compare(Comparison::Different, kind)) if kind == VRF => {
                Some(is_so(Field::Vrf, false))
            }
            (What::Family, _) => self.families(test),
            (What::V4(end, length), _) => self
                .v4(test, *length)
                .map(|v4| end.condition(AddressSet { v4, v6: RangeSet::default() })),
            (What::V6(end, length), _) => self
                .v6(test, *length)
                .map(|v6| end.condition(AddressSet { v4: RangeSet::default(), v6 })),
            (What::Connection(key), _) => self
                .connections(*key, test)
                .map(|connections| Condition::Field(Field::Connection, connections)),
            (What::Kind | What::Constant(_), _) => None,
        };
        known.ok_or_else(|| format!("a comparison of {self} that agent-fw does not know"))
    }

    /// The numbers that pass the test. They are in the machine's order, in which only equality has a
    /// meaning.
    fn number(&self, test: &Test, length: usize) -> Option<RangeSet<u128>> {
        if self.mask.is_some() {
            return None;
        }
        let parse = |data: &[u8]| -> Option<u128> {
            match *data {
                [a] if length == 1 => Some(a.into()),
                [a, b] if length == 2 => Some(u16::from_ne_bytes([a, b]).into()),
                [a, b, c, d] if length == 4 => Some(u32::from_ne_bytes([a, b, c, d]).into()),
                _ => None,
            }
        };
        match test {
            Test::Equal(data) => Some(only(parse(data)?)),
            Test::Compare(Comparison::Different, data) => Some(only(parse(data)?).complement()),
            _ => None,
        }
    }

    /// The values of `width` bytes, of which the first `length` pass the test.
    fn bytes(&self, test: &Test, length: usize, width: usize) -> Option<RangeSet<u128>> {
        if let Test::In(members, is_in) = test {
            let set = members.numbers(width).filter(|_| length == width && self.mask.is_none())?;
            return Some(if *is_in { set } else { set.complement() });
        }
        let mask = self.mask.as_deref();
        test.ranges(mask, length, width).or_else(|| test.tried(mask, length, width))
    }

    fn families(&self, test: &Test) -> Option<Condition> {
        let families = self.number(test, 1)?;
        let all = |number, set: AddressSet| {
            if families.contains(number) { set } else { AddressSet::default() }
        };
        Some(Condition::Source(all(2, family(true)).union(&all(10, family(false)))))
    }

    fn v4(&self, test: &Test, length: usize) -> Option<RangeSet<Ipv4Addr>> {
        let mask = self.mask.as_deref();
        match test {
            Test::In(Members::V4(set), is_in) if length == 4 => {
                let set = super::comparison::begins_in(mask, set)?;
                Some(if *is_in { set } else { set.complement() })
            }
            _ => {
                let v4 = |bits: u128| u32::try_from(bits).ok().map(Ipv4Addr::from);
                let range = |r: &Range<u128>| Range::new(v4(r.first())?, v4(r.last())?);
                let set = test.ranges(mask, length, 4)?;
                Some(set.ranges().iter().filter_map(range).collect())
            }
        }
    }

    fn v6(&self, test: &Test, length: usize) -> Option<RangeSet<Ipv6Addr>> {
        let mask = self.mask.as_deref();
        match test {
            Test::In(Members::V6(set), is_in) if length == 16 => {
                let set = super::comparison::begins_in(mask, set)?;
                Some(if *is_in { set } else { set.complement() })
            }
            _ => {
                let range = |r: &Range<u128>| Range::new(r.first().into(), r.last().into());
                let set = test.ranges(mask, length, 16)?;
                Some(set.ranges().iter().filter_map(range).collect())
            }
        }
    }

    /// What connection tracking may know of packets that pass the test. A rule that asks for what a
    /// packet without connection has not, ends.
    fn connections(&self, key: CtKey, test: &Test) -> Option<RangeSet<u128>> {
        // Of bits that a connection has besides, nothing is known.
        let is_modelled = match key {
            CtKey::State | CtKey::Direction => true,
            CtKey::Status => self.mask.as_deref() == Some(&CONFIRMED.to_ne_bytes()),
            CtKey::Labels => self.mask.as_deref() == Some(&bypass_label()),
        };
        let holds = |connection: &Connection| match read(key, *connection) {
            Some(value) => test.holds(self.mask.as_deref(), &value),
            None => Some(false),
        };
        let is_known = is_modelled && Connection::all().all(|each| holds(&each).is_some());
        is_known.then(|| Connection::numbers(|each| holds(each) == Some(true)))
    }
}

/// What a rule reads of a connection; `None` where there is nothing to read.
fn read(key: CtKey, connection: Connection) -> Option<Vec<u8>> {
    let is_tracked = connection.is_tracked();
    match key {
        // `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h, and the bits of those without
        // a connection.
        CtKey::State => {
            let bit: u32 = match connection.state {
                State::Invalid => 1,
                State::Established => 1 << 1,
                State::Related => 1 << 2,
                State::New => 1 << 3,
                State::Untracked => 1 << 6,
            };
            Some(bit.to_ne_bytes().to_vec())
        }
        CtKey::Direction => is_tracked.then(|| vec![u8::from(connection.is_reply)]),
        CtKey::Status => is_tracked.then(|| {
            let status = if connection.is_known { CONFIRMED } else { 0 };
            status.to_ne_bytes().to_vec()
        }),
        CtKey::Labels => {
            is_tracked.then(|| if connection.is_labelled { bypass_label() } else { vec![0; 16] })
        }
    }
}

/// `IPS_CONFIRMED` of linux/netfilter/nf_conntrack_common.h.
const CONFIRMED: u32 = 8;

/// The labels of a connection of which that of a Bypass alone is set.
fn bypass_label() -> Vec<u8> {
    (1_u128 << OPENED_BY_BYPASS).to_ne_bytes().to_vec()
}

/// The kind of a VRF's device, as `meta iifkind` has it.
const VRF: &[u8] = b"vrf\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn is_so(field: Field, is_so: bool) -> Condition {
    Condition::Field(field, only(if is_so { YES } else { NO }))
}

fn family(is_v4: bool) -> AddressSet {
    if is_v4 {
        AddressSet { v4: RangeSet::all(), v6: RangeSet::default() }
    } else {
        AddressSet { v4: RangeSet::default(), v6: RangeSet::all() }
    }
}
