//! Real TCP, UDP, ICMP and ARP through whole policies, both ways.

use super::golden::rules;
use crate::scene::{PATIENCE, address, install};
use crate::tests;
use agent_fw_lab::packet::{Ethernet, Ipv4, Tcp};
use agent_fw_lab::{Lab, Listener, MacAddr, Outcome, Peer, Wire, agent_fw, connect, ping, run};
use anyhow::{Result, ensure};
use std::fs;
use std::net::{IpAddr, SocketAddr};

tests![
    an_allow_list_admits_what_it_names_and_answers_to_what_the_host_asks,
    force_allow_wins_over_deny_of_its_priority_and_not_over_a_higher_one,
    bypass_has_no_answers_through_a_restrictive_direction_without_its_twin,
    answers_to_what_came_in_by_state_pass_a_restrictive_direction,
    arp_is_dropped_only_where_a_rule_names_it,
    denying_everything_leaves_loopback_and_neighbour_discovery_alone,
    log_only_counts_and_changes_nothing,
    the_examples_of_the_vendors_guide_come_out_as_it_says,
    a_replacing_rule_is_enforced_with_its_destination_and_source_port,
];

/// What becomes of a connection from `source`, an address that the peer is given for it.
fn comes(peer: &Peer, source: &str, port: u16) -> Result<Outcome> {
    crate::scene::from(peer, source, port)
}

/// What becomes of a connection from the host to the peer.
fn goes(peer: &Peer, port: u16) -> Result<Outcome> {
    let to = SocketAddr::new(peer.v4().into(), port);
    connect(peer.host_v4().into(), to, PATIENCE)
}

fn expect(seen: Outcome, due: Outcome, what: &str) -> Result<()> {
    ensure!(seen == due, "{what}: {seen}, should be {due}");
    Ok(())
}

fn pings(peer: &Peer, source: IpAddr, host: IpAddr) -> Result<Outcome> {
    peer.enter(|| ping(source, host, PATIENCE))?
}

fn an_allow_list_admits_what_it_names_and_answers_to_what_the_host_asks() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [22, 80, 443, 3306, 4118].map(|port| Listener::bind(port).expect("free"));
        let _there = peer.enter(|| Listener::bind(8080))??;
        expect(comes(&peer, "203.0.113.7", 3306)?, Outcome::Talked, "before")?;
        let policy = ["--rules", &rules("01-allow-list-of-a-web-server")?, "--policy"];
        install(&[&policy[..], &["--accept-risk", "tcp/3306"]].concat())?;
        for (source, port, due) in [
            ("203.0.113.7", 80, Outcome::Talked),
            ("2001:db8::7", 443, Outcome::Talked),
            ("203.0.113.7", 3306, Outcome::Silent),
            ("203.0.113.7", 22, Outcome::Silent),
            ("192.0.2.7", 22, Outcome::Talked),
            ("203.0.113.7", 4118, Outcome::Silent),
            ("34.205.5.1", 4118, Outcome::Talked),
        ] {
            expect(comes(&peer, source, port)?, due, &format!("{source} to {port}"))?;
        }
        // Nothing restricts what goes out, and its answers come in.
        expect(goes(&peer, 8080)?, Outcome::Talked, "out to 8080")?;
        let (v4, v6) = ((peer.v4().into(), peer.host_v4().into()), (peer.v6(), peer.host_v6()));
        expect(pings(&peer, v4.0, v4.1)?, Outcome::Talked, "a ping, which is allowed")?;
        expect(pings(&peer, v6.0.into(), v6.1.into())?, Outcome::Talked, "ICMPv6, always")?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        Ok(())
    })
}

