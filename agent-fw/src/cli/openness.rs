//! The promise "open", which depends on every other rule of the host: it is tried, not assumed.

use super::asking::PacketsSent;
use super::path_report::{self, OWN_RULES};
use super::probe_runner::{Answer, ProbeRunner};
use super::report::{self, say};
use super::sample::{self, Sample};
use super::status::Findings;
use crate::configuration::{Compiled, Configuration};
use crate::engine::last_test::LastTest;
use crate::host_firewall::{Firewall, Plan, Sources};
use crate::model::rule::AgentPolicy;
use crate::model::{Policy, Port, Verdict};
use crate::nft::comment;
use crate::system::ds_agent;
use crate::trace::{NotAsked, ProbeRequest, SideEffects};
use crate::{host_firewall, trace};
use anyhow::Context as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Ranges of each family that are tried: enough to meet another firewall, few enough to be quick.
const MOST: usize = 4;
/// After so long no more sources are tried: where something takes all packets away, each takes
/// seconds.
const ENOUGH: Duration = Duration::from_secs(2);
/// Sources that are named where they do not get through.
const NAMED: usize = 3;

/// Asks the kernel about a few sources of the policy, and says what of its promises holds. What
/// goes wrong here is said and does no harm: the policy is in force. Whether every admitted source
/// that was to be tried gets through.
pub(super) fn test(configuration: &Configuration, compiled: &Compiled) -> bool {
    let policy = &compiled.lowered.policy;
    if policy.admissions().is_empty() {
        return true;
    }
    let port = Port(configuration.port);
    let end = Instant::now() + ENOUGH;
    let mut answers = match ask(&compiled.lowered, port) {
        Ok(answers) => answers,
        Err(error) => {
            report::caution("open:", format_args!("not tested: {error:#}"));
            return false;
        }
    };
    let tried = std::iter::from_fn(|| (Instant::now() < end).then(|| answers.next()).flatten());
    let (admitted, others): (Vec<_>, Vec<_>) =
        tried.partition(|answer| answer.due == Verdict::Accept);
    drop(answers);
    let mut sent = PacketsSent::default();
    let roads = admitted.iter().chain(&others).filter_map(|answer| answer.found.as_ref().ok());
    roads.for_each(|(_, road)| sent.add_incoming(road));
    others.iter().filter(|answer| !answer.is_as_promised()).for_each(not_closed);
    let all = sample::few(policy, MOST).len();
    open(&admitted, all, policy, port);
    let of = |connects| admitted.iter().filter(|a| a.connects() == Some(connects)).count();
    let test = LastTest::now(policy.hash(), all, of(true), of(false));
    // What cannot be written down was not tried.
    drop(test.map(|test| test.keep()));
    let is_open = admitted.len() == all && admitted.iter().all(|a| a.connects() == Some(true));
    sent.tell();
    for (program, rule) in ds_agent::own_rules(port) {
        report::remark(&format!("note: the agent has added `{rule}` ({program}): {OWN_RULES}"));
    }
    is_open
}

/// What the kernel says of a few sources, admitted and not, one after the other.
fn ask(lowered: &AgentPolicy, port: Port) -> anyhow::Result<impl Iterator<Item = Answer>> {
    trace::clear();
    let policy = &lowered.policy;
    let mut trial = ProbeRunner::of(lowered, SideEffects::Refused)?;
    let samples = sample::few(policy, MOST).into_iter().chain(sample::stranger(policy));
    Ok(samples.map(move |Sample { source, mac }| {
        trial.ask(&ProbeRequest { source, mac, destination: None, port, interface: None })
    }))
}

/// What became of an admitted source that was tried.
pub(super) struct Tried {
    /// By what it is admitted.
    pub(super) by: String,
    pub(super) source: IpAddr,
    /// Whether it gets through; or why that was not asked.
    pub(super) reaches: std::result::Result<bool, NotAsked>,
    /// What it took to ask.
    pub(super) sent: PacketsSent,
}

/// Tries a few admitted sources. What could not be tried is left out.
pub(super) fn tried(findings: &Findings) -> anyhow::Result<Vec<Tried>> {
    let Some((configuration, compiled)) = &findings.wanted else { return Ok(Vec::new()) };
    let lowered = &compiled.lowered;
    let answers = ask(lowered, Port(configuration.port))?;
    let admitted = answers.filter(|answer| answer.due == Verdict::Accept);
    let tried = admitted.filter_map(|answer| {
        let source = answer.source;
        let reaches = match answer.not_asked() {
            Some(why) => Err(why.clone()),
            None => Ok(answer.connects()?),
        };
        let by = comment(&lowered.ledger.label_of(source)?.to_string());
        let sent = answer.found.as_ref().map(|(_, road)| PacketsSent::of(road));
        Some(Tried { by, source, reaches, sent: sent.unwrap_or_default() })
    });
    Ok(tried.collect())
}

