//! Connections that the host opens: `--restrict-outbound`, `--default-deny-outbound`.

use crate::scene::{AGENT, PATIENCE, address, from, install, status, try_install};
use crate::tests;
use agent_fw_lab::{
    Conversation, Lab, Listener, Outcome, Peer, UdpEcho, agent_fw, ask, connect, ping, run,
};
use anyhow::{Result, ensure};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

tests![
    by_default_deny_what_the_agent_needs_gets_out_and_nothing_else,
    by_default_deny_answers_loopback_and_neighbour_discovery_are_as_before,
    a_conversation_that_stands_goes_on_when_the_rest_is_denied,
    without_default_deny_nothing_is_dropped_and_what_is_needed_is_counted,
    what_is_needed_stays_open_whatever_a_policy_denies,
    services_are_open_where_they_are_said_to_be_and_nowhere_else,
    a_bypass_of_a_rule_file_is_answered_by_default_deny,
    outbound_443_cannot_be_narrowed_to_the_region,
    what_is_said_of_outbound_connections_lasts_and_goes_with_the_rest,
];

/// TCP ports that an agent needs, and some that it does not.
const NEEDED: [u16; 8] = [53, 80, 443, 4122, 5274, 5275, 8080, 6514];
const OTHERS: [u16; 3] = [22, 8443, 3306];
/// The same of UDP.
const NEEDED_UDP: [u16; 3] = [53, 123, 514];
const OTHERS_UDP: [u16; 2] = [161, 4433];

/// Whether a TCP connection to the other side stands.
fn goes(to: IpAddr, from: IpAddr, port: u16) -> bool {
    matches!(connect(from, SocketAddr::new(to, port), PATIENCE), Ok(Outcome::Talked))
}

/// Whether a datagram is answered.
fn goes_by_udp(to: IpAddr, from: IpAddr, port: u16) -> bool {
    matches!(ask(from, SocketAddr::new(to, port), PATIENCE), Ok(Outcome::Talked))
}

/// Both ways to a peer: over IPv4, and IPv6.
fn ways(peer: &Peer) -> [(IpAddr, IpAddr); 2] {
    [(peer.v4().into(), peer.host_v4().into()), (peer.v6().into(), peer.host_v6().into())]
}

/// The services of the world, on every port that a test asks for.
fn open_world(peer: &Peer) -> Result<(Vec<Listener>, Vec<UdpEcho>)> {
    peer.enter(|| {
        let tcp = NEEDED.into_iter().chain(OTHERS).map(Listener::bind);
        let udp = NEEDED_UDP.into_iter().chain(OTHERS_UDP).map(UdpEcho::bind);
        Ok((tcp.collect::<Result<_>>()?, udp.collect::<Result<_>>()?))
    })?
}

/// A host, and a peer that is the world: it has every service that a test asks for.
fn with_a_world(test: impl FnOnce(&Peer) -> Result<()> + Send) -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _world = open_world(&peer)?;
        test(&peer)
    })
}

/// Demands that all that is needed gets out, and that what is not needed does as `others` says.
fn demand(peer: &Peer, others: bool) -> Result<()> {
    for (to, from) in ways(peer) {
        for (ports, due) in [(&NEEDED[..7], true), (&OTHERS[..], others)] {
            for port in ports {
                ensure!(goes(to, from, *port) == due, "TCP to {to} port {port}, due: {due}");
            }
        }
        for (ports, due) in [(&NEEDED_UDP[..], true), (&OTHERS_UDP[..], others)] {
            for port in ports {
                ensure!(goes_by_udp(to, from, *port) == due, "UDP to {to} port {port}, due: {due}");
            }
        }
    }
    Ok(())
}

fn by_default_deny_what_the_agent_needs_gets_out_and_nothing_else() -> Result<()> {
    with_a_world(|peer| {
        install(&["--allow-from", "region:us-1"])?;
        demand(peer, true)?;
        let words = ["--allow-from", "region:us-1", "--default-deny-outbound"];
        let said = install(&words)?;
        ensure!(said.contains("outbound: what the agent needs stays open"), "{said}");
        demand(peer, false)?;
        let verified = agent_fw(["verify"])?;
        ensure!(verified.code == Some(0), "{verified}");
        // Both flags together say the same.
        install(&[&words[..], &["--restrict-outbound"]].concat())?;
        demand(peer, false)
    })
}