fn force_allow_wins_over_deny_of_its_priority_and_not_over_a_higher_one() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [22, 23, 631].map(|port| Listener::bind(port).expect("free"));
        let policy = ["--rules", &rules("02-force-allow-and-deny")?, "--policy"];
        install(&[&policy[..], &["--accept-risk", "tcp/23"]].concat())?;
        for (source, port, due) in [
            ("198.51.100.9", 631, Outcome::Talked),
            ("198.51.100.9", 22, Outcome::Silent),
            ("198.51.100.8", 631, Outcome::Silent),
            ("203.0.113.7", 631, Outcome::Talked),
            ("203.0.113.7", 23, Outcome::Silent),
            // No Allow: what no rule names passes.
            ("203.0.113.7", 22, Outcome::Talked),
        ] {
            expect(comes(&peer, source, port)?, due, &format!("{source} to {port}"))?;
        }
        Ok(())
    })
}

fn bypass_has_no_answers_through_a_restrictive_direction_without_its_twin() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agent = Listener::bind(4118)?;
        let manager = "34.205.5.1";
        install(&["--rules", &rules("03-bypass-without-its-outgoing-twin")?, "--policy"])?;
        expect(comes(&peer, manager, 4118)?, Outcome::Silent, "without the twin")?;
        install(&["--rules", &rules("04-bypass-with-its-outgoing-twin")?, "--policy"])?;
        expect(comes(&peer, manager, 4118)?, Outcome::Talked, "with the twin")?;
        // Force Allow has state, and needs none.
        let text = fs::read_to_string(rules("03-bypass-without-its-outgoing-twin")?)?;
        fs::write("/run/rules.json", text.replace("bypass", "force-allow"))?;
        install(&["--rules", "/run/rules.json", "--policy"])?;
        expect(comes(&peer, manager, 4118)?, Outcome::Talked, "Force Allow")
    })
}

fn answers_to_what_came_in_by_state_pass_a_restrictive_direction() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(22)?;
        let _there = peer.enter(|| [443, 8080].map(|port| Listener::bind(port).expect("free")))?;
        install(&["--rules", &rules("04-bypass-with-its-outgoing-twin")?, "--policy"])?;
        expect(comes(&peer, "203.0.113.7", 22)?, Outcome::Talked, "in to 22")?;
        expect(goes(&peer, 443)?, Outcome::Talked, "out to 443")?;
        let refused = goes(&peer, 8080);
        ensure!(!matches!(refused, Ok(Outcome::Talked)), "out to 8080: {refused:?}");
        run(["nft", "delete", "table", "inet", "agent_fw_policy"])?;
        expect(goes(&peer, 8080)?, Outcome::Talked, "without the policy")
    })
}

fn arp_is_dropped_only_where_a_rule_names_it() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [22, 3389].map(|port| Listener::bind(port).expect("free"));
        install(&["--rules", &rules("06-allow-arp-and-watch")?, "--policy"])?;
        expect(comes(&peer, "203.0.113.7", 22)?, Outcome::Talked, "a neighbour")?;
        peer.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 0x0b]))?;
        run(["ip", "neighbour", "flush", "all"])?;
        let seen = comes(&peer, "203.0.113.7", 22)?;
        ensure!(seen != Outcome::Talked, "a neighbour whose ARP is denied: {seen}");
        // The same neighbour, over IPv6, which asks by neighbour discovery.
        expect(comes(&peer, "2001:db8::7", 22)?, Outcome::Talked, "over IPv6")?;
        install(&["--rules", &rules("02-force-allow-and-deny")?, "--policy"])?;
        ensure!(!run(["nft", "list", "tables"])?.contains("arp"), "a table for ARP is left");
        // Nobody remembers that the other did not answer.
        run(["ip", "neighbour", "flush", "all"])?;
        peer.enter(|| run(["ip", "neighbour", "flush", "all"]))??;
        expect(comes(&peer, "203.0.113.7", 22)?, Outcome::Talked, "no rule about ARP")
    })
}

