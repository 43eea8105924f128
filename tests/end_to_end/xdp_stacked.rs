//! The program below VLANs, VRFs, bonds and ipvlans, on kernels that have them.

use crate::scene::{AGENT, expect, install, status};
use crate::xdp::flags;
use crate::xdp_others::{a_guest_on_the_card, ip, patience, refused};
use crate::{tests, xdp_alone};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, connect, output};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};

tests![
    below_a_vlan_with_a_mac_address_of_its_own_unlisted_sources_stay_out,
    below_a_vlan_in_a_vrf_unlisted_sources_stay_out,
    what_the_vrf_of_a_vlan_forwards_to_an_address_that_the_host_has_too_passes,
    a_vlan_that_forwards_on_its_own_is_not_cut_off,
    on_a_port_of_a_bond_unlisted_sources_are_dropped_by_the_program,
    guests_of_an_ipvlan_are_reached_and_this_host_is_not,
    alone_the_program_is_refused_below_what_is_elsewhere_with_the_same_mac_address,
    what_a_bond_brings_is_counted_under_the_bond,
];

/// Whether this kernel has all that these tests need.
pub(crate) fn is_possible() -> bool {
    let has = |make: &str| {
        let script = format!("ip link add d0 type veth peer name d1 && ip link add x0 {make}");
        output(["unshare", "-n", "sh", "-c", &script]).is_ok_and(|seen| seen.code == Some(0))
    };
    ["link d0 type vlan id 5", "link d0 type ipvlan", "type vrf table 5", "type bond"]
        .into_iter()
        .all(has)
}

const LISTED: &str = "34.205.5.1";
const UNLISTED: &str = "198.51.100.7";
/// This host's address in VLAN 5.
const VIRTUAL: [u8; 4] = [10, 55, 0, 1];

/// Makes a VLAN between this host and the peer "manager".
fn vlan() -> Result<()> {
    ip("link add link manager0 name v5 type vlan id 5
        address add 10.55.0.1/24 dev v5
        link set v5 up
        -netns manager link add link eth0 name v5 type vlan id 5
        -netns manager address add 10.55.0.2/24 dev v5
        -netns manager link set v5 up")
}

/// Demands that a connection within the VLAN ends so.
fn within(peer: &Peer, source: &str, to: impl Into<IpAddr>, due: Outcome) -> Result<()> {
    let to = SocketAddr::new(to.into(), AGENT);
    let source = source.parse()?;
    let is_own = source == IpAddr::from([10, 55, 0, 2]);
    if !is_own {
        peer.add_address(source)?;
    }
    let seen = peer.enter(|| connect(source, to, patience(due)))??;
    if !is_own {
        peer.remove_address(source)?;
    }
    ensure!(seen == due, "from {source} to {to}: {seen}, should be {due}");
    Ok(())
}

fn below_a_vlan_with_a_mac_address_of_its_own_unlisted_sources_stay_out() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        vlan()?;
        for mac in ["02:00:00:00:00:55", "02:00:00:00:00:56"] {
            ip(&format!("link set v5 address {mac}"))?;
            ip("-netns manager neighbour flush dev v5")?;
            within(&peer, UNLISTED, VIRTUAL, Outcome::Talked).context("open")?;
            for backend in ["xdp", "both"] {
                install(&flags(backend, "manager0", &[]))?;
                within(&peer, UNLISTED, VIRTUAL, Outcome::Silent)
                    .with_context(|| backend.to_string())?;
                within(&peer, LISTED, VIRTUAL, Outcome::Talked)
                    .with_context(|| backend.to_string())?;
                ip("link set v5 address 02:00:00:00:00:99")?;
                ip("-netns manager neighbour flush dev v5")?;
                within(&peer, UNLISTED, VIRTUAL, Outcome::Silent)
                    .with_context(|| format!("{backend}, later"))?;
                within(&peer, LISTED, VIRTUAL, Outcome::Talked)
                    .with_context(|| format!("{backend}, later"))?;
            }
            agent_fw(["uninstall"])?.success()?;
        }
        Ok(())
    })
}

