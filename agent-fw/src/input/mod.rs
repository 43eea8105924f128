//! Sources: what `--allow-from` and `--allow-mac` say, and which addresses that means.

pub mod connectivity;
mod item;
mod list;
mod mac;
mod near_miss;
pub mod options;
pub mod outbound;
mod region;
mod region_check;
mod region_file;
mod region_names;
pub mod rule_file;
mod warning;

pub use item::{Fault, Item, ItemError, parse as parse_item};
pub use list::{
    AddressList, HostBits, LineError, ListError, ListFile, Lists, parse_addresses, parse_macs,
};
pub use mac::{MacSource, MacSourceError, resolve_macs};
pub use near_miss::Meant;
pub use region::{Catalogue, OBSOLETE, OVERRIDES, Region, UnknownRegion};
pub(crate) use region::{line_and_column, located};
pub use region_check::{About, Doubt, doubts};
pub use region_file::{Beside, Change, Regions, changes, merged, read_regions};
pub use region_names::{provider_name, sibling};
pub use warning::Warning;

use crate::model::{AddressSet, Origin};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// One `--allow-from`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// Any address.
    Any,
    /// `region:NAME`.
    Region(String),
    /// `file:PATH` or `file:-`.
    File(ListFile),
    /// An address, prefix or range, as it was written.
    Item {
        /// The addresses.
        item: Item,
        /// The text.
        written: String,
    },
}

impl Source {
    /// The list that it names, if it names one.
    pub fn list(&self) -> Option<&ListFile> {
        if let Self::File(list) = self { Some(list) } else { None }
    }

    /// The list that it names, if it names one.
    pub fn list_mut(&mut self) -> Option<&mut ListFile> {
        if let Self::File(list) = self { Some(list) } else { None }
    }
}

/// Why the text of an `--allow-from` is no source.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceError {
    /// `region:` or `file:` with nothing behind it.
    #[error("expected {expected} after `{prefix}`")]
    Empty {
        /// `region:` or `file:`.
        prefix: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// Neither a keyword nor an item.
    #[error("column {column}: {fault}{}", .meant.as_ref().map_or_else(|| keywords(*.fault).to_owned(), ToString::to_string))]
    Item {
        /// Where, in characters counted from 1.
        column: usize,
        /// What is wrong.
        fault: Fault,
        /// What may be meant.
        meant: Option<Meant>,
    },
    /// Several sources in one word.
    #[error("that is more than one source: name them one by one, each with its flag")]
    Several,
}

/// What else could have stood there, where not even an address begins.
fn keywords(fault: Fault) -> &'static str {
    if fault == Fault::Address { ", `any`, `region:NAME` or `file:PATH`" } else { "" }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if text.contains(',') && near_miss::meant(text) == Some(Meant::Several) {
            return Err(SourceError::Several);
        }
        if let Some(name) = text.strip_prefix("region:") {
            let expected = "a region's name, such as us-1,";
            return match name {
                "" => Err(SourceError::Empty { prefix: "region:", expected }),
                name => Ok(Self::Region(name.to_owned())),
            };
        }
        if let Some(file) = text.strip_prefix("file:") {
            return parse_file(file).map(Self::File);
        }
        let item = item::parse(text).map_err(|error| {
            let before = &text[..text.floor_char_boundary(error.offset)];
            let column = 1 + before.chars().count();
            SourceError::Item { column, fault: error.fault, meant: near_miss::meant(text) }
        })?;
        Ok(Self::Item { item, written: text.to_owned() })
    }
}

fn parse_file(path: &str) -> Result<ListFile, SourceError> {
    match path {
        "" => Err(SourceError::Empty { prefix: "file:", expected: "a path, or `-`," }),
        "-" => Ok(ListFile::StandardInput),
        path => Ok(ListFile::Path(PathBuf::from(path))),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Region(name) => write!(f, "region:{name}"),
            Self::File(ListFile::StandardInput) => f.write_str("file:-"),
            Self::File(ListFile::Path(path)) => write!(f, "file:{}", path.display()),
            Self::Item { written, .. } => f.write_str(written),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("`{text}`: {error}"))
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

/// What sources mean: addresses by label, and what to tell the user.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resolved {
    /// The addresses that each source admits.
    pub addresses: Vec<(Origin, AddressSet)>,
    /// What the user should know.
    pub notices: Vec<Warning>,
}

