//! The policy's two promises, asked of the kernel for every admitted prefix.

use super::check::{Check, Health};
use crate::cli::asking::PacketsSent;
use crate::cli::outcome::Result;
use crate::cli::probe_runner::{Answer, ProbeRunner};
use crate::cli::sample;
use crate::cli::sample::Sample;
use crate::configuration::{Compiled, Configuration};
use crate::input::{Catalogue, OBSOLETE, admits_obsolete};
use crate::model::{OriginMap, Port, Verdict};
use crate::trace::{ProbeRequest, SideEffects};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After so long no more sources are tried. One takes about a millisecond, or seconds where
/// something takes all packets away.
const ENOUGH: Duration = Duration::from_mins(1);

/// Closed and open: a source of each admitted prefix, the neighbours of each admitted range, and a
/// stranger.
pub(super) fn promises(
    configuration: &Configuration,
    compiled: &Compiled,
    catalogue: &Catalogue,
    sent: &mut PacketsSent,
) -> Result<Vec<Check>> {
    let lowered = &compiled.lowered;
    let policy = &lowered.policy;
    let port = Port(configuration.port);
    let samples: Vec<Sample> = sample::stranger(policy)
        .into_iter()
        .chain(sample::admitted(policy, &lowered.ledger, catalogue))
        .chain(sample::neighbours(policy))
        .collect();
    let mut trial = ProbeRunner::of(lowered, SideEffects::Refused)?;
    let end = Instant::now() + ENOUGH;
    let mut groups: Vec<Group> = Vec::new();
    let mut asked = 0;
    for Sample { source, mac } in samples.iter().copied() {
        if Instant::now() >= end {
            break;
        }
        asked += 1;
        let question = ProbeRequest { source, mac, destination: None, port, interface: None };
        let group = Group::of(&trial.ask(&question), &lowered.ledger);
        match groups.iter_mut().find(|known| known.is_like(&group)) {
            Some(known) => known.sources += 1,
            None => groups.push(group),
        }
    }
    *sent = trial.sent;
    let left = (asked < samples.len()).then(|| {
        let seen =
            format!("{asked} of {} sources were tried in {} s", samples.len(), ENOUGH.as_secs());
        let why = "what was not tried may be stopped by another rule";
        Check::new("sources that were not tried", why, Health::Note, seen)
            .advise("agent-fw explain --all tries all admitted ones, however long it takes")
    });
    Ok(groups.iter().map(Group::check).chain(left).collect())
}

/// Sources that met the same.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    is_admitted: bool,
    health: Health,
    /// By which words they are admitted.
    by: Option<String>,
    outcome: String,
    /// One of them.
    source: IpAddr,
    sources: usize,
}

impl Group {
    fn of(answer: &Answer, ledger: &OriginMap) -> Self {
        let source = answer.source;
        let label = ledger.label_of(source);
        let is_admitted = answer.due == Verdict::Accept;
        let health = match answer.found {
            Err(_) => Health::Note,
            Ok(_) if answer.is_open_question() => Health::Note,
            Ok(_) if answer.is_as_promised() => Health::Good,
            Ok(_) => Health::Bad,
        };
        let (interface, became) = answer.outcome();
        let outcome = match answer.found {
            Err(_) => became,
            Ok(_) => format!("by {interface}: {became}"),
        };
        let by = label.filter(|_| is_admitted).map(ToString::to_string);
        Self { is_admitted, health, by, outcome, source, sources: 1 }
    }

    fn is_like(&self, other: &Self) -> bool {
        let of = |group: &Self| (group.is_admitted, group.health, group.source.is_ipv4());
        of(self) == of(other) && self.by == other.by && self.outcome == other.outcome
    }

    fn check(&self) -> Check {
        let Self { is_admitted, health, by, outcome, source, sources } = self;
        let (name, why) = if *is_admitted {
            ("admitted sources", "an admitted source must pass every other rule of this host, too")
        } else {
            ("sources that are not admitted", "no other source may reach the port")
        };
        let by = by.as_ref().map_or_else(String::new, |by| format!("{by}: "));
        let others = match sources - 1 {
            0 => String::new(),
            1 => " and 1 more".to_owned(),
            more => format!(" and {more} more"),
        };
        let check = Check::new(name, why, *health, format!("{by}{source}{others}, {outcome}"));
        if *health == Health::Good {
            return check;
        }
        check.advise(format!("agent-fw explain --from {source} shows the road"))
    }
}

/// Whether the policy admits addresses that have not been the vendor's for years.
pub(super) fn obsolete(compiled: &Compiled) -> Option<Check> {
    const NAME: &str = "the obsolete block";
    let why = "\"Deep Security as a Service\" left these addresses about 2019: they may be \
               anybody's now";
    let policy = &compiled.lowered.policy;
    if policy.admits_everyone() {
        return None;
    }
    let is_admitted = policy.admissions().iter().any(|a| admits_obsolete(&a.addresses));
    Some(if is_admitted {
        Check::new(NAME, why, Health::Bad, format!("the policy admits {OBSOLETE}"))
            .advise("name the region instead (region:NAME), or leave these addresses out")
    } else {
        let seen = format!("the policy does not admit {OBSOLETE}");
        Check::new(NAME, why, Health::Good, seen)
    })
}
