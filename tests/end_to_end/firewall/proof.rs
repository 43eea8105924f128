//! `verify` of whole firewall policies: what it says of the kernel is true, of every change by hand.

use super::flow::{FlowPlan, Kind, Step};
use super::kernel::{Stage, clear, seen};
use super::random::{PORTS, REMOTE, crowd, mac, remote, rules, small};
use super::specification::Trial;
use crate::chance::Chance;
use crate::tests;
use agent_fw::model::firewall::{
    Datagram, Firewall, Flow, ICMP, ICMPV6, Packet, Payload, TCP, UDP, Verdict,
};
use agent_fw::model::packet_set::{Connection, State};
use agent_fw::model::rule::Direction;
use agent_fw::model::{AddressRange, AddressSet, MacAddr, Range};
use agent_fw::nft::{Nftables, Ruleset};
use agent_fw::verify::{
    Addresses, Counterexample, Deed, Due, Kernel, Sample, Way, effect, firewall_counterexample,
};
use agent_fw_lab::{Lab, Peer, output, run};
use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

tests![
    every_change_of_a_firewall_policys_table_is_proved_with_a_packet_that_behaves_so,
    nothing_is_said_against_what_random_firewall_policies_compile_to,
];

/// How many changes are tried. `AGENT_FW_MUTATIONS` sets it.
const CHANGES: usize = 120;
/// Random policies that are proved.
const POLICIES: usize = 60;

fn enforce(firewall: &Firewall) -> Result<()> {
    let images: Vec<_> = firewall.tables(false).into_iter().map(Ruleset::into_image).collect();
    Nftables::open()?.replace(&images).context("the kernel refuses a policy")
}

/// What `verify` finds.
fn prove(firewall: &Firewall, own: &AddressSet) -> Result<Option<Counterexample>> {
    let live = Nftables::open()?.read_tables()?;
    let firewall_tables = live.iter().map(effect).collect();
    let kernel = Kernel { firewall: firewall_tables, own: own.clone(), ..Kernel::default() };
    Ok(firewall_counterexample(Some(firewall), &kernel))
}

/// The host's addresses on this stage.
fn own() -> AddressSet {
    let all = [0, 1].into_iter().flat_map(|n| [true, false].map(|v4| super::random::local(n, v4)));
    let range = |address| match address {
        IpAddr::V4(v4) => AddressRange::V4(Range::single(v4)),
        IpAddr::V6(v6) => AddressRange::V6(Range::single(v6)),
    };
    all.map(range).collect()
}

fn random_policy(chance: &mut Chance) -> Result<Firewall> {
    let mut rules = rules(chance);
    if chance.once_in(4) {
        crowd(chance, &mut rules);
    }
    let firewall = Firewall::new(&rules)?;
    let denied = [Direction::Incoming, Direction::Outgoing][chance.below(2)];
    Ok(if chance.once_in(3) { firewall.denying(denied) } else { firewall })
}

fn nothing_is_said_against_what_random_firewall_policies_compile_to() -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut chance = Chance::new(clock.as_secs());
    Lab::run(|_| {
        for _ in 0..POLICIES {
            let firewall = random_policy(&mut chance)?;
            enforce(&firewall)?;
            let found = prove(&firewall, &own())?;
            ensure!(found.is_none(), "{found:#?} by {firewall:#?}");
        }
        Ok(())
    })
}

/// The table as `nft --handle` lists it, rule by rule: chain, text and handle.
fn listing() -> Result<Vec<[String; 3]>> {
    let text = run(["nft", "--handle", "list", "table", "inet", "agent_fw_policy"])?;
    let mut chain = String::new();
    let mut rules = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("\tchain ") {
            chain = rest.split_whitespace().next().unwrap_or_default().to_owned();
        } else if let Some((rule, handle)) = line.trim().split_once(" # handle ")
            && !chain.is_empty()
            && !rule.ends_with('{')
        {
            rules.push([chain.clone(), rule.to_owned(), handle.to_owned()]);
        }
    }
    Ok(rules)
}

/// The sets of the table, by what is in them.
fn sets() -> Result<Vec<(String, String)>> {
    let text = run(["nft", "list", "table", "inet", "agent_fw_policy"])?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let named = lines.windows(2).filter_map(|pair| {
        let name = pair[0].strip_prefix("set ")?.strip_suffix(" {")?;
        Some((name.to_owned(), pair[1].strip_prefix("type ")?.to_owned()))
    });
    Ok(named.collect())
}

