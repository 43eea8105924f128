//! What the commands have in common that put another policy in the place of the installed one: they
//! say what it changes, ask where that is to be asked, and do all of it or nothing.

use super::consent::{Consent, Refused, this_command};
use super::outcome::{Failure, Outcome, Result};
use super::units::Units;
use super::{LockWait, exceptions, openness, report};
use crate::configuration::change::{Difference, Tense, differences};
use crate::configuration::{Compiled, Configuration};
use crate::engine::apply::{self, Read};
use crate::engine::change::{Done, NewPolicy, start_taking_back};
use crate::engine::history::Made;
use crate::engine::interfaces;
use crate::engine::judge::{judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::live::LiveSessions;
use crate::engine::opening::Known;
use crate::engine::pending::{self, Pending};
use crate::engine::plan::missing_interfaces;
use crate::engine::shrunk::Shrunk;
use crate::engine::sources::SourceTexts;
use crate::engine::{last_good, policy};
use crate::input::{Lists, Warning};
use crate::model::Port;
use crate::model::firewall::Firewall;
use crate::model::rule::Direction;
use crate::netlink::link;
use crate::nft::Nftables;
use crate::system;
use crate::system::{file, lock, privilege, reader, systemd};
use anyhow::anyhow;
use serde_json::json;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So often a policy is read again that was written while the lock was waited for.
const MOST_READINGS: u32 = 100;

/// How a change is made.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The change")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    consent: Consent,
    /// Print what would change, and change nothing (exit code 1 if anything would)
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: the parts of tables and programs, too
    #[arg(long, requires = "dry_run")]
    verbose: bool,
    /// With --dry-run: print JSON
    #[arg(long, requires = "dry_run", conflicts_with = "verbose")]
    json: bool,
    /// Do not ask before sources are dropped that the installed policy admits
    ///
    /// On a terminal, what would be dropped is shown and asked about; elsewhere it is refused without
    /// this flag (exit code 1).
    #[arg(long)]
    replace: bool,
    /// Take a list that has lost more than half of its entries since the policy was put into force
    #[arg(long)]
    allow_shrink: bool,
    /// Take the change back after so many seconds, unless `agent-fw confirm` comes
    ///
    /// A timer of systemd's does it, which is started first. A reboot takes it back, too.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=86_400), conflicts_with = "dry_run")]
    confirm: Option<u64>,
    /// Do not ask the kernel in the end whether admitted sources get through
    #[arg(long)]
    untested: bool,
    /// Exit with 1 unless every admitted source that is tried gets through
    #[arg(long, conflicts_with_all = ["untested", "dry_run"])]
    require_open: bool,
    /// Where another firewall of this host stops admitted sources, make an exception there
    ///
    /// By that firewall's own program: firewalld, ufw, iptables or nft. What is made is written
    /// down below /var/lib/agent-fw, renewed by `apply`, and taken back by `uninstall`.
    #[arg(long, conflicts_with_all = ["untested", "dry_run", "confirm"])]
    open_host_firewall: bool,
    #[command(flatten)]
    patience: LockWait,
}

/// A policy that somebody proposes.
pub(super) struct Proposal {
    pub(super) configuration: Configuration,
    pub(super) lists: Lists,
    /// Whether it is said in so many words that everyone is admitted.
    pub(super) says_any: bool,
    /// Whether it is the purpose of the command that sources are dropped.
    pub(super) drops_on_purpose: bool,
    /// The number of the change to whose policy it goes back.
    pub(super) back_to: Option<u64>,
    /// What is to be said before anything is done.
    pub(super) remarks: Vec<String>,
}

impl Proposal {
    pub(super) fn new(configuration: Configuration, lists: Lists) -> Self {
        let (says_any, drops_on_purpose, back_to) = (false, false, None);
        let remarks = Vec::new();
        Self { configuration, lists, says_any, drops_on_purpose, back_to, remarks }
    }
}

/// The policy that was installed before, where it could be read.
struct Before {
    texts: SourceTexts,
    known: Known,
}

impl Before {
    fn of(read: &Read) -> Option<Self> {
        let known = read.compile_any().ok().flatten()?;
        Some(Self { texts: read.texts()?.clone(), known })
    }

    fn known(&self) -> (&Configuration, &Compiled) {
        (&self.known.0, &self.known.1)
    }
}

impl ChangeArgs {
    /// What asks for something that cannot be is told before anybody is asked anything.
    pub(super) fn check(&self, command: &str) -> Result<()> {
        privilege::require_net_admin(command)?;
        if self.confirm.is_some() && !systemd::is_running() {
            return Err(Failure::Input(anyhow!(
                "--confirm needs systemd, whose timer takes the change back; this host does not \
                 run it"
            )));
        }
        Ok(())
    }

