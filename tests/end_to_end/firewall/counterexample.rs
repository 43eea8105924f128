//! Packets made from the counterexamples of `verify`: whether they behave as it says.

use super::flow::{FlowPlan, Kind, Step};
use super::kernel::{Stage, clear, seen};
use super::random::{local, mac, remote};
use agent_fw::model::firewall::{
    Datagram, Firewall, Flow, ICMP, ICMPV6, Packet, Payload, TCP, UDP, Verdict,
};
use agent_fw::model::packet_set::{Connection, State};
use agent_fw::model::rule::Direction;
use agent_fw::model::{AddressRange, AddressSet, MacAddr, Range};
use agent_fw::nft::Nftables;
use agent_fw::verify::{
    Actual, Addresses, Counterexample, Expected, Kernel, PacketDirection, Sample, effect,
    firewall_counterexample,
};
use agent_fw_lab::{Peer, run};
use anyhow::{Result, ensure};
use ipnet::IpNet;
use std::net::IpAddr;

/// What `verify` finds.
pub(super) fn prove(firewall: &Firewall) -> Result<Option<Counterexample>> {
    let live = Nftables::open()?.read_tables()?;
    let firewall_tables = live.iter().map(effect).collect();
    let kernel = Kernel { firewall: firewall_tables, own: own(), ..Kernel::default() };
    Ok(firewall_counterexample(Some(firewall), &kernel))
}

/// The host's addresses on this stage.
fn own() -> AddressSet {
    let all = [0, 1].into_iter().flat_map(|n| [true, false].map(|v4| local(n, v4)));
    let range = |address| match address {
        IpAddr::V4(v4) => AddressRange::V4(Range::single(v4)),
        IpAddr::V6(v6) => AddressRange::V6(Range::single(v6)),
    };
    all.map(range).collect()
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
pub(super) fn widen(peer: &Peer) -> Result<()> {
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
        && !(sample.is_without_mac && sample.way == PacketDirection::Incoming);
    let direction = match sample.way {
        PacketDirection::Incoming => Direction::Incoming,
        PacketDirection::Outgoing => Direction::Outgoing,
        PacketDirection::Forwarded => return None,
    };
    let (far, near, is_any_near) = match direction {
        Direction::Incoming => (source, destination, is_any_destination),
        Direction::Outgoing => (destination, source, is_any_source),
    };
    let is_any_far =
        if direction == Direction::Incoming { is_any_source } else { is_any_destination };
    let far = if is_any_far { remote(0, is_v4) } else { far };
    let near = if is_any_near { local(0, is_v4) } else { near };
    let connection = connection.unwrap_or(Connection::OPENS);
    let step = match connection {
        Connection::OPENS | Connection { state: State::Invalid, .. } => Step::First,
        Connection { state: State::Established, is_reply: true, .. } => Step::Answer,
        Connection { state: State::Established, .. } => Step::Third,
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
pub(super) fn agree(
    stage: &mut Stage,
    peer: &Peer,
    firewall: &Firewall,
    found: &Counterexample,
) -> Result<Option<()>> {
    let Some((plan, step)) = flow_of(&found.packet) else { return Ok(None) };
    match found.deed {
        Actual::Drops | Actual::Passes => {
            ensure!(
                (found.deed == Actual::Drops) != found.due.is_drop(),
                "no difference: {found:?}"
            );
            let passed = through(stage, peer, &plan, step)?;
            if passed[..passed.len() - 1].contains(&false) {
                // What comes before it is dropped: there is no such packet.
                return Ok(None);
            }
            // Whether a Bypass let its connection begin is not for the test to choose.
            let opening = packet(&plan, Step::First, MacAddr(peer.host_mac().0));
            let is_by_bypass = firewall.labels() && firewall.decide(&opening) == Verdict::Bypass;
            if step != Step::First && is_by_bypass {
                return Ok(None);
            }
            let did = passed.last() == Some(&true);
            ensure!(did == (found.deed == Actual::Passes), "{found:?}, passes: {did}, {plan:?}");
        }
        Actual::PassesUnlabelled | Actual::PassesLabelled if plan.has_answer() => {
            ensure!(found.due != Expected::Firewall(Verdict::Drop), "{found:?}");
            let passed = through(stage, peer, &plan, Step::First)?;
            ensure!(passed == [true], "{found:?} does not pass");
        }
        _ => return Ok(None),
    }
    Ok(Some(()))
}
