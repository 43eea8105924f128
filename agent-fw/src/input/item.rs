//! One item of an address list, in the vendor's syntax: an address, a prefix, a prefix with a
//! netmask, the short form `192.168.0/24`, or a range `first - last`.

use crate::model::{AddressRange, Range};
use ipnet::{Ipv4Net, Ipv6Net, ip_mask_to_prefix};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an item means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// The addresses.
    pub range: AddressRange,
    /// Whether the prefix had bits set beyond its length, which were masked off.
    pub host_bits: bool,
}

/// Why a text is not an item, and where in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{fault}")]
pub struct ItemError {
    /// The offset in bytes, from the start of the text, of what is wrong.
    pub offset: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Neither an address nor the start of one.
    #[error("expected an IPv4 or IPv6 address, prefix or range")]
    Address,
    /// An octet such as `010`, which some programs read as octal.
    #[error("expected an address without leading zeros (some programs read them as octal)")]
    LeadingZero,
    /// A name.
    #[error("expected an address; names are not looked up, since they can change")]
    Name,
    /// `fe80::1%eth0`.
    #[error("expected an address without a zone (`%…`)")]
    Zone,
    /// `::ffff:192.0.2.1`, which no packet carries as its source.
    #[error("expected an IPv4 address written as such, not mapped into IPv6 (::ffff:…)")]
    Mapped,
    /// What follows `/` is neither a length nor a mask.
    #[error("expected a prefix length from 0 to {max}, or a netmask")]
    Length {
        /// The largest length of the family.
        max: u8,
    },
    /// A mask with a hole in it.
    #[error("expected a netmask whose ones are all in front, such as 255.255.255.0")]
    Netmask,
    /// `10/24`: more bits than were given.
    #[error("expected a prefix length of at most {max}: only {} of 4 octets are given", max / 8)]
    ShortForm {
        /// Eight for each octet that was given.
        max: u8,
    },
    /// `34.205.5.0/0`: a slip that admits a large part of the Internet.
    #[error("expected no bits set beyond so short a prefix")]
    WideHostBits,
    /// The end of a range is of the other family.
    #[error("expected an address of the same family as the start of the range")]
    MixedFamilies,
    /// The end of a range comes before its start.
    #[error("expected an address that does not come before the start of the range")]
    Reversed,
}

impl Fault {
    const fn at(self, offset: usize) -> ItemError {
        ItemError { offset, fault: self }
    }
}

/// Reads one item. The text may have blanks around it and around the `-` of a range.
pub fn parse(text: &str) -> Result<Item, ItemError> {
    if let Some(slash) = text.find('/') {
        let network = Part::of(text, 0, slash);
        let length = Part::of(text, slash + 1, text.len());
        return parse_prefix(network, length);
    }
    let exact = |range| Item { range, host_bits: false };
    let Some(dash) = text.find('-') else {
        let address = parse_address(Part::of(text, 0, text.len()))?;
        return Ok(exact(match address {
            IpAddr::V4(address) => AddressRange::V4(Range::single(address)),
            IpAddr::V6(address) => AddressRange::V6(Range::single(address)),
        }));
    };
    let end = Part::of(text, dash + 1, text.len());
    let first = parse_address(Part::of(text, 0, dash))?;
    let range = match (first, parse_address(end)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Range::new(first, last).map(AddressRange::V4),
        (IpAddr::V6(first), IpAddr::V6(last)) => Range::new(first, last).map(AddressRange::V6),
        _ => return Err(Fault::MixedFamilies.at(end.offset)),
    };
    range.map(exact).ok_or(Fault::Reversed.at(end.offset))
}

/// A part of an item, without blanks around it, and where it stands.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Part<'a> {
    fn of(item: &'a str, from: usize, to: usize) -> Self {
        let text = &item[from..to];
        let blanks = text.len() - text.trim_start().len();
        Self { text: text.trim(), offset: from + blanks }
    }
}

fn parse_address(part: Part<'_>) -> Result<IpAddr, ItemError> {
    match part.text.parse() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            Err(Fault::Mapped.at(part.offset))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(address_fault(part.text).at(part.offset)),
    }
}

/// Why a text that is not an address is not one: what its writer probably meant.
fn address_fault(text: &str) -> Fault {
    let octet_like = |octet: &str| octet.bytes().all(|digit| digit.is_ascii_digit());
    if text.contains('%') && text.contains(':') {
        Fault::Zone
    } else if text.contains('.') && text.split('.').all(octet_like) {
        let padded = text.split('.').any(|octet| octet.len() > 1 && octet.starts_with('0'));
        if padded { Fault::LeadingZero } else { Fault::Address }
    } else if text.contains('.') && text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        Fault::Name
    } else {
        Fault::Address
    }
}

fn parse_prefix(network: Part<'_>, length: Part<'_>) -> Result<Item, ItemError> {
    if !network.text.contains(':') {
        let (address, given) = parse_octets(network)?;
        let bits = parse_length(length, 32)?;
        if bits > given {
            return Err(Fault::ShortForm { max: given }.at(length.offset));
        }
        let item = ipv4_prefix(address, bits).ok_or(Fault::Length { max: 32 }.at(length.offset));
        return not_a_slip(item?, bits < SHORT_V4, length);
    }
    let IpAddr::V6(address) = parse_address(network)? else {
        return Err(Fault::Address.at(network.offset));
    };
    let bits = parse_length(length, 128)?;
    let item = ipv6_prefix(address, bits).ok_or(Fault::Length { max: 128 }.at(length.offset));
    not_a_slip(item?, bits < SHORT_V6, length)
}

/// Prefixes shorter than these need consent, and host bits under them are no oversight to be mended
/// in silence.
const SHORT_V4: u8 = 8;
const SHORT_V6: u8 = 16;

