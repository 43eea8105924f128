//! `agent-fw explain`: asks the running kernel whether a source reaches the agent's port.

use super::asking::{self, PacketsSent};
use super::outcome::{Failure, Outcome, Result};
use super::own_packets::OwnPackets;
use super::probe_runner::{Answer, ProbeRunner};
use super::report::{self, say};
use super::sample::{self, Sample};
use super::{LockWait, path_report};
use crate::engine::apply::Read;
use crate::engine::opening::Known;
use crate::engine::policy::catalogue;
use crate::input::Catalogue;
use crate::model::rule::AgentPolicy;
use crate::model::{MacAddr, Port, Verdict};
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::system::{ds_agent, privilege};
use crate::trace;
use crate::trace::{NoWayIn, NotAsked, ProbeRequest, ResolvedProbe, Routes, SideEffects};
use anyhow::anyhow;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

/// Asks the kernel whether a source reaches the agent's port, and if not, which rule stops it
///
/// Sends a marked packet in by the interface and follows it through every chain of every table. It
/// is caught before any socket, and nothing answers it. Counters of rules that it meets count it.
/// Exit code 1 if it does not reach the port, or this host's rules or routes stop the answer; 5 if
/// that is not known: something on the way cannot be asked, or rules of this host would remember the
/// packet and judge the next ones otherwise.
#[derive(clap::Args, Debug)]
pub(super) struct Explain {
    /// Where the packet comes from; an address of one link with its interface, as in fe80::1%eth0
    #[arg(long, value_name = "SOURCE", required_unless_present_any = ["all", "source"])]
    from: Option<Source>,
    /// The same as --from
    #[arg(value_name = "SOURCE", hide = true, conflicts_with_all = ["from", "all"])]
    source: Option<Source>,
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
    /// Ask for a source of each admitted prefix and for one that is not admitted, by every interface
    /// with a route to it
    #[arg(long, conflicts_with_all = ["from", "to"])]
    all: bool,
    /// Ask, too, where rules of this host remember packets: rates, quotas, sets that packets change,
    /// lists of recent sources
    ///
    /// To those rules, the packet is one of that source: it may use up what a manager's own
    /// connection needs, or have the source banned.
    #[arg(long)]
    accept_side_effects: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    patience: LockWait,
}

