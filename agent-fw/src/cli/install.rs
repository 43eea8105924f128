//! `agent-fw install`: from words to an enforced policy, all of it or nothing.

use super::consent::{self, Consent};
use super::outcome::{Failure, Outcome, Result};
use super::policy_args::{PolicyArgs, compile};
use super::units::Units;
use super::{LockWait, exceptions, openness, report};
use crate::configuration::{Compiled, Configuration, is_edited};
use crate::engine::apply;
use crate::engine::enforce::{EnforceError, enforce};
use crate::engine::host::ThisHost;
use crate::engine::interfaces::{self, Found};
use crate::engine::judge::{judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::live::LiveSessions;
use crate::engine::plan::{Missing, plan};
use crate::engine::policy::installed;
use crate::engine::sources::SourceTexts;
use crate::input::Lists;
use crate::model::Port;
use crate::model::firewall::Firewall;
use crate::model::rule::Direction;
use crate::nft::Nftables;
use crate::system::{file, lock, privilege, reader, systemd};
use crate::{system, xdp};
use anyhow::anyhow;
use std::path::{Path, PathBuf};

/// Enforces a policy now and keeps it for the next boot
///
/// Writes /etc/agent-fw/policy.toml, and exchanges the rules of agent-fw's tables, or the XDP
/// program of each interface, at one instant. If a step fails, those before it are undone, and the
/// previous policy remains in force.
#[derive(clap::Args, Debug)]
pub(super) struct Install {
    #[command(flatten)]
    words: PolicyArgs,
    #[command(flatten)]
    consent: Consent,
    /// Print what would change, and change nothing (exit code 1 if anything would)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    units: Units,
    /// Do not ask the kernel in the end whether admitted sources get through
    #[arg(long)]
    untested: bool,
    /// Where another firewall of this host stops admitted sources, make an exception there
    ///
    /// By that firewall's own program: firewalld, ufw, iptables or nft. What is made is written
    /// down below /var/lib/agent-fw, renewed by `apply`, and taken back by `uninstall`.
    #[arg(long, conflicts_with_all = ["untested", "dry_run"])]
    open_host_firewall: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Install {
    pub(super) fn run(self) -> Result<Outcome> {
        let mut words = self.words;
        // What contradicts itself is told before anybody is asked anything.
        words.clone().configuration()?;
        self.units.check()?;
        let test = match (self.untested, self.open_host_firewall) {
            (true, _) => Test::None,
            (false, false) => Test::Told,
            (false, true) => Test::Opening,
        };
        privilege::require_net_admin("install")?;
        words.ask_for_sources()?;
        // By a flag, or in the answer.
        let meant = words.say_any();
        let required = words.require_sources();
        let mut configuration = words.configuration()?;
        let lists = configuration.keep_lists().map_err(Failure::Input)?;
        name_interfaces(&mut configuration)?;
        let compiled = compile(&configuration, &lists)?;
        required?;
        // What is kept for the next boot is read before the lock is taken.
        let texts = SourceTexts::read_for(&configuration, &lists).map_err(Failure::Input)?;
        let before = consent::installed(&configuration);
        reader::dismiss();
        let mut nftables = Nftables::open()?;
        if self.dry_run {
            let held = KernelState::read(&mut nftables)?;
            let boot = self.units.files()?;
            let installed = is_installed(&configuration, &lists, boot.as_deref());
            let outcome = dry_run(&held.differences(&configuration, &compiled)?, installed);
            self.consent.check(&configuration, &compiled, before)?;
            return Ok(outcome);
        }
        let lock = lock::acquire_for_change("install", self.patience.duration())?;
        refuse_to_open(&configuration, &compiled, meant)?;
        let live = self.consent.check(&configuration, &compiled, before)?;
        let held = KernelState::read(&mut nftables)?;
        let boot = self.units.files()?;
        let differing = held.differences(&configuration, &compiled)?;
        let installed = is_installed(&configuration, &lists, boot.as_deref());
        if differing.is_empty() && installed && !held.can_move() {
            if boot.is_some() {
                systemd::enable()?;
            }
            // It may have been taken away.
            if let Some(note) = apply::keep(&texts, &compiled) {
                report::caution("note:", note);
            }
            drop(lock);
            let started = if boot.is_some() { self.units.start(true) } else { Ok(()) };
            report::remark("no change: the kernel and policy.toml are as they should be");
            let told = promises(&configuration, &compiled, test, &self.patience)?;
            return started.map(|()| told);
        }
        keep_sessions(&live, &compiled);
        let kept_edit = take_steps(&configuration, &lists, &compiled, boot.as_deref())?;
        remove_stale_lists(&configuration);
        let awaiting = apply::await_interfaces(&configuration);
        let notes = awaiting.into_iter().chain(apply::keep(&texts, &compiled));
        notes.for_each(|note| report::caution("note:", note));
        if let Some(kept) = kept_edit {
            report::remark(&format!("your edited policy.toml is kept as {}", kept.display()));
        }
        report::programs(&configuration, &xdp::attachments()?, None);
        // The unit applies the policy once more, and needs the lock for it.
        drop(lock);
        let started = self.units.start(boot.is_some());
        let told = promises(&configuration, &compiled, test, &self.patience)?;
        started.map(|()| told)
    }
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

/// Takes all steps, or none; where an edited policy.toml is kept.
fn take_steps(
    configuration: &Configuration,
    lists: &Lists,
    compiled: &Compiled,
    boot: Option<&[(PathBuf, String)]>,
) -> Result<Option<PathBuf>> {
    let found = if configuration.backend.has_programs() {
        interfaces::named(&configuration.interfaces)?
    } else {
        Found::default()
    };
    let mut plan = plan(configuration, compiled, &found, Missing::Refused)?;
    plan.files = lists.kept().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    let edited = file::read_trusted(Path::new(system::POLICY), file::Trust::Anybody)?;
    let edited = edited.filter(|text| is_edited(text));
    let kept_edit = edited.map(|text| (system::free_name_for_replaced_policy(), text));
    plan.files.extend(kept_edit.clone());
    plan.files.extend(boot.unwrap_or_default().iter().cloned());
    plan.policy = Some(configuration.to_toml());
    plan.enable_boot_unit = boot.is_some();
    plan.read_back = true;
    enforce(&mut ThisHost::open()?, &plan).map_err(|error| match error {
        EnforceError::Refused(cause) | EnforceError::TakenBack(cause) => {
            cause.context("not installed; the previous policy remains in force")
        }
        EnforceError::NotTakenBack(cause, failed) => {
            let failed = failed.join("\n");
            cause.context(format!("not installed, and not all of it could be undone:\n{failed}"))
        }
        EnforceError::NotRemoved(cause) => {
            cause.context("installed, but what was there before could not be removed")
        }
    })?;
    if let Err(error) = interfaces::remember(&found) {
        report::caution("note:", format_args!("interfaces are known by name only: {error:#}"));
    }
    Ok(kept_edit.map(|(path, _)| path))
}

/// What is done about the promise "open".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Test {
    None,
    /// It is tried, and said what stands in the way.
    Told,
    /// What stands in the way is opened.
    Opening,
}

/// Both promises, apart: "closed" is enforced, "open" depends on the rest of the host.
fn promises(
    configuration: &Configuration,
    compiled: &Compiled,
    test: Test,
    patience: &LockWait,
) -> Result<Outcome> {
    let _lock = lock::acquire("install", patience.duration())?;
    let state = KernelState::outline(&mut Nftables::open()?)?;
    report::promises(compiled, &judge(configuration, compiled, &state, false)?);
    let beyond = judge_beyond(configuration, compiled, &state, false)?;
    report::promises_beyond(configuration, &beyond);
    report::persistence();
    exceptions::refresh(configuration, compiled);
    if test == Test::Opening {
        exceptions::open(configuration, compiled)?;
    }
    if test == Test::None {
        report::open_is_not_tested(&compiled.lowered);
    } else {
        openness::test(configuration, compiled);
    }
    Ok(Outcome::Done)
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

fn dry_run(differing: &[String], installed: bool) -> Outcome {
    if differing.is_empty() && installed {
        report::remark("the kernel enforces this policy already; nothing would change");
        return Outcome::Done;
    }
    if differing.is_empty() {
        report::remark("the kernel enforces this policy already, but at the next boot it would");
        report::remark("not be so: install would write policy.toml, or what applies it");
        return Outcome::False;
    }
    report::remark("the kernel differs from this policy; install would change:");
    report::differences(differing);
    Outcome::False
}

/// Flags that name nobody are no reason to open a port that is closed: a flag may be forgotten.
fn refuse_to_open(configuration: &Configuration, compiled: &Compiled, meant: bool) -> Result<()> {
    let Some((before, _)) = installed().ok().flatten() else { return Ok(()) };
    let opens = !configuration.restricts() || compiled.lowered.policy.admits_everyone();
    if before.restricts() && opens && !meant {
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
    let policy = Path::new(system::POLICY);
    let known = installed().ok().flatten().filter(|(installed, _)| installed == configuration);
    known.is_some_and(|(_, text)| is_there(policy, &text))
        && lists.kept().all(|(path, text)| is_there(path, text))
        && boot.unwrap_or_default().iter().all(|(path, text)| is_there(path, text))
}

/// Removes kept lists that the installed policy does not name. What fails here harms nothing.
fn remove_stale_lists(configuration: &Configuration) {
    for path in system::kept_lists() {
        if !configuration.names_list(&path) {
            drop(file::remove(&path));
        }
    }
    // Succeeds only if nothing is left in it.
    drop(std::fs::remove_dir(system::LISTS));
}