fn by_default_deny_answers_loopback_and_neighbour_discovery_are_as_before() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [AGENT, 22, 9999].map(|port| Listener::bind(port).expect("free"));
        let _udp = UdpEcho::bind(161)?;
        let _there = peer.enter(|| Listener::bind(443))??;
        install(&["--allow-from", "region:us-1", "--default-deny-outbound"])?;
        for (source, port, due) in [
            ("34.205.5.1", AGENT, Outcome::Talked),
            ("203.0.113.7", AGENT, Outcome::Silent),
            ("203.0.113.7", 22, Outcome::Talked),
            ("2001:db8::7", 22, Outcome::Talked),
            // A port that nobody listens on answers, too.
            ("203.0.113.7", 23, Outcome::Refused),
        ] {
            let seen = from(&peer, source, port)?;
            ensure!(seen == due, "{source} to {port}: {seen}, should be {due}");
        }
        for (there, here) in ways(&peer) {
            let by_udp = peer.enter(|| ask(there, SocketAddr::new(here, 161), PATIENCE))??;
            ensure!(by_udp == Outcome::Talked, "a datagram from {there}: {by_udp}");
            let echo = peer.enter(|| ping(there, here, PATIENCE))??;
            ensure!(echo == Outcome::Talked, "a ping from {there}: {echo}");
        }
        for here in ["127.0.0.1", "::1"] {
            ensure!(goes(address(here), address(here), 9999), "loopback, {here}");
        }
        // To an address of its own, a host talks over loopback.
        ensure!(goes(peer.host_v4().into(), peer.host_v4().into(), 9999), "its own address");
        peer.forget_neighbours()?;
        for (to, from) in ways(&peer) {
            ensure!(goes(to, from, 443), "{to}, whose MAC address has to be asked for");
        }
        Ok(())
    })
}

fn a_conversation_that_stands_goes_on_when_the_rest_is_denied() -> Result<()> {
    const LONG: Duration = Duration::from_secs(5);
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(22)?;
        let _there = peer.enter(|| Listener::bind(8443))??;
        let (there, here) = ways(&peer)[0];
        let to = SocketAddr::new(here, 22);
        let mut inward = peer.enter(|| Conversation::open(there, to, PATIENCE))??;
        let mut outward = Conversation::open(here, SocketAddr::new(there, 8443), PATIENCE)?;
        ensure!(outward.say(PATIENCE)? == Outcome::Talked);
        install(&["--default-deny-outbound", "--accept-risk", "out:tcp/8443"])?;
        let goes_on = inward.say(LONG)?;
        ensure!(goes_on == Outcome::Talked, "an administrator's session: {goes_on}");
        let ends = outward.say(PATIENCE);
        ensure!(!matches!(ends, Ok(Outcome::Talked)), "what is not needed: {ends:?}");
        Ok(())
    })
}

fn without_default_deny_nothing_is_dropped_and_what_is_needed_is_counted() -> Result<()> {
    with_a_world(|peer| {
        install(&["--restrict-outbound"])?;
        demand(peer, true)?;
        let (said, _) = status()?;
        let counters = said["firewall"].as_array().cloned().unwrap_or_default();
        let of = |part: &str| -> u64 {
            let is_it = |by: &str| by.contains(part);
            let named = counters.iter().filter(|counter| counter["by"].as_str().is_some_and(is_it));
            named.filter_map(|counter| counter["packets"].as_u64()).sum()
        };
        ensure!(of("outbound TCP 443") > 0 && of("outbound UDP 123") > 0, "{counters:#?}");
        ensure!(of("admitted by no rule") == 0, "{counters:#?}");
        Ok(())
    })
}

fn what_is_needed_stays_open_whatever_a_policy_denies() -> Result<()> {
    with_a_world(|peer| {
        let rule = |name: &str, action: &str, priority: &str, more: &str| {
            format!(
                "{{\"name\": \"{name}\", \"action\": \"{action}\", \"priority\": \"{priority}\", \
                 \"direction\": \"outgoing\", \"frameType\": \"ip\"{more}}}"
            )
        };
        let more = ", \"protocol\": \"tcp\", \"destinationPortType\": \"multiple\", \
                    \"destinationPortMultiple\": [\"8443\"]";
        let rules = [
            rule("Nothing out", "deny", "4", ", \"protocol\": \"any\""),
            rule("But this", "force-allow", "4", more),
        ];
        fs::write("/run/rules.json", format!("[{}]", rules.join(", ")))?;
        let words = ["--allow-from", "region:us-1", "--rules", "/run/rules.json", "--policy"];
        install(&words)?;
        let (to, from) = ways(peer)[0];
        ensure!(!goes(to, from, 443) && goes(to, from, 8443), "the policy alone");
        install(&[&words[..], &["--restrict-outbound"]].concat())?;
        ensure!(goes(to, from, 443), "needed");
        ensure!(goes(to, from, 8443) && !goes(to, from, 3306), "what the file says of the rest");
        // What a file admits gets out by default deny, too.
        let rules = rule("Another", "force-allow", "2", more);
        fs::write("/run/rules.json", format!("[{rules}]"))?;
        install(&[&words[..], &["--default-deny-outbound"]].concat())?;
        ensure!(goes(to, from, 443) && goes(to, from, 8443) && !goes(to, from, 3306));
        Ok(())
    })
}