/// A change by hand, in words, and what `nft` carries out.
fn change(chance: &mut Chance) -> Result<Option<(&'static str, String)>> {
    const TABLE: &str = "inet agent_fw_policy";
    let rules = listing()?;
    let [chain, text, handle] = chance.pick(&rules).clone();
    let verdict = ["accept", "drop"][chance.below(2)];
    let port = *chance.pick(&PORTS);
    let far = remote(small(chance, REMOTE), true);
    let (end, far_v6) = (["saddr", "daddr"][chance.below(2)], remote(small(chance, REMOTE), false));
    Ok(Some(match chance.below(9) {
        0 | 1 => ("a rule is deleted", format!("delete rule {TABLE} {chain} handle {handle}")),
        2 => {
            let what = match chance.below(7) {
                0 => format!("ip {end} {far}"),
                1 => format!("ip6 {end} {far_v6}"),
                2 => format!("tcp dport {port}"),
                3 => format!("udp sport {port}"),
                4 => "tcp flags & (syn | ack) == syn".to_owned(),
                5 => format!("icmp type {}", chance.pick(&["echo-request", "echo-reply"])),
                _ => format!("ct state {}", chance.pick(&["new", "established", "invalid"])),
            };
            ("a rule is inserted", format!("insert rule {TABLE} {chain} {what} {verdict}"))
        }
        3 => {
            let direction = ["original", "reply"][chance.below(2)];
            let rule = format!("insert rule {TABLE} {chain} ct direction {direction} {verdict}");
            ("a rule about the direction is inserted", rule)
        }
        4 => {
            let Some((front, old)) = text.rsplit_once(' ') else { return Ok(None) };
            let new = match old {
                "accept" => "drop",
                "drop" => "accept",
                _ => return Ok(None),
            };
            let script = format!("replace rule {TABLE} {chain} handle {handle} {front} {new}");
            ("a verdict is replaced", script)
        }
        5 | 6 => {
            let sets = sets()?;
            let Some((set, of)) = (!sets.is_empty()).then(|| chance.pick(&sets).clone()) else {
                return Ok(None);
            };
            let element = match of.as_str() {
                "inet_service" => port.to_string(),
                "ipv4_addr" => far.to_string(),
                "ipv6_addr" => far_v6.to_string(),
                _ => "02:41:18:00:00:03".to_owned(),
            };
            ("an element is added", format!("add element {TABLE} {set} {{ {element} }}"))
        }
        7 => {
            let sets = sets()?;
            let Some((set, _)) = (!sets.is_empty()).then(|| chance.pick(&sets).clone()) else {
                return Ok(None);
            };
            ("a set is emptied", format!("flush set {TABLE} {set}"))
        }
        _ => {
            let script = format!(
                "replace rule {TABLE} {chain} handle {handle} {}",
                text.replace(&format!("dport {port}"), "dport 1")
            );
            ("a port is replaced", script)
        }
    }))
}

/// Where the other end may be: the addresses of random rules, and those that stand for others.
const WORLD: [&str; 6] = [
    "192.0.2.0/24",
    "198.51.100.0/24",
    "172.0.0.0/8",
    "2001:db8::/64",
    "2001:db8:5a::/48",
    "2001:db9::/32",
];

fn contains(net: &str, address: IpAddr) -> bool {
    net.parse::<IpNet>().is_ok_and(|net| net.contains(&address))
}

/// Opens the whole world to the stage.
fn widen(peer: &Peer) -> Result<()> {
    let interface = peer.interface();
    for net in WORLD.iter().filter(|net| !["192.0.2.0/24", "2001:db8::/64"].contains(net)) {
        let (via, family) = if net.contains(':') {
            (peer.v6().to_string(), "ip6")
        } else {
            (peer.v4().to_string(), "ip")
        };
        run(["ip", "route", "add", net, "via", &via, "dev", &interface])?;
        let rule =
            format!("add rule inet observer arrive {family} saddr {net} counter name arrived");
        run(["nft", &rule])?;
    }
    Ok(())
}