fn not_a_slip(item: Item, is_short: bool, length: Part<'_>) -> Result<Item, ItemError> {
    if item.host_bits && is_short { Err(Fault::WideHostBits.at(length.offset)) } else { Ok(item) }
}

fn ipv4_prefix(address: Ipv4Addr, bits: u8) -> Option<Item> {
    let prefix = Ipv4Net::new(address, bits).ok()?;
    Some(Item { range: prefix.into(), host_bits: prefix.network() != address })
}

fn ipv6_prefix(address: Ipv6Addr, bits: u8) -> Option<Item> {
    let prefix = Ipv6Net::new(address, bits).ok()?;
    Some(Item { range: prefix.into(), host_bits: prefix.network() != address })
}

/// Reads one to four octets; the rest are zero. Also tells how many bits were given.
fn parse_octets(part: Part<'_>) -> Result<(Ipv4Addr, u8), ItemError> {
    let given = part.text.split('.').count();
    if given >= 4 {
        let IpAddr::V4(address) = parse_address(part)? else {
            return Err(Fault::Address.at(part.offset));
        };
        return Ok((address, 32));
    }
    let padded = format!("{}{}", part.text, ".0".repeat(4 - given));
    let address = padded.parse().map_err(|_| address_fault(part.text).at(part.offset))?;
    Ok((address, u8::try_from(given * 8).unwrap_or(32)))
}

/// Reads a prefix length or a netmask of the family that has `max` bits.
fn parse_length(part: Part<'_>, max: u8) -> Result<u8, ItemError> {
    let fault = Fault::Length { max }.at(part.offset);
    let digits = !part.text.is_empty() && part.text.bytes().all(|digit| digit.is_ascii_digit());
    if digits {
        return part.text.parse().ok().filter(|&bits: &u8| bits <= max).ok_or(fault);
    }
    let mask: IpAddr = part.text.parse().map_err(|_| fault)?;
    if mask.is_ipv4() != (max == 32) {
        return Err(fault);
    }
    ip_mask_to_prefix(mask).map_err(|_| Fault::Netmask.at(part.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(Item { range, host_bits: false }) => range.to_string(),
            Ok(Item { range, host_bits: true }) => format!("{range} (host bits)"),
            Err(ItemError { offset, fault }) => format!("{offset}: {fault:?}"),
        }
    }

    #[test]
    fn every_form_of_the_vendors_lists_is_read() {
        for (text, expected) in [
            ("192.168.2.1", "192.168.2.1"),
            (" 192.168.2.1\t", "192.168.2.1"),
            ("192.168.2.0/24", "192.168.2.0/24"),
            ("192.168.2.0/255.255.255.0", "192.168.2.0/24"),
            ("192.168.2.0 / 24", "192.168.2.0/24"),
            ("192.168.0/24", "192.168.0.0/24"),
            ("10/8", "10.0.0.0/8"),
            ("10.1/12", "10.0.0.0/12 (host bits)"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.168.2.77/24", "192.168.2.0/24 (host bits)"),
            ("192.168.0.2 - 192.168.0.125", "192.168.0.2-192.168.0.125"),
            ("192.168.0.0-192.168.0.255", "192.168.0.0/24"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::/ffff:ffff::", "2001:db8::/32"),
            ("2001:db8::5 - 2001:db8::9", "2001:db8::5-2001:db8::9"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_an_item_is_refused_with_its_place() {
        for (text, expected) in [
            ("", "0: Address"),
            ("manager", "0: Address"),
            ("manager.example", "0: Name"),
            ("1.2.3", "0: Address"),
            ("1.2.3.4.5", "0: Address"),
            ("1.2.3.256", "0: Address"),
            ("1.2.3.04", "0: LeadingZero"),
            ("fe80::1%eth0", "0: Zone"),
            ("::ffff:192.0.2.1", "0: Mapped"),
            ("192.0.2.0/33", "10: Length { max: 32 }"),
            ("192.0.2.0/", "10: Length { max: 32 }"),
            ("192.0.2.0/+8", "10: Length { max: 32 }"),
            ("192.0.2.0/24/8", "10: Length { max: 32 }"),
            ("192.0.2.0/255.0.255.0", "10: Netmask"),
            ("192.0.2.0/ffff::", "10: Length { max: 32 }"),
            ("2001:db8::/129", "11: Length { max: 128 }"),
            ("2001:db8::/255.255.0.0", "11: Length { max: 128 }"),
            ("10/24", "3: ShortForm { max: 8 }"),
            ("/24", "0: Address"),
            ("192.0.2.9 - 192.0.2.1", "12: Reversed"),
            ("192.0.2.9 - 2001:db8::1", "12: MixedFamilies"),
            ("192.0.2.9 -", "11: Address"),
            ("- 192.0.2.9", "0: Address"),
            ("192.0.2.1 192.0.2.2", "0: Address"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(first: u32, length in 0..200_u32, six: bool) {
            let range = if six {
                let first = Ipv6Addr::from_bits(u128::from(first) << 96);
                let last = Ipv6Addr::from_bits(first.to_bits() + u128::from(length));
                Range::new(first, last).map(AddressRange::V6)
            } else {
                let last = Ipv4Addr::from_bits(first.saturating_add(length));
                Range::new(Ipv4Addr::from_bits(first), last).map(AddressRange::V4)
            }
            .expect("in order");
            let item = parse(&range.to_string()).expect("printed by us");
            prop_assert_eq!(item, Item { range, host_bits: false });
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-f:./ %-]{0,24}|\\PC{0,12}") {
            if let Err(error) = parse(&text) {
                prop_assert!(error.offset <= text.len());
            }
        }
    }
}
