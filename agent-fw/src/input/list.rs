//! Lists of addresses or MAC addresses in files: an item a line, `#` starts a comment.

use super::item::{self, Item};
use crate::model::{AddressRange, MacAddr, Origin, Range, RangeSet};
use crate::system::file;
use crate::system::file::Trust;
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Where a list comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ListFile {
    /// A file.
    Path(PathBuf),
    /// Standard input, written `-`.
    StandardInput,
}

impl From<String> for ListFile {
    fn from(text: String) -> Self {
        if text == "-" { Self::StandardInput } else { Self::Path(text.into()) }
    }
}

impl From<ListFile> for String {
    fn from(file: ListFile) -> Self {
        match file {
            ListFile::StandardInput => "-".to_owned(),
            ListFile::Path(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for ListFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::StandardInput => f.write_str("standard input"),
        }
    }
}

/// Where the texts of lists are found: on disk, or kept here because the disk does not have them
/// yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lists {
    kept: BTreeMap<PathBuf, String>,
    others: BTreeSet<PathBuf>,
    trust: Trust,
    may_wait: bool,
}

impl Lists {
    /// Lists on disk, of which those are read that are trusted.
    pub fn trusting(trust: Trust) -> Self {
        Self { trust, ..Self::default() }
    }

    /// Lists of any kind, pipes too, for somebody who waits for them.
    pub fn of_any_kind() -> Self {
        Self { trust: Trust::Anybody, may_wait: true, ..Self::default() }
    }

    /// The text of a list.
    pub fn read(&self, file: &ListFile) -> anyhow::Result<Cow<'_, str>> {
        match file {
            ListFile::Path(path) if self.kept.contains_key(path) => {
                Ok(Cow::Borrowed(&self.kept[path]))
            }
            file if self.may_wait => file.read_once().map(Cow::Owned),
            file => file.read(self.trust).map(Cow::Owned),
        }
    }

    /// Whether a list is read from a file that others than root can change.
    pub fn is_others(&self, file: &ListFile) -> bool {
        let ListFile::Path(path) = file else { return false };
        self.others.contains(path) || !self.kept.contains_key(path) && file::is_others(path)
    }

    /// Takes a list for one that others than root can change.
    pub fn call_others(&mut self, path: PathBuf) {
        self.others.insert(path);
    }

    /// Keeps a text that is to be found under `path`.
    pub fn keep(&mut self, path: PathBuf, text: String) {
        self.kept.insert(path, text);
    }

    /// The kept texts.
    pub fn kept(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.kept.iter().map(|(path, text)| (path.as_path(), text.as_str()))
    }
}

impl ListFile {
    /// What its sources are counted under.
    pub fn label(&self) -> Origin {
        Origin::File(match self {
            Self::Path(path) => path.clone(),
            Self::StandardInput => PathBuf::from("-"),
        })
    }

    /// Whether the list can be read again at the next boot: a file can, a pipe cannot.
    pub fn is_lasting(&self) -> anyhow::Result<bool> {
        match self {
            Self::StandardInput => Ok(false),
            Self::Path(path) => file::is_lasting(path),
        }
    }

    /// Reads the whole list as text. `trust`: whose files are read.
    pub fn read(&self, trust: Trust) -> anyhow::Result<String> {
        let bytes = match self {
            Self::Path(path) => file::read_list(path, trust)?,
            Self::StandardInput => {
                file::read_stream(io::stdin().lock()).context("cannot read it")?
            }
        };
        self.text(bytes)
    }

    /// Reads one that may be no regular file but a pipe, while somebody waits for it.
    pub fn read_once(&self) -> anyhow::Result<String> {
        let path = match self {
            Self::Path(path) if !self.is_lasting()? => path,
            _ => return self.read(Trust::Anybody),
        };
        ensure!(!path.is_dir(), "cannot read {self}: it is a directory");
        let opened = File::open(path).with_context(|| format!("cannot read {self}"))?;
        let bytes = file::read_stream(opened).with_context(|| format!("cannot read {self}"))?;
        self.text(bytes)
    }

    fn text(&self, bytes: Vec<u8>) -> anyhow::Result<String> {
        String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.split(|&byte| byte == b'\n').count();
            anyhow::anyhow!("{self}:{line}: expected text in UTF-8; is this a list of addresses?")
        })
    }
}

/// A line that is not an item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineError {
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1, in characters.
    pub column: usize,
    /// What was found there, cut short.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, found, expected } = self;
        write!(f, "{line}:{column}: {expected}; found `{found}`")
    }
}

/// Every faulty line of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListError {
    /// The list's name.
    pub list: String,
    /// The faults, in the order of the lines; never empty.
    pub lines: Vec<LineError>,
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{line}", self.list)?;
        }
        Ok(())
    }
}

impl std::error::Error for ListError {}

/// Prefixes of a list that had host bits set: how many, and the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostBits {
    /// How many there were.
    pub count: usize,
    /// The line of the first, counted from 1.
    pub line: usize,
    /// The first as it was written.
    pub written: String,
    /// The first as it was understood.
    pub meant: String,
}

/// The addresses of a list.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AddressList {
    /// The IPv4 ranges, in the order of the lines.
    pub v4: Vec<Range<Ipv4Addr>>,
    /// The IPv6 ranges, in the order of the lines.
    pub v6: Vec<Range<Ipv6Addr>>,
    /// Which prefixes were masked.
    pub host_bits: Option<HostBits>,
}

