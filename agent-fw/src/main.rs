//! The command `agent-fw`.

use agent_fw::cli::{Arguments, run};
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    run(Arguments::parse())
}