    /// How long another agent-fw is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.patience.duration()
    }

    /// Whether there is something to ask: it would be done, and nobody has said yes.
    pub(super) fn asks(&self) -> bool {
        !self.dry_run && !self.replace
    }

    /// Makes the change that is proposed for what is installed. It is proposed once more where that is
    /// changed meanwhile.
    pub(super) fn carry_out(
        &self,
        command: &str,
        units: Option<&Units>,
        mut propose: impl FnMut(&Read) -> Result<Proposal>,
    ) -> Result<Outcome> {
        for _ in 0..MOST_READINGS {
            let read = Read::now();
            let proposal = propose(&read)?;
            if let Some(outcome) = self.try_to_carry_out(command, units, &read, proposal)? {
                return Ok(outcome);
            }
        }
        Err(anyhow!("{} is changed all the time", system::POLICY).into())
    }

    /// The same; `None` where what is installed was changed meanwhile.
    fn try_to_carry_out(
        &self,
        command: &str,
        units: Option<&Units>,
        read: &Read,
        proposal: Proposal,
    ) -> Result<Option<Outcome>> {
        let Proposal { mut configuration, lists, says_any, drops_on_purpose, back_to, remarks } =
            proposal;
        name_interfaces(&mut configuration)?;
        check_interfaces(&configuration)?;
        let compiled = policy::compile(&configuration, &lists)?;
        // What is kept for the next boot is read before the lock is taken.
        let texts = SourceTexts::read_for(&configuration, &lists).map_err(Failure::Input)?;
        reader::dismiss();
        let before = Before::of(read);
        // What was said of the installed policy is not said again of a change.
        let known = before.as_ref().map(|before| &before.known.1.notices);
        let is_new = |notice: &&Warning| known.is_none_or(|known| !known.contains(notice));
        compiled.notices.iter().filter(is_new).for_each(report::notice);
        let changes = differences(before.as_ref().map(Before::known), (&configuration, &compiled));
        let mut nftables = Nftables::open()?;
        let boot = units.map(Units::files).transpose()?.flatten();
        for remark in remarks.iter().filter(|_| !self.json) {
            report::remark(remark);
        }
        if self.dry_run {
            let held = KernelState::read(&mut nftables)?;
            let installed = is_installed(&configuration, &lists, boot.as_deref());
            let differing = held.differences(&configuration, &compiled)?;
            let outcome = self.tell_what_would_change(command, &changes, &differing, installed);
            self.consent.check(
                &configuration,
                &compiled,
                before.as_ref().map(|before| &before.known),
            )?;
            return Ok(Some(outcome));
        }
        if before.is_some() && !drops_on_purpose && !self.may_drop(&changes)? {
            report::remark("nothing was changed");
            return Ok(Some(Outcome::False));
        }
        let lock = lock::acquire_for_change(command, self.patience.duration())?;
        if read.is_outdated() {
            return Ok(None);
        }
        if let Some(pending) = pending::current() {
            return Err(Failure::Input(on_trial(&pending)));
        }
        refuse_to_open(before.as_ref(), &configuration, &compiled, says_any)?;
        self.refuse_to_shrink(before.as_ref(), &texts, &configuration)?;
        let live = self.consent.check(
            &configuration,
            &compiled,
            before.as_ref().map(|before| &before.known),
        )?;
        let held = KernelState::read(&mut nftables)?;
        let differing = held.differences(&configuration, &compiled)?;
        let installed = is_installed(&configuration, &lists, boot.as_deref());
        if differing.is_empty() && installed && !held.can_move() {
            if boot.is_some() {
                systemd::enable()?;
            }
            // What a boot falls back on may have been taken away.
            if let Some(note) = apply::keep(&texts, &compiled) {
                report::caution("note:", note);
            }
            drop(lock);
            let started = units.map_or(Ok(()), |units| units.start(boot.is_some()));
            report::remark("no change: the kernel and policy.toml are as they should be");
            let told = self.promises(command, &configuration, &compiled)?;
            return started.map(|()| Some(told));
        }
        keep_sessions(&live, &compiled);
        let made = Made::now(&this_command(&[]), &changes, back_to);
        let has_boot = boot.is_some();
        let policy = NewPolicy { configuration, lists, compiled, texts, boot };
        let done = match self.confirm {
            None => {
                let before = before.as_ref().map(|before| (&before.texts, &before.known.1));
                policy.put_in_force(before, made)?
            }
            Some(seconds) => put_on_trial(&policy, before.is_none(), seconds, made)?,
        };
        let NewPolicy { configuration, compiled, .. } = policy;
        tell(&done);
        report::programs(&configuration, &crate::xdp::attachments()?, None);
        // The unit applies the policy once more, and needs the lock for it.
        drop(lock);
        // A unit that applies a policy at boot has nothing to do with one on trial.
        let units_now = units.filter(|_| self.confirm.is_none());
        let started = units_now.map_or(Ok(()), |units| units.start(has_boot));
        if let (None, Some(_)) = (units, &before) {
            let words: Vec<String> =
                changes.iter().map(|change| change.in_words(Tense::Was)).collect();
            report::changes(&words, false);
        }
        let told = self.promises(command, &configuration, &compiled)?;
        if let Some(seconds) = self.confirm {
            report::caution(
                "on trial:",
                format_args!("`agent-fw confirm` within {seconds} s keeps it,"),
            );
            report::remark("  `agent-fw undo`, a reboot, or the end of that time takes it back");
        }
        started.map(|()| Some(told))
    }

    /// Whether sources may be dropped: none is, or somebody has said so.
    fn may_drop(&self, changes: &[Difference]) -> Result<bool> {
        let drops = changes.iter().any(Difference::drops_a_source);
        if !drops || self.replace {
            return Ok(true);
        }
        let dropped: Vec<String> =
            changes.iter().map(|change| change.in_words(Tense::Would)).collect();
        if !std::io::stdin().is_terminal() {
            let (named, rest) = dropped.split_at(dropped.len().min(report::CHANGES));
            let rest = match rest.len() {
                0 => String::new(),
                count => format!("\nand {count} more"),
            };
            let named = named.join("\n");
            let text = format!("nothing was changed:\n{named}{rest}\nIf that is meant:");
            let command = this_command(&["--replace"]);
            return Err(Failure::Input(Refused { text, command }.into()));
        }
        report::changes(&dropped, false);
        asked("Go on?")
    }

    fn refuse_to_shrink(
        &self,
        before: Option<&Before>,
        texts: &SourceTexts,
        configuration: &Configuration,
    ) -> Result<()> {
        let Some(before) = before.filter(|_| !self.allow_shrink) else { return Ok(()) };
        // What was read when it was put into force, not what is on disk by now.
        let kept = last_good::read().ok().flatten();
        let then = kept.as_ref().unwrap_or(&before.texts);
        let Some(shrunk) = Shrunk::find(then, texts, configuration) else { return Ok(()) };
        let command = this_command(&["--allow-shrink"]);
        Err(Failure::Input(
            Refused { text: format!("nothing was changed: {shrunk}"), command }.into(),
        ))
    }

    fn tell_what_would_change(
        &self,
        command: &str,
        changes: &[Difference],
        differing: &[String],
        installed: bool,
    ) -> Outcome {
        if self.json {
            let words: Vec<String> =
                changes.iter().map(|change| change.in_words(Tense::Would)).collect();
            let would_change = !differing.is_empty() || !installed;
            report::say!(
                "{:#}",
                json!({ "would_change": would_change, "changes": words, "differences": differing })
            );
            return if would_change { Outcome::False } else { Outcome::Done };
        }
        if differing.is_empty() && installed {
            report::remark("the kernel enforces this policy already; nothing would change");
            return Outcome::Done;
        }
        if changes.is_empty() && differing.is_empty() {
            report::remark(
                "the kernel enforces this policy already, but at the next boot it would",
            );
            report::remark(&format!(
                "not be so: {command} would write policy.toml, or what applies it"
            ));
            return Outcome::False;
        }
        if changes.is_empty() {
            report::remark(&format!(
                "the policy is the installed one, which the kernel does not enforce as it should: \
                 {command} would put it right"
            ));
        } else {
            report::remark(&format!("{command} would change:"));
            let words: Vec<String> =
                changes.iter().map(|change| change.in_words(Tense::Would)).collect();
            report::changes(&words, self.verbose);
        }
        if self.verbose {
            report::remark("in tables and programs:");
            report::differences(differing);
        }
        Outcome::False
    }

    /// Both promises, apart: "closed" is enforced, "open" depends on the rest of the host.
    fn promises(
        &self,
        command: &str,
        configuration: &Configuration,
        compiled: &Compiled,
    ) -> Result<Outcome> {
        let _lock = lock::acquire(command, self.patience.duration())?;
        let state = KernelState::outline(&mut Nftables::open()?)?;
        report::promises(compiled, &judge(configuration, compiled, &state, false)?);
        let beyond = judge_beyond(configuration, compiled, &state, false)?;
        report::promises_beyond(configuration, &beyond);
        report::persistence();
        exceptions::refresh(configuration, compiled);
        if self.open_host_firewall {
            exceptions::open(configuration, compiled)?;
        }
        if self.untested {
            report::open_is_not_tested(&compiled.lowered);
            return Ok(Outcome::Done);
        }
        let is_open = openness::test(configuration, compiled);
        Ok(if self.require_open && !is_open { Outcome::False } else { Outcome::Done })
    }
}

