//! What the kernel says of sources that are tried, beside what the policy promises them.

use super::asking::{self, PacketsSent};
use super::own_packets::OwnPackets;
use super::path_report;
use super::report::{self, say};
use super::sample::decide;
use crate::model::Verdict;
use crate::model::rule::AgentPolicy;
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::trace::{
    Conclusion, NotAsked, PacketTrace, ProbeRequest, ResolvedProbe, Session, SideEffects,
};
use anyhow::anyhow;
use serde_json::{Value, json};
use std::net::IpAddr;

/// What it takes to ask, made anew when the interface is another: the kernel can have one at a
/// time.
pub(super) struct ProbeRunner<'a> {
    lowered: &'a AgentPolicy,
    interfaces: Vec<Interface>,
    session: Option<(u32, Session)>,
    own: OwnPackets,
    side_effects: SideEffects,
    /// What it took so far.
    pub(super) sent: PacketsSent,
}

impl<'a> ProbeRunner<'a> {
    pub(super) fn of(lowered: &'a AgentPolicy, side_effects: SideEffects) -> anyhow::Result<Self> {
        let (own, sent) = (OwnPackets::begin(), PacketsSent::default());
        let interfaces = link::list()?;
        Ok(Self { lowered, interfaces, session: None, own, side_effects, sent })
    }

    /// Asks the kernel, unless rules would remember it.
    pub(super) fn ask(&mut self, question: &ProbeRequest) -> Answer {
        let source = question.source;
        let case = ResolvedProbe::among(question, &self.interfaces);
        let mac = case.as_ref().ok().map(|case| case.mac).or(question.mac);
        let due = decide(&self.lowered.policy, source, mac);
        let found = case.and_then(|case| Ok((case.clone(), self.road(&case)?)));
        let answer = Answer { source, due, found };
        if answer.not_asked().is_none() {
            self.own.sent(self.lowered, (source, mac), answer.sent());
        }
        if let Ok((_, road)) = &answer.found {
            self.sent.add_incoming(road);
        }
        answer
    }

    fn road(&mut self, case: &ResolvedProbe) -> anyhow::Result<PacketTrace> {
        let index = case.interface.index;
        if self.session.as_ref().is_none_or(|(of, _)| *of != index) {
            // The other one goes first.
            self.session = None;
            self.session = Some((index, Session::at(&case.interface, self.side_effects)?));
        }
        let (_, session) = self.session.as_mut().ok_or_else(|| anyhow!("nothing to ask with"))?;
        session.ask(case)
    }
}

/// What was found for one source.
pub(super) struct Answer {
    pub(super) source: IpAddr,
    pub(super) due: Verdict,
    pub(super) found: anyhow::Result<(ResolvedProbe, PacketTrace)>,
}

impl Answer {
    /// Why the kernel was not asked, where rules would have remembered it.
    pub(super) fn not_asked(&self) -> Option<&NotAsked> {
        asking::not_asked(self.found.as_ref().err()?)
    }

    /// Whether the source gets through; `None` where that could not be tried, or is not known.
    pub(super) fn reaches(&self) -> Option<bool> {
        match self.found.as_ref().ok()?.1.conclusion {
            Conclusion::NotKnown(_) => None,
            ref conclusion => Some(*conclusion == Conclusion::Reaches),
        }
    }

    /// Whether a connection comes about, as far as rules go; `None` where that could not be tried,
    /// or is not known.
    pub(super) fn connects(&self) -> Option<bool> {
        self.found.as_ref().ok()?.1.connects()
    }

    /// Whether asking has not told what the policy promises of it: rules would have remembered it,
    /// or something on the way does not say what it does.
    pub(super) fn is_open_question(&self) -> bool {
        let is_known = match self.due {
            Verdict::Accept => self.connects().is_some(),
            Verdict::Drop | Verdict::Continue | Verdict::Untouched => self.reaches().is_some(),
        };
        self.not_asked().is_some() || self.found.is_ok() && !is_known
    }

    /// How often rules have met and counted the packet.
    fn sent(&self) -> u64 {
        self.found.as_ref().map_or(1, |(_, road)| road.sent)
    }

    /// Whether an admitted source gets through, and another does not.
    pub(super) fn is_as_promised(&self) -> bool {
        match self.due {
            Verdict::Accept => self.connects() == Some(true),
            Verdict::Drop => self.reaches() == Some(false),
            Verdict::Continue | Verdict::Untouched => true,
        }
    }

    /// The same, where this host would answer by another interface: an admitted source that comes
    /// in by this one may be stopped.
    pub(super) fn is_tolerable(&self) -> bool {
        let is_detour =
            self.found.as_ref().is_ok_and(|(case, road)| road.answer_by(case).is_some());
        self.is_as_promised() || self.due == Verdict::Accept && is_detour
    }

    /// By which interface, and what became of it.
    pub(super) fn outcome(&self) -> (&str, String) {
        match &self.found {
            Ok((case, road)) => (case.interface.name.as_str(), path_report::conclusion(road)),
            Err(error) => ("-", asking::why_not(error)),
        }
    }

    /// Prints the heading of [`Self::print`].
    pub(super) fn print_heading() {
        say!("  {:<24} {:<9} {:<10} {}", "source", "policy", "interface", "what becomes of it");
    }

    pub(super) fn print(&self) {
        let due = match self.due {
            Verdict::Accept => "admitted",
            Verdict::Drop => "refused",
            Verdict::Continue | Verdict::Untouched => "others",
        };
        let (interface, what) = self.outcome();
        let mark = match (self.is_as_promised(), self.is_tolerable()) {
            _ if self.is_open_question() => "?",
            (true, _) => " ",
            (false, true) => "-",
            (false, false) => "!",
        };
        let first = format!("{mark} {:<24} {due:<9} {interface:<10} ", self.source.to_string());
        say!("{}", report::wrapped(&first, &" ".repeat(47), &what));
    }

    pub(super) fn to_json(&self) -> Value {
        let promised = (!self.is_open_question()).then(|| self.is_as_promised());
        match &self.found {
            Ok((case, road)) => {
                let mut value = path_report::to_json(case, road);
                value["admitted"] = json!(self.due == Verdict::Accept);
                value["as_promised"] = json!(promised);
                value
            }
            Err(error) => match self.not_asked() {
                Some(NotAsked(rules)) => json!({
                    "source": self.source,
                    "admitted": self.due == Verdict::Accept,
                    "asked": false,
                    "as_promised": null,
                    "conclusion": error.to_string(),
                    "stateful_rules": asking::rules_to_json(rules),
                    "packets_sent": PacketsSent::default().to_json(),
                }),
                None => json!({
                    "source": self.source,
                    "admitted": self.due == Verdict::Accept,
                    "as_promised": promised,
                    "error": format!("{error:#}"),
                }),
            },
        }
    }
}
