//! Others' packets: with the table behind it, the program drops only what is for this host.

use crate::scene::{AGENT, AMPLE, PATIENCE, expect, from, install, status};
use crate::tests;
use crate::xdp::flags;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, Wire, agent_fw, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

tests![
    the_program_before_the_table_drops_what_is_for_this_host_itself,
    no_forged_source_has_the_program_cut_off_forwarded_connections,
    a_routing_rule_for_some_sources_is_followed,
    guests_behind_a_bridge_are_reached_and_this_host_is_not,
    when_a_bridge_changes_its_mac_address_nothing_opens,
    guests_of_a_macvlan_are_reached_and_this_host_is_not,
    this_hosts_agent_port_that_nat_sends_to_a_container_is_closed_by_the_program,
];

const LISTED: &str = "34.205.5.1";
const UNLISTED: &str = "198.51.100.7";

/// Sources that no packet off a wire should have.
pub(crate) const FORGED: [&str; 15] = [
    "127.0.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "169.254.7.7",
    "10.118.1.1",
    "::",
    "::1",
    "fe80::bad",
    "ff02::1",
    "ff0e::1",
    "fec0::1",
    "::ffff:127.0.0.1",
];

pub(crate) fn ip(lines: &str) -> Result<()> {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        run(std::iter::once("ip").chain(line.split_whitespace()))?;
    }
    Ok(())
}

/// Demands that a connection to this address, of any host, ends so.
fn reach(peer: &Peer, to: IpAddr, due: Outcome) -> Result<()> {
    let source = if to.is_ipv4() { peer.v4().into() } else { peer.v6().into() };
    let seen = peer.enter(|| connect(source, SocketAddr::new(to, AGENT), patience(due)))??;
    ensure!(seen == due, "to {to}: {seen}, should be {due}");
    Ok(())
}

/// How long an outcome is waited for.
pub(crate) fn patience(due: Outcome) -> Duration {
    if due == Outcome::Silent { PATIENCE } else { AMPLE }
}

/// Packets that the program has refused.
pub(crate) fn refused() -> Result<u64> {
    status()?.0["xdp"]["refused"].as_u64().context("a count")
}

fn the_program_before_the_table_drops_what_is_for_this_host_itself() -> Result<()> {
    for forwards in [false, true] {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            if forwards {
                lab.forward()?;
            }
            for mode in ["native", "generic"] {
                install(&flags("both", "manager0", &["--xdp-mode", mode]))?;
                let before = refused()?;
                expect(&peer, Outcome::Silent, &[UNLISTED, "2001:db8:2::1"])?;
                expect(&peer, Outcome::Talked, &[LISTED])?;
                let counted = refused()? - before;
                ensure!(counted >= 2, "{mode}, forwards: {forwards}: {counted} refused");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// SYNs from all of these sources to a host behind this one.
fn forge(peer: &Peer, to: &Peer) -> Result<()> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    for source in FORGED {
        let syn = Tcp::syn(40_000, AGENT);
        let frame = match source.parse()? {
            IpAddr::V4(source) => ethernet / Ipv4::new(source, to.v4()) / syn,
            IpAddr::V6(source) => ethernet / Ipv6::new(source, to.v6()) / syn,
        };
        wire.send(&frame.bytes())?;
    }
    Ok(())
}

fn no_forged_source_has_the_program_cut_off_forwarded_connections() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (visitor, server) = (lab.peer("visitor")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        let _other = server.enter(|| Listener::bind(AGENT))??;
        for mode in ["native", "generic"] {
            install(&flags("both", "visitor0", &["--xdp-mode", mode]))?;
            for _ in 0..8 {
                forge(&visitor, &server)?;
                for to in [IpAddr::from(server.v4()), server.v6().into()] {
                    reach(&visitor, to, Outcome::Talked).context(mode)?;
                }
            }
            for to in [IpAddr::from(visitor.host_v4()), visitor.host_v6().into()] {
                reach(&visitor, to, Outcome::Silent).context(mode)?;
            }
        }
        Ok(())
    })
}

/// The server's network is routed to for the visitor's address alone: whoever asks the routes without
/// a source, hears that there is none.
fn a_routing_rule_for_some_sources_is_followed() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (visitor, server) = (lab.peer("visitor")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        let _other = server.enter(|| Listener::bind(AGENT))??;
        let server_v4 = server.v4();
        ip(&format!(
            "-netns server address add 192.0.2.80/32 dev lo
             rule add from {} table 7
             route add 192.0.2.80/32 via {server_v4} table 7",
            visitor.v4()
        ))?;
        let to = Ipv4Addr::new(192, 0, 2, 80);
        reach(&visitor, to.into(), Outcome::Talked).context("before")?;
        install(&flags("both", "visitor0", &[]))?;
        reach(&visitor, to.into(), Outcome::Talked)?;
        let before = refused()?;
        ensure!(from(&visitor, UNLISTED, AGENT)? == Outcome::Silent);
        ensure!(refused()? > before, "nothing is dropped early any more");
        Ok(())
    })
}

/// Makes visitor and guest ports of a bridge at which this host has the address that it had towards
/// the visitor, and gives the guest one beside it.
fn bridge() -> Result<()> {
    ip("link add br0 type bridge
        address flush dev visitor0
        address flush dev guest0
        link set visitor0 master br0
        link set guest0 master br0
        link set br0 up
        address add 10.118.1.1/24 dev br0
        -netns guest address add 10.118.1.77/24 dev eth0")
}

const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 1, 77));
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 1, 1));

