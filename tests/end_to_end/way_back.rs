//! The way back: what routes, rules of routing, marks and connection tracking make of the agent's
//! answers. What `explain` says is what a real connection meets.

use crate::scene::{AGENT, PATIENCE, address, connect_from, install};
use crate::tests;
use agent_fw_lab::{Finished, Lab, Listener, Outcome, Peer, agent_fw, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

tests![
    explain_says_why_no_route_leads_back,
    explain_goes_the_way_of_each_uplink,
    explain_routes_by_mark_and_port_as_a_connection_is_routed,
    explain_answers_in_the_zone_and_with_the_marks_of_the_first_packet,
    explain_sends_a_syn_like_that_of_a_linux_client,
];

const SOURCE: &str = "34.205.5.1";
const SOURCE_V6: &str = "2001:db8::1";

pub(crate) fn explain(arguments: &[&str]) -> Result<(Value, Finished)> {
    let finished = agent_fw(["explain", "--json"].iter().chain(arguments))?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("explain's answer is no JSON: {finished}"))?;
    Ok((value, finished))
}

/// Whether the handshake came about.
pub(crate) fn has_connected(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Talked | Outcome::Mute)
}

/// Demands that a real connection ends so, and that `explain` says so, with these words.
pub(crate) fn agrees(
    what: &str,
    real: Outcome,
    connects: bool,
    arguments: &[&str],
    words: &str,
) -> Result<Value> {
    ensure!(has_connected(real) == connects, "{what}: the real connection: {real}");
    let (value, finished) = explain(arguments)?;
    ensure!(value["connects"] == connects, "{what}: {real}, but {value:#}");
    ensure!(finished.code == Some(i32::from(!connects)), "{what}: {finished}");
    let said = value["conclusion"].as_str().context("a conclusion")?;
    ensure!(said.contains(words), "{what}: {said}");
    Ok(value)
}

/// Gives the peer an address to which this host has no route.
fn give(peer: &Peer, source: &str) -> Result<()> {
    peer.add_address(address(source))?;
    let length = if source.contains(':') { 128 } else { 32 };
    run(["ip", "route", "del", &format!("{source}/{length}"), "dev", &peer.interface()]).map(drop)
}

pub(crate) fn ip(line: &str) -> Result<()> {
    run(["ip"].into_iter().chain(line.split_whitespace())).map(drop)
}

fn explain_says_why_no_route_leads_back() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for (source, version, via) in
            [(SOURCE, "-4", peer.v4().to_string()), (SOURCE_V6, "-6", peer.v6().to_string())]
        {
            give(&peer, source)?;
            run(["ip", version, "route", "add", "default", "via", &via])?;
        }
        install(&["--allow-from", SOURCE, "--allow-from", SOURCE_V6])?;
        let meet = |what: &str, connects: bool, words: &str| -> Result<()> {
            for source in [SOURCE, SOURCE_V6] {
                let real = connect_from(&peer, address(source), AGENT)?;
                agrees(&format!("{what}, {source}"), real, connects, &["--from", source], words)?;
            }
            let all = agent_fw(["explain", "--all"])?;
            ensure!(all.code == Some(i32::from(!connects)), "{what}: {all}");
            Ok(())
        };
        meet("a default route", true, "reaches the port")?;
        for (kind, words) in [
            ("unreachable", "of type unreachable"),
            ("prohibit", "of type prohibit"),
            ("blackhole", "of type blackhole"),
            // Another table may have one; none has.
            ("throw", "has no route to"),
        ] {
            for (version, source) in [("-4", SOURCE), ("-6", SOURCE_V6)] {
                ip(&format!("{version} route add {kind} {source}"))?;
            }
            meet(&format!("a route of type {kind}"), false, words)?;
            for (version, source) in [("-4", SOURCE), ("-6", SOURCE_V6)] {
                ip(&format!("{version} route del {kind} {source}"))?;
            }
            if kind == "throw" {
                continue;
            }
            for (version, source) in [("-4", SOURCE), ("-6", SOURCE_V6)] {
                ip(&format!("{version} rule add to {source} pref 100 {kind}"))?;
            }
            let words = if kind == "unreachable" { "has no route to" } else { words };
            meet(&format!("a rule of type {kind}"), false, words)?;
            for version in ["-4", "-6"] {
                ip(&format!("{version} rule del pref 100"))?;
            }
        }
        meet("a default route again", true, "reaches the port")?;
        for version in ["-4", "-6"] {
            ip(&format!("{version} route del default"))?;
        }
        meet("no default route", false, "this host has no route to")?;
        for (version, via) in [("-4", peer.v4().to_string()), ("-6", peer.v6().to_string())] {
            ip(&format!("{version} route add default via {via} table 77"))?;
        }
        meet("a default route in a table that no rule names", false, "has no route to")?;
        let installed =
            agent_fw(["install", "--no-boot", "--allow-from", SOURCE, "--allow-from", SOURCE_V6])?;
        let said = installed.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(said.contains("not open: 34.205.5.1 reaches the port, but"), "{installed}");
        for version in ["-4", "-6"] {
            ip(&format!("{version} rule add pref 100 lookup 77"))?;
        }
        meet("a rule that names the table", true, "reaches the port")?;
        // What has no address at all is said in JSON, too.
        run(["ip", "-6", "address", "flush", "dev", &peer.interface()])?;
        let (value, finished) = explain(&["--from", SOURCE_V6])?;
        ensure!(finished.code == Some(1) && value["connects"] == false, "{finished}");
        ensure!(value["conclusion"].as_str().is_some_and(|c| c.contains("no IPv6")), "{value:#}");
        let flags = ["--allow-from", SOURCE, "--allow-from", SOURCE_V6];
        let tested = agent_fw(["install", "--no-boot"].iter().chain(&flags))?;
        let said = tested.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(said.contains("open: tried with 1 of 2 admitted sources"), "{tested}");
        ensure!(said.contains("not known for 1 of 2 admitted sources"), "{tested}");
        Ok(())
    })
}

