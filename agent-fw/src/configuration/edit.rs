//! One thing of a policy changed, and the rest kept: a source that is to be admitted, or not.

use super::Configuration;
use crate::input::options::Mode;
use crate::input::{Item, Source};
use crate::model::AddressRange;
use anyhow::bail;
use std::fmt;

/// What became of the words of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// The source stands in `allow_from` now.
    Added(Source),
    /// It does not any more.
    Removed(Source),
    /// It stands in `except` now.
    Excepted(Source),
    /// It does not any more.
    NotExcepted(Source),
    /// It stood where it was to stand.
    AlreadyAdmitted(Source),
    /// The same.
    AlreadyExcepted(Source),
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(source) => write!(f, "{source} is added to the sources"),
            Self::Removed(source) => write!(f, "{source} is removed from the sources"),
            Self::Excepted(source) => {
                write!(f, "{source} is excepted, whatever else names these addresses")
            }
            Self::NotExcepted(source) => write!(f, "the exception of {source} is removed"),
            Self::AlreadyAdmitted(source) => write!(f, "{source} is among the sources already"),
            Self::AlreadyExcepted(source) => write!(f, "{source} is excepted already"),
        }
    }
}

impl Configuration {
    /// Admits a source: an exception of the same goes; where none of the sources is the same, it
    /// becomes one. Fails where it would not be admitted all the same.
    pub fn allow(&mut self, source: &Source) -> anyhow::Result<Vec<Edit>> {
        if self.direction == Mode::AgentInitiated {
            bail!(
                "in agent-initiated mode the port is closed to every source; `agent-fw set \
                 --direction bidirectional --allow-from {source}` leaves that mode"
            );
        }
        let mut edits = Vec::new();
        if take_out(&mut self.except, source) {
            edits.push(Edit::NotExcepted(source.clone()));
        }
        if let Some(wider) = self.except.iter().find(|excepted| covers(excepted, source)) {
            bail!(
                "{source} is excepted by {wider}; `agent-fw allow {wider}` removes that exception"
            );
        }
        let is_admitted = self.allow_from.iter().any(|known| is_same(known, source));
        let admits_any = self.allow_from.contains(&Source::Any);
        if is_admitted || admits_any {
            // Of a policy that admits everyone, an exception was all that there was to remove.
            edits.extend(edits.is_empty().then(|| Edit::AlreadyAdmitted(source.clone())));
        } else {
            // `any` is the only word that needs no other beside it.
            if *source == Source::Any {
                self.allow_from.clear();
            }
            self.allow_from.push(source.clone());
            edits.push(Edit::Added(source.clone()));
        }
        Ok(edits)
    }

    /// Admits a source no longer: the same among the sources goes; where others may still admit it,
    /// as `is_admitted` tells of what is left, it becomes an exception.
    pub fn deny(
        &mut self,
        source: &Source,
        is_admitted: impl FnOnce(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Vec<Edit>> {
        if self.direction == Mode::AgentInitiated {
            bail!("in agent-initiated mode the port is closed to every source already");
        }
        if self.except.iter().any(|known| is_same(known, source)) {
            return Ok(vec![Edit::AlreadyExcepted(source.clone())]);
        }
        let mut edits = Vec::new();
        if take_out(&mut self.allow_from, source) {
            edits.push(Edit::Removed(source.clone()));
            if self.names_nobody() || self.allow_from.is_empty() && !self.allow_mac.is_empty() {
                bail!(
                    "{source} is the only source: without it, nothing says who may reach the \
                     port. `agent-fw set --direction agent-initiated` closes it to every source"
                );
            }
        }
        if *source == Source::Any {
            if edits.is_empty() {
                bail!(
                    "`any` is none of the sources; `agent-fw set --direction agent-initiated` \
                     closes the port to every source"
                );
            }
            return Ok(edits);
        }
        if edits.is_empty() || is_admitted(self)? {
            self.except.push(source.clone());
            edits.push(Edit::Excepted(source.clone()));
        }
        Ok(edits)
    }
}

/// Takes out all that are the same as this one; whether there was one.
fn take_out(sources: &mut Vec<Source>, source: &Source) -> bool {
    let before = sources.len();
    sources.retain(|known| !is_same(known, source));
    sources.len() < before
}

/// Whether two sources say the same, however they are written.
fn is_same(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::Item { item: a, .. }, Source::Item { item: b, .. }) => a.range == b.range,
        _ => a == b,
    }
}