fn services_are_open_where_they_are_said_to_be_and_nowhere_else() -> Result<()> {
    Lab::run(|lab| {
        let (ours, other) = (lab.peer("ours")?, lab.peer("other")?);
        let _worlds = [open_world(&ours)?, open_world(&other)?];
        fs::write("/run/relays.list", format!("{}\n", ours.v4()))?;
        let words = [
            "--default-deny-outbound",
            &format!("--outbound-to=dns-server={}", ours.v4()),
            "--outbound-to=relay=file:/run/relays.list",
            "--outbound-to=service-gateway=none",
        ];
        install(&words)?;
        for (peer, due) in [(&ours, true), (&other, false)] {
            let (to, here) = ways(peer)[0];
            ensure!(goes_by_udp(to, here, 53) == due, "DNS of {to}");
            ensure!(goes(to, here, 53) == due, "DNS of {to}, by TCP");
            ensure!(goes(to, here, 4122) == due, "the relay {to}");
            ensure!(goes(to, here, 443) && goes_by_udp(to, here, 123), "{to}: any address");
            ensure!(!goes(to, here, 8080), "{to}: a service that there is not");
        }
        // A list is read again.
        fs::write("/run/relays.list", format!("{}\n", other.v4()))?;
        agent_fw(["apply"])?.success()?;
        for (peer, due) in [(&ours, false), (&other, true)] {
            let (to, here) = ways(peer)[0];
            ensure!(goes(to, here, 4122) == due, "the relay {to}, after the list has changed");
        }
        Ok(())
    })
}

fn a_bypass_of_a_rule_file_is_answered_by_default_deny() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agent = Listener::bind(AGENT)?;
        let rules = crate::firewall::rules("03-bypass-without-its-outgoing-twin")?;
        let manager = "34.205.5.1";
        install(&["--rules", &rules, "--policy", "--default-deny-outbound"])?;
        let seen = from(&peer, manager, AGENT)?;
        ensure!(seen == Outcome::Talked, "{seen}");
        ensure!(from(&peer, "203.0.113.7", AGENT)? == Outcome::Silent);
        // The vendor's semantics where the policy itself is restrictive.
        install(&["--rules", &rules, "--policy"])?;
        ensure!(from(&peer, manager, AGENT)? == Outcome::Silent);
        Ok(())
    })
}

fn outbound_443_cannot_be_narrowed_to_the_region() -> Result<()> {
    with_a_world(|peer| {
        install(&["--default-deny-outbound"])?;
        for narrow in
            ["manager=region:us-1", "smart-protection-network=region:us-1", "443=region:us-1"]
        {
            let refused = try_install(&["--default-deny-outbound", "--outbound-to", narrow])?;
            ensure!(refused.code == Some(2), "{refused}");
            let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(said.contains("443 must stay open to every address"), "{refused}");
            ensure!(said.contains("Smart Protection Network"), "{refused}");
        }
        demand(peer, false)?;
        // A policy that narrows it is its author's; but that is said, and can be helped.
        let rules = crate::firewall::rules("16-narrowed-443")?;
        let policy = ["--rules", &rules, "--policy"];
        let narrowed = try_install(&policy)?;
        let (to, from) = ways(peer)[0];
        ensure!(narrowed.stderr.contains("443 is not open to every address"), "{narrowed}");
        ensure!(!goes(to, from, 443));
        let helped = try_install(&[&policy[..], &["--restrict-outbound"]].concat())?;
        ensure!(!helped.stderr.contains("443 is not open"), "{helped}");
        ensure!(goes(to, from, 443));
        Ok(())
    })
}

fn what_is_said_of_outbound_connections_lasts_and_goes_with_the_rest() -> Result<()> {
    with_a_world(|peer| {
        install(&["--default-deny-outbound"])?;
        run(["nft", "flush", "ruleset"])?;
        demand(peer, true)?;
        agent_fw(["apply", "--boot"])?.success()?;
        demand(peer, false)?;
        let (said, code) = status()?;
        ensure!(said["outbound"] == "default-deny" && code == Some(0), "{said:#}");
        run(["nft", "flush", "chain", "inet", "agent_fw_policy", "outgoing"])?;
        ensure!(agent_fw(["verify"])?.code == Some(1), "an altered chain");
        agent_fw(["apply"])?.success()?;
        let interface = peer.interface();
        let alone = ["--default-deny-outbound", "--backend", "xdp", "--interface", &interface];
        let refused = try_install(&alone)?;
        ensure!(refused.code == Some(2), "{refused}");
        agent_fw(["uninstall"])?.success()?;
        demand(peer, true)
    })
}
