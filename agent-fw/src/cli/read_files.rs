//! `agent-fw read-files`: reads files for another agent-fw, which must not wait for a file system that
//! does not answer.

use super::outcome::{Outcome, Result};
use crate::system::reader;

/// Reads files, for agent-fw itself
#[derive(clap::Args, Debug)]
pub(super) struct ReadFiles {}

impl ReadFiles {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self) -> Result<Outcome> {
        reader::serve()?;
        Ok(Outcome::Done)
    }
}