impl Explain {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("explain")?;
        // What another agent-fw is just changing would be neither the old nor the new.
        let catalogue = catalogue();
        let (read, _lock) = Read::with_lock("explain", self.patience.duration())?;
        trace::clear();
        match self.from.clone().or_else(|| self.source.clone()) {
            Some(Source { address, interface }) if !self.all => {
                if interface.is_some() && self.interface.is_some() && interface != self.interface {
                    return Err(Failure::Input(anyhow!(
                        "--from and --interface name two interfaces"
                    )));
                }
                let interface = self.interface.clone().or(interface);
                let asks = Self { interface, ..self };
                asks.one(address, read.compile_any().ok().flatten())
            }
            _ => self.all(read.compile_any()?, &catalogue?),
        }
    }

    fn question(&self, source: IpAddr, port: Port) -> ProbeRequest {
        let Self { mac, to, interface, .. } = self;
        ProbeRequest { source, mac: *mac, destination: *to, port, interface: interface.clone() }
    }

    fn one(&self, source: IpAddr, installed: Option<Known>) -> Result<Outcome> {
        let listening = installed.as_ref().map(|(configuration, _)| configuration.port);
        let port = Port(self.port.or(listening).unwrap_or(Port::AGENT.0));
        let case = match ResolvedProbe::of(&self.question(source, port)) {
            Err(error) if error.is::<NoWayIn>() => {
                self.tell_no_way_in(source, port, &error.to_string());
                return Ok(Outcome::False);
            }
            case => case.map_err(Failure::Input)?,
        };
        let rules = trace::stateful_rules(&case)?;
        if !rules.is_empty() && !self.accept_side_effects {
            self.refuse(&case, &NotAsked(rules));
            return Ok(Outcome::NotAsked);
        }
        let mut own = OwnPackets::begin();
        let road = trace::ask(&case, self.side_effects())?;
        let installed = installed.filter(|_| listening == Some(port.0));
        let lowered = installed.as_ref().map(|(_, compiled)| &compiled.lowered);
        if let Some(lowered) = lowered {
            own.sent(lowered, (source, Some(case.mac)), road.sent);
        }
        let hinges_on_mac = lowered.is_some_and(|lowered| hinges_on_mac(&case, lowered));
        drop(own);
        if self.json {
            let own_rules = ds_agent::own_rules(port).into_iter();
            let own_rules: Vec<String> = own_rules.map(|(_, rule)| rule).collect();
            let mut json = path_report::to_json(&case, &road);
            json["own_rules"] = json!(own_rules);
            if hinges_on_mac {
                json["reaches"] = Value::Null;
                json["connects"] = Value::Null;
                json["conclusion"] = json!(format!("not known: {BY_MAC}"));
            }
            json["stateful_rules"] = asking::rules_to_json(&rules);
            say!("{json:#}");
        } else {
            path_report::print(&case, &road);
            if hinges_on_mac {
                report::caution("not known:", BY_MAC);
            }
            if !rules.is_empty() {
                report::remark("these rules of this host have a memory, and had the packet:");
                asking::print_rules(&rules);
            }
        }
        if hinges_on_mac {
            return Ok(Outcome::NotAsked);
        }
        Ok(match road.connects() {
            Some(true) => Outcome::Done,
            Some(false) => Outcome::False,
            None => Outcome::NotAsked,
        })
    }

    fn side_effects(&self) -> SideEffects {
        if self.accept_side_effects { SideEffects::Accepted } else { SideEffects::Refused }
    }

    /// Says why nothing can be sent: no connection of the source's comes about.
    fn tell_no_way_in(&self, source: IpAddr, port: Port, why: &str) {
        if self.json {
            let json = json!({
                "source": source,
                "port": port.0,
                "asked": false,
                "reaches": false,
                "connects": false,
                "conclusion": why,
                "packets_sent": PacketsSent::default().to_json(),
            });
            return say!("{json:#}");
        }
        report::bad("does not reach the port:", why);
    }

    /// Says which rules would remember the packet, instead of sending it.
    fn refuse(&self, case: &ResolvedProbe, why: &NotAsked) {
        let NotAsked(rules) = why;
        if self.json {
            let json = json!({
                "source": case.syn.source,
                "mac": case.mac.to_string(),
                "destination": case.syn.destination,
                "port": case.syn.port.0,
                "interface": case.interface.name,
                "asked": false,
                "reaches": null,
                "connects": null,
                "conclusion": why.to_string(),
                "stateful_rules": asking::rules_to_json(rules),
                "packets_sent": PacketsSent::default().to_json(),
            });
            return say!("{json:#}");
        }
        report::remark(&path_report::packet(case));
        report::bad("not asked:", "rules of this host would remember the packet. What each does:");
        asking::print_rules(rules);
        report::remark(
            "Whether the source reaches the port is not known. --accept-side-effects sends the \
             packet all the same: to these rules it is one of that source.",
        );
    }

    fn all(&self, installed: Option<Known>, catalogue: &Catalogue) -> Result<Outcome> {
        let Some((configuration, compiled)) = installed else {
            return Err(Failure::Input(anyhow!(
                "no policy is installed, of which the sources could be tried; --from names one"
            )));
        };
        let lowered = &compiled.lowered;
        let port = Port(self.port.unwrap_or(configuration.port));
        let samples: Vec<Sample> = sample::admitted(&lowered.policy, &lowered.ledger, catalogue)
            .chain(sample::stranger(&lowered.policy))
            .collect();
        let mut trial = ProbeRunner::of(lowered, self.side_effects())?;
        let (mut is_good, mut not_asked, mut answers) = (true, 0_u64, Vec::new());
        if !self.json {
            Answer::print_heading();
        }
        for (interface, samples) in self.by_interface(&samples)? {
            for Sample { source, mac } in samples {
                let question = self.question(source, port);
                let answer = trial.ask(&ProbeRequest {
                    mac: self.mac.or(mac),
                    interface: question.interface.clone().or(interface.clone()),
                    ..question
                });
                let is_open = answer.is_open_question();
                not_asked += u64::from(is_open);
                is_good &= answer.is_tolerable() || is_open;
                // Nothing is kept of what is printed: there can be very many.
                if self.json { answers.push(answer.to_json()) } else { answer.print() }
            }
        }
        if self.json {
            let as_promised = (!is_good || not_asked == 0).then_some(is_good);
            let json = json!({
                "answers": answers,
                "as_promised": as_promised,
                "not_asked": not_asked,
                "packets_sent": trial.sent.to_json(),
            });
            say!("{json:#}");
        } else {
            trial.sent.tell();
            if not_asked > 0 {
                report::remark(&format!(
                    "not known: {not_asked}, marked `?`. Where rules of this host would remember \
                     the packets, nothing was asked: `agent-fw explain --from SOURCE` names them \
                     all, and --accept-side-effects asks all the same."
                ));
            }
        }
        Ok(match (is_good, not_asked) {
            (false, _) => Outcome::False,
            (true, 0) => Outcome::Done,
            (true, _) => Outcome::NotAsked,
        })
    }

    /// The sources for each interface by which a route leads to them; those without a route come
    /// last, without an interface.
    fn by_interface(&self, samples: &[Sample]) -> Result<Vec<(Option<String>, Vec<Sample>)>> {
        if self.interface.is_some() {
            return Ok(vec![(None, samples.to_vec())]);
        }
        let routes = Routes::read()?;
        let can_be_asked = |interface: &Interface| interface.is_up && interface.name != "lo";
        let interfaces: Vec<Interface> = link::list()?.into_iter().filter(can_be_asked).collect();
        let led: Vec<(Sample, BTreeSet<u32>)> =
            samples.iter().map(|sample| (*sample, routes.towards(sample.source))).collect();
        let of = |leads: &dyn Fn(&BTreeSet<u32>) -> bool| -> Vec<Sample> {
            led.iter().filter(|(_, by)| leads(by)).map(|(sample, _)| *sample).collect()
        };
        let mut groups: Vec<(Option<String>, Vec<Sample>)> = interfaces
            .iter()
            .map(|interface| {
                (Some(interface.name.clone()), of(&|by| by.contains(&interface.index)))
            })
            .collect();
        groups.push((None, of(&|by| !interfaces.iter().any(|i| by.contains(&i.index)))));
        Ok(groups)
    }
}

