//! The program that stands alone: no later change of addresses opens anything, and where it would cut
//! others off it is refused.

use crate::scene::{AGENT, AMPLE, expect, install, try_install};
use crate::tests;
use crate::xdp::{flags, is_clean};
use crate::xdp_others::patience;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, connect, run};
use anyhow::{Result, ensure};
use std::net::SocketAddr;
use std::time::Instant;

tests![
    a_later_change_of_mac_addresses_opens_nothing,
    a_macvlan_that_is_made_later_opens_nothing,
    alone_the_program_is_refused_where_this_host_forwards,
    alone_the_program_is_refused_on_what_is_shared_and_both_is_not,
    what_makes_a_lone_program_cut_others_off_later_is_reported_by_verify,
    a_lone_program_refuses_what_comes_from_addresses_that_nobody_has,
];

const LISTED: &str = "34.205.5.1";
const UNLISTED: &str = "198.51.100.7";

fn ip(lines: &str) -> Result<()> {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        run(std::iter::once("ip").chain(line.split_whitespace()))?;
    }
    Ok(())
}

fn is_closed(peer: &Peer) -> Result<()> {
    peer.forget_neighbours()?;
    expect(peer, Outcome::Talked, &[LISTED])?;
    expect(peer, Outcome::Silent, &[UNLISTED])
}

fn a_later_change_of_mac_addresses_opens_nothing() -> Result<()> {
    for backend in ["xdp", "both"] {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            expect(&peer, Outcome::Talked, &[LISTED, UNLISTED])?;
            install(&flags(backend, "manager0", &[]))?;
            is_closed(&peer)?;
            ip("link set manager0 address 02:00:00:00:00:77")?;
            is_closed(&peer)?;
            agent_fw(["apply"])?.success()?;
            is_closed(&peer)?;
            ensure!(agent_fw(["verify"])?.code == Some(0), "not in force again");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_macvlan_that_is_made_later_opens_nothing() -> Result<()> {
    for backend in ["xdp", "both"] {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            let at = SocketAddr::new([10, 118, 1, 9].into(), AGENT);
            let from = |source: &str, due: Outcome| -> Result<()> {
                let source = source.parse()?;
                peer.add_address(source)?;
                let seen = peer.enter(|| connect(source, at, patience(due)))??;
                ensure!(seen == due, "{backend}: from {source}: {seen}, should be {due}");
                peer.remove_address(source)
            };
            let make = "link add mv0 link manager0 type macvlan mode bridge
                        address add 10.118.1.9/24 dev mv0
                        link set mv0 up";
            ip(make)?;
            from(UNLISTED, Outcome::Talked)?;
            ip("link del mv0")?;
            install(&flags(backend, "manager0", &[]))?;
            ip(make)?;
            from(UNLISTED, Outcome::Silent)?;
            from(LISTED, Outcome::Talked)
        })?;
    }
    Ok(())
}

/// Demands that the program is refused alone, with these words, and not with the table behind.
pub(crate) fn refused(words: &str) -> Result<()> {
    let tried = try_install(&flags("xdp", "manager0", &[]))?;
    let said = tried.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(tried.code == Some(3), "{tried}");
    ensure!(said.contains(words) && said.contains("--backend both"), "{words}: {tried}");
    is_clean("manager0")?;
    install(&flags("both", "manager0", &[]))?;
    let verified = agent_fw(["verify"])?;
    ensure!(verified.code == Some(0), "{verified}");
    agent_fw(["uninstall"])?.success().map(drop)
}

fn alone_the_program_is_refused_where_this_host_forwards() -> Result<()> {
    for (parameter, words) in [
        ("net/ipv4/ip_forward", "manager0 forwards IPv4"),
        ("net/ipv4/conf/manager0/forwarding", "manager0 forwards IPv4"),
        ("net/ipv6/conf/all/forwarding", "manager0 forwards IPv6"),
        ("net/ipv6/conf/manager0/forwarding", "manager0 forwards IPv6"),
    ] {
        Lab::run(|lab| {
            let _peer = lab.peer("manager")?;
            lab.host().set_sysctl(parameter, "1")?;
            refused(words)?;
            lab.host().set_sysctl(parameter, "0")?;
            install(&flags("xdp", "manager0", &[])).map(drop)
        })?;
    }
    Ok(())
}

fn alone_the_program_is_refused_on_what_is_shared_and_both_is_not() -> Result<()> {
    Lab::run(|lab| {
        let _peers = (lab.peer("manager")?, lab.peer("guest")?);
        ip("link add mv0 link manager0 type macvlan mode bridge")?;
        refused("mv0 (macvlan) is on manager0")?;
        // Where it goes, its MAC address stays behind once it is up.
        ip("link set mv0 netns guest
            -netns guest link set mv0 up")?;
        refused("which is on it in another network namespace")?;
        ip("-netns guest link del mv0
            link add tap0 link manager0 type macvtap mode passthru")?;
        refused("tap0 (macvtap) is on manager0")?;
        ip("link set tap0 netns guest
            -netns guest link set tap0 up")?;
        refused("which is on it in another network namespace")?;
        ip("-netns guest link del tap0
            link add br0 type bridge
            link set manager0 master br0")?;
        refused("br0 (bridge) is on manager0")?;
        ip("link del br0")?;
        install(&flags("xdp", "manager0", &[])).map(drop)
    })
}

fn what_makes_a_lone_program_cut_others_off_later_is_reported_by_verify() -> Result<()> {
    Lab::run(|lab| {
        let _peer = lab.peer("manager")?;
        install(&flags("xdp", "manager0", &[]))?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        lab.host().set_sysctl("net/ipv4/ip_forward", "1")?;
        let verified = agent_fw(["verify"])?;
        let said = verified.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(verified.code == Some(1) && said.contains("manager0 forwards IPv4"), "{verified}");
        lab.host().set_sysctl("net/ipv4/ip_forward", "0")?;
        ip("link add mv0 link manager0 type macvlan mode bridge")?;
        let verified = agent_fw(["verify"])?;
        ensure!(
            verified.code == Some(1) && verified.stdout.contains("mv0 (macvlan)"),
            "{verified}"
        );
        ip("link del mv0")?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        Ok(())
    })
}

fn a_lone_program_refuses_what_comes_from_addresses_that_nobody_has() -> Result<()> {
    use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
    use std::net::{Ipv4Addr, Ipv6Addr};
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        install(&flags("xdp", "manager0", &[]))?;
        let refused = || -> Result<u64> {
            let (seen, _) = crate::scene::status()?;
            Ok(seen["xdp"]["refused"].as_u64().unwrap_or_default())
        };
        let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
        let wire = peer.enter(|| agent_fw_lab::Wire::open(peer.own_interface()))??;
        let before = refused()?;
        let mut sent = 0;
        for (at, source) in (0..).zip(crate::xdp_others::FORGED) {
            let syn = Tcp::syn(40_000 + at, AGENT);
            let frame = match source.parse()? {
                std::net::IpAddr::V4(source) => {
                    ethernet / Ipv4::new(source, Ipv4Addr::new(192, 0, 2, 99)) / syn
                }
                std::net::IpAddr::V6(source) => {
                    ethernet / Ipv6::new(source, Ipv6Addr::LOCALHOST) / syn
                }
            };
            wire.send(&frame.bytes())?;
            sent += 1;
        }
        let deadline = Instant::now() + AMPLE;
        let mut counted = 0;
        while counted < sent && Instant::now() < deadline {
            counted = refused()? - before;
        }
        ensure!(counted == sent, "{sent} sent, {counted} refused");
        Ok(())
    })
}