fn below_a_vlan_in_a_vrf_unlisted_sources_stay_out() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        lab.host().set_sysctl("net/ipv4/tcp_l3mdev_accept", "1")?;
        vlan()?;
        ip("link add red type vrf table 55
            link set red up
            link set v5 master red")?;
        within(&peer, "10.55.0.2", VIRTUAL, Outcome::Talked).context("open")?;
        for backend in ["xdp", "both"] {
            install(&flags(backend, "manager0", &[]))?;
            within(&peer, "10.55.0.2", VIRTUAL, Outcome::Silent)
                .with_context(|| backend.to_string())?;
            expect(&peer, Outcome::Silent, &[UNLISTED])?;
            expect(&peer, Outcome::Talked, &[LISTED])?;
            install(&flags(backend, "manager0", &["--allow-from", "10.55.0.2"]))?;
            within(&peer, "10.55.0.2", VIRTUAL, Outcome::Talked)
                .with_context(|| backend.to_string())?;
        }
        Ok(())
    })
}

fn what_the_vrf_of_a_vlan_forwards_to_an_address_that_the_host_has_too_passes() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (peer, server) = (lab.peer("manager")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        let _other = server.enter(|| Listener::bind(AGENT))??;
        vlan()?;
        // A VRF comes before the table of local addresses only where that was moved back.
        ip(&format!(
            "link add red type vrf table 55
             link set red up
             link set v5 master red
             link set server0 master red
             rule add pref 32765 table local
             rule del pref 0
             -netns server address add 10.99.0.9/32 dev lo
             route add 10.99.0.9/32 via {} dev server0 vrf red
             address add 10.99.0.9/32 dev lo
             -netns manager route add 10.99.0.9/32 via 10.55.0.1",
            server.v4()
        ))?;
        let to = [10, 99, 0, 9];
        within(&peer, "10.55.0.2", to, Outcome::Talked).context("it is forwarded")?;
        for mode in ["native", "generic"] {
            install(&flags("both", "manager0", &["--xdp-mode", mode]))?;
            within(&peer, "10.55.0.2", to, Outcome::Talked)
                .with_context(|| format!("{mode}: cut off"))?;
        }
        Ok(())
    })
}

fn a_vlan_that_forwards_on_its_own_is_not_cut_off() -> Result<()> {
    Lab::run(|lab| {
        let (peer, server) = (lab.peer("manager")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        let _other = server.enter(|| Listener::bind(AGENT))??;
        vlan()?;
        ip("-netns manager route add 10.118.2.0/24 via 10.55.0.1
            -netns server route add 10.55.0.0/24 via 10.118.2.1")?;
        lab.host().set_sysctl("net/ipv4/conf/v5/forwarding", "1")?;
        lab.host().set_sysctl("net/ipv4/conf/server0/forwarding", "1")?;
        let to = server.v4();
        within(&peer, "10.55.0.2", to, Outcome::Talked).context("it is forwarded")?;
        for mode in ["native", "generic"] {
            install(&flags("both", "manager0", &["--xdp-mode", mode]))?;
            within(&peer, "10.55.0.2", to, Outcome::Talked)
                .with_context(|| format!("{mode}: cut off"))?;
            within(&peer, "10.55.0.2", VIRTUAL, Outcome::Silent)
                .with_context(|| format!("{mode}: open"))?;
        }
        let tried = crate::scene::try_install(&flags("xdp", "manager0", &[]))?;
        ensure!(tried.code == Some(3) && tried.stderr.contains("v5 on manager0"), "{tried}");
        Ok(())
    })
}

/// Makes a bond of this host's end of the link to the peer "manager", which has addresses more.
fn bond() -> Result<()> {
    ip("link add bond0 type bond mode active-backup miimon 10
        address flush dev manager0
        link set manager0 down
        link set manager0 master bond0
        link set bond0 up
        address add 10.118.1.1/24 dev bond0
        route add 198.51.100.7 via 10.118.1.2
        route add 34.205.5.1 via 10.118.1.2
        -netns manager address add 198.51.100.7/32 dev lo
        -netns manager address add 34.205.5.1/32 dev lo")
}

/// Demands that a connection to this host's address at the bond ends so.
fn by_bond(peer: &Peer, source: &str, due: Outcome) -> Result<()> {
    let (source, to) = (source.parse()?, SocketAddr::new([10, 118, 1, 1].into(), AGENT));
    let seen = peer.enter(|| connect(source, to, patience(due)))??;
    ensure!(seen == due, "from {source}: {seen}, should be {due}");
    Ok(())
}

fn on_a_port_of_a_bond_unlisted_sources_are_dropped_by_the_program() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        bond()?;
        by_bond(&peer, UNLISTED, Outcome::Talked).context("open")?;
        for backend in ["both", "xdp"] {
            install(&flags(backend, "manager0", &[]))?;
            let before = refused()?;
            by_bond(&peer, UNLISTED, Outcome::Silent).context(backend)?;
            by_bond(&peer, LISTED, Outcome::Talked).context(backend)?;
            ensure!(refused()? > before, "{backend}: not by the program");
            ip("link set bond0 address 02:00:00:00:00:99")?;
            ip("-netns manager neighbour flush dev eth0")?;
            by_bond(&peer, UNLISTED, Outcome::Silent).context(backend)?;
            by_bond(&peer, LISTED, Outcome::Talked).context(backend)?;
        }
        Ok(())
    })
}

