//! The promise "open", which depends on every other rule of the host: it is tried, not assumed.

use super::explain::{Answer, Sessions, samples};
use super::report::{self, say};
use super::road;
use crate::configuration::{Compiled, Configuration};
use crate::policy::{AddressSet, Notation, Ordinal, Policy, Port, Range, RangeSet, Verdict};
use crate::probe::{self, Firewall, Question};
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
/// goes wrong here is said and does no harm: the policy is in force.
pub(super) fn test(configuration: &Configuration, compiled: &Compiled) {
    let policy = &compiled.lowered.policy;
    if policy.admissions().is_empty() {
        return;
    }
    probe::clear();
    let port = Port(configuration.port);
    let mut sessions = Sessions::default();
    let end = Instant::now() + ENOUGH;
    let answers: Vec<Answer> = samples(policy, MOST)
        .sources
        .into_iter()
        .take_while(|_| Instant::now() < end)
        .map(|(source, mac)| {
            let question = Question { source, mac, destination: None, port, interface: None };
            Answer::to(&question, policy, &mut sessions)
        })
        .collect();
    drop(sessions);
    let (admitted, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.due == Verdict::Accept);
    others.iter().filter(|answer| !answer.is_as_promised()).for_each(not_closed);
    open(&admitted, policy, port);
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

fn open(admitted: &[Answer], policy: &Policy, port: Port) {
    let tried: Vec<&Answer> = admitted.iter().filter(|answer| answer.found.is_ok()).collect();
    let (through, stopped): (Vec<&Answer>, Vec<&Answer>) =
        tried.iter().partition(|answer| answer.reaches() == Some(true));
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
        let sources = if through.len() == 1 { "source" } else { "sources" };
        let count = through.len();
        report::good(
            "open:",
            format_args!("tried with {count} admitted {sources}: they get through"),
        );
    } else {
        let why = admitted.iter().find_map(|answer| answer.found.as_ref().err());
        let why = why.map_or_else(String::new, |error| format!(": {error:#}"));
        let text = format!("open: not tested{why}");
        let text = report::wrapped("", "  ", &text);
        report::caution("open:", text.strip_prefix("open: ").unwrap_or(&text));
        say!("  `agent-fw explain --from ADDRESS` tests it");
    }
}

fn stops(answer: &Answer) {
    if let Ok((_, road)) = &answer.found {
        let what = format!("{} is {}", answer.source, road::conclusion(road));
        report::bad("not open:", what);
    }
}

/// How the firewall that stops sources is told to let them through.
fn exceptions(first: &Answer, stopped: &[&Answer], policy: &Policy, port: Port) {
    let Ok((_, road)) = &first.found else { return };
    let Ok(Some(firewall)) = Firewall::that_stopped(road) else { return };
    say!("  agent-fw cannot overrule {firewall}. An exception there:");
    for answer in stopped.iter().take(NAMED) {
        let addresses = range_of(policy, answer.source).unwrap_or(answer.source.to_string());
        for line in firewall.exception(&addresses, answer.source.is_ipv4(), port) {
            // Not wrapped: it is to be copied.
            say!("    {line}");
        }
    }
    if let Some(lasting) = firewall.lasting() {
        report::remark(&format!("  {lasting}"));
    }
    say!("  then `agent-fw explain --all` tries all of them again");
}

/// The admitted range that a source is in, as it is written.
fn range_of(policy: &Policy, source: IpAddr) -> Option<String> {
    fn find<T: Ordinal>(set: &RangeSet<T>, value: T) -> Option<Range<T>> {
        set.ranges().iter().find(|range| range.contains(value)).copied()
    }
    policy.admissions().iter().find_map(|admission| {
        let AddressSet { v4, v6 } = &admission.addresses;
        match source {
            IpAddr::V4(source) => Some(find(v4, source)?.notation()),
            IpAddr::V6(source) => Some(find(v6, source)?.notation()),
        }
    })
}