/// Whether one source has all addresses of the other, as their words alone tell.
fn covers(wide: &Source, narrow: &Source) -> bool {
    match (wide, narrow) {
        (Source::Item { item: wide, .. }, Source::Item { item: narrow, .. }) => has(wide, narrow),
        _ => false,
    }
}

fn has(wide: &Item, narrow: &Item) -> bool {
    match (wide.range, narrow.range) {
        (AddressRange::V4(wide), AddressRange::V4(narrow)) => {
            wide.first() <= narrow.first() && narrow.last() <= wide.last()
        }
        (AddressRange::V6(wide), AddressRange::V6(narrow)) => {
            wide.first() <= narrow.first() && narrow.last() <= wide.last()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().expect("a source")
    }

    fn of(allow_from: &[&str], except: &[&str]) -> Configuration {
        Configuration {
            allow_from: allow_from.iter().map(|text| source(text)).collect(),
            except: except.iter().map(|text| source(text)).collect(),
            ..Configuration::default()
        }
    }

    fn allowed(mut configuration: Configuration, text: &str) -> (Configuration, Vec<Edit>) {
        let edits = configuration.allow(&source(text)).expect("allowed");
        (configuration, edits)
    }

    fn denied(
        mut configuration: Configuration,
        text: &str,
        is_still_admitted: bool,
    ) -> (Configuration, Vec<Edit>) {
        let edits = configuration.deny(&source(text), |_| Ok(is_still_admitted)).expect("denied");
        (configuration, edits)
    }

    #[test]
    fn what_is_allowed_is_added_once() {
        let (once, edits) = allowed(of(&["region:us-1"], &[]), "192.0.2.0/24");
        assert_eq!(once, of(&["region:us-1", "192.0.2.0/24"], &[]));
        assert_eq!(edits, [Edit::Added(source("192.0.2.0/24"))]);
        // However it is written.
        let (twice, edits) = allowed(once.clone(), "192.0.2.0/255.255.255.0");
        assert_eq!(twice, once);
        assert!(matches!(edits[..], [Edit::AlreadyAdmitted(_)]), "{edits:?}");
    }

    #[test]
    fn what_is_denied_goes_or_becomes_an_exception_and_allow_takes_it_back() {
        let start = of(&["region:us-1", "192.0.2.7"], &[]);
        let (gone, edits) = denied(start.clone(), "192.0.2.7", false);
        assert_eq!(gone, of(&["region:us-1"], &[]));
        assert!(matches!(edits[..], [Edit::Removed(_)]), "{edits:?}");
        assert_eq!(allowed(gone, "192.0.2.7").0, start);

        let start = of(&["region:us-1"], &[]);
        let (excepted, edits) = denied(start.clone(), "34.205.5.7", true);
        assert_eq!(excepted, of(&["region:us-1"], &["34.205.5.7"]));
        assert!(matches!(edits[..], [Edit::Excepted(_)]), "{edits:?}");
        let (again, edits) = denied(excepted.clone(), "34.205.5.7", true);
        assert_eq!(
            (again, edits),
            (excepted.clone(), vec![Edit::AlreadyExcepted(source("34.205.5.7"))])
        );
        assert!(matches!(allowed(excepted, "34.205.5.7").1[0], Edit::NotExcepted(_)));

        // An entry of its own, and a region that has it, too: both are met.
        let (both, edits) = denied(of(&["region:us-1", "34.205.5.7"], &[]), "34.205.5.7", true);
        assert_eq!(both, of(&["region:us-1"], &["34.205.5.7"]));
        assert!(matches!(edits[..], [Edit::Removed(_), Edit::Excepted(_)]), "{edits:?}");
    }

    #[test]
    fn nobody_is_left_out_or_let_in_by_half() {
        let refused = |mut configuration: Configuration, text: &str| {
            let error = configuration.deny(&source(text), |_| Ok(false)).expect_err("refused");
            error.to_string()
        };
        assert!(refused(of(&["192.0.2.7"], &[]), "192.0.2.7").contains("the only source"));
        assert!(refused(of(&["192.0.2.7"], &[]), "any").contains("none of the sources"));
        let mut excepted = of(&["region:us-1"], &["34.205.5.0/24"]);
        let error = excepted.allow(&source("34.205.5.7")).expect_err("refused").to_string();
        assert!(error.contains("agent-fw allow 34.205.5.0/24"), "{error}");
        let mut closed = Configuration { direction: Mode::AgentInitiated, ..of(&[], &[]) };
        assert!(closed.allow(&source("192.0.2.7")).is_err());
        assert!(closed.deny(&source("192.0.2.7"), |_| Ok(true)).is_err());
    }
}