/// The flow whose packet a counterexample is, and which of its packets; `None` for one that cannot be
/// sent here.
fn flow_of(sample: &Sample) -> Option<(FlowPlan, Step)> {
    let Sample { addresses, protocol, connection, .. } = *sample;
    let Addresses { source, destination, is_any_destination, is_any_source } = addresses?;
    let is_v4 = source.is_ipv4();
    // Connection tracking knows each version's ICMP alone.
    let is_plain = protocol != if is_v4 { ICMPV6 } else { ICMP }
        && !sample.is_by_vrf
        && !sample.is_loopback
        && sample.interface != Some(1)
        && sample.source_type.is_none()
        && sample.destination_type.is_none()
        && !(sample.is_without_mac && sample.way == Way::Incoming);
    let direction = match sample.way {
        Way::Incoming => Direction::Incoming,
        Way::Outgoing => Direction::Outgoing,
        Way::Forwarded => return None,
    };
    let (far, near, is_any_near) = match direction {
        Direction::Incoming => (source, destination, is_any_destination),
        Direction::Outgoing => (destination, source, is_any_source),
    };
    let is_any_far =
        if direction == Direction::Incoming { is_any_source } else { is_any_destination };
    let far = if is_any_far { remote(0, is_v4) } else { far };
    let near = if is_any_near { super::random::local(0, is_v4) } else { near };
    let connection = connection.unwrap_or(Connection::OPENS);
    let step = match connection {
        Connection::OPENS => Step::First,
        Connection { state: State::Established, is_reply: true, .. } => Step::Answer,
        Connection { state: State::Established, .. } => Step::Third,
        Connection { state: State::Invalid, .. } => Step::First,
        _ => return None,
    };
    // From this host, a packet of any source can be sent.
    let is_sent = direction == Direction::Outgoing && step == Step::First;
    let is_there = (own().contains(near) || is_sent) && WORLD.iter().any(|net| contains(net, far));
    let from = sample.source_port.unwrap_or(40_000);
    let (remote_port, local_port) = match direction {
        Direction::Incoming => (from, sample.port.0),
        Direction::Outgoing => (sample.port.0, from),
    };
    let flags = sample.flags.unwrap_or(2);
    let is_invalid = connection.state == State::Invalid;
    let message = match (protocol, step == Step::Answer || is_invalid) {
        (ICMP, false) => 0x0800,
        (ICMP, true) => 0,
        (_, false) => 0x8000,
        (_, true) => 0x8100,
    };
    let [kind, code] = sample.source_port.unwrap_or(message).to_be_bytes();
    let kind = match (protocol, step) {
        (TCP, Step::Third) if sample.flags.is_none_or(|flags| flags == 0x10) => Kind::Tcp(2),
        (TCP, Step::Answer) if sample.flags.is_none_or(|flags| flags == 0x12) => Kind::Tcp(2),
        (TCP, Step::First) if is_invalid && sample.flags.is_none() => Kind::Tcp(0x12),
        (TCP, Step::First) => Kind::Tcp(flags),
        (UDP, _) if !is_invalid => Kind::Udp,
        (ICMP, Step::First | Step::Third) if kind == 8 && !is_invalid => Kind::Echo(code),
        (ICMP, Step::Answer) if kind == 0 => Kind::Echo(code),
        (ICMPV6, Step::First | Step::Third) if kind == 128 && !is_invalid => Kind::Echo(code),
        (ICMPV6, Step::Answer) if kind == 129 => Kind::Echo(code),
        (ICMP, Step::First) if kind == 0 && is_invalid => Kind::Icmp(0, code),
        (ICMPV6, Step::First) if kind == 129 && is_invalid => Kind::Icmp(129, code),
        (TCP | UDP | ICMP | ICMPV6, _) => return None,
        (other, _) if !is_invalid => Kind::Other(other),
        _ => return None,
    };
    let opens = FlowPlan {
        direction: if step == Step::Answer { direction.opposite() } else { direction },
        is_v4,
        remote: far,
        local: near,
        remote_port,
        local_port,
        mac: sample.mac.unwrap_or(mac(0)),
        is_broadcast: sample.mac_to == Some(MacAddr([0xff; 6])),
        kind,
    };
    let is_right = is_invalid != opens.opens(Step::First);
    (is_plain && is_there && is_right).then_some((opens, step))
}

fn packet(plan: &FlowPlan, step: Step, host_mac: MacAddr) -> Packet {
    let direction = if step.goes_back() { plan.direction.opposite() } else { plan.direction };
    let (source, destination) = match direction {
        Direction::Incoming => (plan.remote, plan.local),
        Direction::Outgoing => (plan.local, plan.remote),
    };
    let transport = plan.transport(direction, step);
    let to = if plan.is_broadcast { MacAddr([0xff; 6]) } else { host_mac };
    Packet {
        direction,
        loopback: false,
        macs: (direction == Direction::Incoming).then_some((plan.mac, to)),
        payload: Payload::Ip(Datagram { source, destination, transport, flow: Flow::Forth }),
    }
}

