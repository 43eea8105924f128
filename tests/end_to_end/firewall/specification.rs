//! The kernel against the specification: random firewall policies, random packets both ways and
//! their answers, no difference.

use super::flow::{FlowPlan, Kind, Step, flow};
use super::kernel::{Seen, Stage, clear, seen};
use super::random::{crowd, mac, rules, small};
use crate::chance::Chance;
use crate::tests;
use agent_fw::model::MacAddr;
use agent_fw::model::firewall::{Datagram, Firewall, Flow, Packet, Payload, Stateful, Verdict};
use agent_fw::model::rule::{Direction, Rule};
use agent_fw::nft::{Nftables, Ruleset, differences};
use agent_fw_lab::{Lab, Peer};
use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

tests![
    the_kernel_decides_by_random_firewall_policies_as_the_specification_says,
    a_kernel_that_decides_by_another_policy_is_noticed,
    a_rule_that_is_said_never_to_decide_changes_nothing_when_it_is_left_out,
];

/// Flows of a policy; each has up to three packets.
const FLOWS: u16 = 120;
const ARP_FRAMES: u8 = 8;
/// `AGENT_FW_PAIRS` sets how many pairs of a policy and a packet are tried.
const PAIRS: usize = 10_000;

/// A packet that was sent, and what has to become of it.
struct Sent {
    number: u16,
    packet: Packet,
    verdict: Verdict,
}

/// A connection, as connection tracking knows it.
struct Connection {
    opened: Direction,
    by_bypass: bool,
}

fn the_kernel_decides_by_random_firewall_policies_as_the_specification_says() -> Result<()> {
    let pairs = std::env::var("AGENT_FW_PAIRS").map_or(Ok(PAIRS), |text| text.parse())?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut chance = Chance::new(clock.as_secs());
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let mut stage = Stage::set(&peer)?;
        let mut tally: BTreeMap<String, usize> = BTreeMap::new();
        let (mut policies, mut tried) = (0, 0);
        while tried < pairs {
            let mut rules = rules(&mut chance);
            if chance.once_in(2) {
                crowd(&mut chance, &mut rules);
            }
            let firewall = Firewall::new(&rules)?;
            // By an Allow, a direction is restrictive in most; by default, in some.
            let denied = [Direction::Incoming, Direction::Outgoing][chance.below(2)];
            let firewall = if chance.once_in(4) { firewall.denying(denied) } else { firewall };
            let stateful = Stateful { udp: chance.once_in(2), icmp: chance.once_in(3) };
            let firewall = firewall.stateful(stateful);
            let log = chance.once_in(4);
            enforce(&firewall, log).with_context(|| format!("{rules:#?}"))?;
            clear()?;
            let mut trial = Trial::new(&firewall, &peer);
            trial.run(&mut chance, &mut stage)?;
            trial.compare(&seen()?, &rules)?;
            for sent in &trial.sent {
                *tally.entry(class(sent)).or_default() += 1;
            }
            policies += 1;
            tried += trial.sent.len();
        }
        println!("{policies} policies, {tried} packets: no difference\n{tally:#?}");
        for (of, due) in
            [("IP", "Pass"), ("IP", "Drop"), ("IP", "Bypass"), ("ARP", "Pass"), ("ARP", "Drop")]
        {
            let is_one = |class: &str| class.starts_with(of) && class.ends_with(due);
            ensure!(tally.keys().any(|class| is_one(class)), "no {of} due {due}: {tally:#?}");
        }
        Ok(())
    })
}

/// The comparison above can fail: it does where the kernel lacks the first of the rules.
fn a_kernel_that_decides_by_another_policy_is_noticed() -> Result<()> {
    const POLICIES: usize = 12;
    let mut chance = Chance::new(118);
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let mut stage = Stage::set(&peer)?;
        let mut noticed = 0;
        for _ in 0..POLICIES {
            let rules = rules(&mut chance);
            let firewall = Firewall::new(&rules)?;
            let others = Firewall::new(rules.iter().skip(1))?;
            enforce(&others, false)?;
            clear()?;
            let mut trial = Trial::new(&firewall, &peer);
            trial.run(&mut chance, &mut stage)?;
            noticed += usize::from(trial.compare(&seen()?, &rules).is_err());
        }
        ensure!(noticed >= POLICIES / 3, "a rule that is left out was noticed {noticed} times");
        Ok(())
    })
}

