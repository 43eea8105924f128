//! How agent-fw speaks: messages of at most 80 columns, colour only where a terminal shows it.

use crate::configuration::Compiled;
use crate::nft::{Count, Difference};
use crate::policy::{Admission, MacMatch, Notation, Ordinal, Others, Policy, Range};
use crate::source::Notice;
use anstream::{eprintln, println};
use clap::builder::styling::{AnsiColor, Style};
use std::fmt;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const CAUTION: Style = AnsiColor::Yellow.on_default().bold();

/// Sources that are listed before the rest is only counted.
const LISTED: usize = 12;

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// An error with its causes, one a line.
pub(super) fn failure(error: &anyhow::Error) {
    eprintln!("{} {error}", styled(BAD, "error:"));
    for cause in error.chain().skip(1) {
        for line in cause.to_string().lines() {
            eprintln!("  {line}");
        }
    }
}

/// Something that the user should know.
pub(super) fn notice(notice: &Notice) {
    eprintln!("{} {notice}", styled(CAUTION, "note:"));
}

/// A remark on what was done.
pub(super) fn remark(text: &str) {
    println!("{text}");
}

/// What differs, each on its own line.
pub(super) fn differences(differences: &[Difference]) {
    differences.iter().for_each(|difference| println!("  {difference}"));
}

/// A line that begins with a good word.
pub(super) fn good(word: &str, text: impl fmt::Display) {
    println!("{} {text}", styled(GOOD, word));
}

/// A line that begins with a bad word.
pub(super) fn bad(word: &str, text: impl fmt::Display) {
    println!("{} {text}", styled(BAD, word));
}

/// A line that begins with a word of caution.
pub(super) fn caution(word: &str, text: impl fmt::Display) {
    println!("{} {text}", styled(CAUTION, word));
}

/// Both promises: what is closed, and to whom the port is open as far as agent-fw goes.
pub(super) fn promises(compiled: &Compiled) {
    let policy = &compiled.lowered.policy;
    let port = policy.ports();
    if policy.admits_everyone() {
        caution("not closed:", format_args!("every source may reach TCP port {port}, as under"));
        println!("  the agent's hidden rule; --allow-from restricts it");
    } else if policy.others() == Others::Continue {
        caution("not closed:", format_args!("other sources of TCP port {port} are left to"));
        println!("  this host's other rules");
    } else if policy.admissions().is_empty() {
        good("closed:", format_args!("TCP port {port} is closed to every source"));
        return;
    } else {
        good("closed:", format_args!("TCP port {port} is closed to all but these sources"));
    }
    sources(compiled);
    caution("open:", "not tested. A rule of another firewall on this host may still drop");
    println!("  packets of admitted sources: agent-fw cannot overrule it");
}

/// The admitted sources, by the words that admitted them.
fn sources(compiled: &Compiled) {
    for admission in compiled.lowered.policy.admissions() {
        if let MacMatch::Only(macs) = &admission.macs {
            let ranges = macs.ranges().iter().map(ToString::to_string);
            list("from MAC address", ranges);
        }
        if admission.addresses.is_all() {
            println!("  any address");
        } else {
            addresses(compiled, admission);
        }
    }
}

fn addresses(compiled: &Compiled, admission: &Admission) {
    let ledger = &compiled.lowered.ledger;
    let v4 = ledger.v4().restrict(&admission.addresses.v4);
    let v6 = ledger.v6().restrict(&admission.addresses.v6);
    for (index, label) in ledger.labels().iter().enumerate() {
        let v4 = notations(v4.entries(), index);
        let v6 = notations(v6.entries(), index);
        list(&label.to_string(), v4.chain(v6));
    }
}

fn notations<T: Ordinal>(
    entries: &[(Range<T>, u16)],
    label: usize,
) -> impl Iterator<Item = String>
where
    Range<T>: Notation,
{
    let of_label = move |(_, index): &&(Range<T>, u16)| usize::from(*index) == label;
    entries.iter().filter(of_label).map(|(range, _)| range.notation())
}

/// A heading and what belongs to it, two or three in a line.
fn list(heading: &str, mut values: impl Iterator<Item = String>) {
    let shown: Vec<String> = values.by_ref().take(LISTED).collect();
    if shown.is_empty() {
        return;
    }
    println!("  {heading}");
    let mut line = String::new();
    for value in shown {
        if !line.is_empty() && line.len() + value.len() > 70 {
            println!("    {line}");
            line.clear();
        }
        let separator = if line.is_empty() { "" } else { "  " };
        line = format!("{line}{separator}{value}");
    }
    println!("    {line}");
    let rest = values.count();
    if rest > 0 {
        println!("    and {} more", grouped(rest as u64));
    }
}

/// A number with its thousands set apart: `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A line of a table of counts.
pub(super) fn count(what: &str, Count { packets, bytes }: Count) {
    let (packets, bytes) = (grouped(packets), grouped(bytes));
    let what: String = if what.chars().count() > 36 {
        let tail: Vec<char> = what.chars().rev().take(35).collect();
        std::iter::once('…').chain(tail.into_iter().rev()).collect()
    } else {
        what.to_owned()
    };
    println!("  {what:<36} {packets:>14} packets {bytes:>16} bytes");
}

/// What a policy does with others, in a word.
pub(super) fn others(policy: &Policy) -> &'static str {
    match policy.others() {
        _ if policy.admits_everyone() => "everyone is admitted",
        Others::Drop => "others are dropped",
        Others::Continue => "others are left to other rules",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
