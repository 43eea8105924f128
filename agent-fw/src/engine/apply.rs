//! The installed policy is enforced: by command, at boot, and by the guard.

use super::closing::{close, or_without_counters};
use super::enforce::{EnforceError, enforce};
use super::failure::{Failure, Result};
use super::host::{Host as _, ThisHost};
use super::interfaces::{self, Found};
use super::last_good;
use super::opening::{Known, Opening, openings};
use super::plan::{Missing, interfaces_of, plan};
use super::shrunk::Shrunk;
use super::sources::SourceTexts;
use super::{pending, policy};
use crate::configuration::{Compiled, Configuration};
use crate::input::options::Backend;
use crate::model::{PolicyHash, Port};
use crate::system;
use crate::system::file::Trust;
use crate::system::lock::Lock;
use crate::system::{awaited_interfaces, file, lock, reader};
use anyhow::anyhow;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// So often a policy is read again that was written while the lock was waited for.
const MOST_READINGS: u32 = 5;
/// So often interfaces that come and go meanwhile are looked for again; the last of them is left to
/// udev, and to the guard.
const MOST_ROUNDS: u32 = 5;

/// A policy that is in force now.
#[derive(Debug)]
pub struct Applied {
    /// The policy, in the user's words.
    pub configuration: Configuration,
    /// The policy, compiled.
    pub compiled: Compiled,
    /// Interfaces that are missing, for which the table stands in.
    pub missing: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What was done at boot.
#[derive(Debug)]
pub enum AtBoot {
    /// No policy was ever installed.
    NothingInstalled,
    /// The policy is in force.
    Applied(Box<Applied>),
    /// The tables enforce the policy; without the lock, nothing else was changed.
    ByTablesAlone(Box<Applied>),
    /// It could not be enforced, and something else is in force.
    FellBack(Failure, Substitute),
}

/// What is enforced where the policy cannot be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Substitute {
    /// The table, instead of programs.
    Table(PolicyHash),
    /// The last policy that was in force.
    LastGood(PolicyHash),
    /// Ports are closed to every source.
    Closed(Vec<Port>),
}

impl fmt::Display for Substitute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(hash) => {
                write!(f, "the nftables table enforces policy {hash} instead of the XDP programs")
            }
            Self::LastGood(hash) => write!(f, "the last good policy {hash} is in force"),
            Self::Closed(ports) => {
                let numbers: Vec<String> = ports.iter().map(ToString::to_string).collect();
                let [s, are] = if ports.len() == 1 { ["", "is"] } else { ["s", "are"] };
                write!(f, "TCP port{s} {} {are} closed to every source", numbers.join(" and "))
            }
        }
    }
}

/// What somebody consents to who has the installed policy applied.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ApplyConsent {
    /// It may open what the last good policy restricts.
    pub opening: bool,
    /// A list may have lost most of its entries.
    pub shrinking: bool,
}

/// Enforces the policy that was read. The caller has the lock. What nobody has consented to is
/// refused.
pub fn apply(read: &Read, consent: ApplyConsent) -> Result<Applied> {
    let known = checked(read, consent)?;
    let mut applied = enforce_policy(known, Missing::Refused)?;
    applied.notes.extend(read.keep(&applied.compiled));
    Ok(applied)
}

/// The installed policy as it is read: nobody waits for a file system that does not answer, and nobody
/// holds the lock meanwhile.
pub struct Read {
    texts: anyhow::Result<Option<SourceTexts>>,
    /// Whether it is a policy on trial: somebody has consented to what it changes.
    is_on_trial: bool,
}

impl Read {
    /// Reads it, or what is on trial in its place.
    pub fn now() -> Self {
        if let Some(pending) = pending::current() {
            return Self { texts: Ok(Some(pending.texts)), is_on_trial: true };
        }
        let texts = SourceTexts::read_installed();
        reader::dismiss();
        Self { texts, is_on_trial: false }
    }

    /// What it is compiled from, if it could be read.
    pub fn texts(&self) -> Option<&SourceTexts> {
        self.texts.as_ref().ok()?.as_ref()
    }

    /// Whether it is a policy on trial.
    pub fn is_on_trial(&self) -> bool {
        self.is_on_trial
    }

    /// A list that has lost more than half of its entries may be half a list.
    fn refuse_to_shrink(&self, configuration: &Configuration) -> Result<()> {
        let Some((before, after)) = last_good::read().ok().flatten().zip(self.texts()) else {
            return Ok(());
        };
        match Shrunk::find(&before, after, configuration) {
            Some(shrunk) => Err(Failure::Input(shrunk.into())),
            None => Ok(()),
        }
    }

