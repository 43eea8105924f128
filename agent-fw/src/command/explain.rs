//! `agent-fw explain`: asks the running kernel whether a source reaches the agent's port.

use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use super::status::wanted;
use super::{Patience, road};
use crate::host::{lock, privilege};
use crate::policy::{MacAddr, MacMatch, Packet, Policy, Port, Range, Transport, Verdict};
use crate::probe::{self, Case, Conclusion, Question, Road, Session};
use anyhow::anyhow;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Asks the kernel whether a source reaches the agent's port, and if not, which rule stops it
///
/// Sends a marked packet in by the interface and follows it through every chain of every table. It
/// is caught before any socket, and nothing answers it. Counters of rules that it meets count it.
/// Exit code 1 if it does not reach the port.
#[derive(clap::Args, Debug)]
pub(super) struct Explain {
    /// Where the packet comes from
    #[arg(long, value_name = "SOURCE", required_unless_present = "all")]
    from: Option<IpAddr>,
    /// The MAC address that it comes from; without it, that of the neighbour towards the source
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddr>,
    /// Where it goes; without it, this host's address towards the source
    #[arg(long, value_name = "ADDRESS")]
    to: Option<IpAddr>,
    /// The port; without it, that of the installed policy
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The interface that it comes in by; without it, the one towards the source
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Ask for a source of each admitted range and for one that is not admitted
    #[arg(long, conflicts_with_all = ["from", "to"])]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    patience: Patience,
}

impl Explain {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("explain")?;
        // What another agent-fw is just changing would be neither the old nor the new.
        let _lock = lock::acquire("explain", self.patience.duration())?;
        probe::clear();
        match self.from {
            Some(source) if !self.all => self.one(source),
            _ => self.all(),
        }
    }

    fn question(&self, source: IpAddr, port: Port) -> Question {
        let Self { mac, to, interface, .. } = self;
        Question { source, mac: *mac, destination: *to, port, interface: interface.clone() }
    }

    fn one(&self, source: IpAddr) -> Result<Outcome> {
        let installed = || wanted().ok().flatten().map(|(configuration, _)| configuration.port);
        let port = Port(self.port.or_else(installed).unwrap_or(Port::AGENT.0));
        let case = Case::of(&self.question(source, port)).map_err(Failure::Input)?;
        let road = probe::ask(&case)?;
        if self.json {
            say!("{:#}", road::to_json(&case, &road));
        } else {
            road::print(&case, &road);
        }
        Ok(if road.conclusion == Conclusion::Reaches { Outcome::Done } else { Outcome::False })
    }

    fn all(&self) -> Result<Outcome> {
        let Some((configuration, compiled)) = wanted()? else {
            return Err(Failure::Input(anyhow!(
                "no policy is installed, of which the sources could be tried; --from names one"
            )));
        };
        let policy = &compiled.lowered.policy;
        let port = Port(self.port.unwrap_or(configuration.port));
        let samples = samples(policy, MOST);
        let left_out = samples.left_out;
        let mut sessions = Sessions::default();
        let answers: Vec<Answer> = samples
            .sources
            .into_iter()
            .map(|(source, mac)| {
                let question = self.question(source, port);
                let question = Question { mac: self.mac.or(mac), ..question };
                Answer::to(&question, policy, &mut sessions)
            })
            .collect();
        let is_good = answers.iter().all(Answer::is_as_promised);
        if self.json {
            let answers: Vec<Value> = answers.iter().map(Answer::to_json).collect();
            say!(
                "{:#}",
                json!({ "answers": answers, "as_promised": is_good, "left_out": left_out })
            );
        } else {
            answers.iter().for_each(Answer::print);
            if left_out > 0 {
                report::remark(&format!("{left_out} more ranges were not tried"));
            }
        }
        Ok(if is_good { Outcome::Done } else { Outcome::False })
    }
}

/// Sources to try.
pub(super) struct Samples {
    /// Each with the MAC address that the policy asks for.
    pub(super) sources: Vec<(IpAddr, Option<MacAddr>)>,
    /// Ranges that are not tried.
    pub(super) left_out: usize,
}

/// Ranges that are tried, of each family; more take too long.
const MOST: usize = 32;