fn denying_everything_leaves_loopback_and_neighbour_discovery_alone() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(22)?;
        let deny = |direction: &str| {
            format!(
                "{{\"name\": \"No {direction}\", \"action\": \"deny\", \"priority\": \"4\", \
                 \"direction\": \"{direction}\", \"frameType\": \"any\", \"protocol\": \"any\"}}"
            )
        };
        let text = format!("[{}, {}]", deny("incoming"), deny("outgoing"));
        fs::write("/run/rules.json", text)?;
        let words = ["--rules", "/run/rules.json", "--policy", "--allow-from", "any"];
        install(&[&words[..], &["--accept-risk", "tcp/22"]].concat())?;
        expect(comes(&peer, "203.0.113.7", 22)?, Outcome::Silent, "over IPv4")?;
        expect(comes(&peer, "2001:db8::7", 22)?, Outcome::Silent, "over IPv6")?;
        run(["ip", "neighbour", "flush", "all"])?;
        expect(pings(&peer, peer.v6().into(), peer.host_v6().into())?, Outcome::Talked, "a ping")?;
        let here = address("127.0.0.1");
        expect(connect(here, SocketAddr::new(here, 22), PATIENCE)?, Outcome::Talked, "loopback")
    })
}

fn log_only_counts_and_changes_nothing() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(3389)?;
        install(&["--rules", &rules("06-allow-arp-and-watch")?, "--policy"])?;
        let count = || -> Result<u64> {
            let (status, _) = crate::scene::status()?;
            let counters = status["firewall"].as_array().cloned().unwrap_or_default();
            let watched = counters.iter().find(|of| of["rule"] == "Watch remote desktops");
            Ok(watched.and_then(|of| of["packets"].as_u64()).unwrap_or(u64::MAX))
        };
        ensure!(count()? == 0);
        expect(comes(&peer, "203.0.113.7", 3389)?, Outcome::Talked, "in to 3389")?;
        let counted = count()?;
        ensure!(counted > 2 && counted < 100, "{counted} packets");
        // Counters go on when the policy is applied again.
        agent_fw(["apply"])?.success()?;
        ensure!(count()? == counted, "the counters began anew");
        Ok(())
    })
}

fn the_examples_of_the_vendors_guide_come_out_as_it_says() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [53, 80, 9000].map(|port| Listener::bind(port).expect("free"));
        let (prohibited, other) = ("198.51.100.50", "203.0.113.7");
        install(&["--rules", &rules("12-documented-deny-above-force-allow")?, "--policy"])?;
        expect(comes(&peer, other, 53)?, Outcome::Talked, "a name server's Force Allow")?;
        expect(comes(&peer, prohibited, 53)?, Outcome::Silent, "a Deny of higher priority")?;
        expect(comes(&peer, other, 80)?, Outcome::Talked, "what no rule is about")?;
        let policy = ["--rules", &rules("13-documented-priority-before-action")?, "--policy"];
        install(&[&policy[..], &["--accept-risk", "tcp/80"]].concat())?;
        expect(comes(&peer, other, 80)?, Outcome::Silent, "a Deny of higher priority")?;
        expect(comes(&peer, other, 53)?, Outcome::Talked, "what no rule is about")?;
        install(&["--rules", &rules("14-documented-bypass-in-pairs")?, "--policy"])?;
        expect(comes(&peer, other, 9000)?, Outcome::Talked, "a pair of Bypass rules")?;
        // The responses' rule is about another port.
        let text = fs::read_to_string(rules("14-documented-bypass-in-pairs")?)?;
        let mut file: serde_json::Value = serde_json::from_str(&text)?;
        file["firewallRules"][2]["sourcePortMultiple"][0] = "9001".into();
        fs::write("/run/rules.json", file.to_string())?;
        let policy = ["--rules", "/run/rules.json", "--policy"];
        install(&[&policy[..], &["--accept-risk", "tcp/9000"]].concat())?;
        expect(comes(&peer, other, 9000)?, Outcome::Silent, "responses without their rule")
    })
}

/// Whether a SYN to the agent from this address and port is answered.
fn is_answered(peer: &Peer, source: [u8; 4], port: u16) -> Result<bool> {
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    let ip = Ipv4::new(source.into(), peer.host_v4());
    let frame = Ethernet::new(peer.mac()?, peer.host_mac()) / ip / Tcp::syn(port, 4118);
    wire.send(&frame.bytes())?;
    let (from, to) = (SocketAddr::from((source, port)), SocketAddr::from((peer.host_v4(), 4118)));
    Ok(wire.find_syn_ack(from, to, PATIENCE)?.is_some())
}

