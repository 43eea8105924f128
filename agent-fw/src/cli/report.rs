//! How agent-fw speaks: messages of at most 80 columns, colour only where a terminal shows it.

use super::terminal;
use crate::configuration::{Compiled, Configuration};
use crate::engine::judge::{Beyond, NotClosed};
use crate::engine::kernel_state::Remedy;
use crate::input::options::Backend;
use crate::input::outbound::Outbound;
use crate::input::{Source, Warning};
use crate::model::rule::{Addresses, AgentPolicy, Match};
use crate::model::{
    AddressSet, Admission, DefaultAction, MacMatch, Notation, Ordinal, OriginMap, Policy, Port,
    Range,
};
use crate::nft::{Count, is_inside_a_table, without_expressions};
use crate::system::systemd::Persistence;
use crate::xdp::{Admitted, Attachment, Counters};
use clap::builder::styling::{AnsiColor, Style};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something could not be printed.
static UNPRINTED: AtomicBool = AtomicBool::new(false);

/// Whether something could not be printed, though somebody was there to read it. What was done is
/// done all the same: a full disk behind the output is no reason to stop in the middle.
pub(super) fn is_incomplete() -> bool {
    UNPRINTED.load(Ordering::Relaxed)
}

pub(super) fn write_line(output: &mut dyn Write, line: fmt::Arguments<'_>) {
    let line = terminal::harmless(&line.to_string(), &[GOOD, BAD, CAUTION]);
    let written = output.write_all(line.as_bytes()).and_then(|()| output.write_all(b"\n"));
    if written.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
        UNPRINTED.store(true, Ordering::Relaxed);
    }
}

/// Prints a line, without colours where no terminal shows them.
macro_rules! say {
    ($($line:tt)*) => {
        crate::cli::report::write_line(&mut anstream::stdout(), format_args!($($line)*))
    };
}
/// Prints a line beside the output.
macro_rules! warn {
    ($($line:tt)*) => { write_line(&mut anstream::stderr(), format_args!($($line)*)) };
}
pub(super) use say;

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const CAUTION: Style = AnsiColor::Yellow.on_default().bold();

/// Sources that are listed before the rest is only counted.
const LISTED: usize = 12;

/// The width of a message, where no screen says it. Columns, not bytes: most of what is printed is
/// ASCII.
const WIDTH: usize = 80;
/// Screens that are narrower, or wider, are taken for one of these.
const SCREENS: std::ops::RangeInclusive<usize> = 20..=200;

fn width() -> usize {
    // In the journal a message is an entry, not lines on a screen.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        return usize::MAX;
    }
    let screen = terminal_size::terminal_size_of(std::io::stdout());
    let columns = screen.map(|(columns, _)| usize::from(columns.0));
    columns.map_or(WIDTH, |columns| columns.clamp(*SCREENS.start(), *SCREENS.end()))
}

/// Text broken into lines of the screen's [`width`], the first and the others each with their indent.
pub(super) fn wrapped(first: &str, others: &str, text: &str) -> String {
    let options = textwrap::Options::new(width())
        .initial_indent(first)
        .subsequent_indent(others)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(text, options)
}

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// An error with its causes, one a line.
pub(super) fn failure(error: &anyhow::Error) {
    let text = wrapped("", "  ", &format!("error: {error}"));
    warn!("{}{}", styled(BAD, "error:"), text.strip_prefix("error:").unwrap_or(&text));
    for cause in error.chain().skip(1) {
        warn!("{}", wrapped("  ", "    ", &cause.to_string()));
    }
}

/// A command beside the output, not wrapped: it is to be copied.
pub(super) fn command(command: &str) {
    warn!("  {command}");
}

/// Something that the user should know.
pub(super) fn notice(notice: &Warning) {
    aside(&notice.to_string());
}

/// A remark beside the output.
pub(super) fn aside(text: &str) {
    let text = wrapped("", "  ", &format!("note: {text}"));
    warn!("{}{}", styled(CAUTION, "note:"), text.strip_prefix("note:").unwrap_or(&text));
}

/// A remark on what was done.
pub(super) fn remark(text: &str) {
    say!("{}", wrapped("", "  ", text));
}

