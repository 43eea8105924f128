//! The command `agent-fw`.

use agent_fw::cli::{arguments, complete, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    complete();
    run(arguments())
}