fn a_replacing_rule_is_enforced_with_its_destination_and_source_port() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agent = Listener::bind(4118)?;
        run(["ip", "address", "add", "10.119.0.1/32", "dev", &peer.interface()])?;
        run(["ip", "route", "add", "192.0.2.0/24", "via", &peer.v4().to_string()])?;
        let rule = |limits: &str| {
            format!(
                "[{{\"name\": \"Limited\", \"action\": \"bypass\", \"priority\": \"4\", \
                 \"direction\": \"incoming\", \"frameType\": \"ip\", \"protocol\": \"tcp\", \
                 \"sourceIPType\": \"multiple\", \"sourceIPMultiple\": [\"192.0.2.0/24\"], \
                 {limits} \
                 \"destinationPortType\": \"multiple\", \"destinationPortMultiple\": [\"4118\"]}}]"
            )
        };
        let (ours, other) = (peer.host_v4().to_string(), "10.119.0.1");
        let source = address("192.0.2.7");
        peer.add_address(source)?;
        let reaches = |to: &str| -> Result<bool> {
            let to = SocketAddr::new(address(to), 4118);
            Ok(peer.enter(|| connect(source, to, PATIENCE))?? == Outcome::Talked)
        };
        let to = format!("\"destinationIPType\": \"single\", \"destinationIPValue\": \"{ours}\",");
        let from = "\"sourcePortType\": \"multiple\", \"sourcePortMultiple\": [\"40000-40009\"],";
        fs::write("/run/rules.json", rule(&to))?;
        for words in
            [&["--rules", "/run/rules.json"][..], &["--rules", "/run/rules.json", "--policy"]]
        {
            install(words)?;
            ensure!(reaches(&ours)?, "{words:?}: the destination that the rule names");
            ensure!(!reaches(other)?, "{words:?}: another destination");
            expect(comes(&peer, "203.0.113.7", 4118)?, Outcome::Silent, "another source")?;
            ensure!(agent_fw(["verify"])?.code == Some(0));
        }
        fs::write("/run/rules.json", rule(from))?;
        agent_fw(["apply"])?.success()?;
        for (port, due) in [(40_009, true), (40_010, false), (39_999, false)] {
            ensure!(is_answered(&peer, [192, 0, 2, 8], port)? == due, "from port {port}");
        }
        fs::write("/run/rules.json", rule(""))?;
        install(&["--rules", "/run/rules.json"])?;
        ensure!(reaches(other)? && reaches(&ours)?, "without limits");
        ensure!(is_answered(&peer, [192, 0, 2, 8], 40_010)?, "without limits");
        ensure!(!run(["nft", "list", "tables"])?.contains("policy"), "a table is left");
        // From anywhere, but to that destination: nothing is closed, and yet not all is open.
        let anywhere = rule(&to).replace("IPType\": \"multiple\"", "IPType\": \"any\"");
        fs::write(
            "/run/rules.json",
            anywhere.replace("\"sourceIPMultiple\": [\"192.0.2.0/24\"],", ""),
        )?;
        agent_fw(["uninstall"])?.success()?;
        let refused = crate::scene::try_install(&["--rules", "/run/rules.json"])?;
        ensure!(refused.stderr.contains("--allow-wide"), "{refused}");
        let said = install(&["--rules", "/run/rules.json", "--allow-wide"])?;
        ensure!(said.contains("but only as") && !said.contains("hidden rule"), "{said}");
        ensure!(reaches(&ours)? && !reaches(other)?, "from anywhere, to that destination");
        // Alone, XDP cannot keep the limits.
        fs::write("/run/rules.json", rule(from))?;
        let interface = peer.interface();
        for words in
            [&["--backend", "xdp", "--interface", &interface][..], &["--otherwise", "continue"]]
        {
            let words = [&["--rules", "/run/rules.json"], words].concat();
            let refused = crate::scene::try_install(&words)?;
            ensure!(refused.code == Some(2), "{words:?}: {refused}");
        }
        Ok(())
    })
}