/// A source, and the interface that its address is for, where it is one of a single link.
#[derive(Clone, Debug)]
struct Source {
    address: IpAddr,
    interface: Option<String>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (address, interface) = match text.split_once('%') {
            Some((address, interface)) => (address, Some(interface.to_owned())),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{address} is no IP address"))?;
        let is_of_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        match interface {
            Some(name) if name.is_empty() => Err("no interface stands behind %".to_owned()),
            Some(_) if !is_of_link => {
                Err(format!("{address} is not an address of one link (fe80::/10)"))
            }
            interface => Ok(Self { address, interface }),
        }
    }
}

/// Why it is not known whether a source gets through that the policy admits from some neighbours.
const BY_MAC: &str = "the policy admits this source by the MAC addresses of some neighbours alone, and \
                      this host does not know which one it comes through; --mac names it";

/// Whether the policy admits the source from some MAC addresses, of which an invented one is none.
fn hinges_on_mac(case: &ResolvedProbe, lowered: &AgentPolicy) -> bool {
    let source = case.syn.source;
    let mut all = lowered.policy.admissions().iter();
    let is_admitted = all.any(|admission| admission.addresses.contains(source));
    case.is_mac_invented
        && is_admitted
        && sample::decide(&lowered.policy, source, Some(case.mac)) != Verdict::Accept
}