/// Sends a flow's packets up to this one, and tells which of them got through.
fn through(stage: &mut Stage, peer: &Peer, plan: &FlowPlan, last: Step) -> Result<Vec<bool>> {
    clear()?;
    let steps = match last {
        Step::Answer => vec![Step::First, Step::Answer],
        Step::Third => vec![Step::First, Step::Answer, Step::Third],
        _ => vec![last],
    };
    let host_mac = MacAddr(peer.host_mac().0);
    for (number, step) in (1_u16..).zip(&steps) {
        let packet = packet(plan, *step, host_mac);
        let bytes = plan.bytes(1, number, *step, &packet);
        match packet.direction {
            Direction::Incoming => stage.come(&bytes, true)?,
            Direction::Outgoing => stage.go(&bytes, plan.remote)?,
        }
        stage.settle()?;
    }
    let seen = seen()?;
    let seen = if plan.is_v4 { seen.v4 } else { seen.v6 };
    Ok((1..).zip(&steps).map(|(number, _)| seen.contains(&number)).collect())
}

/// Whether the packet behaves as `verify` says; `None` where it cannot be sent here.
fn agree(stage: &mut Stage, peer: &Peer, found: &Counterexample) -> Result<Option<()>> {
    let Some((plan, step)) = flow_of(&found.packet) else { return Ok(None) };
    match found.deed {
        Deed::Drops | Deed::Passes => {
            ensure!((found.deed == Deed::Drops) != found.due.is_drop(), "no difference: {found:?}");
            let passed = through(stage, peer, &plan, step)?;
            if passed[..passed.len() - 1].contains(&false) {
                // What comes before it is dropped: there is no such packet.
                return Ok(None);
            }
            // Whether a Bypass let its connection begin is not for the test to choose.
            let by_bypass = found.packet.connection.is_some_and(|of| of.is_labelled);
            if by_bypass {
                return Ok(None);
            }
            let did = passed.last() == Some(&true);
            ensure!(did == (found.deed == Deed::Passes), "{found:?}, passes: {did}, {plan:?}");
        }
        Deed::PassesUnlabelled | Deed::PassesLabelled if plan.has_answer() => {
            ensure!(found.due != Due::Firewall(Verdict::Drop), "{found:?}");
            let passed = through(stage, peer, &plan, Step::First)?;
            ensure!(passed == [true], "{found:?} does not pass");
        }
        _ => return Ok(None),
    }
    Ok(Some(()))
}

fn every_change_of_a_firewall_policys_table_is_proved_with_a_packet_that_behaves_so() -> Result<()>
{
    let changes = std::env::var("AGENT_FW_MUTATIONS").ok().and_then(|text| text.parse().ok());
    let changes = changes.unwrap_or(CHANGES);
    let mut chance = Chance::new(16);
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let mut stage = Stage::set(&peer)?;
        widen(&peer)?;
        let (mut tally, mut done): (BTreeMap<_, [usize; 4]>, usize) = (BTreeMap::new(), 0);
        while done < changes {
            let firewall = random_policy(&mut chance)?;
            enforce(&firewall)?;
            let Some((words, script)) = change(&mut chance)? else { continue };
            if output(["nft", &script])?.code != Some(0) {
                continue;
            }
            done += 1;
            let found = prove(&firewall, &own())?;
            let [silent, seen, unsent, unknown] = tally.entry(words).or_default();
            match &found {
                None => {
                    *silent += 1;
                    clear()?;
                    let mut trial = Trial::new(&firewall, &peer);
                    trial.run(&mut chance, &mut stage)?;
                    let silence = || format!("verify is silent: {script}");
                    trial.compare(&super::kernel::seen()?, &[]).with_context(silence)?;
                }
                Some(Counterexample { deed: Deed::Unknown(_), .. }) => *unknown += 1,
                Some(found) => {
                    let agreed = agree(&mut stage, &peer, found);
                    let agreed = agreed.with_context(|| format!("{script}\n{firewall:#?}"))?;
                    *(if agreed.is_some() { seen } else { unsent }) += 1;
                }
            }
        }
        println!("[silent, seen, not sent, not known]: {tally:#?}");
        let seen: usize = tally.values().map(|[_, seen, ..]| seen).sum();
        ensure!(seen > changes / 4 && tally.len() > 5, "too few were seen");
        Ok(())
    })
}