/// Reads a list of addresses. All faulty lines are reported, not only the first.
pub fn parse_addresses(list: &str, text: &str) -> Result<AddressList, ListError> {
    let mut addresses = AddressList::default();
    parse_lines(list, text, |line, written| {
        let Item { range, host_bits } =
            item::parse(written).map_err(|error| (error.offset, error.to_string()))?;
        match range {
            AddressRange::V4(range) => addresses.v4.push(range),
            AddressRange::V6(range) => addresses.v6.push(range),
        }
        if host_bits {
            let first = addresses.host_bits.get_or_insert_with(|| HostBits {
                count: 0,
                line,
                written: written.to_owned(),
                meant: range.to_string(),
            });
            first.count += 1;
        }
        Ok(())
    })?;
    Ok(addresses)
}

/// Reads a list of MAC addresses. All faulty lines are reported, not only the first.
pub fn parse_macs(list: &str, text: &str) -> Result<RangeSet<MacAddr>, ListError> {
    let mut macs = Vec::new();
    parse_lines(list, text, |_, written| {
        let mac =
            written.parse().map_err(|error: crate::model::MacAddrError| (0, error.to_string()))?;
        macs.push(Range::single(mac));
        Ok(())
    })?;
    Ok(macs.into_iter().collect())
}

/// Hands each item to `read`, which answers with the offset and the text of what is wrong.
fn parse_lines<'a>(
    list: &str,
    text: &'a str,
    mut read: impl FnMut(usize, &'a str) -> Result<(), (usize, String)>,
) -> Result<(), ListError> {
    // Editors on other systems put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let item = line.split('#').next().unwrap_or_default();
        let written = item.trim();
        if written.is_empty() {
            continue;
        }
        if let Err((offset, expected)) = read(index + 1, written) {
            let start = item.len() - item.trim_start().len() + offset;
            let column = 1 + line[..start].chars().count();
            let found = shorten(written.get(offset..).unwrap_or(written));
            lines.push(LineError { line: index + 1, column, found, expected });
        }
    }
    if lines.is_empty() { Ok(()) } else { Err(ListError { list: list.to_owned(), lines }) }
}

/// At most 32 characters, none of which a terminal would obey.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(32).flat_map(char::escape_debug).collect();
    if text.chars().nth(32).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressSet, Notation};
    use proptest::prelude::*;

    #[test]
    fn comments_blank_lines_and_foreign_line_ends_are_no_items() {
        let text =
            "\u{feff}# offices\r\n\r\n192.0.2.1 # Oslo\r\n  2001:db8::/32\r\n#192.0.2.2\n192.0.2.9";
        let list = parse_addresses("x", text).expect("good list");
        assert_eq!(
            list.v4.iter().map(Notation::notation).collect::<Vec<_>>(),
            ["192.0.2.1", "192.0.2.9"]
        );
        assert_eq!(list.v6.iter().map(Notation::notation).collect::<Vec<_>>(), ["2001:db8::/32"]);
    }

    #[test]
    fn all_faulty_lines_are_reported_with_line_and_column() {
        let text =
            "192.0.2.1\n  192.0.2.0/40 # too long\nåäö 1\n192.0.2.9 - 192.0.2.1\nok.example\n";
        let error = parse_addresses("offices.list", text).expect_err("four bad lines");
        assert_eq!(
            error.to_string(),
            "offices.list:2:13: expected a prefix length from 0 to 32, or a netmask; found `40`\n\
             offices.list:3:1: expected an IPv4 or IPv6 address, prefix or range; found `åäö 1`\n\
             offices.list:4:13: expected an address that does not come before the start of the \
             range; found `192.0.2.1`\n\
             offices.list:5:1: expected an address; names are not looked up, since they can \
             change; found `ok.example`"
        );
    }

    #[test]
    fn control_characters_of_a_hostile_list_do_not_reach_the_terminal() {
        let error = parse_addresses("x", "\u{1b}[2J\u{1b}[31mgotcha").expect_err("not an address");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn masked_host_bits_are_counted_and_the_first_is_shown() {
        let list =
            parse_addresses("x", "10.0.0.0/8\n10.1.2.3/16\n10.9.9.9/8\n").expect("good list");
        let HostBits { count, line, written, meant } = list.host_bits.expect("two were masked");
        assert_eq!((count, line), (2, 2));
        assert_eq!((written.as_str(), meant.as_str()), ("10.1.2.3/16", "10.1.0.0/16"));
    }

    #[test]
    fn a_list_of_mac_addresses_is_read_in_both_notations() {
        let macs =
            parse_macs("x", "02:00:00:00:00:01 # gateway\n02-00-00-00-00-02\n").expect("good");
        assert_eq!(macs.to_string(), "02:00:00:00:00:01-02:00:00:00:00:02");
        let error = parse_macs("x", "\n02:00:00:00:00\n").expect_err("five bytes");
        assert!(error.to_string().starts_with("x:2:1: expected a MAC address"), "{error}");
    }

    proptest! {
        #[test]
        fn a_list_written_line_by_line_is_read_back(
            prefixes in prop::collection::vec((any::<u32>(), 0..=32_u8), 0..40)
        ) {
            let ranges: Vec<AddressRange> = prefixes
                .into_iter()
                .filter_map(|(bits, length)| ipnet::Ipv4Net::new(bits.into(), length).ok())
                .map(AddressRange::from)
                .collect();
            let text: String = ranges.iter().map(|range| format!("{range}\n")).collect();
            let list = parse_addresses("x", &text).expect("printed by us");
            prop_assert_eq!(
                list.v4.into_iter().collect::<RangeSet<_>>(),
                ranges.into_iter().collect::<AddressSet>().v4
            );
        }
    }
}
