//! Sets of IPv4 and IPv6 addresses, and of MAC addresses.

use super::packet::Port;
use super::range::{Ordinal, Range, RangeSet};
use ipnet::{Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A set of addresses of both families.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct AddressSet {
    /// The IPv4 addresses.
    pub v4: RangeSet<Ipv4Addr>,
    /// The IPv6 addresses.
    pub v6: RangeSet<Ipv6Addr>,
}

impl AddressSet {
    /// Every address of both families.
    pub fn all() -> Self {
        Self { v4: RangeSet::all(), v6: RangeSet::all() }
    }

    /// Whether the set holds nothing.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether the set holds every address of both families.
    pub fn is_all(&self) -> bool {
        self.v4.is_all() && self.v6.is_all()
    }

    /// Whether `address` is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address),
            IpAddr::V6(address) => self.v6.contains(address),
        }
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { v4: self.v4.union(&other.v4), v6: self.v6.union(&other.v6) }
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { v4: self.v4.intersection(&other.v4), v6: self.v6.intersection(&other.v6) }
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self { v4: self.v4.difference(&other.v4), v6: self.v6.difference(&other.v6) }
    }

    /// Everything that is not in the set.
    #[must_use]
    pub fn complement(&self) -> Self {
        Self { v4: self.v4.complement(), v6: self.v6.complement() }
    }

    /// How many ranges the set is made of.
    pub fn range_count(&self) -> usize {
        self.v4.ranges().len() + self.v6.ranges().len()
    }
}

impl FromIterator<AddressRange> for AddressSet {
    fn from_iter<I: IntoIterator<Item = AddressRange>>(ranges: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                AddressRange::V4(range) => v4.push(range),
                AddressRange::V6(range) => v6.push(range),
            }
        }
        Self { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() }
    }
}

/// A range of addresses of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressRange {
    /// A range of IPv4 addresses.
    V4(Range<Ipv4Addr>),
    /// A range of IPv6 addresses.
    V6(Range<Ipv6Addr>),
}

impl From<Ipv4Net> for AddressRange {
    fn from(prefix: Ipv4Net) -> Self {
        let range = Range::new(prefix.network(), prefix.broadcast());
        Self::V4(range.unwrap_or(Range::single(prefix.addr())))
    }
}

impl From<Ipv6Net> for AddressRange {
    fn from(prefix: Ipv6Net) -> Self {
        let range = Range::new(prefix.network(), prefix.broadcast());
        Self::V6(range.unwrap_or(Range::single(prefix.addr())))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(range) => f.write_str(&range.notation()),
            Self::V6(range) => f.write_str(&range.notation()),
        }
    }
}

/// An address of one version of IP.
pub trait Address: Ordinal + fmt::Display + Into<IpAddr> {
    /// The version.
    const FAMILY: Family;
    /// The address with these bits: of more than there are, the lowest.
    fn of_bits(bits: u128) -> Self;
    /// Its bits, in the lowest places.
    fn to_u128(self) -> u128;
    /// The prefixes that make up a range, each with its length.
    fn prefixes(range: &Range<Self>) -> impl Iterator<Item = (Self, u8)>;
}

impl Address for Ipv4Addr {
    const FAMILY: Family = Family::V4;

    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are meant")]
    fn of_bits(bits: u128) -> Self {
        Self::from_bits(bits as u32)
    }

    fn to_u128(self) -> u128 {
        self.to_bits().into()
    }

    fn prefixes(range: &Range<Self>) -> impl Iterator<Item = (Self, u8)> {
        let prefixes = Ipv4Subnets::new(range.first(), range.last(), 0);
        prefixes.map(|prefix| (prefix.network(), prefix.prefix_len()))
    }
}

impl Address for Ipv6Addr {
    const FAMILY: Family = Family::V6;

    fn of_bits(bits: u128) -> Self {
        Self::from_bits(bits)
    }

    fn to_u128(self) -> u128 {
        self.to_bits()
    }

    fn prefixes(range: &Range<Self>) -> impl Iterator<Item = (Self, u8)> {
        let prefixes = Ipv6Subnets::new(range.first(), range.last(), 0);
        prefixes.map(|prefix| (prefix.network(), prefix.prefix_len()))
    }
}

/// A value whose ranges nftables writes in a notation of its own.
pub trait Notation {
    /// The shortest usual way to write the range: an address, a prefix, or `first-last`.
    fn notation(&self) -> String;
}

impl Notation for Range<Ipv4Addr> {
    fn notation(&self) -> String {
        let mut prefixes = Ipv4Subnets::new(self.first(), self.last(), 0);
        match (prefixes.next(), prefixes.next()) {
            _ if self.first() == self.last() => self.first().to_string(),
            (Some(only), None) => only.to_string(),
            _ => self.to_string(),
        }
    }
}

