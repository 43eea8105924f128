//! What the vendor's rules mean, with packets: for every action, protocol and kind of flag.

use crate::scene::{AMPLE, PATIENCE, doctor, install, try_install};
use crate::tests;
use crate::vendor_answers::answers;
use agent_fw_lab::{
    Lab, Listener, Outcome, Peer, UdpEcho, agent_fw, ask, bind_udp, connect, ping, run,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, SocketAddr};

tests![
    the_rule_for_solicited_replies_admits_replies_and_nothing_else,
    udp_is_stateful_unless_it_is_said_otherwise,
    icmp_is_stateful_where_it_is_asked_for,
    every_action_does_with_every_protocol_what_the_documents_say,
    flags_and_messages_bind_packets_of_their_protocol_alone,
    a_directory_of_saved_answers_gives_for_each_rule_what_the_documents_say,
    a_policy_of_an_older_version_admits_unsolicited_udp_as_before_and_says_so,
    a_proxy_is_reached_by_default_deny_where_it_is_named,
];

/// A rule.
fn rule(name: &str, action: &str, direction: &str, protocol: &str, more: &Value) -> Value {
    let priority = match action {
        "allow" => "0",
        "log-only" => "4",
        _ => "2",
    };
    let mut rule = json!({
        "name": name, "action": action, "direction": direction, "protocol": protocol,
        "priority": priority, "frameType": "ip",
    });
    if let (Some(rule), Some(more)) = (rule.as_object_mut(), more.as_object()) {
        rule.extend(more.clone());
    }
    rule
}

fn to_port(port: u16) -> Value {
    json!({ "destinationPortType": "multiple", "destinationPortMultiple": [port] })
}

const RULES: &str = "/run/rules.json";

/// Enforces these rules as a whole policy.
fn enforce(rules: &[Value], words: &[&str]) -> Result<()> {
    fs::write(RULES, json!(rules).to_string())?;
    let policy = ["--allow-from", "any", "--rules", RULES, "--policy"];
    install(&[&policy, words].concat()).map(drop)
}

/// A connection by TCP that the peer opens.
fn tcp_in(peer: &Peer, port: u16) -> Result<Outcome> {
    let (from, to) = (peer.v4().into(), SocketAddr::new(peer.host_v4().into(), port));
    peer.enter(|| connect(from, to, PATIENCE))?
}

/// A question by UDP that the peer asks.
fn udp_in(peer: &Peer, port: u16) -> Result<Outcome> {
    let (from, to) = (peer.v4().into(), SocketAddr::new(peer.host_v4().into(), port));
    peer.enter(|| ask(from, to, PATIENCE))?
}

fn tcp_out(peer: &Peer, port: u16) -> Result<Outcome> {
    connect(peer.host_v4().into(), SocketAddr::new(peer.v4().into(), port), AMPLE)
}

fn udp_out(peer: &Peer, port: u16) -> Result<Outcome> {
    ask(peer.host_v4().into(), SocketAddr::new(peer.v4().into(), port), AMPLE)
}

fn ping_in(peer: &Peer) -> Result<Outcome> {
    let (from, to): (IpAddr, IpAddr) = (peer.v4().into(), peer.host_v4().into());
    peer.enter(|| ping(from, to, PATIENCE))?
}

fn ping_out(peer: &Peer, patience: std::time::Duration) -> Result<Outcome> {
    ping(peer.host_v4().into(), peer.v4().into(), patience)
}

fn demand(what: &str, seen: Outcome, due: bool) -> Result<()> {
    ensure!((seen == Outcome::Talked) == due, "{what}: {seen}, should get through: {due}");
    Ok(())
}

/// The predefined rule, as a tenant has it.
fn solicited_replies() -> Result<Value> {
    let text = fs::read_to_string(answers().join("firewallrules.json"))?;
    let all: Value = serde_json::from_str(&text)?;
    let mut rules = all["firewallRules"].as_array().into_iter().flatten();
    let mut rule = rules.find(|rule| rule["ID"] == 24).context("the rule")?.clone();
    // For this host alone, so that nobody has to assign it.
    rule.as_object_mut().map(|rule| rule.remove("ID"));
    Ok(rule)
}

fn the_rule_for_solicited_replies_admits_replies_and_nothing_else() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there =
            peer.enter(|| -> Result<_> { Ok((Listener::bind(8080)?, UdpEcho::bind(5353)?)) })??;
        enforce(&[solicited_replies()?], &[])?;
        let (_tcp, _udp) = (Listener::bind(22)?, UdpEcho::bind(53)?);
        demand("out by TCP, and its answers", tcp_out(&peer, 8080)?, true)?;
        demand("out by UDP, and its answers", udp_out(&peer, 5353)?, true)?;
        demand("a SYN from outside", tcp_in(&peer, 22)?, false)?;
        demand("UDP from outside", udp_in(&peer, 53)?, false)?;
        demand("a ping from outside", ping_in(&peer)?, false)?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        run(["nft", "delete", "table", "inet", "agent_fw_policy"])?;
        demand("a SYN without the policy", tcp_in(&peer, 22)?, true)?;
        demand("UDP without the policy", udp_in(&peer, 53)?, true)
    })
}