/// The kernel has a bond's program run at the bond's ports.
fn what_a_bond_brings_is_counted_under_the_bond() -> Result<()> {
    Lab::run(|lab| {
        let (peer, _other) = (lab.peer("manager")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        bond()?;
        by_bond(&peer, UNLISTED, Outcome::Talked).context("open")?;
        for (backend, mode) in [("both", "native"), ("xdp", "native"), ("both", "generic")] {
            let more = ["--interface", "server0", "--xdp-mode", mode];
            install(&flags(backend, "bond0", &more))?;
            let counted = |name: &str| -> Result<[u64; 2]> {
                let (seen, _) = status()?;
                let all = seen["xdp"]["interfaces"].as_array().context("interfaces")?;
                let of = all.iter().find(|of| of["name"] == name).context(name.to_owned())?;
                let count = |what| of["counters"][what].as_u64().context("a count");
                Ok([count("admitted")?, count("refused")?])
            };
            let (bond, other) = (counted("bond0")?, counted("server0")?);
            by_bond(&peer, UNLISTED, Outcome::Silent).context(mode)?;
            by_bond(&peer, LISTED, Outcome::Talked).context(mode)?;
            let seen = counted("bond0")?;
            ensure!(seen[0] > bond[0] && seen[1] > bond[1], "{mode}: {bond:?}, then {seen:?}");
            ensure!(counted("server0")? == other, "{mode}: counted under another interface");
        }
        Ok(())
    })
}

/// What has gone to another network namespace leaves no address where it has the interface's own.
fn alone_the_program_is_refused_below_what_is_elsewhere_with_the_same_mac_address() -> Result<()> {
    Lab::run(|lab| {
        let _peers = (lab.peer("manager")?, lab.peer("guest")?);
        for kind in ["ipvlan mode l2", "ipvlan mode l3", "ipvlan mode l3s", "vlan id 7"] {
            ip(&format!(
                "link add on0 link manager0 type {kind}
                 link set on0 netns guest
                 -netns guest link set on0 up"
            ))?;
            xdp_alone::refused("which is on it in another network namespace").context(kind)?;
            ip("-netns guest link del on0")?;
        }
        install(&flags("xdp", "manager0", &[])).map(drop)
    })
}

fn guests_of_an_ipvlan_are_reached_and_this_host_is_not() -> Result<()> {
    a_guest_on_the_card("ipvlan", "l2")
}
