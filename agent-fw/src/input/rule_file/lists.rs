//! The items of addresses, MAC addresses and ports, and the lists of them that rules name.

use super::reader::Reader;
use crate::input::parse_item;
use crate::model::{AddressSet, MacAddr, Port, Range, RangeSet};
use std::collections::BTreeMap;

/// What can stand in a list.
pub(super) trait Items: Sized {
    /// Reads items, or says what is wrong with the first that is none.
    fn parse<'t>(items: impl IntoIterator<Item = &'t str>) -> Result<Self, String>;
}

/// An item without what `#` begins; nothing if nothing is left.
fn without_comment(item: &str) -> Option<&str> {
    let item = item.split('#').next().unwrap_or_default().trim();
    (!item.is_empty()).then_some(item)
}

fn quoted(item: &str, error: impl std::fmt::Display) -> String {
    format!("`{}`: {error}", item.escape_debug())
}

impl Items for AddressSet {
    fn parse<'t>(items: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let range =
            |item| parse_item(item).map(|item| item.range).map_err(|error| quoted(item, error));
        items.into_iter().filter_map(without_comment).map(range).collect()
    }
}

impl Items for RangeSet<MacAddr> {
    fn parse<'t>(items: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let range =
            |item: &str| item.parse().map(Range::single).map_err(|error| quoted(item, error));
        items.into_iter().filter_map(without_comment).map(range).collect()
    }
}

impl Items for RangeSet<Port> {
    fn parse<'t>(items: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        let lines = items.into_iter().filter_map(without_comment);
        lines.flat_map(|line| line.split(',')).map(|item| ports(item.trim())).collect()
    }
}

fn ports(item: &str) -> Result<Range<Port>, String> {
    let number = |text: &str| {
        let plain = text.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| text.parse().ok().map(Port)).flatten()
    };
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let ordered = number(first.trim())
        .zip(number(last.trim()))
        .and_then(|(first, last)| Range::new(first, last));
    ordered.ok_or_else(|| quoted(item, "expected a port, or a range such as 20-21"))
}

/// Lists by their numbers.
pub(super) type Numbered<T> = BTreeMap<u32, T>;

/// Reads the lists of one kind.
pub(super) fn numbered<T: Items>(file: &mut Reader<'_>, kind: &str) -> Numbered<T> {
    let mut lists = BTreeMap::new();
    file.each(kind, |mut list| {
        list.skip(&["name", "description"]);
        let number = list.required("ID", Reader::number);
        let items = list.required("items", Reader::texts).unwrap_or_default();
        match T::parse(items.iter().map(String::as_str)) {
            Err(error) => list.fault("items", &error),
            Ok(items) => {
                if let Some(number) = number
                    && lists.insert(number, items).is_some()
                {
                    list.fault("ID", &format!("another list has number {number}, too"));
                }
            }
        }
        list.finish();
    });
    lists
}

/// The lists that rules name by their numbers.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) addresses: Numbered<AddressSet>,
    pub(super) macs: Numbered<RangeSet<MacAddr>>,
    pub(super) ports: Numbered<RangeSet<Port>>,
}

impl Lists {
    pub(super) fn read(file: &mut Reader<'_>) -> Self {
        Self {
            addresses: numbered(file, "ipLists"),
            macs: numbered(file, "macLists"),
            ports: numbered(file, "portLists"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_alone_in_ranges_and_with_commas() {
        let ports = RangeSet::<Port>::parse(["20-21, 80 # web", "# nothing", "4118"]);
        assert_eq!(ports.expect("ports").to_string(), "20-21, 80, 4118");
        for wrong in ["", "x", "21-20", "65536", "1-", "+1", "80,,81", "1-2-3"] {
            let items = [format!("1,{wrong}")];
            assert!(RangeSet::<Port>::parse(items.iter().map(String::as_str)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn address_items_have_the_vendors_forms_and_comments() {
        let items = ["192.168.2.0/255.255.255.0 # office", "192.168.0.2 - 192.168.0.125", "  # x"];
        let set = AddressSet::parse(items).expect("items");
        assert_eq!(set.range_count(), 2);
        assert!(AddressSet::parse(["192.0.2.0/33"]).is_err());
    }
}
