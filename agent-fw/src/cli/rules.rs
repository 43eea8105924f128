//! `agent-fw rules`: what rules in the vendor's vocabulary mean.

use super::outcome::{Outcome, Result};
use super::report::say;
use super::rules_check::Check;
use crate::input::rule_file::{SchemaForm, rule_file_schema};

/// Reads firewall rules in the vendor's vocabulary
#[derive(clap::Subcommand, Debug)]
pub(super) enum Rules {
    Check(Check),
    Schema(Schema),
}

/// Prints a JSON Schema of rule files, for editors and validators
///
/// It knows every field and every word. Whether a rule names the value that its form asks for, and
/// what addresses are, `rules check` tells.
#[derive(clap::Args, Debug)]
pub(super) struct Schema {
    /// The form of the files
    #[arg(long, value_enum, default_value_t = SchemaForm::Json)]
    format: SchemaForm,
}

impl Rules {
    pub(super) fn run(self) -> Result<Outcome> {
        match self {
            Self::Check(check) => check.run(),
            Self::Schema(Schema { format }) => {
                say!("{:#}", rule_file_schema(format));
                Ok(Outcome::Done)
            }
        }
    }
}