/// Puts a policy into force for so long. What takes it back is started first.
fn put_on_trial(policy: &NewPolicy, is_first: bool, seconds: u64, made: Made) -> Result<Done> {
    if is_first {
        report::caution(
            "note:",
            "no policy is installed: when this one is taken back, the port is open again",
        );
    }
    let trial = Duration::from_secs(seconds);
    drop(systemd::end_timer());
    start_taking_back(trial)?;
    policy.put_on_trial(trial, made).inspect_err(|_| drop(systemd::end_timer()))
}

/// That another change waits for somebody to confirm it.
pub(super) fn on_trial(pending: &Pending) -> anyhow::Error {
    anyhow!(
        "a change is on trial, and is taken back in {} s: `agent-fw confirm` keeps it, `agent-fw undo` \
         takes it back at once; nothing was changed",
        pending.left().as_secs()
    )
}

/// Says what there is to say when a policy was put into force.
pub(super) fn tell(done: &Done) {
    done.notes.iter().for_each(|note| report::caution("note:", note));
    if let Some(kept) = &done.kept_edit {
        report::remark(&format!("your edited policy.toml is kept as {}", kept.display()));
    }
}

/// Asks a question on the terminal; the answer is no unless it is yes.
pub(super) fn asked(question: &str) -> Result<bool> {
    let mut output = std::io::stdout();
    write!(output, "{question} [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Where rules let answers pass, the sessions that stand are to be known for what they are. That they
/// cannot be made known is no reason to do without the policy.
fn keep_sessions(live: &LiveSessions, compiled: &Compiled) {
    let directions = [Direction::Incoming, Direction::Outgoing];
    let asks = |firewall: &Firewall| directions.iter().any(|way| firewall.restricts(*way));
    if compiled.firewall.as_ref().is_some_and(asks)
        && let Err(error) = live.keep()
    {
        report::caution("note:", format_args!("sessions that stand may end: {error:#}"));
    }
}

/// Without --interface, the physical ones that are up now. They are kept by name: at boot, when the
/// policy is applied, none may be up yet.
fn name_interfaces(configuration: &mut Configuration) -> Result<()> {
    if configuration.backend.has_programs() && configuration.interfaces.is_empty() {
        let found = interfaces::named(&[])?;
        if found.present.is_empty() {
            return Err(anyhow!("no physical interface is up; name one with --interface").into());
        }
        configuration.interfaces = found.present.into_iter().map(|named| named.name).collect();
    }
    Ok(())
}

/// An interface that is not there may be a slip: the others are named.
fn check_interfaces(configuration: &Configuration) -> Result<()> {
    if !configuration.backend.has_programs() {
        return Ok(());
    }
    let found = interfaces::named(&configuration.interfaces)?;
    if found.missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = link::list()?.into_iter().map(|interface| interface.name).collect();
    Err(Failure::Input(anyhow!(
        "{}; those of this host are {}",
        missing_interfaces(&found.missing),
        names.join(", ")
    )))
}

/// Flags that name nobody are no reason to open a port that is closed: a flag may be forgotten.
fn refuse_to_open(
    before: Option<&Before>,
    configuration: &Configuration,
    compiled: &Compiled,
    says_any: bool,
) -> Result<()> {
    let opens = !configuration.restricts() || compiled.lowered.policy.admits_everyone();
    let installed = policy::installed().ok().flatten().map(|(installed, _)| installed);
    let Some(before) = before.map(|before| &before.known.0).or(installed.as_ref()) else {
        return Ok(());
    };
    if before.restricts() && opens && !says_any {
        return Err(Failure::Input(anyhow!(
            "this would open the port, which the installed policy restricts, to every source; \
             name the sources again, or say --allow-from any if that is meant"
        )));
    }
    if before.restricts_relay() && configuration.relay.is_empty() {
        return Err(Failure::Input(anyhow!(
            "this would open the relay's port {}, which the installed policy restricts, to every \
             source; name --relay again, or say --relay any if that is meant",
            Port::RELAY
        )));
    }
    Ok(())
}

/// Whether the disk has all that the configuration asks for.
fn is_installed(
    configuration: &Configuration,
    lists: &Lists,
    boot: Option<&[(PathBuf, String)]>,
) -> bool {
    let is_there = |path: &Path, text: &str| file::is_as_written(path, text);
    let path = Path::new(system::POLICY);
    let known = policy::installed().ok().flatten();
    let known = known.filter(|(installed, _)| installed == configuration);
    known.is_some_and(|(_, text)| is_there(path, &text))
        && lists.kept().all(|(path, text)| is_there(path, text))
        && boot.unwrap_or_default().iter().all(|(path, text)| is_there(path, text))
}
