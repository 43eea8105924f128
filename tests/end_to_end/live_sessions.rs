//! What is in use when a policy is installed that would cut it off: `--accept-risk`.

use crate::scene::{AGENT, AMPLE, PATIENCE, address, install, status, try_install};
use crate::tests;
use agent_fw_lab::{
    Conversation, Finished, Lab, Listener, Outcome, Peer, UdpEcho, agent_fw, feed, output, run,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

tests![
    a_policy_that_would_cut_sessions_is_refused_and_they_go_on_until_it_is_accepted,
    sessions_that_a_policy_admits_are_not_named_and_go_on_whoever_speaks_first,
    a_service_that_nobody_would_reach_any_more_is_named_and_loopbacks_are_not,
    a_udp_socket_at_a_port_of_clients_is_a_service_if_it_stays,
    by_default_deny_what_this_host_has_opened_is_named_and_what_came_in_is_not,
    what_the_policy_in_force_has_cut_already_is_not_asked_about_again,
    a_managers_session_is_named_and_a_strangers_to_the_agents_port_is_not,
    connection_tracking_tells_who_opened_a_session_where_ports_do_not,
    a_source_that_is_admitted_by_its_mac_address_keeps_its_session,
];

const RULES: &str = "/run/rules.json";
const POLICY: [&str; 5] = ["--allow-from", "any", "--rules", RULES, "--policy"];

/// A rule about ports of one protocol, and what else it says.
fn rule(action: &str, direction: &str, protocol: &str, port: u16, more: &str) -> String {
    let priority = if action == "allow" { 0 } else { 4 };
    format!(
        "{{\"name\": \"{action} {direction} {protocol} {port}\", \"action\": \"{action}\", \
         \"priority\": \"{priority}\", \"direction\": \"{direction}\", \"frameType\": \"ip\", \
         \"protocol\": \"{protocol}\", \"destinationPortType\": \"multiple\", \
         \"destinationPortMultiple\": [\"{port}\"]{more}}}"
    )
}

fn write_rules(rules: &[String]) -> Result<()> {
    fs::write(RULES, format!("[{}]", rules.join(", ")))?;
    Ok(())
}

/// One that admits only these ports, both ways.
fn admit_only(incoming: u16, outgoing: u16) -> Result<()> {
    let rules = [("incoming", incoming), ("outgoing", outgoing)];
    write_rules(&rules.map(|(direction, port)| rule("allow", direction, "tcp", port, "")))
}

/// Both ends of a session with this host: the other's address, this one's.
fn ways(peer: &Peer) -> [(IpAddr, IpAddr); 2] {
    [(peer.v4().into(), peer.host_v4().into()), (peer.v6().into(), peer.host_v6().into())]
}

/// A session that the peer opens to a port of this host, over each version of IP.
fn inward(peer: &Peer, port: u16) -> Result<Vec<Conversation>> {
    let open = |(there, here)| {
        peer.enter(|| Conversation::open(there, SocketAddr::new(here, port), AMPLE))?
    };
    ways(peer).into_iter().map(open).collect()
}

/// A session that this host opens to a port of the peer.
fn outward(peer: &Peer, port: u16) -> Result<Vec<Conversation>> {
    let open = |(there, here)| Conversation::open(here, SocketAddr::new(there, port), AMPLE);
    ways(peer).into_iter().map(open).collect()
}

fn go_on(sessions: &mut [Conversation], what: &str) -> Result<()> {
    for session in sessions {
        let seen = session.say(AMPLE)?;
        ensure!(seen == Outcome::Talked, "{what}: {seen}");
    }
    Ok(())
}

fn are_cut(sessions: &mut [Conversation], what: &str) -> Result<()> {
    for session in sessions {
        let seen = session.say(PATIENCE);
        ensure!(!matches!(seen, Ok(Outcome::Talked)), "{what} goes on");
    }
    Ok(())
}

/// Demands that an installation was refused and has changed nothing; what it would cut off, by the
/// names of the command that it prints, and that command.
fn refused(by: &Finished) -> Result<(Vec<String>, Vec<String>)> {
    ensure!(by.code == Some(1), "{by}");
    let command = by.stderr.lines().last().context("nothing was said")?.trim().to_owned();
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let (flag, names) = (words.iter().rev().nth(1), words.last().context("names")?);
    ensure!(flag.is_some_and(|flag| flag == "--accept-risk"), "{by}");
    Ok((names.split(',').map(str::to_owned).collect(), words))
}

fn is_nothing_installed() -> Result<()> {
    let tables = run(["nft", "list", "tables"])?;
    ensure!(!tables.contains("agent_fw"), "{tables}");
    ensure!(!fs::exists("/etc/agent-fw/policy.toml")?, "a policy was written");
    Ok(())
}

fn a_policy_that_would_cut_sessions_is_refused_and_they_go_on_until_it_is_accepted() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(22)?;
        let _there = peer.enter(|| Listener::bind(8443))??;
        let (mut ssh, mut out) = (inward(&peer, 22)?, outward(&peer, 8443)?);
        admit_only(80, 443)?;
        let seen = try_install(&POLICY)?;
        let (names, command) = refused(&seen)?;
        ensure!(names == ["tcp/22", "out:tcp/8443"], "{names:?}: {seen}");
        let said = seen.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        let with = format!("2 connections, from {} and {}", peer.v4(), peer.v6());
        let due = format!("ssh: TCP port 22 (nobody would reach it any more; {with})");
        ensure!(said.contains(&due), "{due}: {said}");
        let with = format!("2 connections, to {} and {}", peer.v4(), peer.v6());
        ensure!(said.contains(&format!("TCP port 8443 of others ({with})")), "{said}");
        is_nothing_installed()?;
        let dry = try_install(&[&POLICY[..], &["--dry-run"]].concat())?;
        ensure!(refused(&dry)?.0 == names, "{dry}");
        // What is named is accepted, and nothing else.
        let half = try_install(&[&POLICY[..], &["--accept-risk", "out:tcp/8443"]].concat())?;
        ensure!(refused(&half)?.0 == ["tcp/22"], "{half}");
        is_nothing_installed()?;
        go_on(&mut ssh, "SSH")?;
        go_on(&mut out, "what went out")?;
        let accepted = output(command)?;
        ensure!(accepted.code == Some(0), "{accepted}");
        are_cut(&mut ssh, "SSH")?;
        are_cut(&mut out, "what went out")?;
        // Consent is not kept, and the same policy is not asked about again.
        ensure!(!fs::read_to_string("/etc/agent-fw/policy.toml")?.contains("risk"));
        let (said, code) = status()?;
        ensure!(code == Some(0), "{said:#}");
        install(&POLICY)?;
        for again in [&["apply"][..], &["apply", "--boot"]] {
            run(["nft", "flush", "ruleset"])?;
            agent_fw(again)?.success()?;
        }
        run(["nft", "flush", "ruleset"])?;
        install(&POLICY)?;
        Ok(())
    })
}

