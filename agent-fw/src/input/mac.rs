//! What `--allow-mac` says, and which MAC addresses that means.

use super::{ListFile, Lists, SourceError, Warning, parse_file, parse_macs};
use crate::model::{MacAddr, MacAddrError, Range, RangeSet};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One `--allow-mac`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MacSource {
    /// A MAC address.
    Mac(MacAddr),
    /// `file:PATH` or `file:-`.
    File(ListFile),
}

impl MacSource {
    /// The list that it names, if it names one.
    pub fn list(&self) -> Option<&ListFile> {
        if let Self::File(list) = self { Some(list) } else { None }
    }

    /// The list that it names, if it names one.
    pub fn list_mut(&mut self) -> Option<&mut ListFile> {
        if let Self::File(list) = self { Some(list) } else { None }
    }
}

/// Why the text of an `--allow-mac` is no source.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MacSourceError {
    /// Not a MAC address.
    #[error("{0}, or `file:PATH`")]
    Mac(#[from] MacAddrError),
    /// `file:` with nothing behind it.
    #[error(transparent)]
    File(#[from] SourceError),
}

impl FromStr for MacSource {
    type Err = MacSourceError;

    fn from_str(text: &str) -> Result<Self, MacSourceError> {
        match text.strip_prefix("file:") {
            Some(file) => Ok(Self::File(parse_file(file)?)),
            None => Ok(Self::Mac(text.parse()?)),
        }
    }
}

impl fmt::Display for MacSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::File(ListFile::StandardInput) => f.write_str("file:-"),
            Self::File(ListFile::Path(path)) => write!(f, "file:{}", path.display()),
        }
    }
}

impl TryFrom<String> for MacSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("`{text}`: {error}"))
    }
}

impl From<MacSource> for String {
    fn from(source: MacSource) -> Self {
        source.to_string()
    }
}

/// Reads the MAC addresses that these sources name.
pub fn resolve_macs(
    sources: &[MacSource],
    lists: &Lists,
) -> anyhow::Result<(RangeSet<MacAddr>, Vec<Warning>)> {
    let mut macs = RangeSet::default();
    let mut notices = Vec::new();
    for source in sources {
        let named = match source {
            MacSource::Mac(mac) => Range::single(*mac).into(),
            MacSource::File(file) => {
                let text = lists.read(file).with_context(|| format!("--allow-mac {source}"))?;
                parse_macs(&file.to_string(), &text)?
            }
        };
        if named.is_empty() {
            notices.push(Warning::EmptyList { list: source.to_string() });
        }
        macs = macs.union(&named);
    }
    Ok((macs, notices))
}