fn a_rule_that_is_said_never_to_decide_changes_nothing_when_it_is_left_out() -> Result<()> {
    const POLICIES: u16 = 6000;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut chance = Chance::new(clock.as_secs());
    let (mut by_one, mut by_several, mut others) = (0, 0, 0);
    for _ in 0..POLICIES {
        let rules = rules(&mut chance);
        let firewall = Firewall::new(&rules)?;
        let idle = firewall.idle_rules();
        let packets: Vec<Packet> = (1..=FLOWS).map(|number| packet(&mut chance, number)).collect();
        let due: Vec<Verdict> = packets.iter().map(|packet| firewall.decide(packet)).collect();
        for rule in &rules {
            let without = Firewall::new(rules.iter().filter(|other| other.name != rule.name))?;
            // Whether a direction is restrictive is not by what a rule matches.
            let directions = [Direction::Incoming, Direction::Outgoing];
            let restricts = |firewall: &Firewall| {
                directions.map(|of| (firewall.restricts(of), firewall.restricts_arp(of)))
            };
            if restricts(&without) != restricts(&firewall) {
                continue;
            }
            let same = packets.iter().zip(&due).all(|(packet, due)| {
                let found = without.decide(packet);
                // ICMPv6 that passes by a rule would pass without it.
                let is_spared = matches!(&packet.payload, Payload::Ip(ip) if ip.is_icmpv6());
                found == *due || is_spared && ![found, *due].contains(&Verdict::Drop)
            });
            match idle.iter().find(|idle| idle.rule.name == rule.name) {
                Some(idle) => {
                    ensure!(same, "{idle}, and yet it decides by\n{rules:#?}");
                    by_one += usize::from(idle.shadows.len() == 1);
                    by_several += usize::from(idle.shadows.len() > 1);
                }
                None => others += usize::from(!same),
            }
        }
    }
    println!("shadowed by one: {by_one}, by several: {by_several}; others that decide: {others}");
    ensure!(by_one > 100 && by_several > 3 && others > 1000);
    Ok(())
}

/// The first packet of a flow, or one that fits none.
fn packet(chance: &mut Chance, number: u16) -> Packet {
    let plan = flow(chance);
    let direction = plan.direction;
    let (source, destination) = match direction {
        Direction::Incoming => (plan.remote, plan.local),
        Direction::Outgoing => (plan.local, plan.remote),
    };
    let transport = plan.transport(direction, Step::First);
    let flow = if number.is_multiple_of(8) { Flow::Invalid } else { Flow::Forth };
    let is_ethernet = direction == Direction::Incoming && !number.is_multiple_of(3);
    let macs = is_ethernet.then_some((plan.mac, MacAddr([0xff; 6])));
    let datagram = Datagram { source, destination, transport, flow };
    let is_arp = is_ethernet && chance.once_in(10);
    let payload = if is_arp { Payload::Arp } else { Payload::Ip(datagram) };
    Packet { direction, loopback: false, macs, payload }
}

fn class(sent: &Sent) -> String {
    match &sent.packet.payload {
        Payload::Arp => format!("ARP {:?}", sent.verdict),
        Payload::Ip(datagram) => {
            format!("IP {} {:?} {:?}", sent.packet.direction, datagram.flow, sent.verdict)
        }
    }
}

/// Puts the policy's tables in force, and demands that they are read back as they were sent.
fn enforce(firewall: &Firewall, log: bool) -> Result<()> {
    let images: Vec<_> = firewall.tables(log).into_iter().map(Ruleset::into_image).collect();
    let mut nftables = Nftables::open()?;
    nftables.replace(&images).context("the kernel refuses a policy")?;
    let live = nftables.read_tables()?;
    ensure!(live.len() == images.len(), "{} tables are there", live.len());
    for image in &images {
        let found = differences(image, live.iter().find(|live| live.image.name == image.name));
        ensure!(found.is_empty(), "{found:?}");
    }
    Ok(())
}

