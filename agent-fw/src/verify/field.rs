//! What a rule reads of a packet, and what comparing it says of the packet.

use super::region::{Condition, ETHERNET, NO, Number, YES, only, truth};
use super::table::Members;
use crate::model::{Address, AddressSet, MacAddr, Port, Range, RangeSet};
use crate::nft::{Comparison, Key, MetaKey, Payload, PayloadBase};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What the register holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Field {
    what: What,
    /// The bits that were kept of it; `None` for all.
    mask: Option<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Interface,
    Hardware,
    /// What kind of device the interface is.
    Kind,
    Family,
    Protocol,
    Destination,
    /// The first bytes of the source address.
    SourceV4(usize),
    SourceV6(usize),
    Mac,
    Port,
    SourcePort,
    Other(Payload),
}

/// A comparison with what the register holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Test {
    Equal(Vec<u8>),
    AtMost(Vec<u8>),
    Compare(Comparison, Vec<u8>),
    Between(Vec<u8>, Vec<u8>),
    In(Members, bool),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Interface => f.write_str("the interface"),
            What::Hardware => f.write_str("the interface's type"),
            What::Kind => f.write_str("the interface's kind"),
            What::SourcePort => f.write_str("the source port"),
            What::Family => f.write_str("the version of IP"),
            What::Protocol => f.write_str("the protocol"),
            What::Destination => f.write_str("the destination's type"),
            What::SourceV4(_) => f.write_str("an IPv4 source"),
            What::SourceV6(_) => f.write_str("an IPv6 source"),
            What::Mac => f.write_str("a MAC address"),
            What::Port => f.write_str("the port"),
            What::Other(Payload { base, offset, length }) => {
                write!(f, "{length} bytes of the {base} header at {offset}")
            }
        }
    }
}

impl Field {
    pub(super) const DESTINATION: Self = Self { what: What::Destination, mask: None };

    /// What a fact about the packet tells; `None` where it tells nothing of packets that come in.
    pub(super) fn meta(key: MetaKey) -> Option<Self> {
        let what = match key {
            MetaKey::OutputInterface => return None,
            MetaKey::InputInterface => What::Interface,
            MetaKey::InputInterfaceType => What::Hardware,
            MetaKey::InputInterfaceKind => What::Kind,
            MetaKey::NetworkProtocol => What::Family,
            MetaKey::TransportProtocol => What::Protocol,
        };
        Some(Self { what, mask: None })
    }

