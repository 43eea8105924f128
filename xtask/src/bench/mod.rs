//! `cargo xtask bench`: what agent-fw costs beside `nft -f`, held against the bounds that the
//! project has set itself.

mod bound;
mod measure;
mod prefixes;
mod report;
mod subject;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use agent_fw_lab::Lab;

use crate::process::{as_root, exit_code, is_root, status};
use crate::product;
use crate::setup::{self, Group};

pub(crate) use measure::measure;
use report::Machine;

/// What a user can ask of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out what takes a million prefixes
    #[arg(long)]
    quick: bool,
    /// Print JSON, with the figures of every run
    #[arg(long)]
    json: bool,
    /// This is the run as root that an ordinary user's has started
    #[arg(long, hide = true)]
    again: bool,
}

/// Measures, prints, and fails if a bound is not met. Run by an ordinary user it starts itself
/// again as root.
pub(crate) fn bench(options: &Options) -> Result<ExitCode> {
    setup::ensure(&[Group::Test])?;
    let given = std::env::var_os("AGENT_FW").map(Into::into);
    let binary = given.map_or_else(product::build, Ok)?;
    if !is_root() {
        ensure!(!options.again, "sudo did not make this root, without which there is no namespace");
        return start_again(&binary, options);
    }
    let machine = Machine::look()?;
    if !options.json {
        println!("{machine}");
    }
    let comparisons = Lab::run(|_| subject::compare_all(options.quick))?;
    if options.json {
        println!("{:#}", report::json(&machine, &comparisons));
    } else {
        print!("{}", report::table(&comparisons));
    }
    let met = comparisons.iter().all(subject::Comparison::meets_its_bounds);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs this program as root, with the binary that the user has built.
fn start_again(binary: &Path, options: &Options) -> Result<ExitCode> {
    let xtask = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = as_root("env", "a network namespace")?;
    command.arg(format!("AGENT_FW={}", binary.display())).arg(xtask).args(["bench", "--again"]);
    command.args(options.quick.then_some("--quick")).args(options.json.then_some("--json"));
    Ok(exit_code(status(&mut command)?))
}
