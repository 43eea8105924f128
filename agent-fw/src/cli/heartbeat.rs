//! Whether the manager's heartbeats come: `agent-fw status --check`.

use super::report;
use super::status::Findings;
use crate::engine::kernel_state::KernelState;
use crate::engine::last_seen::{Contact, Counted, Heartbeat, Stretch};
use crate::input::options::Mode;
use crate::nft::{LEFT, REFUSED, REFUSED_EARLY};
use crate::xdp::Counters;
use serde_json::{Value, json};
use std::time::Duration;

/// What the table and the programs have counted, together.
pub(super) fn counted(held: &KernelState, programs: Option<&Counters>) -> Counted {
    let mut counted = Counted::default();
    for counter in held.table.iter().flat_map(|live| &live.image.counters) {
        let packets = counter.count.packets;
        match counter.name.as_str() {
            REFUSED | REFUSED_EARLY => counted.refused += packets,
            LEFT => {}
            _ => counted.admitted.entry(counter.comment.clone()).or_default().0 += packets,
        }
    }
    if let Some(counters) = programs {
        counted.refused += counters.refused;
        for by in &counters.admitted {
            let (packets, last) = counted.admitted.entry(by.by.clone()).or_default();
            *packets += by.packets;
            *last = by.last;
        }
    }
    counted
}

/// When a source was last heard of, in words.
pub(super) fn last(contact: &Contact, by: &str) -> Option<String> {
    let Stretch { from, to } = contact.admitted.get(by)?.last?;
    let (from, to) = (from.before(contact.looked), to.before(contact.looked));
    let same = from.as_secs() == to.as_secs();
    Some(if same { ago(to) } else { format!("{} to {}", in_words(to), ago(from)) })
}

/// So long ago, in words.
pub(super) fn ago(time: Duration) -> String {
    format!("{} ago", in_words(time))
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// What a monitoring system is told.
pub(super) struct Check {
    direction: Option<Mode>,
    /// `None`: none is expected, or incoming packets do not tell.
    heartbeat: Option<Heartbeat>,
}

impl Check {
    pub(super) fn of(findings: &Findings) -> Self {
        let (wanted, contact) = (findings.wanted.as_ref(), findings.contact.as_ref());
        let direction = wanted.map(|(wanted, _)| wanted.direction);
        // In the other modes the agent opens the heartbeat's connection, always or usually.
        let is_expected = direction == Some(Mode::ManagerInitiated);
        let contact = contact.filter(|_| is_expected);
        Self { direction, heartbeat: contact.map(Contact::heartbeat) }
    }

    /// Whether nobody needs to look into it.
    pub(super) fn is_good(&self) -> bool {
        !matches!(self.heartbeat, Some(Heartbeat::RefusedHere | Heartbeat::NeverArrived))
    }

    pub(super) fn print(&self) {
        const WORD: &str = "heartbeat:";
        match self.heartbeat {
            None if self.direction == Some(Mode::Bidirectional) => report::good(
                WORD,
                "not judged: in bidirectional mode the agent usually opens the connection",
            ),
            None => report::good(WORD, "none is expected: the agent opens its connections"),
            Some(Heartbeat::Heard(time)) => {
                report::good(WORD, format_args!("an admitted source was heard of {}", ago(time)));
            }
            Some(Heartbeat::TooEarly(time)) => {
                let watched = in_words(time);
                let text = format!("none yet, but only looked for {watched}; ask again");
                report::caution(WORD, text);
            }
            Some(Heartbeat::RefusedHere) => report::bad(
                WORD,
                "none for 20 minutes, while packets of other sources were refused here: is the \
                 manager's address among the admitted ones? (`agent-fw regions list`)",
            ),
            Some(Heartbeat::NeverArrived) => report::bad(
                WORD,
                "none for 20 minutes, and nothing was refused here either: packets do not arrive, \
                 because the manager sends none or another firewall on the way stops them",
            ),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let (state, seconds) = match self.heartbeat {
            None if self.direction == Some(Mode::Bidirectional) => ("not-judged", None),
            None => ("not-expected", None),
            Some(Heartbeat::Heard(time)) => ("heard", Some(time)),
            Some(Heartbeat::TooEarly(_)) => ("too-early", None),
            Some(Heartbeat::RefusedHere) => ("refused-here", None),
            Some(Heartbeat::NeverArrived) => ("never-arrived", None),
        };
        json!({ "state": state, "seconds_ago": seconds.map(|time| time.as_secs()) })
    }
}