fn udp_is_stateful_unless_it_is_said_otherwise() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there = peer.enter(|| UdpEcho::bind(5353))??;
        for (name, rules) in [
            ("a port", vec![rule("DNS", "allow", "incoming", "udp", &to_port(53))]),
            ("TCP+UDP", vec![rule("DNS", "allow", "incoming", "tcp-udp", &to_port(53))]),
            ("everything", vec![rule("All", "allow", "incoming", "any", &json!({}))]),
            (
                "all but ICMP",
                vec![rule("All", "allow", "incoming", "icmp", &json!({ "protocolNot": true }))],
            ),
            (
                "beside a bypass",
                vec![
                    rule("All", "allow", "incoming", "any", &json!({})),
                    rule("Out", "bypass", "outgoing", "udp", &to_port(9)),
                ],
            ),
        ] {
            for (words, due) in [(&[][..], false), (&["--no-stateful-udp"], true)] {
                enforce(&rules, words)?;
                let (_udp, _tcp) = (UdpEcho::bind(53)?, Listener::bind(53)?);
                let what = format!("{name}, {words:?}");
                demand(&format!("{what}: unsolicited"), udp_in(&peer, 53)?, due)?;
                demand(&format!("{what}: a reply"), udp_out(&peer, 5353)?, true)?;
                let has_tcp = name != "a port";
                demand(&format!("{what}: TCP"), tcp_in(&peer, 53)?, has_tcp)?;
                ensure!(agent_fw(["verify"])?.code == Some(0), "{what}");
            }
        }
        // By Force Allow, unsolicited UDP passes; behind it, the Allow matters to nothing.
        let rules = [
            rule("DNS", "allow", "incoming", "udp", &to_port(53)),
            rule("DNS too", "force-allow", "incoming", "udp", &to_port(53)),
            rule("NTP", "allow", "incoming", "udp", &to_port(123)),
        ];
        enforce(&rules, &[])?;
        let _udp = [UdpEcho::bind(53)?, UdpEcho::bind(123)?];
        demand("by Force Allow", udp_in(&peer, 53)?, true)?;
        demand("by Allow", udp_in(&peer, 123)?, false)
    })
}

fn icmp_is_stateful_where_it_is_asked_for() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        for protocol in ["icmp", "any"] {
            let rules = [rule("Ping", "allow", "incoming", protocol, &json!({}))];
            for (words, due) in [(&[][..], true), (&["--stateful-icmp"], false)] {
                enforce(&rules, words)?;
                demand(&format!("{protocol}, {words:?}: in"), ping_in(&peer)?, due)?;
                demand(&format!("{protocol}, {words:?}: out"), ping_out(&peer, AMPLE)?, true)?;
                ensure!(agent_fw(["verify"])?.code == Some(0), "{protocol} {words:?}");
            }
        }
        Ok(())
    })
}

fn every_action_does_with_every_protocol_what_the_documents_say() -> Result<()> {
    const TCP: u16 = 7001;
    const UDP: u16 = 7002;
    const BOTH: u16 = 7003;
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        // What nothing names passes, or is dropped where an Allow makes the direction restrictive.
        for is_restrictive in [false, true] {
            for (action, tcp, udp, icmp) in [
                ("allow", true, false, true),
                ("force-allow", true, true, true),
                ("bypass", true, true, true),
                ("deny", false, false, false),
                ("log-only", !is_restrictive, !is_restrictive, !is_restrictive),
            ] {
                let mut rules = vec![
                    rule("t", action, "incoming", "tcp", &to_port(TCP)),
                    rule("u", action, "incoming", "udp", &to_port(UDP)),
                    rule("b", action, "incoming", "tcp-udp", &to_port(BOTH)),
                    rule("i", action, "incoming", "icmp", &json!({ "ICMPType": 8 })),
                ];
                if is_restrictive {
                    rules.push(rule("one", "allow", "incoming", "tcp", &to_port(1)));
                }
                enforce(&rules, &[])?;
                let _here = (
                    [Listener::bind(TCP)?, Listener::bind(BOTH)?],
                    [UdpEcho::bind(UDP)?, UdpEcho::bind(BOTH)?],
                    (Listener::bind(7004)?, UdpEcho::bind(7004)?),
                );
                let what = format!("{action}, restrictive: {is_restrictive}");
                demand(&format!("{what}: TCP"), tcp_in(&peer, TCP)?, tcp)?;
                demand(&format!("{what}: UDP"), udp_in(&peer, UDP)?, udp)?;
                demand(&format!("{what}: TCP of both"), tcp_in(&peer, BOTH)?, tcp)?;
                demand(&format!("{what}: UDP of both"), udp_in(&peer, BOTH)?, udp)?;
                demand(&format!("{what}: ICMP"), ping_in(&peer)?, icmp)?;
                // One Allow closes its direction.
                let others = !is_restrictive && action != "allow";
                demand(&format!("{what}: TCP that is not named"), tcp_in(&peer, 7004)?, others)?;
                demand(&format!("{what}: UDP that is not named"), udp_in(&peer, 7004)?, others)?;
            }
        }
        Ok(())
    })
}

