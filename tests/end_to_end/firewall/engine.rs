//! The rules that the vendor's engine has of its own: a part of every whole policy, unless they are
//! left out.

use crate::path_mtu::packet;
use crate::scene::{AMPLE, PATIENCE, doctor, install, status, try_install};
use crate::tests;
use agent_fw_lab::packet::checksum;
use agent_fw_lab::{
    Lab, Listener, Outcome, Peer, UdpEcho, Wire, agent_fw, ask, bind_udp, connect, run,
};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

tests![
    the_engines_rules_let_dns_and_dhcp_through_a_policy_that_denies_all_and_no_more,
    the_engines_rules_let_a_router_say_that_a_packet_was_too_large,
    the_engines_rules_are_shown_wherever_a_policys_are,
    a_policy_of_an_older_version_goes_on_without_the_engines_rules_and_says_so,
];

/// A file of rules: nothing gets out, and comes in as `incoming` says.
fn write_rules(incoming: &str) -> Result<()> {
    let rule = |name: &str, direction: &str, rest: &str| {
        format!(
            "{{\"name\": \"{name}\", \"direction\": \"{direction}\", \"frameType\": \"ip\", {rest}}}"
        )
    };
    let all = "\"action\": \"deny\", \"priority\": \"4\", \"protocol\": \"any\"";
    let rules = [rule("Nothing out", "outgoing", all), rule("In", "incoming", incoming)];
    fs::write("/run/rules.json", format!("[{}]", rules.join(", ")))?;
    Ok(())
}

/// Restrictive, and admits one port.
const ONE_PORT: &str = "\"action\": \"allow\", \"priority\": \"0\", \"protocol\": \"tcp\", \
                        \"destinationPortType\": \"multiple\", \"destinationPortMultiple\": [\"22\"]";
/// Denies all.
const NOTHING: &str = "\"action\": \"deny\", \"priority\": \"4\", \"protocol\": \"any\"";

const POLICY: [&str; 5] = ["--allow-from", "any", "--rules", "/run/rules.json", "--policy"];
const WITHOUT: [&str; 6] =
    ["--allow-from", "any", "--rules", "/run/rules.json", "--policy", "--no-engine-rules"];

/// Whether a datagram between these two ports arrives.
fn arrives(
    from: &UdpSocket,
    to: &UdpSocket,
    address: Ipv4Addr,
    patience: Duration,
) -> Result<bool> {
    to.set_read_timeout(Some(patience))?;
    // What this host's own rules drop cannot be sent.
    if from.send_to(b"request", (address, to.local_addr()?.port())).is_err() {
        return Ok(false);
    }
    Ok(to.recv(&mut [0; 64]).is_ok())
}

/// Demands that DNS and DHCP pass, or do not, and that their neighbours do not.
fn demand(peer: &Peer, due: bool) -> Result<()> {
    let patience = if due { AMPLE } else { PATIENCE };
    for (there, here) in
        [(peer.v4().into(), peer.host_v4().into()), (peer.v6().into(), peer.host_v6().into())]
    {
        let by_udp = |port, patience| {
            let answered = ask(here, SocketAddr::new(there, port), patience);
            matches!(answered, Ok(Outcome::Talked))
        };
        ensure!(by_udp(53, patience) == due, "a question to {there}, due: {due}");
        ensure!(!by_udp(123, PATIENCE), "UDP 123 of {there}");
        let by_tcp = connect(here, SocketAddr::new(there, 53), patience);
        ensure!(matches!(by_tcp, Ok(Outcome::Talked)) == due, "TCP 53 of {there}: {by_tcp:?}");
    }
    for (client, server, due) in [(68, 67, due), (68, 69, false), (70, 67, false)] {
        let any = Ipv4Addr::UNSPECIFIED;
        let patience = if due { AMPLE } else { PATIENCE };
        let here = bind_udp(any, client)?;
        let there = peer.enter(|| bind_udp(any, server))??;
        let (out, back) = (peer.v4(), peer.host_v4());
        let what = format!("between {client} here and {server} there, due: {due}");
        ensure!(arrives(&here, &there, out, patience)? == due, "a request {what}");
        ensure!(arrives(&there, &here, back, patience)? == due, "an answer {what}");
    }
    // Without a request, too: the lease's server may speak first.
    let other = Ipv4Addr::new(203, 0, 113, 67);
    peer.add_address(other.into())?;
    let here = bind_udp(Ipv4Addr::UNSPECIFIED, 68)?;
    let there = peer.enter(|| bind_udp(other, 67))??;
    ensure!(arrives(&there, &here, peer.host_v4(), patience)? == due, "unasked, due: {due}");
    peer.remove_address(other.into())
}

fn the_engines_rules_let_dns_and_dhcp_through_a_policy_that_denies_all_and_no_more() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there = peer.enter(|| -> Result<_> {
            Ok((Listener::bind(53)?, [UdpEcho::bind(53)?, UdpEcho::bind(123)?]))
        })??;
        write_rules(ONE_PORT)?;
        install(&WITHOUT)?;
        demand(&peer, false)?;
        install(&POLICY)?;
        demand(&peer, true)?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        Ok(())
    })
}

