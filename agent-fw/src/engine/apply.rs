//! The installed policy is enforced: by command, at boot, and by the guard.

use super::enforce::{EnforceError, enforce};
use super::failure::{Failure, Result};
use super::host::{Host as _, ThisHost};
use super::interfaces;
use super::last_good;
use super::opening::{Known, Opening, openings};
use super::plan::{Missing, interfaces_of, plan};
use super::policy;
use super::sources::SourceTexts;
use crate::configuration::{Compiled, Configuration};
use crate::input::options::Backend;
use crate::model::rule::Lowered;
use crate::model::{Ledger, Others, Policy, PolicyHash, Port, Range};
use crate::nft::{Extras, Image, Nftables, Ruleset, TableName};
use crate::system;
use crate::system::{awaited_interfaces, file};
use anyhow::anyhow;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// A file that is not read within this time is not waited for at boot, and not by the guard.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Enforces the installed policy. The caller has the lock. Without `may_open`, one that opens what
/// the last good policy restricts is refused.
pub fn apply(may_open: bool) -> Result<Applied> {
    let known = policy::required()?;
    if !may_open {
        refuse_to_open(&known)?;
    }
    let mut applied = enforce_policy(known, Missing::Refused)?;
    applied.notes.extend(keep(&applied.configuration, &applied.compiled));
    Ok(applied)
}

/// The installed policy as it is read at boot, and by the guard: nobody waits for a file system that
/// does not answer, and nobody needs the lock for it.
pub struct Read(anyhow::Result<Option<SourceTexts>>);

impl Read {
    /// Reads it.
    pub fn now() -> Self {
        Self(SourceTexts::read_installed_within(PATIENCE))
    }

    /// Whether `policy.toml` is no longer as it was read.
    pub fn is_outdated(&self) -> bool {
        let now = file::read(Path::new(system::POLICY)).ok().flatten();
        matches!(&self.0, Ok(texts) if texts.as_ref().map(|texts| &texts.policy) != now.as_ref())
    }

    /// Keeps it as the last good policy, without reading any list again.
    fn keep(&self, compiled: &Compiled) -> Option<String> {
        let Ok(Some(texts)) = &self.0 else { return None };
        not_kept(last_good::keep_texts(texts, compiled))
    }

    /// The policy, compiled.
    pub fn compile(&self) -> Result<Known> {
        let texts = match &self.0 {
            Ok(Some(texts)) => texts,
            Ok(None) => return Err(Failure::Input(anyhow!("there is no {}", system::POLICY))),
            Err(error) => return Err(Failure::Input(anyhow!("{error:#}"))),
        };
        texts.compile(system::POLICY).map_err(Failure::Input)
    }
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

/// The policy that was read, unless it opens what the last good one restricts.
pub fn wanted(read: &Read) -> Result<Known> {
    let known = read.compile()?;
    refuse_to_open(&known)?;
    Ok(known)
}

/// Enforces a policy.
fn enforce_policy((configuration, compiled): Known, missing: Missing) -> Result<Applied> {
    // An interface that comes from here on is met by udev, or found below.
    let mut notes = await_interfaces(&configuration);
    let found = interfaces_of(&configuration)?;
    let plan = plan(&configuration, &compiled, &found, missing)?;
    enforce(&mut ThisHost::open()?, &plan)?;
    if let Err(error) = interfaces::remember(&found) {
        notes.push(format!("a renamed interface will not be recognised: {error:#}"));
    }
    // Once more: now it is known by which MAC addresses interfaces are recognised.
    notes.extend(await_interfaces(&configuration));
    notes.dedup();
    Ok(Applied { configuration, compiled, missing: found.missing, notes })
}

/// Has interfaces of the policy given their programs when they come. That this cannot be is no
/// reason to leave the port open.
pub fn await_interfaces(configuration: &Configuration) -> Vec<String> {
    let has_programs = configuration.backend.has_programs();
    let names: &[String] = if has_programs { &configuration.interfaces } else { &[] };
    let awaited = awaited_interfaces::set(&interfaces::marks(names));
    let note = |error| format!("an interface that comes later gets no XDP program: {error:#}");
    awaited.err().map(note).into_iter().collect()
}

/// Keeps the policy for a boot at which it cannot be compiled. That it could not be kept is no
/// reason to undo it.
pub fn keep(configuration: &Configuration, compiled: &Compiled) -> Option<String> {
    not_kept(last_good::keep(configuration, compiled))
}

fn not_kept(kept: anyhow::Result<()>) -> Option<String> {
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
    ThisHost::open()?.replace_tables(&compiled.images())?;
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

/// Closes every port that some record names to every source. What is in force beyond these ports
/// stays.
fn close(known: Option<Port>) -> anyhow::Result<Substitute> {
    let mut nftables = Nftables::open()?;
    let others = nftables.read_tables()?.into_iter();
    let others = others.filter(|live| live.image.name != TableName::Gate && live.strays.is_empty());
    let others: Vec<Image> = others.map(|live| live.image).collect();
    let mut ports = ports_to_close(known);
    if !others.is_empty() {
        // These say who reaches the relay's port.
        ports.truncate(1);
    }
    let tables: Vec<Image> = std::iter::once(closing_table(&ports)).chain(others).collect();
    ThisHost::open()?.replace_tables(&tables)?;
    Ok(Substitute::Closed(ports))
}

/// The ports that a readable record names: the agent's, and the relay's where the policy says who
/// reaches it.
pub(super) fn ports_to_close(known: Option<Port>) -> Vec<Port> {
    let policy = policy_file();
    let port = policy.as_ref().and_then(port).or(known).unwrap_or(Port::AGENT);
    let relay = policy.as_ref().is_some_and(names_relay).then_some(Port::RELAY);
    std::iter::once(port).chain(relay.filter(|relay| *relay != port)).collect()
}

/// The table that closes these ports to every source.
pub(super) fn closing_table(ports: &[Port]) -> Image {
    let ports = ports.iter().copied().map(Range::single).collect();
    let policy = Policy::new(ports, Others::Drop, []);
    let nobody = Lowered { policy, ledger: Ledger::default() };
    Ruleset::compile(&nobody, Extras::default()).into_image()
}

/// A `policy.toml` of which something is faulty.
fn policy_file() -> Option<toml::Table> {
    let text = file::read(Path::new(system::POLICY)).ok()??;
    text.parse().ok()
}

/// The port in a `policy.toml` of which the rest is faulty.
fn port(policy: &toml::Table) -> Option<Port> {
    let port = policy.get("port")?.as_integer()?;
    u16::try_from(port).ok().filter(|port| *port != 0).map(Port)
}

/// Whether a `policy.toml` of which the rest is faulty says who reaches the relay's port.
fn names_relay(policy: &toml::Table) -> bool {
    policy.get("relay").is_some_and(|relay| relay.as_array().is_none_or(|list| !list.is_empty()))
}
