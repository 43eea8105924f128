//! When an admitted source was last heard of.
//!
//! nf_tables counts packets and does not say when they came. So whoever looks writes down what was
//! counted; what has grown since was counted in between. XDP programs know the time.

use crate::system::file;
use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What was counted when somebody last looked, since the machine was switched on.
const FILE: &str = "/run/agent-fw/contact.json";
/// Two heartbeats, after which the manager raises an alert: one comes every ten minutes, and
/// neither can be configured (the vendor's documentation).
pub const TWO_HEARTBEATS: Duration = Duration::from_mins(20);

/// A moment, as the time since the machine was switched on, standby included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(Duration);

impl Moment {
    /// This one.
    pub fn now() -> nix::Result<Self> {
        Ok(Self(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into()))
    }

    /// So long after this one.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// How long before `now` it was.
    pub fn before(self, now: Self) -> Duration {
        now.0.saturating_sub(self.0)
    }
}

/// A stretch of time, in which at least one packet came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// Not before.
    pub from: Moment,
    /// Not after.
    pub to: Moment,
}

/// Two readings of the clocks may differ by what their steps are.
const STEP: Duration = Duration::from_millis(20);

impl Stretch {
    fn contains(self, moment: Moment) -> bool {
        let Moment(at) = moment;
        self.from.0.saturating_sub(STEP) <= at && at <= self.to.0 + STEP
    }
}

/// What is known of packets of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// How many were counted.
    packets: u64,
    /// When the last of them came, as far as that is known.
    pub last: Option<Stretch>,
}

impl Seen {
    fn look(before: Option<Self>, looked: Moment, now: Moment, packets: u64) -> Self {
        let known = before.unwrap_or_default();
        let last = match before {
            Some(before) if packets == before.packets => before.last,
            // A counter begins anew when agent-fw is installed anew.
            Some(_) if packets == 0 => known.last,
            Some(_) => Some(Stretch { from: looked, to: now }),
            // Counted at some time before anybody looked.
            None => None,
        };
        Self { packets, last }
    }
}

/// What somebody saw who looked at the counters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Contact {
    /// When somebody looked first.
    pub since: Moment,
    /// When somebody looked last.
    pub looked: Moment,
    /// Packets of admitted sources, by who they are.
    pub admitted: BTreeMap<String, Seen>,
    /// Packets of others.
    pub refused: Seen,
    /// When agent-fw itself last sent packets that were counted.
    #[serde(default)]
    asked: Option<Stretch>,
}

/// What the kernel has counted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Counted {
    /// Packets of admitted sources, by who they are, and how long ago the last one came, where that
    /// is known.
    pub admitted: BTreeMap<String, (u64, Option<Duration>)>,
    /// Packets of others.
    pub refused: u64,
}

/// What there is to say of the manager's heartbeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heartbeat {
    /// An admitted source was heard of so long ago, or later.
    Heard(Duration),
    /// None was, for two heartbeats or longer, but others were refused here within that time.
    RefusedHere,
    /// None was, and nobody else either.
    NeverArrived,
    /// Nobody has looked for long enough to tell: only so long.
    TooEarly(Duration),
}

impl Contact {
    /// What is known now, from what was known before and what is counted.
    pub fn look(before: Option<&Self>, now: Moment, counted: &Counted) -> Self {
        let looked = before.map_or(now, |before| before.looked);
        let admitted = counted.admitted.iter().map(|(by, (packets, ago))| {
            let known = before.and_then(|before| before.admitted.get(by)).copied();
            // A source that is new since somebody looked had counted nothing then.
            let known = known.or_else(|| before.map(|_| Seen::default()));
            let mut seen = Seen::look(known, looked, now, *packets);
            if let Some(ago) = ago {
                let at = Moment(now.0.saturating_sub(*ago));
                let asked = before.and_then(|before| before.asked);
                seen.last = if asked.is_some_and(|asked| asked.contains(at)) {
                    known.and_then(|known| known.last)
                } else {
                    Some(Stretch { from: at, to: at })
                };
            }
            (by.clone(), seen)
        });
        Self {
            since: before.map_or(now, |before| before.since),
            looked: now,
            admitted: admitted.collect(),
            refused: Seen::look(before.map(|before| before.refused), looked, now, counted.refused),
            asked: before.and_then(|before| before.asked),
        }
    }

    /// What is known after agent-fw itself has sent packets since `began`, of which `own` may have
    /// been counted: they are nobody else's.
    fn after_asking(
        mut self,
        now: Moment,
        counted: &Counted,
        own: &Counted,
        began: Moment,
    ) -> Self {
        for (by, seen) in &mut self.admitted {
            let of =
                |counted: &Counted| counted.admitted.get(by).map_or(0, |(packets, _)| *packets);
            seen.packets = (seen.packets + of(own)).min(of(counted));
        }
        self.refused.packets = (self.refused.packets + own.refused).min(counted.refused);
        self.asked = Some(Stretch { from: began, to: now });
        self
    }

    /// Whether heartbeats come.
    pub fn heartbeat(&self) -> Heartbeat {
        let now = self.looked;
        let last = |seen: &Seen| seen.last.map(|stretch| stretch.to.before(now));
        let heard = self.admitted.values().filter_map(last).min();
        let watched = self.since.before(now);
        match heard {
            Some(ago) if ago <= TWO_HEARTBEATS => Heartbeat::Heard(ago),
            _ if watched < TWO_HEARTBEATS => Heartbeat::TooEarly(watched),
            _ if last(&self.refused).is_some_and(|ago| ago <= TWO_HEARTBEATS) => {
                Heartbeat::RefusedHere
            }
            _ => Heartbeat::NeverArrived,
        }
    }