/// What differs, each on its own line.
pub(super) fn differences(differences: &[String]) {
    for difference in differences {
        say!("{}", wrapped("  ", "    ", difference));
    }
}

/// Changes that are named where nobody asks for all of them.
pub(super) const CHANGES: usize = 12;

/// What a policy changes, each change on its own line; all of them where that is asked.
pub(super) fn changes(words: &[String], are_all: bool) {
    let named = if are_all { words.len() } else { words.len().min(CHANGES) };
    differences(&words[..named]);
    if words.len() > named {
        say!("  and {} more", grouped((words.len() - named) as u64));
    }
}

/// Parts of tables and programs that are named where nobody asks for all of them.
const PARTS: usize = 5;

/// What the kernel does otherwise than the policy says: the sources, where it is about them; and the
/// parts of tables and programs, all of them where that is asked.
pub(super) fn what_differs(sources: &[String], parts: &[String], is_verbose: bool) {
    differences(sources);
    if is_verbose {
        return differences(parts);
    }
    // Where sources tell what a table does otherwise, its parts need not.
    let is_told = |part: &&String| !sources.is_empty() && is_inside_a_table(part);
    let brief = parts.iter().filter(|part| !is_told(part)).take(PARTS);
    let brief: Vec<String> = brief.map(|part| without_expressions(part).to_owned()).collect();
    differences(&brief);
    match parts.len() - brief.len() {
        0 => {}
        1 => say!("  and 1 part of a table or program (--verbose names it)"),
        rest => {
            let rest = grouped(rest as u64);
            say!("  and {rest} parts of tables or programs (--verbose names them)");
        }
    }
}

/// What puts right what differs from this configuration.
pub(super) fn remedy(configuration: &Configuration) -> anyhow::Result<()> {
    remark(&format!("  {}", Remedy::of(configuration)?));
    Ok(())
}

/// A line that begins with a good word.
pub(super) fn good(word: &str, text: impl fmt::Display) {
    say!("{} {text}", styled(GOOD, word));
}

/// A line that begins with a bad word.
pub(super) fn bad(word: &str, text: impl fmt::Display) {
    let text = wrapped(word, "  ", &format!(" {text}"));
    say!("{}{}", styled(BAD, word), text.strip_prefix(word).unwrap_or(&text));
}

/// A line that begins with a word of caution.
pub(super) fn caution(word: &str, text: impl fmt::Display) {
    say!("{} {text}", styled(CAUTION, word));
}

/// Where the XDP programs are, what they have counted, and what they do not cover where they are
/// alone.
pub(super) fn programs(
    configuration: &Configuration,
    attached: &[Attachment],
    counters: Option<&Counters>,
) {
    if !configuration.backend.has_programs() {
        return;
    }
    for Attachment { interface, hook, program, behind, ahead, .. } in attached {
        say!("program:  {program}, {hook} on {}", interface.name);
        if let Some(other) = behind {
            remark(&format!("  behind somebody else's {other}, which agent-fw leaves alone"));
        }
        let counted = counters.into_iter().flat_map(|counters| &counters.interfaces);
        if let Some(of) = counted.into_iter().find(|of| of.name == interface.name) {
            let [admitted, refused] = [of.admitted, of.refused].map(grouped);
            let passed = grouped(of.left + of.undecided);
            say!("          {admitted} packets admitted, {refused} refused, {passed} passed on");
        }
        if *ahead > 0 {
            let word = format!("{ahead} other program(s) come before it there");
            caution("  note:", format_args!("{word}, and could let packets pass it"));
        }
    }
    if configuration.backend == Backend::Xdp && !attached.is_empty() {
        caution("alone:", "XDP filters neither other interfaces, nor tunnels, nor packets whose");
        say!("  port a NAT rule of this host changes to the agent's; --backend both has the");
        say!("  nftables table behind it, which does");
    }
}

