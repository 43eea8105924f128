//! `agent-fw explain`: asks the running kernel whether a source reaches the agent's port.

use super::outcome::{Failure, Outcome, Result};
use super::own_packets::OwnPackets;
use super::report::say;
use super::sample::{self, Sample};
use super::trial::{Answer, Trial};
use super::{Patience, road};
use crate::engine::apply::Read;
use crate::engine::opening::Known;
use crate::engine::policy::catalogue;
use crate::input::Catalogue;
use crate::model::{MacAddr, Port};
use crate::netlink::link;
use crate::netlink::link::Interface;
use crate::system::{ds_agent, privilege};
use crate::trace;
use crate::trace::{Case, Question, Routes};
use anyhow::anyhow;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Asks the kernel whether a source reaches the agent's port, and if not, which rule stops it
///
/// Sends a marked packet in by the interface and follows it through every chain of every table. It
/// is caught before any socket, and nothing answers it. Counters of rules that it meets count it.
/// Exit code 1 if it does not reach the port, or this host's rules stop the answer.
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
    /// Ask for a source of each admitted prefix and for one that is not admitted, by every interface
    /// with a route to it
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
        let catalogue = catalogue();
        let (read, _lock) = Read::with_lock("explain", self.patience.duration())?;
        trace::clear();
        match self.from {
            Some(source) if !self.all => self.one(source, read.compile_any().ok().flatten()),
            _ => self.all(read.compile_any()?, &catalogue?),
        }
    }

    fn question(&self, source: IpAddr, port: Port) -> Question {
        let Self { mac, to, interface, .. } = self;
        Question { source, mac: *mac, destination: *to, port, interface: interface.clone() }
    }

    fn one(&self, source: IpAddr, installed: Option<Known>) -> Result<Outcome> {
        let listening = installed.as_ref().map(|(configuration, _)| configuration.port);
        let port = Port(self.port.or(listening).unwrap_or(Port::AGENT.0));
        let case = Case::of(&self.question(source, port)).map_err(Failure::Input)?;
        let mut own = OwnPackets::begin();
        let road = trace::ask(&case)?;
        if let Some((_, compiled)) = installed.filter(|_| listening == Some(port.0)) {
            own.sent(&compiled.lowered, (source, Some(case.mac)), road.sent);
        }
        drop(own);
        if self.json {
            let own_rules = ds_agent::own_rules(port).into_iter();
            let own_rules: Vec<String> = own_rules.map(|(_, rule)| rule).collect();
            let mut json = road::to_json(&case, &road);
            json["own_rules"] = json!(own_rules);
            say!("{json:#}");
        } else {
            road::print(&case, &road);
        }
        Ok(if road.connects() { Outcome::Done } else { Outcome::False })
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
        let mut trial = Trial::of(lowered)?;
        let (mut is_good, mut answers) = (true, Vec::new());
        if !self.json {
            Answer::print_heading();
        }
        for (interface, samples) in self.by_interface(&samples)? {
            for Sample { source, mac } in samples {
                let question = self.question(source, port);
                let answer = trial.ask(&Question {
                    mac: self.mac.or(mac),
                    interface: question.interface.clone().or(interface.clone()),
                    ..question
                });
                is_good &= answer.is_tolerable();
                // Nothing is kept of what is printed: there can be very many.
                if self.json { answers.push(answer.to_json()) } else { answer.print() }
            }
        }
        if self.json {
            say!("{:#}", json!({ "answers": answers, "as_promised": is_good }));
        }
        Ok(if is_good { Outcome::Done } else { Outcome::False })
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