/// Whether a router's word that a packet was too large changes the path's MTU.
fn learns_the_mtu(peer: &Peer) -> Result<bool> {
    const ROUTER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
    run(["ip", "route", "flush", "cache"])?;
    let (host, there) = (peer.host_v4(), peer.v4());
    let socket = UdpSocket::bind((host, 0))?;
    socket.connect((there, 53))?;
    let ports = [socket.local_addr()?.port().to_be_bytes(), 53_u16.to_be_bytes()].concat();
    let quoted = packet(host, there, 17, &[&ports[..], &[0, 8, 0, 0]].concat());
    let mut message = [&[3, 4, 0, 0, 0, 0], &1400_u16.to_be_bytes()[..], &quoted].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = packet(ROUTER, host, 1, &message);
    let frame = [&peer.host_mac().0[..], &peer.mac()?.0, &[8, 0], &packet].concat();
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    peer.enter(|| wire.send(&frame))??;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if run(["ip", "route", "get", &there.to_string()])?.contains("mtu 1400") {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

fn the_engines_rules_let_a_router_say_that_a_packet_was_too_large() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        ensure!(learns_the_mtu(&peer)?, "without a policy");
        write_rules(NOTHING)?;
        install(&WITHOUT)?;
        ensure!(!learns_the_mtu(&peer)?, "without the engine's rules");
        install(&POLICY)?;
        ensure!(learns_the_mtu(&peer)?, "with them");
        Ok(())
    })
}

const NAMES: [&str; 4] = [
    "engine: outgoing DNS",
    "engine: outgoing DHCP",
    "engine: incoming DHCP",
    "engine: ICMP type3 code4",
];

/// How many of these rules, and no others, are among the engine's.
fn shown(rules: &Value, key: &str) -> usize {
    let rules = rules.as_array().into_iter().flatten();
    let names = rules.filter_map(|rule| rule[key].as_str());
    names.filter(|name| NAMES.contains(name)).count()
}

fn the_engines_rules_are_shown_wherever_a_policys_are() -> Result<()> {
    Lab::run(|_| {
        write_rules(NOTHING)?;
        for (words, due) in [(&POLICY[..], 4), (&WITHOUT[..], 0)] {
            install(words)?;
            let (said, _) = status()?;
            ensure!(shown(&said["firewall"], "rule") == due, "{said:#}");
            ensure!(said["engine_rules"] == (due == 4), "{said:#}");
            let text = agent_fw(["status"])?;
            let compiled = agent_fw(["compile"].iter().chain(words))?.success()?;
            for name in NAMES {
                for text in [&text.stdout, &compiled] {
                    let name = name.trim_start_matches("engine: ");
                    ensure!(text.contains(name) == (due == 4), "{name}: {text}");
                }
            }
            let json = ["compile", "--format", "json"];
            let json = agent_fw(json.iter().chain(words))?.success()?;
            let json: Value = serde_json::from_str(&json)?;
            ensure!(shown(&json["firewall"]["rules"], "name") == due, "{json:#}");
            let file = fs::read_to_string("/etc/agent-fw/policy.toml")?;
            ensure!(file.contains(&format!("engine_rules = {}\n", due == 4)), "{file}");
        }
        let told = agent_fw(["rules", "check", "/run/rules.json", "--json"])?;
        let json: Value = serde_json::from_str(&told.stdout)?;
        ensure!(shown(&json["engine_rules"], "name") == 4, "{json:#}");
        let told = agent_fw(["rules", "check", "/run/rules.json"])?;
        ensure!(told.stdout.contains("--no-engine-rules"), "{told}");
        // Without a policy, there is nothing to leave them out of.
        let refused = try_install(&["--allow-from", "any", "--no-engine-rules"])?;
        ensure!(refused.code == Some(2), "{refused}");
        Ok(())
    })
}

fn a_policy_of_an_older_version_goes_on_without_the_engines_rules_and_says_so() -> Result<()> {
    const FILE: &str = "/etc/agent-fw/policy.toml";
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there = peer.enter(|| UdpEcho::bind(53))??;
        let goes = |patience| {
            let asked = ask(peer.host_v4().into(), SocketAddr::new(peer.v4().into(), 53), patience);
            matches!(asked, Ok(Outcome::Talked))
        };
        write_rules(ONE_PORT)?;
        install(&POLICY)?;
        ensure!(goes(AMPLE), "by the engine's rules");
        let written = fs::read_to_string(FILE)?;
        let older: Vec<&str> =
            written.lines().filter(|line| !line.starts_with("engine_rules")).collect();
        fs::write(FILE, older.join("\n") + "\n")?;
        run(["nft", "flush", "ruleset"])?;
        for apply in [&["apply", "--boot"][..], &["apply"]] {
            agent_fw(apply)?.success()?;
            ensure!(!goes(PATIENCE), "a rule that the older version did not have");
        }
        let told = agent_fw(["status"])?;
        ensure!(told.code == Some(0) && told.stderr.contains("engine_rules"), "{told}");
        let (said, _) = doctor()?;
        let checks = said["checks"].as_array().cloned().unwrap_or_default();
        let check = checks.iter().find(|check| check["check"] == "rules of the engine");
        ensure!(check.is_some_and(|check| check["health"] == "note"), "{said:#}");
        // Either word ends it.
        for (word, due) in [("false", false), ("true", true)] {
            fs::write(FILE, format!("engine_rules = {word}\n{}\n", older.join("\n")))?;
            agent_fw(["apply"])?.success()?;
            ensure!(goes(if due { AMPLE } else { PATIENCE }) == due, "engine_rules = {word}");
            let told = agent_fw(["status"])?;
            ensure!(!told.stderr.contains("engine_rules"), "{told}");
        }
        Ok(())
    })
}