fn flags_and_messages_bind_packets_of_their_protocol_alone() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there =
            peer.enter(|| -> Result<_> { Ok((Listener::bind(8080)?, UdpEcho::bind(5353)?)) })??;
        let flags = |flags: &[&str], not: bool| json!({ "tcpflags": flags, "TCPNot": not, "anyFlags": false });
        for (name, more, syn, reply) in [
            ("SYN", flags(&["syn"], false), false, true),
            ("not SYN", flags(&["syn"], true), true, false),
            ("SYN and ACK", flags(&["syn", "ack"], false), true, false),
            ("any", json!({ "anyFlags": true, "tcpflags": ["fin"] }), false, false),
        ] {
            // Denied by these flags; UDP is, whatever they are.
            enforce(&[rule("x", "deny", "incoming", "tcp-udp", &more)], &["--no-engine-rules"])?;
            let (_tcp, _udp) = (Listener::bind(22)?, UdpEcho::bind(53)?);
            demand(&format!("{name}: a SYN"), tcp_in(&peer, 22)?, syn && name != "not SYN")?;
            let answered =
                connect(peer.host_v4().into(), SocketAddr::new(peer.v4().into(), 8080), PATIENCE)?;
            demand(&format!("{name}: a SYN and ACK"), answered, reply)?;
            demand(&format!("{name}: UDP"), udp_in(&peer, 53)?, false)?;
            ensure!(agent_fw(["verify"])?.code == Some(0), "{name}");
        }
        for (name, more, due) in [
            ("echo", json!({ "ICMPType": 8, "anyFlags": false }), false),
            ("echo, code 1", json!({ "ICMPType": 8, "ICMPCode": 1, "anyFlags": false }), true),
            ("all but echo", json!({ "ICMPType": 8, "ICMPNot": true, "anyFlags": false }), true),
            (
                "all but replies",
                json!({ "ICMPType": 0, "ICMPNot": true, "anyFlags": false }),
                false,
            ),
            ("any", json!({ "anyFlags": true }), false),
        ] {
            enforce(&[rule("x", "deny", "incoming", "icmp", &more)], &[])?;
            demand(&format!("deny {name}"), ping_in(&peer)?, due)?;
            let _tcp = Listener::bind(22)?;
            demand(&format!("deny {name}: TCP"), tcp_in(&peer, 22)?, true)?;
        }
        Ok(())
    })
}

/// Whether a datagram from this port of the peer to that one of the host arrives.
fn arrives(peer: &Peer, from: u16, to: u16) -> Result<bool> {
    let here = bind_udp(peer.host_v4(), to)?;
    let there = peer.enter(|| bind_udp(peer.v4(), from))??;
    here.set_read_timeout(Some(PATIENCE))?;
    there.send_to(b"request", (peer.host_v4(), to))?;
    Ok(here.recv(&mut [0; 64]).is_ok())
}