    /// Forgets what was seen.
    pub fn forget() -> anyhow::Result<()> {
        file::remove(Path::new(FILE))
    }

    /// Writes down for whoever looks next that agent-fw itself has sent packets since `began`, of
    /// which `own` may have been counted.
    pub fn disregard(counted: &Counted, own: &Counted, began: Moment) -> anyhow::Result<()> {
        let Some(known) = Self::read() else { return Ok(()) };
        let now = Moment::now().context("cannot read the clock")?;
        let known = known.after_asking(now, counted, own, began);
        file::write(Path::new(FILE), &serde_json::to_string(&known)?)
    }

    /// What was written down; what is damaged is as if nobody had looked.
    fn read() -> Option<Self> {
        serde_json::from_str(&file::read(Path::new(FILE)).ok()??).ok()
    }

    /// Looks, and writes down what was seen for whoever looks next.
    pub fn note(counted: &Counted) -> anyhow::Result<Self> {
        let now = Moment::now().context("cannot read the clock")?;
        let before = Self::read().filter(|before| before.looked <= now);
        let contact = Self::look(before.as_ref(), now, counted);
        file::write(Path::new(FILE), &serde_json::to_string(&contact)?)?;
        Ok(contact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Moment {
        Moment(Duration::from_mins(minutes))
    }

    fn counted(packets: u64, refused: u64) -> Counted {
        Counted { admitted: BTreeMap::from([("us-1".to_owned(), (packets, None))]), refused }
    }

    /// What is known after somebody has looked at these minutes.
    fn looked(looks: &[(u64, u64, u64)]) -> Contact {
        let mut known = None;
        for &(minute, packets, refused) in looks {
            known = Some(Contact::look(known.as_ref(), at(minute), &counted(packets, refused)));
        }
        known.expect("somebody looked")
    }

    #[test]
    fn what_has_grown_came_since_somebody_looked() {
        let known = looked(&[(0, 7, 0), (5, 7, 0), (9, 8, 0), (12, 8, 0)]);
        let last = known.admitted["us-1"].last;
        assert_eq!(last, Some(Stretch { from: at(5), to: at(9) }));
        assert_eq!(known.heartbeat(), Heartbeat::Heard(Duration::from_mins(3)));
    }

    #[test]
    fn what_was_counted_before_anybody_looked_tells_nothing() {
        assert_eq!(looked(&[(0, 7, 3)]).heartbeat(), Heartbeat::TooEarly(Duration::ZERO));
        let known = looked(&[(0, 7, 3), (20, 7, 3)]);
        assert_eq!(known.heartbeat(), Heartbeat::NeverArrived);
    }

    #[test]
    fn refused_packets_tell_that_something_came() {
        let known = looked(&[(0, 7, 3), (19, 7, 4), (30, 7, 4)]);
        assert_eq!(known.heartbeat(), Heartbeat::RefusedHere);
        let known = looked(&[(0, 7, 3), (5, 7, 4), (30, 7, 4)]);
        assert_eq!(known.heartbeat(), Heartbeat::NeverArrived);
    }

    #[test]
    fn a_counter_that_begins_anew_is_contact_when_it_counts() {
        let known = looked(&[(0, 7, 0), (5, 0, 0), (9, 2, 0)]);
        assert_eq!(known.admitted["us-1"].last, Some(Stretch { from: at(5), to: at(9) }));
    }

    #[test]
    fn a_source_that_is_new_is_heard_of_when_it_has_counted() {
        let mut now = counted(0, 0);
        let before = Contact::look(None, at(0), &now);
        now.admitted.insert("gb-1".to_owned(), (1, None));
        let known = Contact::look(Some(&before), at(5), &now);
        assert_eq!(known.admitted["gb-1"].last, Some(Stretch { from: at(0), to: at(5) }));
    }

    #[test]
    fn what_agent_fw_itself_sends_is_no_contact() {
        let known = looked(&[(0, 7, 3), (5, 8, 3)]);
        let own = counted(2, 1);
        let after = known.clone().after_asking(at(6), &counted(10, 4), &own, at(6));
        let next = Contact::look(Some(&after), at(9), &counted(10, 4));
        assert_eq!(next.admitted["us-1"].last, known.admitted["us-1"].last);
        assert_eq!(next.refused.last, None);
        // One more has come meanwhile.
        let after = known.after_asking(at(6), &counted(11, 4), &own, at(6));
        let next = Contact::look(Some(&after), at(9), &counted(11, 4));
        assert_eq!(next.admitted["us-1"].last, Some(Stretch { from: at(5), to: at(9) }));
        // A program tells the time of what was sent.
        let mut timed = counted(11, 4);
        timed.admitted.insert("us-1".to_owned(), (11, Some(Duration::from_mins(3))));
        let next = Contact::look(Some(&after), at(9), &timed);
        assert_eq!(next.admitted["us-1"].last, Some(Stretch { from: at(0), to: at(5) }));
    }

    #[test]
    fn a_program_knows_the_time() {
        let mut now = counted(0, 0);
        now.admitted.insert("us-1".to_owned(), (9, Some(Duration::from_mins(4))));
        let known = Contact::look(None, at(30), &now);
        assert_eq!(known.admitted["us-1"].last, Some(Stretch { from: at(26), to: at(26) }));
    }
}
