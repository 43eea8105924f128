//! `agent-fw policy`: the installed policy.toml, shown and edited.

use super::apply::{note_change, tell};
use super::change::{asked, on_trial};
use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use super::{LockWait, exceptions};
use crate::configuration::Configuration;
use crate::configuration::change::{Tense, differences};
use crate::engine::apply::{self, ApplyConsent, Read};
use crate::engine::{last_good, pending, policy};
use crate::input::Lists;
use crate::system;
use crate::system::{file, lock, privilege, reader};
use anyhow::{Context as _, anyhow};
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::Command;

/// Editors that are tried where neither VISUAL nor EDITOR names one.
const EDITORS: [&str; 3] = ["/usr/bin/editor", "/usr/bin/vi", "/usr/bin/nano"];

/// Shows or edits the installed policy
#[derive(clap::Subcommand, Debug)]
pub(super) enum Policy {
    Show(Show),
    Edit(Edit),
}

/// Prints /etc/agent-fw/policy.toml
#[derive(clap::Args, Debug)]
pub(super) struct Show {}

/// Edits /etc/agent-fw/policy.toml in an editor, and puts it into force
///
/// The editor is that of VISUAL or EDITOR, and has a copy. A faulty text is not taken over: it can be
/// edited again. What it changes is shown, and asked about, before it is put into force.
#[derive(clap::Args, Debug)]
pub(super) struct Edit {
    #[command(flatten)]
    patience: LockWait,
}

impl Policy {
    pub(super) fn run(self) -> Result<Outcome> {
        match self {
            Self::Show(Show {}) => show(),
            Self::Edit(edit) => edit.run(),
        }
    }
}

fn installed() -> Result<String> {
    let text = file::read_trusted(Path::new(system::POLICY), file::Trust::Anybody);
    reader::dismiss();
    text?.ok_or_else(|| {
        Failure::Input(anyhow!("there is no {}; `agent-fw install` writes it", system::POLICY))
    })
}

fn show() -> Result<Outcome> {
    say!("{}", installed()?.trim_end());
    Ok(Outcome::Done)
}

/// What somebody wants to do with a faulty text.
enum Answer {
    EditAgain,
    GiveUp,
}

impl Edit {
    fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("policy edit")?;
        let before = installed()?;
        let copy = Path::new(system::EDITED_POLICY);
        if copy.symlink_metadata().is_ok() {
            return Err(Failure::Input(anyhow!(
                "somebody edits the policy already, or an edit was broken off: in that case, remove {}",
                copy.display()
            )));
        }
        file::write_private(copy, &before)?;
        let outcome = self.edit(copy, &before);
        // A text that was not taken over is not worth keeping.
        file::remove(copy)?;
        outcome
    }

    fn edit(&self, copy: &Path, before: &str) -> Result<Outcome> {
        loop {
            open_editor(copy)?;
            let text = file::read(copy)?.unwrap_or_default();
            if text == before {
                report::remark("no change");
                return Ok(Outcome::Done);
            }
            match check(&text) {
                Ok(()) if asked("Put this into force?")? => {
                    return self.put_in_force(&text, before);
                }
                Ok(()) => {}
                Err(failure) => report::failure(failure.error()),
            }
            if matches!(what_now()?, Answer::GiveUp) {
                report::remark("nothing was changed");
                return Ok(Outcome::False);
            }
        }
    }

    fn put_in_force(&self, text: &str, before: &str) -> Result<Outcome> {
        let path = Path::new(system::POLICY);
        let _lock = lock::acquire_for_change("policy edit", self.patience.duration())?;
        if let Some(pending) = pending::current() {
            return Err(Failure::Input(on_trial(&pending)));
        }
        if file::read(path)?.as_deref() != Some(before) {
            let changed = anyhow!("{} was changed meanwhile; nothing was done", system::POLICY);
            return Err(Failure::Input(changed));
        }
        let known = last_good::read().ok().flatten();
        let known = known.and_then(|texts| Some((texts.compile(system::POLICY).ok()?, texts)));
        file::write(path, text)?;
        let read = Read::now();
        // Somebody has seen what it changes, and has said yes.
        let consent = ApplyConsent { opening: true, shrinking: true };
        match apply::apply(&read, consent) {
            Ok(applied) => {
                tell(&applied);
                note_change(&read, known.as_ref(), &applied);
                exceptions::refresh(&applied.configuration, &applied.compiled);
                Ok(Outcome::Done)
            }
            Err(failure) => {
                file::write(path, before)?;
                Err(failure)
            }
        }
    }
}

/// Compiles the text, and says what it would change.
fn check(text: &str) -> Result<()> {
    let configuration = Configuration::parse("policy.toml", text).map_err(Failure::Input)?;
    let lists = Lists::trusting(configuration.trust());
    let compiled = policy::compile(&configuration, &lists)?;
    compiled.notices.iter().for_each(report::notice);
    let before = policy::compiled().ok().flatten();
    let before = before.as_ref().map(|(words, compiled)| (words, compiled));
    let changes = differences(before, (&configuration, &compiled));
    if changes.is_empty() {
        report::remark("no packet would be decided otherwise");
        return Ok(());
    }
    report::remark("this would change:");
    let words: Vec<String> = changes.iter().map(|change| change.in_words(Tense::Would)).collect();
    report::changes(&words, true);
    Ok(())
}

fn what_now() -> Result<Answer> {
    if !std::io::stdin().is_terminal() {
        return Ok(Answer::GiveUp);
    }
    Ok(if asked("Edit it again?")? { Answer::EditAgain } else { Answer::GiveUp })
}

fn open_editor(copy: &Path) -> Result<()> {
    let named = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
    let known = || EDITORS.into_iter().find(|path| Path::new(path).exists()).map(str::to_owned);
    let editor = named.filter(|editor| !editor.trim().is_empty()).or_else(known);
    let editor = editor.context("there is no editor; the variable EDITOR names one")?;
    let mut words = editor.split_whitespace();
    let program = words.next().context("EDITOR is empty")?;
    let ended = Command::new(program).args(words).arg(copy).status();
    let ended = ended.with_context(|| format!("cannot start the editor {program}"))?;
    if ended.success() {
        Ok(())
    } else {
        Err(anyhow!("the editor {program} failed: {ended}").into())
    }
}
