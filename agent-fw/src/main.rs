//! The command `agent-fw`.

use agent_fw::cli::{arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    run(arguments())
}