/// Two uplinks: each has a table of its own, by numbers 101 and 102.
fn uplinks(lab: &Lab) -> Result<[Peer; 2]> {
    let uplinks = [lab.peer("left")?, lab.peer("right")?];
    for (peer, table) in uplinks.iter().zip([101, 102]) {
        give(peer, SOURCE)?;
        let (via, interface) = (peer.v4(), peer.interface());
        ip(&format!("route add default via {via} dev {interface} table {table}"))?;
    }
    Ok(uplinks)
}

/// Demands that a real connection from behind an uplink, to that one's address, ends so, and that
/// `explain` says so of a packet that comes in by it.
fn agrees_by(peer: &Peer, what: &str, connects: bool, words: &str) -> Result<Value> {
    let interface = peer.interface();
    let to = peer.host_address(address(SOURCE), AGENT);
    let real = peer.enter(|| connect(address(SOURCE), to, PATIENCE))??;
    let arguments = ["--from", SOURCE, "--interface", &interface];
    let what = format!("{what}, {interface}");
    let value = agrees(&what, real, connects, &arguments, words)?;
    ensure!(value["interface"] == interface, "{what}: {value:#}");
    if connects {
        ensure!(value["answer_by"].is_null(), "{what}: {value:#}");
    }
    Ok(value)
}