/// One policy, and the packets that it is tried with.
pub(super) struct Trial<'a> {
    firewall: &'a Firewall,
    host_mac: MacAddr,
    host: Ipv4Addr,
    sent: Vec<Sent>,
    connections: BTreeMap<u16, Connection>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(firewall: &'a Firewall, peer: &Peer) -> Self {
        let host_mac = MacAddr(peer.host_mac().0);
        let (sent, connections) = (Vec::new(), BTreeMap::new());
        Self { firewall, host_mac, host: peer.host_v4(), sent, connections }
    }

    pub(super) fn run(&mut self, chance: &mut Chance, stage: &mut Stage) -> Result<()> {
        for _ in 0..ARP_FRAMES {
            self.ask(chance, stage)?;
        }
        let mut known = BTreeSet::new();
        let flows: Vec<(u16, FlowPlan)> = (1..=FLOWS)
            .map(|number| (number, flow(chance)))
            .filter(|(number, plan)| known.insert(plan.key(*number)))
            .collect();
        for (number, plan) in &flows {
            self.send(stage, *number, plan, Step::First)?;
        }
        stage.settle()?;
        let answered: Vec<&(u16, FlowPlan)> =
            flows.iter().filter(|(_, plan)| plan.has_answer() && !chance.once_in(4)).collect();
        for (number, plan) in &answered {
            let is_error = plan.kind == Kind::Udp && plan.is_v4 && chance.once_in(3);
            let step = if is_error { Step::Error } else { Step::Answer };
            self.send(stage, *number, plan, step)?;
        }
        stage.settle()?;
        for (number, plan) in answered.iter().filter(|_| !chance.once_in(3)) {
            self.send(stage, *number, plan, Step::Third)?;
        }
        stage.settle()
    }

    fn send(&mut self, stage: &mut Stage, flow: u16, plan: &FlowPlan, step: Step) -> Result<()> {
        let number = u16::try_from(self.sent.len())? + 1;
        let packet = self.packet(flow, plan, step);
        let verdict = self.firewall.decide(&packet);
        let bytes = plan.bytes(flow, number, step, &packet);
        match packet.direction {
            Direction::Incoming => stage.come(&bytes, true)?,
            Direction::Outgoing => stage.go(&bytes, plan.remote)?,
        }
        let opens = verdict != Verdict::Drop && step != Step::Error && plan.opens(step);
        let by_bypass = verdict == Verdict::Bypass;
        if opens {
            let opened = packet.direction;
            self.connections.entry(flow).or_insert(Connection { opened, by_bypass });
        }
        self.sent.push(Sent { number, packet, verdict });
        Ok(())
    }

    /// The packet as the specification sees it.
    fn packet(&self, flow: u16, plan: &FlowPlan, step: Step) -> Packet {
        let direction = if step.goes_back() { turned(plan.direction) } else { plan.direction };
        let (source, destination) = match direction {
            Direction::Incoming => (plan.remote, plan.local),
            Direction::Outgoing => (plan.local, plan.remote),
        };
        let flow = match self.connections.get(&flow) {
            None if step != Step::Error && (plan.opens(step) || plan.is_untracked()) => Flow::Forth,
            None => Flow::Invalid,
            Some(connection) if connection.opened == direction => Flow::Forth,
            Some(connection) => Flow::Back { opened_by_bypass: connection.by_bypass },
        };
        let transport = plan.transport(direction, step);
        let to = if plan.is_broadcast { MacAddr([0xff; 6]) } else { self.host_mac };
        Packet {
            direction,
            loopback: false,
            macs: (direction == Direction::Incoming).then_some((plan.mac, to)),
            payload: Payload::Ip(Datagram { source, destination, transport, flow }),
        }
    }

    /// Asks for the host's MAC address, as ARP does.
    fn ask(&mut self, chance: &mut Chance, stage: &mut Stage) -> Result<()> {
        let number = u16::try_from(self.sent.len())? + 1;
        let (from, to) = (mac(small(chance, 4)), MacAddr([0xff; 6]));
        let packet = Packet {
            direction: Direction::Incoming,
            loopback: false,
            macs: Some((from, to)),
            payload: Payload::Arp,
        };
        let mut frame = [to.0, from.0].concat();
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        frame.extend(from.0);
        frame.extend(asker(number).octets());
        frame.extend([0; 6]);
        frame.extend(self.host.octets());
        stage.come(&frame, false)?;
        let verdict = self.firewall.decide(&packet);
        self.sent.push(Sent { number, packet, verdict });
        Ok(())
    }

    pub(super) fn compare(&self, seen: &Seen, rules: &[Rule]) -> Result<()> {
        for Sent { number, packet, verdict } in &self.sent {
            let passed = match &packet.payload {
                Payload::Arp => seen.arp.contains(&asker(*number).to_string()),
                Payload::Ip(Datagram { source: IpAddr::V4(_), .. }) => {
                    seen.v4.contains(&u64::from(*number))
                }
                Payload::Ip(_) => seen.v6.contains(&u64::from(*number)),
            };
            ensure!(
                passed == (*verdict != Verdict::Drop),
                "{packet:#?}\nis due {verdict:?}, passed: {passed}, by\n{rules:#?}"
            );
        }
        Ok(())
    }
}

/// The address that asks in an ARP frame, by its number.
fn asker(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

fn turned(direction: Direction) -> Direction {
    match direction {
        Direction::Incoming => Direction::Outgoing,
        Direction::Outgoing => Direction::Incoming,
    }
}
