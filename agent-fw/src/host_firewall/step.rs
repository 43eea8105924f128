//! One change in another firewall: how it is made, how it is taken back, and whether it is there.

use super::firewalld;
use crate::host_firewall::command::Call;
use crate::trace;
use crate::trace::ChainRef;
use serde::{Deserialize, Serialize};

/// A change that is there or not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What it is, for people.
    pub what: String,
    /// How to tell whether it is there.
    pub(super) presence: Presence,
    /// Its name is agent-fw's own: what is there under that name and was not made by this
    /// installation must not be used.
    pub(super) is_named: bool,
    /// What makes it.
    pub(super) make: Vec<Call>,
    /// What takes it back.
    pub(super) take_back: Vec<Call>,
}

/// How to tell whether something is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Presence {
    /// Exit code 0 says that it is, 1 that it is not.
    Answer(Call),
    /// It is if the output has these words in a row.
    Output(Call, String),
    /// A rule of nf_tables in this chain, with this comment.
    Rule(ChainRef, String),
}

impl Step {
    /// Whether it is there.
    pub(super) fn is_there(&self) -> anyhow::Result<bool> {
        match &self.presence {
            Presence::Answer(call) => call.ask(),
            Presence::Output(call, words) => Ok(has_words(&call.run()?, words)),
            Presence::Rule(chain, comment) => Ok(!trace::commented(chain, comment)?.is_empty()),
        }
    }

    /// Makes it, and looks whether it is there.
    pub(super) fn make(&self) -> anyhow::Result<()> {
        self.make.iter().try_for_each(|call| call.run().map(drop))?;
        anyhow::ensure!(self.is_there()?, "{} is not there, though it was made", self.what);
        Ok(())
    }

    /// Takes it back.
    pub(super) fn take_back(&self) -> anyhow::Result<()> {
        if let Presence::Rule(chain, comment) = &self.presence {
            let place = chain.to_string();
            for handle in trace::commented(chain, comment)? {
                let delete = ["nft", "delete", "rule"].into_iter().chain(place.split(' '));
                Call::new(delete.chain(["handle", &handle.to_string()])).run()?;
            }
        }
        let is_harmful =
            |call: &&Call| **call == firewalld::reload() && firewalld::check_reload().is_err();
        // Without it, a set that no rule names stays until the next one.
        let calls = self.take_back.iter().filter(|call| !is_harmful(call));
        calls.into_iter().try_for_each(|call| call.run().map(drop))
    }

    /// Whether it is made by a reload of firewalld.
    pub(super) fn reloads_firewalld(&self) -> bool {
        self.make.contains(&firewalld::reload())
    }

    /// What to type to make it.
    pub fn typed(&self) -> impl Iterator<Item = String> {
        self.make.iter().map(Call::to_string)
    }
}

fn has_words(text: &str, words: &str) -> bool {
    let words: Vec<&str> = words.split_whitespace().collect();
    text.lines().any(|line| {
        let line: Vec<&str> = line.split_whitespace().collect();
        line.windows(words.len()).any(|window| window == words)
    })
}

#[cfg(test)]
mod tests {
    use super::has_words;

    #[test]
    fn words_are_found_whole_and_in_a_row() {
        let text = "Added:\nufw allow from 192.0.2.1 to any port 4118 proto tcp comment 'x'\n";
        assert!(has_words(text, "allow from 192.0.2.1 to any port 4118 proto tcp"));
        assert!(!has_words(text, "allow from 192.0.2.1 to any port 411"));
        assert!(!has_words(text, "from 192.0.2.1 any"));
    }
}
