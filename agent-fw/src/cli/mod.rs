//! The command line: one file a subcommand.

mod allow;
mod apply;
mod asking;
mod change;
mod compile;
pub mod completions;
mod confirm;
mod consent;
mod counterexample;
mod doctor;
pub mod examples;
mod exceptions;
mod explain;
mod guard;
mod heartbeat;
mod history;
mod install;
mod metrics;
mod openness;
mod outcome;
mod own_packets;
mod path_report;
mod policy;
mod policy_args;
mod policy_changes;
mod ports;
mod probe_runner;
mod read_files;
mod regions;
mod report;
mod rules;
mod rules_check;
mod rules_report;
mod sample;
mod security_group;
mod set;
mod status;
mod terminal;
mod tls;
mod uninstall;
mod units;
mod verify;
mod version;
mod watch;

use crate::system::reader;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

const HELP_STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Green.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Restricts a security agent's listening port to its manager.
///
/// Trend Micro's agent listens on TCP 4118 and opens that port to every source by a hidden rule.
/// agent-fw admits only the sources that you name, and drops what comes from others, in a table
/// of its own. It cannot make another firewall of this host let a packet through: that an admitted
/// source gets through also depends on that firewall's rules.
#[derive(Parser, Debug)]
#[command(
    name = "agent-fw",
    max_term_width = 80,
    styles = HELP_STYLES,
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    /// Print the version
    #[arg(short = 'V', long, required = true)]
    version: bool,
    /// With --version: print the hash of the XDP program, too
    #[arg(long, requires = "version")]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 done or true, 1 false (kernel and policy differ, or \
                          declined),\n2 wrong use or faulty input, 3 the system failed, 5 not asked (see explain).";

#[derive(Subcommand, Debug)]
enum Command {
    Install(install::Install),
    Allow(allow::Allow),
    Deny(allow::Deny),
    Set(Box<set::Set>),
    Confirm(confirm::Confirm),
    Undo(history::Undo),
    History(history::History),
    Apply(apply::Apply),
    #[command(subcommand)]
    Policy(policy::Policy),
    Uninstall(uninstall::Uninstall),
    Compile(compile::Compile),
    Status(status::Status),
    Verify(verify::Verify),
    Watch(watch::Watch),
    Explain(explain::Explain),
    Doctor(doctor::Doctor),
    Guard(guard::Guard),
    #[command(subcommand)]
    Regions(regions::Regions),
    #[command(subcommand)]
    Rules(rules::Rules),
    Ports(ports::Ports),
    #[command(subcommand)]
    Tls(tls::Tls),
    Metrics(metrics::Metrics),
    Completions(completions::Completions),
    #[command(hide = true)]
    ReadFiles(read_files::ReadFiles),
}

/// Waiting for another agent-fw that is at work.
#[derive(clap::Args, Debug)]
struct LockWait {
    /// Wait so many seconds for another agent-fw that is at work
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
}

impl LockWait {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

/// The command with its subcommands, each with its examples.
pub fn command() -> clap::Command {
    let with_examples = |command: clap::Command, words: &[&str], text: String| match words {
        [name] => command.mut_subcommand(*name, |command| command.after_long_help(text)),
        [group, name] => command.mut_subcommand(*group, |command| {
            command.mut_subcommand(*name, |command| command.after_long_help(text))
        }),
        _ => command,
    };
    examples::EXAMPLES.iter().fold(Arguments::command(), |command, (words, examples)| {
        with_examples(command, words, examples::in_help(examples))
    })
}

/// Where a shell asks for words to complete, gives them and ends the process.
pub fn complete() {
    let command = || completions::with_words(command());
    clap_complete::CompleteEnv::with_factory(command).var(completions::VARIABLE).complete();
}

/// The arguments of this process. Where they are wrong, it ends.
pub fn arguments() -> Arguments {
    let matches = command().get_matches();
    Arguments::from_arg_matches(&matches)
        .unwrap_or_else(|error| error.format(&mut command()).exit())
}

/// Runs the command, says what went wrong, and gives the exit code.
pub fn run(arguments: Arguments) -> ExitCode {
    // Every command that has it calls it so.
    let wants_json = std::env::args_os().skip(1).any(|word| word == "--json");
    let Some(command) = arguments.command else {
        version::print(arguments.verbose);
        return ExitCode::from(if report::is_incomplete() { 3 } else { 0 });
    };
    if !matches!(command, Command::ReadFiles(_)) {
        reader::use_another_process();
    }
    let result = match command {
        Command::Install(install) => install.run(),
        Command::Allow(allow) => allow.run(),
        Command::Deny(deny) => deny.run(),
        Command::Set(set) => set.run(),
        Command::Confirm(confirm) => confirm.run(),
        Command::Undo(undo) => undo.run(),
        Command::History(history) => history.run(),
        Command::Apply(apply) => apply.run(),
        Command::Policy(policy) => policy.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Compile(compile) => compile.run(),
        Command::Status(status) => status.run(),
        Command::Verify(verify) => verify.run(),
        Command::Watch(watch) => watch.run(),
        Command::Explain(explain) => explain.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Guard(guard) => guard.run(),
        Command::Regions(regions) => regions.run(),
        Command::Rules(rules) => rules.run(),
        Command::Ports(ports) => ports.run(),
        Command::Tls(tls) => tls.run(),
        Command::Metrics(metrics) => metrics.run(),
        Command::Completions(completions) => completions.run(),
        Command::ReadFiles(reader) => reader.run(),
    };
    match result {
        Ok(_) if report::is_incomplete() => ExitCode::from(3),
        Ok(outcome) => outcome.exit_code(),
        Err(failure) => {
            report::failure(failure.error());
            if let Some(refused) = failure.error().downcast_ref::<consent::Refused>() {
                report::command(&refused.command);
            }
            if wants_json {
                report::say!("{:#}", outcome::failure_to_json(&failure));
            }
            outcome::failed(&failure)
        }
    }
}