/// What is promised, in a line, where the kernel enforces the policy.
pub(super) fn promise(compiled: &Compiled) -> String {
    let AgentPolicy { policy, ledger } = &compiled.lowered;
    let port = policy.ports();
    if policy.admits_everyone() && compiled.limited {
        format!("not closed: every source may reach TCP port {port}, within the rules' limits")
    } else if policy.admits_everyone() {
        format!("not closed: every source may reach TCP port {port}")
    } else if policy.admits_most() {
        format!("not closed: most addresses may reach TCP port {port}")
    } else if policy.others() == DefaultAction::Continue {
        format!("not closed: other sources of TCP port {port} are left to other rules")
    } else if policy.admissions().is_empty() {
        format!("closed: TCP port {port} is closed to every source")
    } else {
        let labels: Vec<_> = ledger.labels().iter().map(ToString::to_string).collect();
        let sources =
            if labels.len() > 3 { format!("{} sources", labels.len()) } else { labels.join(", ") };
        format!("closed: TCP port {port} is closed to all but {sources}")
    }
}

/// Whether the port is closed, as the judge says, and to whom it is open as far as agent-fw goes.
pub(super) fn promises(compiled: &Compiled, not_closed: &[NotClosed]) {
    let lowered = &compiled.lowered;
    let policy = &lowered.policy;
    let port = policy.ports();
    if let Some(reason) = not_closed.iter().find(|reason| !reason.is_meant()) {
        bad("not closed:", format_args!("TCP port {port}: {reason}"));
    } else if policy.admits_everyone() && compiled.limited {
        caution("not closed:", format_args!("every source may reach TCP port {port}, but only as"));
        say!("  the rules say that admit it: by destination, source port or flags");
    } else if policy.admits_everyone() {
        caution("not closed:", format_args!("every source may reach TCP port {port}, as under"));
        say!("  the agent's hidden rule; --allow-from restricts it");
    } else if let Some(reason) = not_closed.first() {
        caution("not closed:", format_args!("TCP port {port}: {reason}"));
    } else if policy.admissions().is_empty() {
        good("closed:", format_args!("TCP port {port} is closed to every source"));
        return;
    } else {
        good("closed:", format_args!("TCP port {port} is closed to all but these sources"));
        if compiled.limited {
            say!("  (and to these but as the rules say: by destination, source port or flags)");
        }
    }
    sources(lowered);
}

/// What is promised of other ports than the agent's.
pub(super) fn promises_beyond(configuration: &Configuration, beyond: &Beyond) {
    let first = |reasons: &[NotClosed]| {
        reasons.iter().find(|reason| !reason.is_meant()).or(reasons.first()).cloned()
    };
    let port = Port::RELAY;
    match beyond.relay.as_deref().map(first) {
        None => {}
        Some(None) => {
            good("relay:", format_args!("TCP port {port} is closed to all but these sources"));
        }
        Some(Some(NotClosed::Everyone)) => {
            caution("relay:", format_args!("every source may reach TCP port {port}"));
        }
        Some(Some(reason)) => {
            bad("relay:", format_args!("TCP port {port} is not closed: {reason}"));
        }
    }
    if !configuration.relay.contains(&Source::Any) {
        list("--relay", configuration.relay.iter().map(ToString::to_string));
    }
    match (configuration.outbound, beyond.outbound.as_deref().and_then(first)) {
        (Outbound::Untouched, _) => return,
        (Outbound::NeedsOpen, _) => {
            good("outbound:", "what the agent needs stays open; the rest is left alone");
        }
        (Outbound::DefaultDeny, None) => {
            good("outbound:", "what the agent needs stays open; the rest is dropped, but answers");
        }
        (Outbound::DefaultDeny, Some(reason)) => {
            bad("outbound:", format_args!("the rest is not dropped: {reason}"));
        }
    }
    list("--outbound-to", configuration.outbound_to.iter().map(ToString::to_string));
}

/// Whether the policy outlives a reboot.
pub(super) fn persistence() {
    let persistence = Persistence::look();
    if persistence.unit {
        good("boot:", persistence);
    } else {
        caution("boot:", persistence);
    }
}

/// The other promise, where it is not tested.
pub(super) fn open_is_not_tested(lowered: &AgentPolicy) {
    if !lowered.policy.admissions().is_empty() {
        caution("open:", "not tested here; `agent-fw explain --all` asks the kernel, whose other");
        say!("  rules may still drop packets of admitted sources");
    }
}