    pub(super) fn payload(payload: Payload) -> Self {
        let length = payload.length as usize;
        let what = match (payload.base, payload.offset) {
            (PayloadBase::Link, 6) if length == 6 => What::Mac,
            (PayloadBase::Transport, 2) if length == 2 => What::Port,
            (PayloadBase::Transport, 0) if length == 2 => What::SourcePort,
            (PayloadBase::Network, 12) if length <= 4 => What::SourceV4(length),
            (PayloadBase::Network, 8) if length <= 16 => What::SourceV6(length),
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

    /// The packets in which it means what it says; `None` for all.
    pub(super) fn scope(&self) -> Option<Condition> {
        match self.what {
            What::SourceV4(_) => Some(family(true)),
            What::SourceV6(_) => Some(family(false)),
            What::Mac => Some(Condition::Hardware(only(ETHERNET))),
            _ => None,
        }
    }

    /// The packets that pass the test, or in words why that is not known.
    pub(super) fn condition(&self, test: &Test) -> Result<Condition, String> {
        let unknown = || format!("a comparison of {self} that agent-fw does not know");
        let number = |length| self.number(test, length).ok_or_else(unknown);
        match (self.what, test) {
            (What::Interface, _) => Ok(Condition::Interface(number(4)?)),
            (What::Hardware, _) => Ok(Condition::Hardware(number(2)?)),
            (What::Destination, _) => Ok(Condition::Destination(number(4)?)),
            (What::Kind, Test::Equal(kind)) if kind == VRF => Ok(Condition::Vrf(only(YES))),
            (What::Kind, Test::Compare(Comparison::Different, kind)) if kind == VRF => {
                Ok(Condition::Vrf(only(NO)))
            }
            (What::SourcePort, Test::In(Members::Learned(Key::Port), is_in)) => {
                Ok(Condition::OwnPort(only(truth(*is_in))))
            }
            (What::SourceV4(4), Test::In(Members::Learned(Key::V4), is_in))
            | (What::SourceV6(16), Test::In(Members::Learned(Key::V6), is_in)) => {
                Ok(Condition::OwnSource(only(truth(*is_in))))
            }
            (What::Protocol, _) => Ok(Condition::Protocol(number(1)?)),
            (What::Family, _) => {
                let families = number(1)?;
                let all = |number, set: AddressSet| {
                    if families.contains(number) { set } else { AddressSet::default() }
                };
                let (Condition::Source(v4), Condition::Source(v6)) = (family(true), family(false))
                else {
                    return Err(unknown());
                };
                Ok(Condition::Source(all(Number(2), v4).union(&all(Number(10), v6))))
            }
            (What::Port, Test::In(Members::Port(set), is_in)) => {
                Ok(Condition::Port(if *is_in { set.clone() } else { set.complement() }))
            }
            (What::Mac, Test::In(Members::Mac(set), is_in)) => {
                Ok(Condition::Mac(if *is_in { set.clone() } else { set.complement() }))
            }
            (What::SourceV4(4), Test::In(Members::V4(set), is_in)) => {
                let set = self.begins_in(set).ok_or_else(unknown)?;
                let v4 = if *is_in { set } else { set.complement() };
                Ok(Condition::Source(AddressSet { v4, v6: RangeSet::default() }))
            }
            (What::SourceV6(16), Test::In(Members::V6(set), is_in)) => {
                let set = self.begins_in(set).ok_or_else(unknown)?;
                let v6 = if *is_in { set } else { set.complement() };
                Ok(Condition::Source(AddressSet { v4: RangeSet::default(), v6 }))
            }
            (What::Port, _) => {
                let set = self.bits(test, 2, 2).ok_or_else(unknown)?;
                Ok(Condition::Port(set.ranges().iter().filter_map(port_range).collect()))
            }
            (What::Mac, _) => {
                let set = self.bits(test, 6, 6).ok_or_else(unknown)?;
                Ok(Condition::Mac(set.ranges().iter().filter_map(mac_range).collect()))
            }
            (What::SourceV4(length), _) => {
                let set = self.bits(test, length, 4).ok_or_else(unknown)?;
                let v4 = set.ranges().iter().filter_map(v4_range).collect();
                Ok(Condition::Source(AddressSet { v4, v6: RangeSet::default() }))
            }
            (What::SourceV6(length), _) => {
                let set = self.bits(test, length, 16).ok_or_else(unknown)?;
                let v6 = set.ranges().iter().filter_map(v6_range).collect();
                Ok(Condition::Source(AddressSet { v4: RangeSet::default(), v6 }))
            }
            (What::Kind | What::SourcePort, _) => Err(unknown()),
            (What::Other(_), _) => Err(format!("it looks at {self}")),
        }
    }

    /// The addresses of which those bits that were kept are in the set, and the others are zeros
    /// there; `None` where it is not the first bits that were kept.
    fn begins_in<T: Address>(&self, set: &RangeSet<T>) -> Option<RangeSet<T>> {
        let Some(mask) = &self.mask else { return Some(set.clone()) };
        let width = usize::from(T::FAMILY.bits());
        let kept = mask.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        let zeros = usize::try_from(kept.trailing_zeros()).ok()?.min(width);
        let dropped = ones(zeros);
        (mask.len() * 8 == width && kept == ones(width) & !dropped).then_some(())?;
        // Every value in the set without those bits stands for all that begin so: of a range, from
        // the first such value to the last.
        let begun = |range: &Range<T>| {
            let first = range.first().to_u128().checked_add(dropped)? & !dropped;
            let last = range.last().to_u128() & !dropped;
            (first <= last && first <= ones(width))
                .then(|| Range::new(T::of_bits(first), T::of_bits(last | dropped)))?
        };
        Some(set.ranges().iter().filter_map(begun).collect())
    }

    /// The numbers that pass the test. All but single bytes are in the machine's order, in which
    /// only equality has a meaning.
    fn number(&self, test: &Test, length: usize) -> Option<RangeSet<Number>> {
        if self.mask.is_some() {
            return None;
        }
        let parse = |data: &[u8]| -> Option<Number> {
            match *data {
                [a] if length == 1 => Some(Number(a.into())),
                [a, b] if length == 2 => Some(Number(u16::from_ne_bytes([a, b]).into())),
                [a, b, c, d] if length == 4 => Some(Number(u32::from_ne_bytes([a, b, c, d]))),
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
    fn bits(&self, test: &Test, length: usize, width: usize) -> Option<RangeSet<u128>> {
        let rest = 8 * (width - length);
        let all = Range::new(0, ones(8 * width))?;
        let parse = |data: &[u8]| -> Option<u128> {
            let sum = |bits: u128, byte: &u8| bits << 8 | u128::from(*byte);
            (data.len() == length).then(|| data.iter().fold(0, sum))
        };
        let value =
            |data: &[u8]| Some(parse(data)?.checked_shl(u32::try_from(rest).ok()?).unwrap_or(0));
        // A mask of leading ones leaves a prefix to compare.
        let dropped = match &self.mask {
            None => 0,
            Some(mask) => {
                let mask = parse(mask)?;
                let zeros = usize::try_from(mask.trailing_zeros()).ok()?.min(8 * length);
                (mask == ones(8 * length) & !ones(zeros)).then_some(zeros)?
            }
        };
        let below = ones(rest + dropped);
        let range = |first: u128, last: u128| -> Option<RangeSet<u128>> {
            Some(Range::new(first, last).map_or_else(RangeSet::default, Into::into))
        };
        let of = |set: RangeSet<u128>| set.intersection(&all.into());
        let set = match test {
            // Bits that the mask has cleared cannot be equal to ones.
            Test::Equal(data) if value(data)? & ones(rest + dropped) != 0 => RangeSet::default(),
            Test::Equal(data) => range(value(data)?, value(data)? | below)?,
            Test::Compare(Comparison::Different, data) => {
                let equal = self.bits(&Test::Equal(data.clone()), length, width)?;
                return Some(of(equal.complement()));
            }
            _ if dropped != 0 => return None,
            Test::AtMost(data) => range(0, value(data)? | below)?,
            Test::Compare(Comparison::More, data) => range(0, value(data)? | below)?.complement(),
            Test::Compare(Comparison::AtLeast, data) => range(value(data)?, u128::MAX)?,
            Test::Compare(Comparison::Less, data) => range(value(data)?, u128::MAX)?.complement(),
            Test::Between(from, to) => range(value(from)?, value(to)? | below)?,
            Test::In(..) => return None,
        };
        Some(of(set))
    }
}

/// The kind of a VRF's device, as `meta iifkind` has it.
const VRF: &[u8] = b"vrf\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn family(is_v4: bool) -> Condition {
    let (mut v4, mut v6) = (RangeSet::default(), RangeSet::default());
    if is_v4 {
        v4 = RangeSet::all();
    } else {
        v6 = RangeSet::all();
    }
    Condition::Source(AddressSet { v4, v6 })
}

/// As many ones, from the lowest bit.
fn ones(count: usize) -> u128 {
    u32::try_from(count)
        .ok()
        .and_then(|count| 1_u128.checked_shl(count))
        .map_or(u128::MAX, |bit| bit - 1)
}

fn port_range(range: &Range<u128>) -> Option<Range<Port>> {
    let port = |bits: u128| u16::try_from(bits).ok().map(Port);
    Range::new(port(range.first())?, port(range.last())?)
}

fn mac_range(range: &Range<u128>) -> Option<Range<MacAddr>> {
    let mac = |bits: u128| MacAddr::from_bits(u64::try_from(bits).ok()?);
    Range::new(mac(range.first())?, mac(range.last())?)
}

fn v4_range(range: &Range<u128>) -> Option<Range<Ipv4Addr>> {
    let v4 = |bits: u128| u32::try_from(bits).ok().map(Ipv4Addr::from);
    Range::new(v4(range.first())?, v4(range.last())?)
}

fn v6_range(range: &Range<u128>) -> Option<Range<Ipv6Addr>> {
    Range::new(Ipv6Addr::from(range.first()), Ipv6Addr::from(range.last()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Addresses near each other and at both ends.
    fn address() -> impl Strategy<Value = u32> {
        prop_oneof![0..70_u32, 1000..1070_u32, u32::MAX - 70..=u32::MAX]
    }

    proptest! {
        #[test]
        fn a_masked_address_is_in_a_set_as_the_kernel_finds_it(
            pairs in prop::collection::vec((address(), 0..20_u32), 0..8),
            length in 26..=32_u8,
            asked in address(),
        ) {
            let range = |(first, more): &(u32, u32)| {
                Range::new(first.to_owned().into(), first.saturating_add(*more).into())
            };
            let set: RangeSet<Ipv4Addr> = pairs.iter().filter_map(range).collect();
            let mask = u32::MAX << (32 - length);
            let mut field = Field::payload(Payload {
                base: PayloadBase::Network, offset: 12, length: 4,
            });
            field.mask(&mask.to_be_bytes());
            let found = field.begins_in(&set).expect("a mask of the first bits");
            prop_assert_eq!(found.contains(asked.into()), set.contains((asked & mask).into()));
        }
    }
}
