//! What comes to the agent's port inside of other packets, by IPsec or in UDP, and what filters at an
//! interface's entrance make packets to it.

use crate::scene::{AGENT, LISTED, PATIENCE, UNLISTED, address, check, from, install, status};
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Raw, Tcp, Udp};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, Wire, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};

/// On a kernel with IPsec's ESP.
pub(crate) const WITH_ESP: &[crate::Test] =
    &[("what_ipsec_unpacks_is_refused_too", what_ipsec_unpacks_is_refused_too)];

/// On a kernel with FOU.
pub(crate) const WITH_FOU: &[crate::Test] =
    &[("tcp_that_comes_out_of_udp_is_not_called_closed", tcp_out_of_udp_is_not_called_closed)];

/// On a kernel with tc's action `pedit`.
pub(crate) const WITH_PEDIT: &[crate::Test] = &[(
    "a_port_that_a_tc_filter_rewrites_is_closed_by_the_gate_alone",
    a_port_that_a_tc_filter_rewrites_is_closed_by_the_gate_alone,
)];

const ALONE: [&str; 6] =
    ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
const BOTH: [&str; 6] =
    ["--allow-from", "region:us-1", "--backend", "both", "--interface", "manager0"];

/// Whether `status` calls the port closed, and why not.
fn is_closed() -> Result<(bool, String)> {
    let (said, _) = status()?;
    Ok((said["closed"] == true, said["not_closed"].to_string()))
}

/// Has everything between this source and the host go by ESP, in this mode; numbers keep
/// associations apart.
fn secure(peer: &Peer, source: &str, mode: &str, number: usize) -> Result<()> {
    let here = peer.host_v4().to_string();
    let keys = "auth hmac(sha256) 0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff \
                enc cbc(aes) 0x00112233445566778899aabbccddeeff";
    let ways = [(source, here.as_str()), (here.as_str(), source)];
    let associations: String = ways
        .iter()
        .enumerate()
        .map(|(way, (from, to))| {
            let index = 0x1000 + number * 2 + way;
            format!(
                "xfrm state add src {from} dst {to} proto esp spi {index} reqid {number} \
                 mode {mode} {keys}\n"
            )
        })
        .collect();
    let policies = |[out, back]: [&str; 2]| -> String {
        let policy = |direction: &str, (from, to): (&str, &str)| {
            format!(
                "xfrm policy add src {from}/32 dst {to}/32 dir {direction} tmpl src {from} dst {to} \
                 proto esp reqid {number} mode {mode}\n"
            )
        };
        policy(out, ways[0]) + &policy(back, ways[1])
    };
    let apply = |words: String| feed(["ip", "-batch", "-"], &words).map(drop);
    apply(associations.clone() + &policies(["in", "out"]))?;
    peer.enter(|| apply(associations + &policies(["out", "in"])))?
}

fn what_ipsec_unpacks_is_refused_too() -> Result<()> {
    for mode in ["transport", "tunnel"] {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            for (number, source) in [UNLISTED[0], LISTED[0]].into_iter().enumerate() {
                secure(&manager, source, mode, number + 1)?;
            }
            let seen = "table inet seen { chain p { type filter hook prerouting priority -400;
                          iif manager0 meta l4proto esp counter\n
                          iif manager0 meta secpath missing tcp dport 4118 counter\n}\n}";
            feed(["nft", "-f", "-"], seen)?;
            let stranger = || from(&manager, UNLISTED[0], AGENT);
            ensure!(stranger()? == Outcome::Talked, "it would get in");
            let counted = run(["nft", "list", "table", "inet", "seen"])?;
            let mut counts = counted.lines().filter(|line| line.contains("counter packets"));
            ensure!(counts.next().is_some_and(|line| !line.contains("packets 0 ")), "{counted}");
            ensure!(counts.next().is_some_and(|line| line.contains("packets 0 ")), "{counted}");
            for form in [&ALONE[..2], &["--allow-from", "region:us-1", "--early-drop"], &BOTH] {
                install(form)?;
                ensure!(stranger()? == Outcome::Silent, "{form:?}");
                ensure!(from(&manager, LISTED[0], AGENT)? == Outcome::Talked, "{form:?}");
                ensure!(is_closed()?.0, "{form:?}: {}", is_closed()?.1);
            }
            // A program alone does not see what is inside, and is not called closed.
            install(&ALONE)?;
            ensure!(stranger()? == Outcome::Talked, "it is so");
            let (closed, why) = is_closed()?;
            ensure!(!closed && why.contains("IPsec"), "{why}");
            Ok(())
        })
        .context(mode)?;
    }
    Ok(())
}

/// The port of FOU, and that of GUE.
const UDP_PORTS: [u16; 2] = [5555, 5556];