/// The admitted sources, by the words that admitted them.
fn sources(lowered: &AgentPolicy) {
    for admission in lowered.policy.admissions() {
        if let MacMatch::Only(macs) = &admission.macs {
            let ranges = macs.ranges().iter().map(ToString::to_string);
            list("from MAC address", ranges);
        }
        if admission.addresses.is_all() {
            say!("  any address");
        } else {
            addresses(&lowered.ledger, admission);
        }
    }
}

fn addresses(ledger: &OriginMap, admission: &Admission) {
    let v4 = ledger.v4().restrict(&admission.addresses.v4);
    let v6 = ledger.v6().restrict(&admission.addresses.v6);
    for (index, label) in ledger.labels().iter().enumerate() {
        let v4 = notations(v4.entries(), index);
        let v6 = notations(v6.entries(), index);
        list(&label.to_string(), v4.chain(v6));
    }
}

fn notations<T: Ordinal>(entries: &[(Range<T>, u16)], label: usize) -> impl Iterator<Item = String>
where
    Range<T>: Notation,
{
    let of_label = move |(_, index): &&(Range<T>, u16)| usize::from(*index) == label;
    entries.iter().filter(of_label).map(|(range, _)| range.notation())
}

/// Addresses of a rule, in the shortest notation.
pub(super) fn addresses_in_words(addresses: &Match<Addresses>) -> String {
    let words = |addresses: &Addresses| {
        let AddressSet { v4, v6 } = addresses.all();
        let v4 = v4.ranges().iter().map(Notation::notation);
        let words: Vec<String> = v4.chain(v6.ranges().iter().map(Notation::notation)).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    match addresses {
        Match::Any => "any".to_owned(),
        Match::Is(addresses) => words(addresses),
        Match::Not(addresses) => format!("not {}", words(addresses)),
    }
}

/// A heading and what belongs to it, two or three in a line.
fn list(heading: &str, mut values: impl Iterator<Item = String>) {
    let shown: Vec<String> = values.by_ref().take(LISTED).collect();
    if shown.is_empty() {
        return;
    }
    say!("  {heading}");
    let mut line = String::new();
    for value in shown {
        if !line.is_empty() && line.len() + value.len() > 70 {
            say!("    {line}");
            line.clear();
        }
        let separator = if line.is_empty() { "" } else { "  " };
        line = format!("{line}{separator}{value}");
    }
    say!("    {line}");
    let rest = values.count();
    if rest > 0 {
        say!("    and {} more", grouped(rest as u64));
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

/// A line of a table of counts, and one that says when the last packet came, where that is known.
pub(super) fn count(what: &str, Count { packets, bytes }: Count, last: Option<&str>) {
    let (packets, bytes) = (grouped(packets), grouped(bytes));
    let what: String = if what.chars().count() > 34 {
        let tail: Vec<char> = what.chars().rev().take(33).collect();
        std::iter::once('…').chain(tail.into_iter().rev()).collect()
    } else {
        what.to_owned()
    };
    say!("  {what:<34} {packets:>13} packets {bytes:>15} bytes");
    if let Some(last) = last {
        say!("    the last one {last}");
    }
}

/// What the XDP programs have counted.
pub(super) fn program_counters(counters: &Counters) {
    say!("since the XDP programs were first installed:");
    for Admitted { by, packets, last } in &counters.admitted {
        let last = last.map_or_else(String::new, |last| format!("  {} s ago", last.as_secs()));
        program_count(&format!("admitted by {by}"), *packets, &last);
    }
    program_count("refused", counters.refused, "");
    program_count("left to other rules", counters.left, "");
    for (reason, packets) in &counters.undecided {
        program_count(&format!("passed: {reason}"), *packets, "");
    }
}

fn program_count(what: &str, packets: u64, last: &str) {
    say!("  {what:<34} {:>13} packets{last}", grouped(packets));
}

/// What a policy does with others, in a word.
pub(super) fn others(policy: &Policy) -> &'static str {
    match policy.others() {
        _ if policy.admits_everyone() => "everyone is admitted",
        DefaultAction::Drop => "others are dropped",
        DefaultAction::Continue => "others are left to other rules",
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