fn explain_goes_the_way_of_each_uplink() -> Result<()> {
    Lab::run(|lab| {
        let [left, right] = &uplinks(lab)?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", SOURCE])?;
        for peer in [left, right] {
            agrees_by(peer, "no rule", false, "has no route to")?;
        }
        for (peer, table) in [(left, 101), (right, 102)] {
            ip(&format!("rule add from {} pref {table} lookup {table}", peer.host_v4()))?;
        }
        for strict in ["0", "1"] {
            for peer in [left, right] {
                let parameter = format!("net/ipv4/conf/{}/rp_filter", peer.interface());
                lab.host().set_sysctl(&parameter, strict)?;
            }
            for peer in [left, right] {
                // For rp_filter, it is the destination that is looked up from.
                agrees_by(peer, "a table for each", true, "reaches the port")?;
            }
        }
        let (value, finished) = explain(&["--from", SOURCE])?;
        ensure!(finished.code == Some(0), "{finished}");
        ensure!(value["interface"] == "left0", "{value:#}");
        let all = agent_fw(["explain", "--all", "--json"])?;
        ensure!(all.code == Some(0), "{all}");
        let value: Value = serde_json::from_str(&all.stdout)?;
        let interfaces: Vec<&str> = value["answers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|answer| answer["admitted"] == true)
            .filter_map(|answer| answer["interface"].as_str())
            .collect();
        ensure!(interfaces == ["left0", "right0"], "{value:#}");
        let tested = agent_fw(["install", "--no-boot", "--allow-from", SOURCE])?;
        ensure!(tested.stdout.contains("open: tried with 1 admitted source"), "{tested}");
        // By the interface that the address asked for is at, whatever the main table says.
        ip(&format!("route add default via {} dev right0", right.v4()))?;
        let to = left.host_v4().to_string();
        let (value, _) = explain(&["--from", SOURCE, "--to", &to])?;
        ensure!(value["interface"] == "left0" && value["connects"] == true, "{value:#}");
        // One that is answered by the other one is no way of its own.
        ip("rule del pref 101")?;
        let (value, _) = explain(&["--from", SOURCE, "--interface", "left0", "--to", &to])?;
        ensure!(value["answer_by"] == "right0", "{value:#}");
        Ok(())
    })
}

/// The table `host`, with these chains and nothing else.
pub(crate) fn table(chains: &str) -> Result<()> {
    let text =
        format!("table inet host {{}}\ndelete table inet host\ntable inet host {{\n{chains}\n}}\n");
    feed(["nft", "-f", "-"], &text).map(drop)
}

fn explain_routes_by_mark_and_port_as_a_connection_is_routed() -> Result<()> {
    Lab::run(|lab| {
        let [left, right] = &uplinks(lab)?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", SOURCE])?;
        // A route by the left one for all that has no mark.
        ip("rule add pref 200 lookup 101")?;
        ip("rule add pref 100 fwmark 2 lookup 102")?;
        let from_right = "chain pre {\ntype filter hook prerouting priority mangle\n\
                          iifname right0 SET\n}";
        let marks_connection = from_right.replace("SET", "ct mark set 2");
        let restores = "chain out {\ntype route hook output priority mangle\n\
                        meta mark set ct mark\n}";
        table(&format!("{marks_connection}\n{restores}"))?;
        agrees_by(left, "a connection's mark", true, "reaches the port")?;
        agrees_by(right, "a connection's mark", true, "reaches the port")?;
        table(&marks_connection)?;
        let (value, _) = explain(&["--from", SOURCE, "--interface", "right0"])?;
        ensure!(value["answer_by"] == "left0", "nothing restores the mark: {value:#}");

        // The mark is the packet's, and the connection takes it over where that is on.
        table(&from_right.replace("SET", "meta mark set 2"))?;
        let (value, _) = explain(&["--from", SOURCE, "--interface", "right0"])?;
        ensure!(value["answer_by"] == "left0", "no connection takes the mark: {value:#}");
        lab.host().set_sysctl("net/ipv4/tcp_fwmark_accept", "1")?;
        agrees_by(right, "a packet's mark", true, "reaches the port")?;
        // For rp_filter, marks count where that is on.
        lab.host().set_sysctl("net/ipv4/conf/right0/rp_filter", "1")?;
        agrees_by(right, "rp_filter without marks", false, "rp_filter")?;
        lab.host().set_sysctl("net/ipv4/conf/right0/src_valid_mark", "1")?;
        agrees_by(right, "rp_filter with marks", true, "reaches the port")?;
        lab.host().set_sysctl("net/ipv4/conf/right0/rp_filter", "0")?;
        lab.host().set_sysctl("net/ipv4/tcp_fwmark_accept", "0")?;

        // A mark that leads nowhere.
        ip("rule add pref 50 fwmark 9 unreachable")?;
        table("chain out {\ntype route hook output priority mangle\nmeta mark set 9\n}")?;
        agrees_by(left, "a mark without a route", false, "with the mark 0x9")?;
        table("")?;

        // The agent's port is part of what is looked up.
        ip("rule del pref 200")?;
        agrees_by(left, "no route", false, "has no route to")?;
        ip("rule add pref 200 ipproto tcp sport 4118 lookup 101")?;
        agrees_by(left, "a table for the port", true, "reaches the port")?;
        ip("rule add pref 150 ipproto tcp sport 4118 prohibit")?;
        agrees_by(left, "a rule against the port", false, "of type prohibit")?;
        ip("rule del pref 150")?;
        ip("rule add pref 150 ipproto udp sport 4118 prohibit")?;
        agrees_by(left, "a rule against another protocol", true, "reaches the port")?;
        ip("rule add pref 160 iif right0 prohibit")?;
        agrees_by(left, "a rule for what comes in elsewhere", true, "reaches the port")?;
        Ok(())
    })
}

fn explain_answers_in_the_zone_and_with_the_marks_of_the_first_packet() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let sources = [SOURCE, SOURCE_V6];
        sources.iter().try_for_each(|source| peer.add_address(address(source)))?;
        install(&["--allow-from", SOURCE, "--allow-from", SOURCE_V6])?;
        let raw = |hook: &str, rule: &str| {
            format!("chain raw{hook} {{\ntype filter hook {hook} priority raw\n{rule}\n}}\n")
        };
        let input =
            |rule: &str| format!("chain input {{\ntype filter hook input priority 0\n{rule}\n}}\n");
        let output = |rule: &str| {
            format!(
                "chain output {{\ntype filter hook output priority 0; policy drop\n\
                 meta l4proto ipv6-icmp accept\n{rule}\n}}\n"
            )
        };
        let established = output("ct state established accept");
        for (what, chains, connects) in [
            (
                "one zone",
                [
                    raw("prerouting", "tcp dport 4118 ct zone set 5"),
                    raw("output", "tcp sport 4118 ct zone set 5"),
                    established.clone(),
                ]
                .concat(),
                true,
            ),
            (
                "a zone for what comes in alone",
                [raw("prerouting", "tcp dport 4118 ct zone set 5"), established.clone()].concat(),
                false,
            ),
            (
                "a zone of one direction",
                [
                    raw("prerouting", "tcp dport 4118 ct original zone set 5"),
                    raw("output", "tcp sport 4118 ct zone set 0"),
                    established.clone(),
                ]
                .concat(),
                true,
            ),
            (
                "a mark",
                [input("tcp dport 4118 ct mark set 7"), output("ct mark 7 accept")].concat(),
                true,
            ),
            (
                "another mark",
                [input("tcp dport 4118 ct mark set 6"), output("ct mark 7 accept")].concat(),
                false,
            ),
            (
                "a label",
                [input("tcp dport 4118 ct label set 40"), output("ct label 40 accept")].concat(),
                true,
            ),
            (
                "another label",
                [input("tcp dport 4118 ct label set 41"), output("ct label 40 accept")].concat(),
                false,
            ),
            (
                "not tracked",
                [raw("prerouting", "tcp dport 4118 notrack"), established.clone()].concat(),
                false,
            ),
            (
                "not tracked, either way",
                [
                    raw("prerouting", "tcp dport 4118 notrack"),
                    raw("output", "tcp sport 4118 notrack"),
                    output("ct state untracked accept"),
                ]
                .concat(),
                true,
            ),
        ] {
            table(&chains)?;
            for source in sources {
                let real = connect_from(&peer, address(source), AGENT)?;
                let what = format!("{what}, {source}");
                agrees(&what, real, connects, &["--from", source], "reaches the port")?;
            }
        }
        Ok(())
    })
}

