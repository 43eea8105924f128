//! What was changed, when, and by whom: the policies of the last changes, for `undo`.

use super::sources::SourceTexts;
use crate::configuration::change::{Difference, Tense};
use crate::configuration::{Compiled, Configuration};
use crate::model::digest;
use crate::system::file;
use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where it is kept. Root's alone, as policies name files that others may not know of.
const FILE: &str = "/var/lib/agent-fw/history.json";
/// So many policies are kept.
const KEPT: usize = 20;
/// So many differences of one change are named.
const NAMED: usize = 50;

/// A change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, counted from the first change of this host.
    pub number: u64,
    /// When it was made; `None` of what was there before anybody kept count.
    pub at: Option<Timestamp>,
    /// By whom.
    pub by: String,
    /// The command.
    pub command: String,
    /// The hash of the policy of the agent's port.
    pub hash: String,
    /// What it changed, in words.
    pub changes: Vec<String>,
    /// The text of its `policy.toml`.
    pub policy: String,
    /// A digest of each file that it was compiled from.
    files: BTreeMap<PathBuf, String>,
    /// The number of the change to whose policy it went back.
    pub back_to: Option<u64>,
}

impl Entry {
    /// The files that are not as they were when it was made, of those that its policy is compiled
    /// from now.
    pub fn changed_files(&self, now: &SourceTexts) -> Vec<PathBuf> {
        let now = digests(now);
        let is_other = |path: &&PathBuf| self.files.get(*path) != now.get(*path);
        let mut changed: Vec<PathBuf> =
            self.files.keys().chain(now.keys()).filter(is_other).cloned().collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

fn digests(texts: &SourceTexts) -> BTreeMap<PathBuf, String> {
    texts.files().map(|(path, text)| (path.to_owned(), digest(text))).collect()
}

/// A change that was made, in the eyes of whoever made it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Made {
    /// By whom.
    pub by: String,
    /// The command.
    pub command: String,
    /// What it changed, in words.
    pub changes: Vec<String>,
    /// The number of the change to whose policy it goes back.
    pub back_to: Option<u64>,
}

impl Made {
    /// What this command, run by this user, changes.
    pub fn now(command: &str, changes: &[Difference], back_to: Option<u64>) -> Self {
        let mut words: Vec<String> =
            changes.iter().take(NAMED).map(|change| change.in_words(Tense::Was)).collect();
        if changes.len() > NAMED {
            words.push(format!("and {} more", changes.len() - NAMED));
        }
        let changes = words;
        Self { by: crate::system::user::name(), command: command.to_owned(), changes, back_to }
    }
}

/// All changes that are known, the oldest first.
pub fn read() -> anyhow::Result<Vec<Entry>> {
    let Some(text) = file::read_large(Path::new(FILE))? else { return Ok(Vec::new()) };
    serde_json::from_str(&text)
        .with_context(|| format!("{FILE} is damaged; without it, `agent-fw` begins a new one"))
}

/// Writes down a change. `before` is what was installed then.
pub fn note(
    before: Option<(&SourceTexts, &Compiled)>,
    after: (&SourceTexts, &Compiled),
    made: Made,
) -> anyhow::Result<()> {
    // A damaged one is no reason to know nothing of this change, either.
    let mut entries = read().unwrap_or_default();
    let last = entries.last().map(|entry| (entry.number, entry.policy.clone()));
    let mut number = last.as_ref().map_or(0, |(number, _)| *number);
    if let Some((texts, compiled)) = before
        && last.is_none_or(|(_, policy)| policy != texts.policy)
    {
        number += 1;
        entries.push(Entry {
            number,
            at: None,
            by: "unknown".to_owned(),
            command: "policy.toml was there".to_owned(),
            hash: compiled.lowered.policy.hash().to_string(),
            changes: Vec::new(),
            policy: texts.policy.clone(),
            files: digests(texts),
            back_to: None,
        });
    }
    let (texts, compiled) = after;
    let Made { by, command, changes, back_to } = made;
    entries.push(Entry {
        number: number + 1,
        at: Some(Timestamp::now()),
        by,
        command,
        hash: compiled.lowered.policy.hash().to_string(),
        changes,
        policy: texts.policy.clone(),
        files: digests(texts),
        back_to,
    });
    let spare = entries.len().saturating_sub(KEPT);
    entries.drain(..spare);
    file::write_private(Path::new(FILE), &serde_json::to_string(&entries)?)
}

/// Whether a policy that is kept names this list.
pub fn names_list(path: &Path) -> bool {
    read().unwrap_or_default().iter().any(|entry| entry.files.contains_key(path))
}

/// Forgets it.
pub fn remove() -> anyhow::Result<()> {
    file::remove(Path::new(FILE))
}

/// The change to whose policy `undo` goes: the one before the last, but for what was taken back
/// already.
pub fn previous(entries: &[Entry]) -> Option<&Entry> {
    let mut at = entries.len().checked_sub(1)?;
    // A change that went back stands for the one to which it went.
    while let Some(number) = entries[at].back_to {
        at = entries.iter().position(|entry| entry.number == number)?;
    }
    entries[..at].last()
}

/// The configuration of an entry.
pub fn configuration(entry: &Entry) -> anyhow::Result<Configuration> {
    Configuration::parse(&format!("the policy of change {}", entry.number), &entry.policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, back_to: Option<u64>) -> Entry {
        Entry {
            number,
            at: None,
            by: String::new(),
            command: String::new(),
            hash: String::new(),
            changes: Vec::new(),
            policy: String::new(),
            files: BTreeMap::new(),
            back_to,
        }
    }

    #[test]
    fn undo_goes_back_step_by_step() {
        let mut entries = vec![entry(1, None), entry(2, None), entry(3, None)];
        let previous = |entries: &[Entry]| previous(entries).map(|entry| entry.number);
        assert_eq!(previous(&entries), Some(2));
        entries.push(entry(4, Some(2)));
        assert_eq!(previous(&entries), Some(1));
        entries.push(entry(5, Some(1)));
        assert_eq!(previous(&entries), None);
        entries.push(entry(6, None));
        assert_eq!(previous(&entries), Some(5));
        assert_eq!(previous(&[]), None);
    }
}