/// Looks up regions and reads lists, of the sources that `flag` names. Files are read here and
/// nowhere else.
pub fn resolve(
    flag: &str,
    sources: &[Source],
    catalogue: &Catalogue,
    lists: &Lists,
) -> anyhow::Result<Resolved> {
    let mut resolved = Resolved::default();
    // United: thousands of single addresses are one list, not thousands.
    let mut items = Vec::new();
    for source in sources {
        let (label, addresses) = match source {
            Source::Any => (Origin::Any, AddressSet::all()),
            Source::Region(name) => {
                let (own, region) = catalogue.named(name)?;
                resolved.notices.extend(lonely(own, sources, catalogue));
                (Origin::Region(own.to_owned()), region.addresses())
            }
            Source::File(file) => {
                let text = lists.read(file).with_context(|| format!("{flag} {source}"))?;
                resolve_file(file, &text, &mut resolved.notices)?
            }
            Source::Item { item, written } => {
                if item.host_bits {
                    let meant = item.range.to_string();
                    let host_bits = HostBits { count: 1, line: 0, written: written.clone(), meant };
                    resolved.notices.push(Warning::HostBits { source: written.clone(), host_bits });
                }
                items.push(item.range);
                (Origin::Address, [item.range].into_iter().collect())
            }
        };
        if *source != Source::Any && admits_obsolete(&addresses) {
            resolved.notices.push(Warning::Obsolete { source: source.to_string() });
        }
        if label != Origin::Address {
            resolved.addresses.push((label, addresses));
        }
    }
    if !items.is_empty() {
        resolved.addresses.push((Origin::Address, items.into_iter().collect()));
    }
    Ok(resolved)
}

/// A note about the other region of a country, where only one of both is named.
fn lonely(region: &str, sources: &[Source], catalogue: &Catalogue) -> Option<Warning> {
    let other = sibling(region)?;
    let is_other = |source: &Source| match source {
        Source::Region(name) => catalogue.named(name).is_ok_and(|(own, _)| own == other),
        _ => false,
    };
    let region = region.to_owned();
    (!sources.iter().any(is_other)).then_some(Warning::Sibling { region, other })
}

fn resolve_file(
    file: &ListFile,
    text: &str,
    notices: &mut Vec<Warning>,
) -> anyhow::Result<(Origin, AddressSet)> {
    let list = parse_addresses(&file.to_string(), text)?;
    if let Some(host_bits) = list.host_bits {
        notices.push(Warning::HostBits { source: file.to_string(), host_bits });
    }
    if list.v4.is_empty() && list.v6.is_empty() {
        notices.push(Warning::EmptyList { list: file.to_string() });
    }
    let addresses =
        AddressSet { v4: list.v4.into_iter().collect(), v6: list.v6.into_iter().collect() };
    Ok((file.label(), addresses))
}

/// Whether these are addresses of [`OBSOLETE`].
pub fn admits_obsolete(addresses: &AddressSet) -> bool {
    let Ok(Item { range: crate::model::AddressRange::V4(block), .. }) = item::parse(OBSOLETE)
    else {
        return false;
    };
    !addresses.v4.intersection(&block.into()).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_printed_as_they_were_written() {
        for text in [
            "any",
            "region:us-1",
            "file:/etc/offices.list",
            "file:-",
            "192.0.2.1",
            "192.0.2.0/24",
            "192.168.0/24",
            "192.0.2.0/255.255.255.0",
            "192.0.2.1-192.0.2.9",
            "2001:db8::/32",
        ] {
            assert_eq!(text.parse::<Source>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_text_that_is_no_source_is_answered_with_what_was_expected_and_where() {
        for (text, expected) in [
            ("region:", "expected a region's name, such as us-1, after `region:`"),
            ("file:", "expected a path, or `-`, after `file:`"),
            ("192.0.2.0/40", "column 11: expected a prefix length from 0 to 32"),
            ("?", "column 1: expected an IPv4 or IPv6 address, prefix or range, `any`"),
            ("Any", "column 1: expected an IPv4 or IPv6 address, prefix or range; did you mean"),
        ] {
            let error = text.parse::<Source>().expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_obsolete_block_is_met_with_a_warning_also_inside_a_wider_prefix() {
        let catalogue = Catalogue::published().expect("valid");
        for (text, warned) in [
            ("54.221.196.0/24", true),
            ("54.221.0.0/16", true),
            ("54.221.197.1", false),
            ("any", false),
        ] {
            let source = text.parse().expect("a source");
            let notices = resolve("--allow-from", &[source], &catalogue, &Lists::default())
                .expect("resolved")
                .notices;
            assert_eq!(!notices.is_empty(), warned, "{text}: {notices:?}");
        }
    }

    #[test]
    fn masked_host_bits_are_said() {
        let catalogue = Catalogue::published().expect("valid");
        let source = "192.168.2.77/24".parse().expect("a source");
        let notices = resolve("--allow-from", &[source], &catalogue, &Lists::default())
            .expect("resolved")
            .notices;
        let said: Vec<_> = notices.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["192.168.2.77/24: the host bits were masked off: 192.168.2.0/24"]);
    }
}