    /// Takes the lock for a command, and reads again what was written while it was waited for.
    pub fn with_lock(command: &str, patience: Duration) -> Result<(Self, Lock)> {
        Self::with(patience, |patience| lock::acquire(command, patience))
    }

    /// The same for a command that changes something.
    pub fn with_lock_for_change(command: &str, patience: Duration) -> Result<(Self, Lock)> {
        Self::with(patience, |patience| lock::acquire_for_change(command, patience))
    }

    fn with(
        patience: Duration,
        lock: impl Fn(Duration) -> anyhow::Result<Lock>,
    ) -> Result<(Self, Lock)> {
        for _ in 0..MOST_READINGS {
            let read = Self::now();
            let lock = lock(patience)?;
            if !read.is_outdated() {
                return Ok((read, lock));
            }
        }
        Err(Failure::System(anyhow!("{} is changed all the time", system::POLICY)))
    }

    /// Whether `policy.toml` is no longer as it was read.
    pub fn is_outdated(&self) -> bool {
        let on_trial = pending::current();
        if self.is_on_trial != on_trial.is_some() {
            return true;
        }
        let now = match on_trial {
            Some(pending) => Some(pending.texts.policy),
            None => file::read_trusted(Path::new(system::POLICY), Trust::Anybody).ok().flatten(),
        };
        reader::dismiss();
        let is_other =
            |texts: &Option<SourceTexts>| texts.as_ref().map(|texts| &texts.policy) != now.as_ref();
        self.texts.as_ref().is_ok_and(is_other)
    }

    /// Keeps it as the last good policy, without reading any list again.
    fn keep(&self, compiled: &Compiled) -> Option<String> {
        if self.is_on_trial {
            return None;
        }
        keep(self.texts()?, compiled)
    }

    /// The policy, compiled, where there must be one.
    pub fn compile(&self) -> Result<Known> {
        let missing = || anyhow!("there is no {}; `agent-fw install` writes it", system::POLICY);
        self.compile_any()?.ok_or_else(|| Failure::Input(missing()))
    }

    /// The policy, compiled; `None` if there is none.
    pub fn compile_any(&self) -> Result<Option<Known>> {
        match &self.texts {
            Ok(Some(texts)) => texts.compile(system::POLICY).map(Some).map_err(Failure::Input),
            Ok(None) => Ok(None),
            Err(error) => Err(Failure::Input(copy_of(error))),
        }
    }
}

/// The same error once more, with its causes.
fn copy_of(error: &anyhow::Error) -> anyhow::Error {
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let last = causes.pop().unwrap_or_default();
    causes.into_iter().rev().fold(anyhow!(last), anyhow::Error::context)
}

/// Enforces the policy that was read, or what stands in for it. The caller has the lock.
pub fn at_boot(read: &Read) -> Result<AtBoot> {
    if !policy::is_installed() && !last_good::is_kept() {
        // A package brings what runs this, and a policy comes later, if at all.
        return Ok(AtBoot::NothingInstalled);
    }
    let known = match wanted(read) {
        Ok(known) => known,
        Err(failure) => return Ok(AtBoot::FellBack(failure, fall_back()?)),
    };
    let table = (known.0.backend == Backend::Xdp).then(|| known.1.clone());
    match enforce_policy(known, Missing::TableStandsIn) {
        Ok(mut applied) => {
            applied.notes.extend(read.keep(&applied.compiled));
            Ok(AtBoot::Applied(Box::new(applied)))
        }
        Err(failure) if is_in_force(&failure) => Err(failure),
        Err(failure) => {
            let table = table.and_then(|compiled| stand_in(&compiled).ok());
            let substitute = table.map_or_else(fall_back, |hash| Ok(Substitute::Table(hash)))?;
            Ok(AtBoot::FellBack(failure, substitute))
        }
    }
}

/// The policy that was read, unless it opens what the last good one restricts, or a list of it has
/// lost most of its entries.
pub fn wanted(read: &Read) -> Result<Known> {
    checked(read, ApplyConsent::default())
}

/// The policy that was read, unless it does what nobody has consented to. To what one on trial does,
/// somebody has.
pub fn checked(read: &Read, consent: ApplyConsent) -> Result<Known> {
    let known = read.compile()?;
    if !consent.opening && !read.is_on_trial {
        refuse_to_open(&known)?;
    }
    if !consent.shrinking && !read.is_on_trial {
        read.refuse_to_shrink(&known.0)?;
    }
    Ok(known)
}

