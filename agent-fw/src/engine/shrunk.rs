//! Lists that have become much shorter: half of a list, while somebody still writes it, reads like a
//! list that is meant so.

use super::sources::SourceTexts;
use crate::configuration::Configuration;
use crate::input::ListFile;
use std::path::PathBuf;

/// A list has lost more than half of its entries, or all of them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{} has {after} of the {before} entries that it had when the policy was last put into force; if \
     that is meant, say --allow-shrink",
    .list.display()
)]
pub struct Shrunk {
    /// The list.
    list: PathBuf,
    /// How many entries it had.
    before: usize,
    /// How many it has.
    after: usize,
}

impl Shrunk {
    /// The first such list of a configuration, if there is one. Files of rules are no lists.
    pub fn find(
        before: &SourceTexts,
        after: &SourceTexts,
        configuration: &Configuration,
    ) -> Option<Self> {
        let lists = configuration.lists().filter(|list| !configuration.rules.contains(list));
        lists.into_iter().find_map(|list| {
            let ListFile::Path(path) = list else { return None };
            let [before, after] = [before.list(path)?, after.list(path)?].map(entries);
            let list = path.clone();
            (2 * after < before).then_some(Self { list, before, after })
        })
    }
}

/// How many entries a list has.
fn entries(text: &str) -> usize {
    let entry = |line: &&str| !line.split('#').next().unwrap_or_default().trim().is_empty();
    text.lines().filter(entry).count()
}
