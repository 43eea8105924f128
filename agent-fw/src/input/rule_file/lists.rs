//! The items of addresses, MAC addresses and ports, and the lists of them that rules name.

use super::reader::{Fields, Reader};
use super::syntax::Node;
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

/// A list, and the file that it is in.
pub(super) struct Listed<T> {
    /// `None` if it is faulty, and that was said.
    pub(super) items: Option<T>,
    file: usize,
}

/// Lists by their numbers.
pub(super) type Numbered<T> = BTreeMap<u32, Listed<T>>;

/// Reads a list of one kind.
fn read<T: Items + PartialEq>(mut list: Reader<'_>, file: usize, lists: &mut Numbered<T>) {
    list.skip(&["name", "description"]);
    let number: Option<u32> = list.required("ID", Reader::number);
    let items = list.required("items", Reader::texts);
    let items = items.and_then(|items| {
        let parsed = T::parse(items.iter().map(String::as_str));
        parsed.map_err(|error| list.fault("items", &error)).ok()
    });
    let known = number.and_then(|number| lists.get(&number));
    // A list that is saved twice is one list.
    let is_other = known.is_some_and(|known| known.file == file || known.items != items);
    if let (true, Some(number)) = (is_other, number) {
        let said = format!("another list of this kind has ID {number}, too; leave one of them out");
        list.fault("ID", &said);
    } else if let Some(number) = number {
        lists.insert(number, Listed { items, file });
    }
    list.finish();
}

/// The lists that rules name by their numbers, of all files.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) addresses: Numbered<AddressSet>,
    pub(super) macs: Numbered<RangeSet<MacAddr>>,
    pub(super) ports: Numbered<RangeSet<Port>>,
}

impl Lists {
    /// Takes the lists of an answer.
    pub(super) fn take(&mut self, answer: &mut Reader<'_>, file: usize) {
        answer.each("ipLists", |list| read(list, file, &mut self.addresses));
        answer.each("macLists", |list| read(list, file, &mut self.macs));
        answer.each("portLists", |list| read(list, file, &mut self.ports));
    }

    /// Takes a list that stands alone: what it lists tells of which kind it is.
    pub(super) fn take_bare(&mut self, mut list: Reader<'_>, fields: &Fields, file: usize) {
        let items = texts(fields.get("items"));
        let items =
            || items.iter().map(String::as_str).filter(|item| without_comment(item).is_some());
        let is = |fits: fn(&str) -> bool| items().next().is_some() && items().all(fits);
        // A number alone would be a port and no address; a MAC address is neither.
        if is(|item| RangeSet::<Port>::parse([item]).is_ok()) {
            read(list, file, &mut self.ports);
        } else if is(|item| RangeSet::<MacAddr>::parse([item]).is_ok()) {
            read(list, file, &mut self.macs);
        } else if is(|item| AddressSet::parse([item]).is_ok()) {
            read(list, file, &mut self.addresses);
        } else {
            list.fault(
                "items",
                "these are neither ports nor MAC nor IP addresses alone, so that the kind of the \
                 list is not known; put it into {\"ipLists\": [...]}, \"macLists\" or \"portLists\"",
            );
        }
    }
}

/// The texts and numbers of a list.
fn texts(node: Option<&Node>) -> Vec<String> {
    let list = match node {
        Some(Node::List(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    let text = |node: &Node| match node {
        Node::Text(text) => Some(text.clone()),
        Node::Number(number) => Some(number.to_string()),
        _ => None,
    };
    list.iter().filter_map(text).collect()
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