/// One source of each admitted range, of `most` of each family, and one that is not admitted.
pub(super) fn samples(policy: &Policy, most: usize) -> Samples {
    let mut sources = Vec::new();
    let mut left_out = 0;
    for admission in policy.admissions() {
        let mac = match &admission.macs {
            MacMatch::Any => None,
            MacMatch::Only(macs) => macs.ranges().first().map(Range::first),
        };
        let v4 = admission.addresses.v4.ranges();
        let v6 = admission.addresses.v6.ranges();
        left_out += v4.len().saturating_sub(most) + v6.len().saturating_sub(most);
        // Neither a network's own address nor its last one, where there are others; in a range as
        // large as all addresses, one for documentation.
        sources.extend(v4.iter().take(most).map(|range| {
            let (first, last) = (u32::from(range.first()), u32::from(range.last()));
            let plain = Ipv4Addr::from(first + u32::from(last - first > 1));
            let known = Ipv4Addr::new(198, 51, 100, 7);
            (IpAddr::V4(if range.contains(known) { known } else { plain }), mac)
        }));
        sources.extend(v6.iter().take(most).map(|range| {
            let (first, last) = (u128::from(range.first()), u128::from(range.last()));
            let plain = Ipv6Addr::from(first + u128::from(last - first > 1));
            let known = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
            (IpAddr::V6(if range.contains(known) { known } else { plain }), mac)
        }));
    }
    // For documentation (RFC 5737): nobody's. Another where that one is admitted.
    let strangers = ["198.51.100.7", "203.0.113.7", "192.0.2.7", "9.9.9.9"];
    let is_refused = |source: &IpAddr| decide(policy, *source, None) == Verdict::Drop;
    let stranger = strangers.iter().filter_map(|text| text.parse().ok()).find(is_refused);
    sources.extend(stranger.map(|source| (source, None)));
    Samples { sources, left_out }
}

fn decide(policy: &Policy, source: IpAddr, mac: Option<MacAddr>) -> Verdict {
    let port = policy.ports().ranges().first().map_or(Port::AGENT, Range::first);
    policy.decide(&Packet { loopback: false, source, mac, transport: Transport::Tcp(port) })
}

/// What it takes to ask, made anew when the interface is another: the kernel can have one at a
/// time.
#[derive(Default)]
pub(super) struct Sessions(Option<(u32, Session)>);

impl Sessions {
    fn ask(&mut self, case: &Case) -> anyhow::Result<Road> {
        let index = case.interface.index;
        if let Some((_, session)) = self.0.as_mut().filter(|(of, _)| *of == index) {
            return session.ask(case);
        }
        self.0 = None;
        let (_, session) = self.0.insert((index, Session::at(&case.interface)?));
        session.ask(case)
    }
}

/// What was found for one source.
pub(super) struct Answer {
    pub(super) source: IpAddr,
    pub(super) due: Verdict,
    pub(super) found: anyhow::Result<(Case, Road)>,
}

impl Answer {
    /// Asks the kernel.
    pub(super) fn to(question: &Question, policy: &Policy, sessions: &mut Sessions) -> Self {
        let source = question.source;
        let case = Case::of(question);
        let mac = case.as_ref().ok().map(|case| case.mac).or(question.mac);
        let due = decide(policy, source, mac);
        let found = case.and_then(|case| Ok((case.clone(), sessions.ask(&case)?)));
        Self { source, due, found }
    }

    /// Whether the source gets through; `None` where that could not be tried.
    pub(super) fn reaches(&self) -> Option<bool> {
        let (_, road) = self.found.as_ref().ok()?;
        Some(road.conclusion == Conclusion::Reaches)
    }

    /// Whether an admitted source gets through, and another does not.
    pub(super) fn is_as_promised(&self) -> bool {
        match self.due {
            Verdict::Accept => self.reaches() == Some(true),
            Verdict::Drop => self.reaches() == Some(false),
            Verdict::Continue | Verdict::Untouched => true,
        }
    }

    fn print(&self) {
        let due = match self.due {
            Verdict::Accept => "admitted",
            Verdict::Drop => "refused",
            Verdict::Continue | Verdict::Untouched => "others",
        };
        let (interface, what) = match &self.found {
            Ok((case, road)) => (case.interface.name.as_str(), road::conclusion(road)),
            Err(error) => ("-", format!("could not be tried: {error:#}")),
        };
        let mark = if self.is_as_promised() { " " } else { "!" };
        let first = format!("{mark} {:<18} {due:<9} {interface:<10} ", self.source.to_string());
        say!("{}", report::wrapped(&first, &" ".repeat(first.len().min(44)), &what));
    }

    fn to_json(&self) -> Value {
        let promised = self.is_as_promised();
        match &self.found {
            Ok((case, road)) => {
                let mut value = road::to_json(case, road);
                value["admitted"] = json!(self.due == Verdict::Accept);
                value["as_promised"] = json!(promised);
                value
            }
            Err(error) => json!({
                "source": self.source,
                "admitted": self.due == Verdict::Accept,
                "as_promised": promised,
                "error": format!("{error:#}"),
            }),
        }
    }
}
