//! Everything that is done with agent-fw's sources: set-up, build, installation on this
//! host, packages, tests, the demonstration, benchmarks. Each file here is one task, or what several share.

mod apt;
mod architecture;
mod bench;
mod cache;
mod demo;
mod dist;
mod ebpf;
mod install;
mod process;
mod product;
mod setup;
mod static_libraries;
mod test;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use setup::Group;

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "Sets up, builds, installs, tests, shows and measures agent-fw"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Finds what building and testing need, and installs what is missing
    Setup,
    /// Builds the BPF objects, and target/release/agent-fw with the product's in it
    Build,
    /// Builds agent-fw, puts it at /usr/local/bin and runs `agent-fw install ARGS…` on this host
    #[command(disable_help_flag = true)]
    Install {
        /// What `agent-fw install` is given, untouched; `--help` shows what it takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Runs all tests and counts them
    Test(test::Options),
    /// Shows in a throwaway network namespace who reaches the port before and after
    Demo {
        /// This is the run as root that an ordinary user's has started
        #[arg(long, hide = true)]
        again: bool,
    },
    /// Builds packages: .deb, .rpm and a tarball, with their checksums
    Dist(dist::Options),
    /// Measures agent-fw beside `nft -f`, and fails if it takes more than it may
    Bench(bench::Options),
    /// Runs one command and prints what it cost; the benchmark's own means
    #[command(hide = true)]
    Measure {
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => {
            setup::ensure(&[Group::Build, Group::Test, Group::Dist]).map(|()| ExitCode::SUCCESS)
        }
        Task::Build => product::build().map(|_| ExitCode::SUCCESS),
        Task::Install { args } => install::install(&args),
        Task::Test(options) => test::test(&options),
        Task::Demo { again } => demo::demo(again),
        Task::Dist(options) => dist::dist(&options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::bench(&options),
        Task::Measure { command } => bench::measure(&command),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
