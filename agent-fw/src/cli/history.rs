//! `agent-fw history` and `agent-fw undo`: what was changed, and the way back.

use super::change::{self, ChangeArgs, Proposal};
use super::confirm;
use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use crate::configuration::Configuration;
use crate::configuration::change::{Tense, differences};
use crate::engine::apply::Read;
use crate::engine::history::{self, Entry};
use crate::engine::sources::SourceTexts;
use crate::engine::{pending, policy};
use crate::input::Lists;
use crate::system::privilege;
use anyhow::anyhow;
use serde_json::{Value, json};
use std::io::IsTerminal as _;

/// Shows who changed the policy, when, and how
///
/// The last twenty policies are kept; `agent-fw undo --to NUMBER` goes back to one of them. Changes of
/// policy.toml by hand are known from the `agent-fw apply` on.
#[derive(clap::Args, Debug)]
pub(super) struct History {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Goes back to the policy before the last change
///
/// Once more, it goes one change further back. A change that is on trial (--confirm) is taken back at
/// once. Where a list or a region has changed since, the difference is shown, and asked about. Before
/// the first policy there was none: `agent-fw uninstall` goes back to that.
#[derive(clap::Args, Debug)]
pub(super) struct Undo {
    /// Go back to the policy of this change, as `agent-fw history` numbers them
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl History {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("history")?;
        let entries = history::read()?;
        if self.json {
            say!("{:#}", entries.iter().map(to_json).collect::<Value>());
            return Ok(Outcome::Done);
        }
        if entries.is_empty() {
            report::remark("nothing was changed yet");
        }
        for entry in entries.iter().rev() {
            print(entry);
        }
        if let Some(pending) = pending::current() {
            report::caution("on trial:", format_args!("for {} s more", pending.left().as_secs()));
            report::differences(&pending.made.changes);
        }
        Ok(Outcome::Done)
    }
}

/// When a change was made, to the second.
fn time(entry: &Entry) -> String {
    let at = entry.at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
    at.unwrap_or_else(|| "before".to_owned())
}

fn print(entry: &Entry) {
    let Entry { number, by, command, hash, changes, .. } = entry;
    say!("{number:>3}  {}  {by}  policy {hash}", time(entry));
    say!("{}", report::wrapped("     ", "       ", command));
    for change in changes {
        say!("{}", report::wrapped("     - ", "       ", change));
    }
}

fn to_json(entry: &Entry) -> Value {
    let Entry { number, at, by, command, hash, changes, back_to, policy, .. } = entry;
    json!({
        "number": number,
        "at": at.map(|at| at.to_string()),
        "by": by,
        "command": command,
        "policy": hash,
        "changes": changes,
        "back_to": back_to,
        "policy_toml": policy,
    })
}

impl Undo {
    pub(super) fn run(self) -> Result<Outcome> {
        let Self { to, change } = self;
        change.check("undo")?;
        if to.is_none() && pending::current().is_some() {
            return confirm::take_back(change.patience());
        }
        let entries = history::read()?;
        let target = match to {
            Some(number) => {
                entries.iter().find(|entry| entry.number == number).ok_or_else(|| {
                    Failure::Input(anyhow!(
                        "there is no change {number}; `agent-fw history` shows those that are kept"
                    ))
                })?
            }
            None => history::previous(&entries).ok_or_else(|| {
                Failure::Input(anyhow!(
                    "there is no policy to go back to: before the first change that is known there \
                     was none, as after `agent-fw uninstall`"
                ))
            })?,
        };
        change.carry_out("undo", None, |read| proposal(read, target, &change))
    }
}

/// The policy of this change, as it compiles today.
fn proposal(read: &Read, target: &Entry, change: &ChangeArgs) -> Result<Proposal> {
    let known = history::configuration(target).map_err(Failure::Input)?;
    let mut configuration = Configuration { is_legacy: false, lacks_end: false, ..known };
    let lists = configuration.keep_lists().map_err(Failure::Input)?;
    let texts = SourceTexts::read_for(&configuration, &lists).map_err(Failure::Input)?;
    let changed = target.changed_files(&texts);
    let mut remarks = vec![format!("back to the policy of change {}", target.number)];
    remarks.extend(changed.iter().map(|path| {
        format!("note: {} is not as it was at change {}", path.display(), target.number)
    }));
    let asks = !changed.is_empty() && change.asks();
    if asks && std::io::stdin().is_terminal() {
        show(read, &configuration, &lists)?;
        if !change::asked("Go on?")? {
            return Err(Failure::Input(anyhow!("nothing was changed")));
        }
    }
    let says_any = !configuration.restricts();
    Ok(Proposal {
        says_any,
        // What is not as it was then may drop others than those that the change had admitted.
        drops_on_purpose: changed.is_empty() || asks && std::io::stdin().is_terminal(),
        back_to: Some(target.number),
        remarks,
        ..Proposal::new(configuration, lists)
    })
}

/// Shows what a policy would change.
fn show(read: &Read, configuration: &Configuration, lists: &Lists) -> Result<()> {
    let compiled = policy::compile(configuration, lists)?;
    let before = read.compile_any().ok().flatten();
    let before = before.as_ref().map(|(words, compiled)| (words, compiled));
    let changes = differences(before, (configuration, &compiled));
    let words: Vec<String> = changes.iter().map(|change| change.in_words(Tense::Would)).collect();
    report::changes(&words, false);
    Ok(())
}