fn explain_sends_a_syn_like_that_of_a_linux_client() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let sources = [SOURCE, SOURCE_V6];
        sources.iter().try_for_each(|source| peer.add_address(address(source)))?;
        install(&["--allow-from", SOURCE, "--allow-from", SOURCE_V6])?;
        let options = ["maxseg", "sack-perm", "timestamp", "window"];
        let missing = options.map(|option| format!("tcp option {option} missing drop"));
        let judged: Vec<String> = missing
            .into_iter()
            .chain([
                "ip length != 60 drop".to_owned(),
                "ip6 length != 40 drop".to_owned(),
                "meta length < 60 drop".to_owned(),
                "tcp option maxseg size < 1000 drop".to_owned(),
                "tcp doff < 10 drop".to_owned(),
            ])
            .collect();
        for (hook, port) in [("prerouting", "dport"), ("output", "sport")] {
            for rule in &judged {
                table(&format!(
                    "chain judge {{\ntype filter hook {hook} priority 0\n\
                     tcp {port} 4118 tcp flags & syn == syn {rule}\n}}"
                ))?;
                for source in sources {
                    let real = connect_from(&peer, address(source), AGENT)?;
                    let what = format!("{rule} at {hook}, {source}");
                    agrees(&what, real, true, &["--from", source], "reaches the port")?;
                }
            }
            // The control: such a rule can stop it.
            table(&format!(
                "chain judge {{\ntype filter hook {hook} priority 0\n\
                 tcp {port} 4118 tcp option timestamp exists drop\n}}"
            ))?;
            let real = connect_from(&peer, address(SOURCE), AGENT)?;
            agrees(hook, real, false, &["--from", SOURCE], "dropped by rule")?;
        }
        Ok(())
    })
}