/// The firewall that stops one of the sources that are admitted, if any is stopped.
pub(super) fn firewall_in_the_way(
    lowered: &AgentPolicy,
    port: Port,
) -> anyhow::Result<Option<Firewall>> {
    for answer in ask(lowered, port)? {
        if answer.due != Verdict::Accept || answer.reaches() != Some(false) {
            continue;
        }
        if let Ok((case, road)) = &answer.found {
            let firewall = Firewall::that_stopped(road, answer.source.is_ipv4())?;
            let firewall = firewall.with_context(|| {
                let became = path_report::conclusion(road);
                format!("{} is {became}: no exception in a firewall helps", answer.source)
            })?;
            return host_firewall::settle(firewall, &case.interface.name).map(Some);
        }
    }
    Ok(None)
}

/// Says of a source that is refused that it gets through all the same.
fn not_closed(answer: &Answer) {
    if answer.reaches() == Some(true)
        && let Ok((case, _)) = &answer.found
    {
        let (source, interface) = (answer.source, &case.interface.name);
        let what = format!("{source} reaches the port by {interface}, which nothing guards");
        report::bad("not closed:", what);
    }
}

/// `all` is how many admitted sources were to be tried.
fn open(admitted: &[Answer], all: usize, policy: &Policy, port: Port) {
    let tried: Vec<&Answer> = admitted.iter().filter(|answer| answer.found.is_ok()).collect();
    let of = |connects: bool| -> Vec<&Answer> {
        tried.iter().copied().filter(|answer| answer.connects() == Some(connects)).collect()
    };
    let (through, stopped) = (of(true), of(false));
    if !stopped.is_empty() {
        for answer in stopped.iter().take(NAMED) {
            stops(answer);
        }
        if stopped.len() > NAMED {
            say!("  and {} more sources that were tried", stopped.len() - NAMED);
        }
        if let Some(first) = stopped.first() {
            exceptions(first, &stopped, policy, port);
        }
    } else if !through.is_empty() {
        let count = through.len();
        let sources = match (count, all) {
            (1, 1) => "1 admitted source".to_owned(),
            (count, all) if count == all => format!("{count} admitted sources"),
            (count, all) => format!("{count} of {all} admitted sources"),
        };
        report::good("open:", format_args!("tried with {sources}: they get through"));
    } else if admitted.iter().all(|answer| answer.found.is_err() && answer.not_asked().is_none()) {
        let why = admitted.iter().find_map(|answer| answer.found.as_ref().err());
        let why = why.map_or_else(String::new, |error| format!(": {error:#}"));
        not_known(&format!("not tested{why}"));
        return say!("  `agent-fw explain --from ADDRESS` tests it");
    }
    let open_questions: Vec<&Answer> =
        admitted.iter().filter(|answer| answer.connects().is_none()).collect();
    if let Some(first) = open_questions.first() {
        let (_, why) = first.outcome();
        let count = open_questions.len();
        not_known(&format!("not known for {count} of {all} admitted sources: {why}"));
        say!("  `agent-fw explain --from ADDRESS` says more");
    }
}

fn not_known(what: &str) {
    let text = report::wrapped("", "  ", &format!("open: {what}"));
    report::caution("open:", text.strip_prefix("open: ").unwrap_or(&text));
}

fn stops(answer: &Answer) {
    if let Ok((_, road)) = &answer.found {
        let is = if answer.reaches() == Some(true) { "" } else { "is " };
        let what = format!("{} {is}{}", answer.source, path_report::conclusion(road));
        report::bad("not open:", what);
    }
}

/// How the firewall that stops sources is told to let them through.
fn exceptions(first: &Answer, stopped: &[&Answer], policy: &Policy, port: Port) {
    let Ok((case, road)) = &first.found else { return };
    let found = Firewall::that_stopped(road, first.source.is_ipv4());
    let Ok(Some(firewall)) = found else { return };
    let firewall =
        host_firewall::settle(firewall.clone(), &case.interface.name).unwrap_or(firewall);
    say!("  agent-fw cannot overrule {firewall}. An exception there:");
    for answer in stopped.iter().take(NAMED) {
        let sources = Sources::around(policy, answer.source);
        for step in Plan::for_sources(&firewall, &sources, port).steps {
            // Not wrapped: it is to be copied.
            step.typed().for_each(|line| say!("    {line}"));
        }
    }
    if let Some(lasting) = firewall.lasting() {
        report::remark(&format!("  {lasting}"));
    }
    report::remark(
        "  `agent-fw install … --open-host-firewall` makes it for all admitted sources, and \
         `agent-fw uninstall` takes it back",
    );
    say!("  `agent-fw explain --all` tries all of them again");
}