/// A session in which nobody answers by himself: each end in a hand, and who listens.
struct Pair {
    here: TcpStream,
    there: TcpStream,
    _listener: TcpListener,
}

impl Pair {
    fn inward(peer: &Peer, here: IpAddr, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((here, port))?;
        let there = peer.enter(|| TcpStream::connect((here, port)))??;
        Ok(Self { here: listener.accept()?.0, there, _listener: listener })
    }

    fn outward(peer: &Peer, there: IpAddr, port: u16) -> Result<Self> {
        let listener = peer.enter(|| TcpListener::bind((there, port)))??;
        let here = TcpStream::connect((there, port))?;
        Ok(Self { here, there: listener.accept()?.0, _listener: listener })
    }

    /// Demands that what one end says is heard at the other, first by the one, then by the other.
    fn talk(&mut self, here_first: bool) -> Result<()> {
        let Self { here, there, .. } = self;
        let (first, second) = if here_first { (here, there) } else { (there, here) };
        say(first, second)?;
        say(second, first)
    }
}

fn say(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"said")?;
    to.set_read_timeout(Some(AMPLE))?;
    to.read_exact(&mut [0; 4]).context("nothing was heard")
}

fn sessions_that_a_policy_admits_are_not_named_and_go_on_whoever_speaks_first() -> Result<()> {
    for here_first in [true, false] {
        Lab::run(|lab| {
            let peer = lab.peer("world")?;
            let _here = Listener::bind(22)?;
            let mut pairs = Vec::new();
            for (there, here) in ways(&peer) {
                pairs.push(Pair::inward(&peer, here, 2222)?);
                pairs.push(Pair::outward(&peer, there, 443)?);
            }
            write_rules(&[
                rule("allow", "incoming", "tcp", 2222, ""),
                rule("allow", "incoming", "tcp", 22, ""),
                rule("allow", "outgoing", "tcp", 443, ""),
            ])?;
            install(&POLICY)?;
            for pair in &mut pairs {
                pair.talk(here_first).with_context(|| format!("here first: {here_first}"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn a_service_that_nobody_would_reach_any_more_is_named_and_loopbacks_are_not() -> Result<()> {
    Lab::run(|lab| {
        let _peer = lab.peer("world")?;
        let _ports = [22, 80, AGENT].map(|port| Listener::bind(port).expect("free"));
        let _v4 = TcpListener::bind("0.0.0.0:3306")?;
        let _v6 = TcpListener::bind("[::]:5432")?;
        let _syslog = UdpSocket::bind("0.0.0.0:514")?;
        let _loopback = [TcpListener::bind("127.0.0.1:6379")?, TcpListener::bind("[::1]:6379")?];
        let _resolver = UdpSocket::bind("127.0.0.53:53")?;
        admit_only(80, 443)?;
        let seen = try_install(&POLICY)?;
        let (names, _) = refused(&seen)?;
        ensure!(names == ["tcp/22", "tcp/3306", "tcp/5432", "udp/514"], "{names:?}: {seen}");
        // One source is enough, by one version of IP, from one MAC address.
        let source = ", \"sourceIPType\": \"single\", \"sourceIPValue\": \"198.51.100.7\"";
        let mac = ", \"sourceMACType\": \"single\", \"sourceMACValue\": \"02:00:00:00:00:07\"";
        write_rules(&[
            rule("allow", "incoming", "tcp", 80, ""),
            rule("allow", "incoming", "tcp", 22, source),
            rule("allow", "incoming", "tcp", 3306, mac),
            rule(
                "allow",
                "incoming",
                "tcp",
                5432,
                ", \"destinationIPType\": \"single\", \
                 \"destinationIPValue\": \"203.0.113.99\"",
            ),
            // Nothing would be answered.
            rule("force-allow", "incoming", "udp", 514, ""),
            "{\"name\": \"No answers\", \"action\": \"deny\", \"priority\": \"4\", \"direction\": \
             \"outgoing\", \"frameType\": \"ip\", \"protocol\": \"udp\", \"sourcePortType\": \
             \"multiple\", \"sourcePortMultiple\": [\"514\"]}"
                .to_owned(),
        ])?;
        // The engine lets answers out to whoever asks from the port of DNS.
        let policy = [&POLICY[..], &["--no-engine-rules"]].concat();
        let seen = try_install(&policy)?;
        let (names, _) = refused(&seen)?;
        // The destination is none of this host's.
        ensure!(names == ["tcp/5432", "udp/514"], "{names:?}: {seen}");
        // What is not at risk is told, and no error.
        let words = ["--accept-risk", "tcp/5432,tcp/9999", "--accept-risk", "udp/514"];
        let said = install(&[&policy[..], &words].concat())?;
        ensure!(said.contains("--accept-risk tcp/9999"), "{said}");
        for faulty in ["5432", "tcp/x", "out/tcp/22"] {
            let refused = try_install(&[&POLICY[..], &["--accept-risk", faulty]].concat())?;
            ensure!(refused.code == Some(2), "{refused}");
        }
        Ok(())
    })
}

fn a_udp_socket_at_a_port_of_clients_is_a_service_if_it_stays() -> Result<()> {
    Lab::run(|lab| {
        let _peer = lab.peer("world")?;
        // WireGuard's port is one of those, a resolver's socket is there for a moment.
        let _stays = UdpSocket::bind("0.0.0.0:51820")?;
        let passes = UdpSocket::bind("0.0.0.0:40000")?;
        let passing = thread::spawn(move || {
            thread::sleep(Duration::from_secs(1));
            drop(passes);
        });
        admit_only(80, 443)?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["udp/51820"], "{seen}");
        ensure!(passing.join().is_ok());
        Ok(())
    })
}

fn by_default_deny_what_this_host_has_opened_is_named_and_what_came_in_is_not() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = Listener::bind(22)?;
        let _there = peer.enter(|| [443, 8443].map(|port| Listener::bind(port).expect("free")))?;
        let _udp = peer.enter(|| [123, 4433].map(|port| UdpEcho::bind(port).expect("free")))?;
        let mut ssh = inward(&peer, 22)?;
        let (mut needed, mut other) = (outward(&peer, 443)?, outward(&peer, 8443)?);
        let talk = |port: u16| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((peer.host_v4(), 0))?;
            socket.connect((peer.v4(), port))?;
            socket.set_read_timeout(Some(AMPLE))?;
            Ok(socket)
        };
        let asks =
            |socket: &UdpSocket| socket.send(b"asked").is_ok() && socket.recv(&mut [0; 8]).is_ok();
        let (ntp, quic) = (talk(123)?, talk(4433)?);
        let words = ["--allow-from", "region:us-1", "--default-deny-outbound"];
        let seen = try_install(&words)?;
        let (names, command) = refused(&seen)?;
        ensure!(names == ["out:tcp/8443", "out:udp/4433"], "{names:?}: {seen}");
        is_nothing_installed()?;
        go_on(&mut other, "what is not needed, before")?;
        ensure!(asks(&ntp) && asks(&quic), "datagrams, before");
        ensure!(output(command)?.code == Some(0));
        go_on(&mut ssh, "SSH")?;
        go_on(&mut needed, "what is needed")?;
        are_cut(&mut other, "what is not needed")?;
        quic.set_read_timeout(Some(PATIENCE))?;
        ensure!(asks(&ntp) && !asks(&quic), "datagrams, after");
        // What restricts nothing is not asked about.
        install(&["--allow-from", "region:us-1", "--restrict-outbound"])?;
        Ok(())
    })
}

fn what_the_policy_in_force_has_cut_already_is_not_asked_about_again() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [22, 80, 8080].map(|port| Listener::bind(port).expect("free"));
        let mut ssh = inward(&peer, 22)?;
        admit_only(80, 443)?;
        install(&[&POLICY[..], &["--accept-risk", "tcp/22,tcp/8080"]].concat())?;
        are_cut(&mut ssh, "SSH")?;
        let mut web = inward(&peer, 80)?;
        // Another policy: what it cuts is asked about, and only what the one in force does not.
        admit_only(8080, 443)?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["tcp/80"], "{seen}");
        go_on(&mut web, "a session that stands under the policy in force")?;
        // A file that was changed by hand is not in force.
        fs::write("/etc/agent-fw/policy.toml", "allow_from = [\"any\"]\n")?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["tcp/80"], "{seen}");
        // Once it is removed, all is in question again.
        agent_fw(["uninstall", "--yes"])?.success()?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["tcp/22", "tcp/80"], "{seen}");
        Ok(())
    })
}

