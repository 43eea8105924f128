//! `agent-fw read-sources`: reads what the installed policy is compiled from, for a process that must
//! not wait for a file system which does not answer.

use super::outcome::{Failure, Outcome, Result};
use crate::engine::sources::SourceTexts;
use std::io::Write as _;

/// Prints the texts of the installed policy, for agent-fw itself
#[derive(clap::Args, Debug)]
pub(super) struct ReadSources {}

impl ReadSources {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        let texts = SourceTexts::read_installed().map_err(Failure::Input)?;
        serde_json::to_writer(std::io::stdout().lock(), &texts)?;
        std::io::stdout().flush()?;
        Ok(Outcome::Done)
    }
}
