//! The named counters of a ruleset, and their names.

use super::table::{Count, Counter};
use crate::model::{DefaultAction, LabelIndex, Origin, OriginMap, Policy};

/// The counter of dropped packets.
pub const REFUSED: &str = "refused";
/// The counter of packets that were dropped at `prerouting`.
pub const REFUSED_EARLY: &str = "refused_early";
/// The counter of packets that were left to the host's other rules.
pub const LEFT: &str = "left_to_others";

/// nftables allows 128 bytes of comment, with the zero at its end.
const MAX_COMMENT: usize = 127;
/// Longer than any region's name; with what is added to it, a name in the kernel has at most 255.
const MAX_NAME: usize = 120;

fn counter(name: &str, comment: &str) -> Counter {
    Counter { name: name.to_owned(), comment: comment.to_owned(), count: Count::default() }
}

/// The counter of those that are not admitted; none if everyone is.
pub(super) fn of_others(policy: &Policy) -> Option<Counter> {
    match policy.others() {
        _ if policy.admits_everyone() => None,
        DefaultAction::Drop => Some(counter(REFUSED, "from other sources, dropped")),
        DefaultAction::Continue => Some(counter(LEFT, "from other sources, left to other rules")),
    }
}

/// The counter of those that are dropped at `prerouting`.
pub(super) fn of_early_drops() -> Counter {
    counter(REFUSED_EARLY, "from other sources, dropped before routing")
}

/// The counters of a ledger's labels.
pub(super) struct LabelCounters {
    /// The counters, in the order of the labels.
    pub(super) counters: Vec<Counter>,
    /// For each label, the place of its counter.
    index: Vec<usize>,
}

impl LabelCounters {
    /// Labels that only differ in what a name in nftables cannot hold are told apart by a digest.
    pub(super) fn new(ledger: &OriginMap) -> Self {
        let mut labels = Self { counters: Vec::new(), index: Vec::new() };
        for label in ledger.labels() {
            let mut name = counter_name(label);
            if labels.counters.iter().any(|counter| counter.name == name) {
                name = format!("{name}_{}", &crate::model::digest(&label.to_string())[..8]);
            }
            labels.counters.push(counter(&name, &comment(&label.to_string())));
            labels.index.push(labels.counters.len() - 1);
        }
        labels
    }

    /// The place of a label's counter.
    pub(super) fn place(&self, label: LabelIndex) -> Option<usize> {
        self.index.get(usize::from(label)).copied()
    }
}

/// The name of the counter for a label: letters, digits, `-`, `_` and `.`, beginning with a letter.
pub fn counter_name(label: &Origin) -> String {
    let name = match label {
        Origin::Region(name) => format!("from_region_{name}"),
        Origin::File(path) => {
            format!("from_file_{}", path.to_string_lossy().trim_start_matches('/'))
        }
        Origin::Address => "from_addresses".to_owned(),
        Origin::Any => "from_any".to_owned(),
    };
    identifier(&name)
}

/// A name as nftables takes it; the caller sees to it that it begins with a letter.
pub(crate) fn identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().map(|c| if plain(c) { c } else { '_' }).take(MAX_NAME).collect()
}

/// Whether a character can stand in a comment: no quote, and none that a terminal would obey.
fn is_plain(c: char) -> bool {
    // Marks that change the direction of what follows them.
    let is_mark =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_mark && c != '"' && c != '\\'
}

/// A comment as nftables takes it: without quotes and control characters, not too long.
pub(crate) fn comment(words: &str) -> String {
    let mut comment = String::new();
    for c in words.chars().map(|c| if is_plain(c) { c } else { '?' }) {
        if comment.len() + c.len_utf8() > MAX_COMMENT {
            break;
        }
        comment.push(c);
    }
    comment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_file_name_cannot_break_out_of_a_name_or_a_comment() {
        let label = Origin::File("/tmp/a\"; flush ruleset #\n\u{1b}\\é".into());
        assert_eq!(counter_name(&label), "from_file_tmp_a___flush_ruleset______");
        assert_eq!(comment(&label.to_string()), "file /tmp/a?; flush ruleset #???é");
        assert!(comment(&"踏み台".repeat(50)).len() <= MAX_COMMENT);
        assert_eq!(comment("a\u{202e}b\u{9b}c"), "a?b?c");
        let long = Origin::File("x".repeat(1000).into());
        assert_eq!(counter_name(&long).len(), MAX_NAME);
    }
}