fn a_managers_session_is_named_and_a_strangers_to_the_agents_port_is_not() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _agent = Listener::bind(AGENT)?;
        let open = |source: &str| -> Result<Conversation> {
            peer.add_address(address(source))?;
            let to = peer.host_address(address(source), AGENT);
            peer.enter(|| Conversation::open(address(source), to, AMPLE))?
        };
        let mut stranger = open("203.0.113.7")?;
        // To restrict the port is what the policy is for.
        let rules = crate::firewall::rules("04-bypass-with-its-outgoing-twin")?;
        install(&["--rules", &rules, "--policy"])?;
        are_cut(std::slice::from_mut(&mut stranger), "a stranger's")?;
        let mut manager = open("34.205.5.1")?;
        // The manager is admitted here, but not answered.
        let rules = crate::firewall::rules("03-bypass-without-its-outgoing-twin")?;
        let words = ["--rules", &rules, "--policy"];
        let seen = try_install(&words)?;
        ensure!(refused(&seen)?.0 == ["tcp/4118"], "{seen}");
        ensure!(seen.stderr.contains("1 connection, from 34.205.5.1"), "{seen}");
        go_on(std::slice::from_mut(&mut manager), "the manager's")?;
        install(&[&words[..], &["--accept-risk", "tcp/4118"]].concat())?;
        are_cut(std::slice::from_mut(&mut manager), "the manager's")
    })
}