/// Enforces a policy. Where the table stands in for what is missing, an interface that goes or comes
/// meanwhile is met before this ends.
fn enforce_policy(known: Known, missing: Missing) -> Result<Applied> {
    let (mut found, mut notes) = enforce_at_interfaces(&known, missing)?;
    for _ in 0..MOST_ROUNDS {
        if missing == Missing::Refused || interfaces_of(&known.0)?.is_same(&found) {
            break;
        }
        let (found_now, notes_now) = enforce_at_interfaces(&known, missing)?;
        found = found_now;
        notes.extend(notes_now);
    }
    notes.dedup();
    let (configuration, compiled) = known;
    Ok(Applied { configuration, compiled, missing: found.missing, notes })
}

/// Enforces a policy at the interfaces that are there: these, and what the user should know.
fn enforce_at_interfaces(
    (configuration, compiled): &Known,
    missing: Missing,
) -> Result<(Found, Vec<String>)> {
    // An interface that comes from here on is met by udev, or found below.
    let mut notes = await_interfaces(configuration);
    let found = interfaces_of(configuration)?;
    let plan = plan(configuration, compiled, &found, missing)?;
    enforce(&mut ThisHost::open()?, &plan)?;
    if let Err(error) = interfaces::remember(&found) {
        notes.push(format!("a renamed interface will not be recognised: {error:#}"));
    }
    // Once more: now it is known by what else than their names interfaces are recognised.
    notes.extend(await_interfaces(configuration));
    notes.dedup();
    Ok((found, notes))
}

/// Has interfaces of the policy given their programs when they come. That this cannot be is no
/// reason to leave the port open.
pub fn await_interfaces(configuration: &Configuration) -> Vec<String> {
    let has_programs = configuration.backend.has_programs();
    let names: &[String] = if has_programs { &configuration.interfaces } else { &[] };
    let awaited = interfaces::marks(names).and_then(|marks| awaited_interfaces::set(&marks));
    let note = |error| format!("an interface that comes later gets no XDP program: {error:#}");
    awaited.err().map(note).into_iter().collect()
}

/// Keeps the policy for a boot at which it cannot be compiled. That it could not be kept is no
/// reason to undo it.
pub fn keep(texts: &SourceTexts, compiled: &Compiled) -> Option<String> {
    let kept = last_good::keep(texts, compiled);
    kept.err().map(|error| format!("not kept as the last good policy: {error:#}"))
}

/// A policy that opens what the last good one restricts may be a file that was cut off.
fn refuse_to_open(known: &Known) -> Result<()> {
    let before = match last_good::compiled() {
        Ok(Some(before)) => before,
        Err(error) if known.0.lacks_end => {
            let why = "may have been cut off, and cannot be compared with the last good policy";
            return Err(Failure::Input(error.context(format!("{} {why}", system::POLICY))));
        }
        Ok(None) | Err(_) => return Ok(()),
    };
    let opened = openings(&before, known);
    if opened.is_empty() {
        return Ok(());
    }
    let opened: Vec<String> = opened.iter().map(Opening::to_string).collect();
    Err(Failure::Input(anyhow!(OpensMore { opened: opened.join(" and ") })))
}

/// A policy would open what the last good one restricts.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{} would no longer restrict {opened}, which the last policy in force restricts; if that is \
     meant, run `agent-fw apply --accept-opening`",
    system::POLICY
)]
pub struct OpensMore {
    /// What, in words.
    opened: String,
}

/// Whether a policy is in force though something else failed.
fn is_in_force(failure: &Failure) -> bool {
    let enforced = failure.error().downcast_ref::<EnforceError>();
    enforced.is_some_and(|error| matches!(error, EnforceError::NotRemoved(_)))
}

/// Puts the tables of a policy in force, whatever programs there are.
fn stand_in(compiled: &Compiled) -> anyhow::Result<PolicyHash> {
    let mut host = ThisHost::open()?;
    or_without_counters(&compiled.images(), |tables| host.replace_tables(tables))?;
    Ok(compiled.lowered.policy.hash())
}

/// Enforces the last good policy, or closes the port.
fn fall_back() -> anyhow::Result<Substitute> {
    let kept = last_good::compiled();
    if let Ok(Some(known)) = &kept {
        let hash = known.1.lowered.policy.hash();
        if enforce_policy(known.clone(), Missing::TableStandsIn).is_ok()
            || stand_in(&known.1).is_ok()
        {
            return Ok(Substitute::LastGood(hash));
        }
    }
    let known = kept.ok().flatten().map(|(configuration, _)| Port(configuration.port));
    close(known)
}
