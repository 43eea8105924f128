//! `cargo xtask bench`: what agent-fw costs beside `nft -f`, held against the bounds that the
//! project has set itself.

mod bound;
mod measure;
mod report;
mod subject;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use agent_fw_lab::Lab;

use crate::process::{as_root, cargo, exit_code, find, is_root, status};
use crate::product;
use crate::setup::{self, Group};

pub(crate) use measure::measure;
use report::Machine;

/// What a user can ask of the benchmark.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    subject: Option<Subject>,
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

/// What else can be measured.
#[derive(clap::Subcommand)]
enum Subject {
    /// The XDP program: ns a packet beside an empty program and an LPM trie, and loading
    Xdp,
    /// What an unlisted packet costs at the gate, beside one interval set and ipset
    Gate,
}

/// Measures, prints, and fails if a bound is not met. Run by an ordinary user it starts itself
/// again as root.
pub(crate) fn bench(options: &Options) -> Result<ExitCode> {
    match options.subject {
        Some(Subject::Xdp) => {
            return with_objects("agent-fw-ebpf", "lookup", &["--features", "aya"]);
        }
        Some(Subject::Gate) => {
            setup::ensure(&[Group::Bench])?;
            return with_objects("agent-fw-lab", "gate", &[]);
        }
        None => {}
    }
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

/// The packages that load BPF objects have benchmarks of their own: this builds the objects, and runs
/// one of those.
fn with_objects(package: &str, bench: &str, features: &[&str]) -> Result<ExitCode> {
    setup::ensure(&[Group::Test])?;
    let given = std::env::var_os("AGENT_FW").map(Into::into);
    let binary = given.map_or_else(product::build, Ok)?;
    let machine = Machine::look()?;
    println!("{machine}");
    let mut cargo = cargo();
    cargo.env("AGENT_FW", binary);
    cargo.args(["bench", "--package", package, "--bench", bench]).args(features);
    if !is_root() {
        let sudo = find("sudo").context("loading BPF programs needs root, and there is no sudo")?;
        eprintln!("xtask: loading BPF programs needs root: using sudo for it");
        let runner = format!("target.'cfg(unix)'.runner=['{}']", sudo.display());
        cargo.args(["--config", &runner]);
    }
    Ok(exit_code(status(&mut cargo)?))
}

/// Runs this program as root, with the binary that the user has built.
fn start_again(binary: &Path, options: &Options) -> Result<ExitCode> {
    let xtask = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = as_root("env", "a network namespace")?;
    command.arg(format!("AGENT_FW={}", binary.display())).arg(xtask).args(["bench", "--again"]);
    command.args(options.quick.then_some("--quick")).args(options.json.then_some("--json"));
    Ok(exit_code(status(&mut command)?))
}