fn a_directory_of_saved_answers_gives_for_each_rule_what_the_documents_say() -> Result<()> {
    let file = |name: &str| answers().join(name).display().to_string();
    let names =
        ["iplists.json", "maclists.json", "portlists.json", "firewallrules.json", "policies.json"];
    let files: Vec<String> = names.iter().map(|name| file(name)).collect();
    let assigned = file("computer-rules.json");
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there =
            peer.enter(|| -> Result<_> { Ok((Listener::bind(8080)?, UdpEcho::bind(5353)?)) })??;
        let mut words =
            vec!["--allow-from", "192.0.2.10", "--policy", "--trust-file-modes", "--rules"];
        words.extend(files.iter().map(String::as_str));
        words.extend(["--assigned", &assigned]);
        install(&words)?;
        let ports = [22, 80, 113, 443, 3389, 1521];
        let _tcp = ports.map(|port| Listener::bind(port).expect("free"));
        for (port, due) in [
            (22, true), // Remote Access SSH
            (80, true), // Web Server
            (443, true),
            (113, true),   // IDENT
            (3389, false), // Remote Access RDP is not assigned,
            (1521, false), // nor is Oracle SQL Server.
        ] {
            demand(&format!("TCP {port}"), tcp_in(&peer, port)?, due)?;
        }
        // NetBios Name Service and DHCP Server are Force Allow; nothing admits DNS.
        for (from, to, due) in [
            (137, 137, true),
            (68, 67, true),
            (67, 68, true),
            (5000, 137, false),
            (5000, 53, false),
        ] {
            ensure!(arrives(&peer, from, to)? == due, "UDP {from} to {to}, due: {due}");
        }
        demand("ICMP Echo Request", ping_in(&peer)?, true)?;
        demand("solicited TCP", tcp_out(&peer, 8080)?, true)?;
        demand("solicited UDP", udp_out(&peer, 5353)?, true)?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        // All of it is there at the next boot.
        run(["nft", "flush", "ruleset"])?;
        demand("without the policy", tcp_in(&peer, 3389)?, true)?;
        agent_fw(["apply"])?.success()?;
        demand("applied", tcp_in(&peer, 3389)?, false)?;
        demand("applied, and assigned", tcp_in(&peer, 22)?, true)?;
        let text = fs::read_to_string("/etc/agent-fw/policy.toml")?;
        ensure!(
            text.contains("computer-rules.json") && text.contains("all_rules = false"),
            "{text}"
        );
        Ok(())
    })
}

fn a_policy_of_an_older_version_admits_unsolicited_udp_as_before_and_says_so() -> Result<()> {
    const FILE: &str = "/etc/agent-fw/policy.toml";
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let rules = [rule("DNS", "allow", "incoming", "udp", &to_port(53))];
        enforce(&rules, &[])?;
        let _udp = UdpEcho::bind(53)?;
        demand("stateful", udp_in(&peer, 53)?, false)?;
        let written = fs::read_to_string(FILE)?;
        let keys = ["udp_stateful", "icmp_stateful", "all_rules", "assigned", "skip_unsupported"];
        let is_newer = |line: &&str| keys.iter().any(|key| line.starts_with(key));
        let older: Vec<&str> = written.lines().filter(|line| !is_newer(line)).collect();
        fs::write(FILE, older.join("\n") + "\n")?;
        run(["nft", "flush", "ruleset"])?;
        for apply in [&["apply", "--boot"][..], &["apply", "--accept-opening"]] {
            agent_fw(apply)?;
        }
        demand("as before", udp_in(&peer, 53)?, true)?;
        let told = agent_fw(["status"])?;
        ensure!(told.stderr.contains("udp_stateful"), "{told}");
        let (said, _) = doctor()?;
        let checks = said["checks"].as_array().cloned().unwrap_or_default();
        ensure!(checks.iter().any(|check| check["check"] == "stateful UDP"), "{said:#}");
        for (word, due) in [("false", true), ("true", false)] {
            fs::write(
                FILE,
                format!("udp_stateful = {word}\n{}\n# End of policy\n", older.join("\n")),
            )?;
            agent_fw(["apply"])?.success()?;
            demand(&format!("udp_stateful = {word}"), udp_in(&peer, 53)?, due)?;
            ensure!(!agent_fw(["status"])?.stderr.contains("udp_stateful"), "{word}");
        }
        Ok(())
    })
}

fn a_proxy_is_reached_by_default_deny_where_it_is_named() -> Result<()> {
    const PROXY: u16 = 1443;
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there =
            peer.enter(|| [PROXY, 8443].map(|port| Listener::bind(port).expect("free")))?;
        let out = |port| {
            let to = SocketAddr::new(peer.v4().into(), port);
            let seen = connect(peer.host_v4().into(), to, PATIENCE);
            matches!(seen, Ok(Outcome::Talked))
        };
        install(&["--allow-from", "region:us-1", "--default-deny-outbound"])?;
        ensure!(!out(PROXY), "without a name");
        let named = format!("proxy={}:{PROXY}", peer.v4());
        install(&[
            "--allow-from",
            "region:us-1",
            "--default-deny-outbound",
            "--outbound-to",
            &named,
        ])?;
        ensure!(out(PROXY) && !out(8443), "the proxy, and nothing else");
        agent_fw(["apply"])?.success()?;
        ensure!(out(PROXY), "from policy.toml");
        ensure!(agent_fw(["verify"])?.code == Some(0));
        let refused =
            try_install(&["--default-deny-outbound", "--outbound-to", "proxy=192.0.2.3"])?;
        ensure!(
            refused.code == Some(2) && refused.stderr.contains("proxy=ADDRESS:PORT"),
            "{refused}"
        );
        Ok(())
    })
}