fn connection_tracking_tells_who_opened_a_session_where_ports_do_not() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _there = peer.enter(|| [2049, 8080].map(|port| Listener::bind(port).expect("free")))?;
        let range = |text: &str| fs::write("/proc/sys/net/ipv4/ip_local_port_range", text);
        // From a port that was chosen, as NFS does it.
        range("20000 20099")?;
        let mut unknown = outward(&peer, 2049)?;
        range("32768 60999")?;
        write_rules(&[rule("allow", "incoming", "tcp", 22, "")])?;
        let seen = try_install(&POLICY)?;
        let (names, _) = refused(&seen)?;
        ensure!(names.iter().all(|name| name.starts_with("tcp/200")), "{names:?}");
        drop(unknown.drain(..));
        // Another firewall tracks connections, and changes where one goes.
        let rules = format!(
            "table ip host {{\nchain out {{ type nat hook output priority -100; policy accept;\n\
             ip daddr 203.0.113.80 tcp dport 80 dnat to {}:8080\n}}\n\
             chain in {{ type filter hook input priority 0; policy accept; ct state invalid drop; }}\n\
             }}\ntable ip6 host {{\nchain in {{ type filter hook input priority 0; ct state invalid \
             drop; }}\n}}\n",
            peer.v4()
        );
        feed(["nft", "-f", "-"], &rules)?;
        run(["ip", "route", "add", "203.0.113.80/32", "via", &peer.v4().to_string()])?;
        range("20000 20099")?;
        let mut known = outward(&peer, 2049)?;
        let to = "203.0.113.80:80".parse()?;
        let mut moved = Conversation::open(peer.host_v4().into(), to, AMPLE)?;
        range("32768 60999")?;
        install(&POLICY)?;
        go_on(&mut known, "a session that this host has opened")?;
        go_on(std::slice::from_mut(&mut moved), "one that NAT has moved")?;
        // It is named by the port that rules see.
        admit_only(22, 2049)?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["out:tcp/8080"], "{seen}");
        install(&[&POLICY[..], &["--accept-risk", "out:tcp/8080"]].concat())?;
        go_on(&mut known, "a session that is admitted")?;
        are_cut(std::slice::from_mut(&mut moved), "one that NAT has moved")
    })
}

fn a_source_that_is_admitted_by_its_mac_address_keeps_its_session() -> Result<()> {
    Lab::run(|lab| {
        let (peer, other) = (lab.peer("world")?, lab.peer("other")?);
        let _here = Listener::bind(22)?;
        let (mut ours, mut others) = (inward(&peer, 22)?, inward(&other, 22)?);
        let mac =
            format!(", \"sourceMACType\": \"single\", \"sourceMACValue\": \"{}\"", peer.mac()?);
        write_rules(&[rule("allow", "incoming", "tcp", 22, &mac)])?;
        let seen = try_install(&POLICY)?;
        ensure!(refused(&seen)?.0 == ["tcp/22"], "{seen}");
        let with = format!("2 connections, from {} and {}", other.v4(), other.v6());
        let said = seen.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(said.contains(&with) && !said.contains("nobody"), "{said}");
        install(&[&POLICY[..], &["--accept-risk", "tcp/22"]].concat())?;
        go_on(&mut ours, "by its MAC address")?;
        are_cut(&mut others, "by another")
    })
}
