//! The results of test binaries, read off what they print, and added up.

use std::fmt;

/// How many tests did what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    /// Which were skipped, with their reasons where they gave one.
    pub(super) reasons: Vec<String>,
    /// What the failed ones said.
    pub(super) failures: Vec<String>,
}

/// Where in a test binary's output a reader is: it tells its failures one after another, twice by
/// name, before the result.
#[derive(Debug, Default)]
pub(super) struct Failures {
    is_told: bool,
}

impl Count {
    /// Takes in one line of a test binary's output.
    pub(super) fn read(&mut self, line: &str, failures: &mut Failures) {
        failures.is_told |= line == "failures:";
        failures.is_told &= !line.starts_with("test result: ");
        if failures.is_told {
            self.failures.push(line.to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            // "ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in …"
            self.passed += number_before(result, "passed");
            self.failed += number_before(result, "failed");
            self.skipped += number_before(result, "ignored");
        } else if let Some((name, reason)) = ignored(line) {
            self.reasons.push(format!("{name}{reason}"));
        }
    }

    pub(super) fn skip(&mut self, reason: String) {
        self.skipped += 1;
        self.reasons.push(reason);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The number that stands before a word; 0 if the word is not there.
fn number_before(text: &str, word: &str) -> usize {
    let words: Vec<_> = text.split([' ', ';', '.']).filter(|part| !part.is_empty()).collect();
    let pair = words.windows(2).find(|pair| pair[1] == word);
    pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// The name of a test that was skipped, and what follows: `test NAME ... ignored, REASON`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, reason) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name.trim_end(), reason))
}

#[cfg(test)]
mod tests {
    use super::{Count, Failures};

    #[test]
    fn the_results_of_several_binaries_add_up() {
        let (mut count, mut failures) = (Count::default(), Failures::default());
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test b ... ignored, needs a kernel with XDP",
            "test c ... FAILED",
            "failures:",
            "---- c ----",
            "it is so",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test d     ... ignored",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "say: test result: ok. 99 passed",
        ] {
            count.read(line, &mut failures);
        }
        assert_eq!(count.to_string(), "13 passed, 1 failed, 2 skipped");
        assert_eq!(count.reasons, ["b, needs a kernel with XDP", "d"]);
        assert_eq!(count.failures, ["failures:", "---- c ----", "it is so"]);
    }
}