impl Notation for Range<Ipv6Addr> {
    fn notation(&self) -> String {
        let mut prefixes = Ipv6Subnets::new(self.first(), self.last(), 0);
        match (prefixes.next(), prefixes.next()) {
            _ if self.first() == self.last() => self.first().to_string(),
            (Some(only), None) => only.to_string(),
            _ => self.to_string(),
        }
    }
}

impl Notation for Range<MacAddr> {
    fn notation(&self) -> String {
        self.to_string()
    }
}

impl Notation for Range<Port> {
    fn notation(&self) -> String {
        self.to_string()
    }
}

/// The address of an Ethernet interface (EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address with these 48 bits; `None` where there are more.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let [0, 0, octets @ ..] = bits.to_be_bytes() else { return None };
        Some(Self(octets))
    }
}

impl Ordinal for MacAddr {
    type Bits = u64;
    const MIN: Self = Self([0; 6]);
    const MAX: Self = Self([0xff; 6]);
    fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
    fn next(self) -> Option<Self> {
        Self::from_bits(self.bits() + 1)
    }
    fn previous(self) -> Option<Self> {
        Self::from_bits(self.bits().checked_sub(1)?)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a MAC address, six hexadecimal bytes with `:` or `-` between them")]
pub struct MacAddrError;

impl FromStr for MacAddr {
    type Err = MacAddrError;

    /// Reads `00:1b:2c:3d:4e:5f` or `00-1B-2C-3D-4E-5F`, not a mixture of both.
    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let digits = parts.next().ok_or(MacAddrError)?;
            if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *octet = u8::from_str_radix(digits, 16).map_err(|_| MacAddrError)?;
        }
        parts.next().is_none().then_some(Self(octets)).ok_or(MacAddrError)
    }
}

/// Which MAC addresses a packet may come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MacMatch {
    /// Any, and also a packet that has none (from a tunnel, say).
    Any,
    /// One of these; a packet without a MAC address does not match.
    Only(RangeSet<MacAddr>),
}

impl MacMatch {
    /// Whether a packet with this MAC address matches.
    pub fn matches(&self, mac: Option<MacAddr>) -> bool {
        match self {
            Self::Any => true,
            Self::Only(set) => mac.is_some_and(|mac| set.contains(mac)),
        }
    }

    /// What either matches.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Only(a), Self::Only(b)) => Self::Only(a.union(b)),
            _ => Self::Any,
        }
    }

    /// Whether nothing matches.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Only(set) if set.is_empty())
    }
}

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The version of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// How many bits an address has.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// An address of which the first `length` bits are ones, and no others.
    pub(crate) fn mask(self, length: u8) -> IpAddr {
        let zeros = self.bits().saturating_sub(length);
        let ones = u128::MAX.checked_shl(zeros.into()).unwrap_or(0);
        match self {
            Self::V4 => Ipv4Addr::of_bits(ones).into(),
            Self::V6 => Ipv6Addr::of_bits(ones).into(),
        }
    }

    /// The keyword of its header in nftables.
    pub(crate) const fn header(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mac_addresses_are_read_with_colons_or_hyphens_but_not_both() {
        let mac = MacAddr([0, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
        assert_eq!("00:1b:2c:3d:4e:5f".parse(), Ok(mac));
        assert_eq!("00-1B-2C-3D-4E-5F".parse(), Ok(mac));
        for wrong in [
            "",
            "00:1b:2c:3d:4e",
            "00:1b:2c:3d:4e:5f:60",
            "00:1b-2c:3d:4e:5f",
            "0:1b:2c:3d:4e:5f",
            "00:1b:2c:3d:4e:5g",
            "+0:1b:2c:3d:4e:5f",
            "001b2c3d4e5f",
        ] {
            assert_eq!(wrong.parse::<MacAddr>(), Err(MacAddrError), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn mac_addresses_survive_printing_and_reading(octets: [u8; 6]) {
            let mac = MacAddr(octets);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert_eq!(mac.next().and_then(MacAddr::previous), mac.next().map(|_| mac));
        }

        #[test]
        fn the_notation_of_a_prefix_is_the_prefix(address: u32, length in 0..=32_u8) {
            let prefix = Ipv4Net::new(address.into(), length).expect("length is valid").trunc();
            let AddressRange::V4(range) = prefix.into() else { unreachable!("IPv4") };
            let expected = if length == 32 { prefix.addr().to_string() } else { prefix.to_string() };
            prop_assert_eq!(range.notation(), expected);
        }
    }
}