/// Whether a SYN of this source's, in UDP to one of the ports, is answered.
fn is_answered(peer: &Peer, source: &str, udp: u16, port: u16) -> Result<bool> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let syn = Tcp::syn(port, AGENT);
    let outer = Udp::new(port, udp);
    // A header of GUE: version 0, no options, and the protocol.
    let header: &[u8] = if udp == UDP_PORTS[1] { &[0, 6, 0, 0] } else { &[] };
    let inside = |packet: Vec<u8>, from: usize| [header, &packet[from..]].concat();
    let frame = match address(source) {
        IpAddr::V4(source) => {
            let ip = Ipv4::new(source, peer.host_v4());
            ethernet / ip.clone() / outer / Raw::data(&inside((ethernet / ip / syn).bytes(), 34))
        }
        IpAddr::V6(source) => {
            let ip = Ipv6::new(source, peer.host_v6());
            ethernet / ip / outer / Raw::data(&inside((ethernet / ip / syn).bytes(), 54))
        }
    };
    peer.add_address(address(source))?;
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    wire.send(&frame.bytes())?;
    let (here, there) =
        (SocketAddr::new(address(source), port), peer.host_address(address(source), AGENT));
    let answer = wire.find_syn_ack(here, there, PATIENCE)?;
    peer.remove_address(address(source))?;
    Ok(answer.is_some())
}

fn tcp_out_of_udp_is_not_called_closed() -> Result<()> {
    const DETOURS: &str = "ways past the gate";
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let mut port = 42_000;
        for form in [&ALONE[..2], &["--allow-from", "region:us-1", "--early-drop"], &BOTH, &ALONE] {
            install(form)?;
            ensure!(is_closed()?.0, "{form:?}: {}", is_closed()?.1);
            for (udp, is_v4, how) in [
                (UDP_PORTS[0], true, "ipproto 6"),
                (UDP_PORTS[1], true, "gue"),
                (UDP_PORTS[0], false, "ipproto 6"),
                (UDP_PORTS[1], false, "gue"),
            ] {
                let family = if is_v4 { "-4" } else { "-6" };
                let fou = |words: &str| {
                    let words = format!("{family} fou {words}");
                    run(["ip"].into_iter().chain(words.split(' ')))
                };
                fou(&format!("add port {udp} {how}"))?;
                let source = if is_v4 { UNLISTED[0] } else { "2001:db8:5::1" };
                port += 1;
                ensure!(is_answered(&manager, source, udp, port)?, "{form:?}, {how}: it is so");
                let (closed, why) = is_closed()?;
                ensure!(!closed && why.contains(&format!("UDP to port {udp}")), "{how}: {why}");
                let (health, seen) = check(DETOURS)?;
                ensure!(health == "bad" && seen.contains(&udp.to_string()), "{health}: {seen}");
                // As is advised.
                fou(&format!("del port {udp}"))?;
                port += 1;
                ensure!(!is_answered(&manager, source, udp, port)?, "{how}: it is answered");
                ensure!(is_closed()?.0, "{}", is_closed()?.1);
            }
            // What carries IP comes in by a tunnel's device, and meets every chain.
            run(["ip", "fou", "add", "port", "5555", "ipproto", "4"])?;
            ensure!(is_closed()?.0, "{}", is_closed()?.1);
            run(["ip", "fou", "del", "port", "5555"])?;
        }
        Ok(())
    })
}

fn a_port_that_a_tc_filter_rewrites_is_closed_by_the_gate_alone() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let tc = |words: &str| run(["tc"].into_iter().chain(words.split_whitespace())).map(drop);
        let rewrite = |to: u16| -> Result<()> {
            tc("qdisc add dev manager0 clsact")?;
            let sums = "pipe action csum ip4h and tcp";
            for (way, end, other) in [
                ("ingress", "dst_port 8444", format!("dport set {to}")),
                ("egress", &format!("src_port {to}"), "sport set 8444".to_owned()),
            ] {
                tc(&format!(
                    "filter add dev manager0 {way} pref 5 protocol ip flower ip_proto tcp {end} \
                     action pedit ex munge tcp {other} {sums}"
                ))?;
            }
            Ok(())
        };
        let stranger = || from(&manager, UNLISTED[0], 8444);
        rewrite(AGENT)?;
        ensure!(stranger()? == Outcome::Talked, "it would get in");
        for form in [&ALONE[..2], &["--allow-from", "region:us-1", "--early-drop"], &BOTH] {
            install(form)?;
            ensure!(stranger()? == Outcome::Silent, "{form:?}");
            ensure!(from(&manager, LISTED[0], 8444)? == Outcome::Talked, "{form:?}");
            ensure!(is_closed()?.0, "{form:?}: {}", is_closed()?.1);
        }
        install(&ALONE)?;
        ensure!(stranger()? == Outcome::Talked, "it is so");
        let (closed, why) = is_closed()?;
        ensure!(!closed && why.contains("tc filter flower"), "{why}");
        tc("qdisc del dev manager0 clsact")?;
        rewrite(AGENT + 1)?;
        ensure!(is_closed()?.0, "another port: {}", is_closed()?.1);
        Ok(())
    })
}