/// Demands that the guest is reached and this host is not.
pub(crate) fn only_the_guest(visitor: &Peer) -> Result<()> {
    visitor.forget_neighbours()?;
    reach(visitor, GUEST, Outcome::Talked)?;
    reach(visitor, HOST, Outcome::Silent)
}

/// Demands that both are reached where nothing is filtered, as soon as what was just made forwards.
fn reach_both(visitor: &Peer) -> Result<()> {
    for at in [GUEST, HOST] {
        reach(visitor, at, Outcome::Talked).context("where nothing is filtered")?;
    }
    Ok(())
}

fn guests_behind_a_bridge_are_reached_and_this_host_is_not() -> Result<()> {
    for forwards in [false, true] {
        Lab::run(|lab| {
            let (visitor, guest) = (lab.peer("visitor")?, lab.peer("guest")?);
            let _agent = Listener::bind(AGENT)?;
            let _inside = guest.enter(|| Listener::bind(AGENT))??;
            if forwards {
                lab.forward()?;
            }
            bridge()?;
            // Another MAC address than any port's.
            ip("link set br0 address 02:00:00:00:00:aa")?;
            reach_both(&visitor)?;
            install(&flags("both", "visitor0", &[]))?;
            only_the_guest(&visitor)?;
            ensure!(agent_fw(["verify"])?.code == Some(0), "verified");
            Ok(())
        })
        .with_context(|| format!("forwards: {forwards}"))?;
    }
    Ok(())
}

fn when_a_bridge_changes_its_mac_address_nothing_opens() -> Result<()> {
    Lab::run(|lab| {
        let (visitor, guest) = (lab.peer("visitor")?, lab.peer("guest")?);
        let _agent = Listener::bind(AGENT)?;
        let _inside = guest.enter(|| Listener::bind(AGENT))??;
        bridge()?;
        reach_both(&visitor)?;
        install(&flags("both", "visitor0", &[]))?;
        only_the_guest(&visitor)?;
        let mac = || run(["cat", "/sys/class/net/br0/address"]);
        let before = mac()?;
        // A bridge has the lowest MAC address of its ports.
        ip("link add low0 address 02:00:00:00:00:00 type veth peer name low1
            link set low0 master br0")?;
        ensure!(mac()? != before, "the bridge has kept {before}");
        only_the_guest(&visitor)?;
        let verified = agent_fw(["verify"])?;
        ensure!(verified.code == Some(1), "the change is not told: {verified}");
        agent_fw(["apply"])?.success()?;
        only_the_guest(&visitor)?;
        ensure!(agent_fw(["verify"])?.code == Some(0), "verified");
        Ok(())
    })
}

/// Gives the guest an interface that is made on the visitor's.
pub(crate) fn guest_on(kind: &str, mode: &str) -> Result<()> {
    ip(&format!(
        "link add on0 link visitor0 type {kind} mode {mode}
         link set on0 netns guest
         -netns guest address add 10.118.1.77/24 dev on0
         -netns guest link set on0 up"
    ))
}

/// A guest of this kind is reached, from before and after the program was put there.
pub(crate) fn a_guest_on_the_card(kind: &str, mode: &str) -> Result<()> {
    Lab::run(|lab| {
        let (visitor, guest) = (lab.peer("visitor")?, lab.peer("guest")?);
        let _agent = Listener::bind(AGENT)?;
        let _inside = guest.enter(|| Listener::bind(AGENT))??;
        guest_on(kind, mode)?;
        reach_both(&visitor)?;
        install(&flags("both", "visitor0", &[]))?;
        only_the_guest(&visitor).context("it was there before the program")?;
        ip("-netns guest link del on0")?;
        agent_fw(["apply"])?.success()?;
        guest_on(kind, mode)?;
        agent_fw(["apply"])?.success()?;
        only_the_guest(&visitor).context("it was made later")?;
        lab.forward()?;
        only_the_guest(&visitor).context("this host forwards")
    })
}

fn guests_of_a_macvlan_are_reached_and_this_host_is_not() -> Result<()> {
    a_guest_on_the_card("macvlan", "bridge")?;
    a_guest_on_the_card("macvtap", "bridge")
}

/// The program has no word of NAT: to it, this host's port is the agent's.
fn this_hosts_agent_port_that_nat_sends_to_a_container_is_closed_by_the_program() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (visitor, container) = (lab.peer("visitor")?, lab.peer("container")?);
        let _inside = container.enter(|| Listener::bind(AGENT))??;
        let rules = format!(
            "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat;
             iif visitor0 tcp dport 4118 dnat to {}\n}}\n}}",
            container.v4()
        );
        feed(["nft", "-f", "-"], &rules)?;
        expect(&visitor, Outcome::Talked, &[UNLISTED])?;
        install(&["--allow-from", "region:us-1"])?;
        expect(&visitor, Outcome::Talked, &[UNLISTED, LISTED])?;
        for more in [&["--early-drop"][..], &["--backend", "both", "--interface", "visitor0"]] {
            install(&[&["--allow-from", "region:us-1"], more].concat())?;
            expect(&visitor, Outcome::Talked, &[LISTED])?;
            expect(&visitor, Outcome::Silent, &[UNLISTED])?;
        }
        Ok(())
    })
}
