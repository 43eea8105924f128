//! What ends a connection behind the chains of IP: programs of cgroups, filters at an interface's exit,
//! proxies, rewritten ports, a full table of connections, sockets that listen elsewhere. What `explain`
//! says is what a real connection meets, or that it is not known.

use crate::foreign;
use crate::scene::{AGENT, address, connect_from, install, until};
use crate::tests;
use crate::way_back::{agrees, explain, has_connected, table};
use agent_fw::model::firewall::TCP;
use agent_fw::trace::{Memory, Opener};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, Wire, agent_fw, feed, is_emulated, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

tests![
    explain_says_what_filters_at_the_exit_do_or_that_it_is_not_known,
    explain_names_the_chain_at_an_exit_that_drops_and_nothing_leaves,
    explain_names_the_program_of_a_cgroup_that_drops_either_way,
    explain_calls_a_proxy_no_queue_and_follows_a_rewritten_port,
    explain_names_a_full_table_of_connections,
    explain_says_where_a_socket_listens_that_does_not_take_the_packet,
    explain_says_that_it_has_invented_a_mac_address,
];

const SOURCE: &str = "34.205.5.1";

/// A peer with the source's address, and the policy that admits it.
fn scene(lab: &Lab) -> Result<Peer> {
    let peer = lab.peer("manager")?;
    peer.add_address(address(SOURCE))?;
    install(&["--allow-from", SOURCE])?;
    Ok(peer)
}

fn meets(peer: &Peer, what: &str, connects: bool, words: &str) -> Result<serde_json::Value> {
    let real = connect_from(peer, address(SOURCE), AGENT)?;
    agrees(what, real, connects, &["--from", SOURCE], words)
}

/// Demands that `explain` says that it does not know, whatever a real connection meets.
fn is_not_known(what: &str, words: &str) -> Result<()> {
    let (value, finished) = explain(&["--from", SOURCE])?;
    ensure!(value["connects"].is_null() && finished.code == Some(5), "{what}: {finished}");
    let said = value["conclusion"].as_str().context("a conclusion")?;
    ensure!(said.contains("not known") && said.contains(words), "{what}: {said}");
    let all = agent_fw(["explain", "--all"])?;
    ensure!(all.code == Some(5), "{what}: {all}");
    let tested = agent_fw(["install", "--no-boot", "--allow-from", SOURCE])?;
    let said = tested.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(said.contains("not known for 1 of 1 admitted sources"), "{what}: {tested}");
    let metrics = agent_fw(["metrics", "--probe"])?;
    ensure!(!metrics.stdout.contains("agent_fw_open{"), "{what}: {metrics}");
    Ok(())
}

fn explain_says_what_filters_at_the_exit_do_or_that_it_is_not_known() -> Result<()> {
    Lab::run(|lab| {
        let peer = scene(lab)?;
        let _agent = Listener::bind(AGENT)?;
        meets(&peer, "nothing", true, "reaches the port")?;
        let tc = |line: &str| run(["tc"].into_iter().chain(line.split(' '))).map(drop);
        tc("qdisc add dev manager0 clsact")?;
        let filter = "filter add dev manager0 egress pref 5 protocol ip u32 match ip dst";
        for harmless in ["flowid 1:1", "action mirred egress mirror dev lo"] {
            tc(&format!("{filter} {SOURCE}/32 {harmless}"))?;
            meets(&peer, harmless, true, "reaches the port")?;
            tc("filter del dev manager0 egress pref 5")?;
        }
        let away = "action mirred egress redirect dev lo";
        tc(&format!("{filter} {SOURCE}/32 {away}"))?;
        let real = connect_from(&peer, address(SOURCE), AGENT)?;
        ensure!(real == Outcome::Silent, "{away}: {real}");
        is_not_known(away, "tc filter u32 of priority 5 at the exit of manager0")?;
        tc("filter del dev manager0 egress pref 5")?;
        if crate::tc::has_tcx() {
            let _program = foreign::at_exit("manager0")?;
            meets(&peer, "a program", false, "at the exit of manager0, by tc program")?;
        }
        Ok(())
    })
}

fn explain_names_the_chain_at_an_exit_that_drops_and_nothing_leaves() -> Result<()> {
    Lab::run(|lab| {
        let peer = scene(lab)?;
        let _agent = Listener::bind(AGENT)?;
        let exit = |rule: &str| {
            let text = format!(
                "table netdev host {{}}\ndelete table netdev host\ntable netdev host {{\n\
                 chain exit {{\ntype filter hook egress device manager0 priority 0\n{rule}\n}}\n}}\n"
            );
            feed(["nft", "-f", "-"], &text)
        };
        if exit("counter").is_err() {
            println!("not tested: this kernel has no hook egress");
            return Ok(());
        }
        meets(&peer, "an exit that lets it pass", true, "reaches the port")?;
        let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
        explain(&["--from", SOURCE])?;
        let v4 = |frame: &[u8]| (frame.get(12..14) == Some(&[8, 0])).then_some(());
        ensure!(wire.find(Duration::from_millis(300), v4)?.is_none(), "a packet left the host");
        for (rule, connects) in [
            (format!("ip daddr {SOURCE} tcp sport 4118 tcp flags syn,ack drop"), false),
            (format!("ip daddr {SOURCE} tcp sport 4119 drop"), true),
            ("tcp option sack-perm missing drop".to_owned(), true),
        ] {
            exit(&rule)?;
            let words = if connects { "reaches the port" } else { "in netdev host exit" };
            meets(&peer, &rule, connects, words)?;
        }
        exit("tcp sport 4118 limit rate 9/second accept")?;
        let (value, finished) = explain(&["--from", SOURCE])?;
        ensure!(value["asked"] == false && finished.code == Some(5), "a memory: {finished}");
        let tables = run(["nft", "list", "tables"])?;
        ensure!(!tables.contains("probe"), "{tables}");
        Ok(())
    })
}

/// A process with a socket on the agent's port, in a cgroup of its own.
struct Confined(Child);

impl Confined {
    fn listen(cgroup: &str) -> Result<Self> {
        let script = format!(
            "echo $$ > {cgroup}/cgroup.procs && exec perl -MIO::Socket::INET -e '$| = 1; \
             my $s = IO::Socket::INET->new(LocalPort => {AGENT}, Listen => 9, ReuseAddr => 1) \
             or die; print \"listens\\n\"; while (my $c = $s->accept) {{ \
             while (sysread($c, my $b, 4096)) {{ syswrite($c, $b) }} }}'"
        );
        let child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn()?;
        let mut confined = Self(child);
        let mut said = String::new();
        let output = confined.0.stdout.take().context("its output")?;
        BufReader::new(output).read_line(&mut said)?;
        ensure!(said == "listens\n", "the process does not listen: {said}");
        Ok(confined)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn explain_names_the_program_of_a_cgroup_that_drops_either_way() -> Result<()> {
    Lab::run(|lab| {
        fs::create_dir("/run/cgroups")?;
        run(["mount", "-t", "cgroup2", "none", "/run/cgroups"])?;
        let cgroup = format!("/run/cgroups/agent-fw-lab-{}", std::process::id());
        fs::create_dir(&cgroup)?;
        let tested = (|| {
            let peer = scene(lab)?;
            let _agent = Confined::listen(&cgroup)?;
            meets(&peer, "no program", true, "reaches the port")?;
            for direction in [foreign::Direction::In, foreign::Direction::Out] {
                let _program = foreign::at_cgroup(&cgroup, direction)?;
                let what = format!("a program for packets {direction:?}");
                meets(&peer, &what, false, "BPF program deny")?;
            }
            // The kernel takes a program off some time after its last owner has gone.
            until("the program has gone", || {
                Ok(has_connected(connect_from(&peer, address(SOURCE), AGENT)?))
            })?;
            meets(&peer, "no program again", true, "reaches the port")?;
            Ok(())
        })();
        fs::remove_dir(&cgroup)?;
        tested
    })
}

fn explain_calls_a_proxy_no_queue_and_follows_a_rewritten_port() -> Result<()> {
    Lab::run(|lab| {
        let peer = scene(lab)?;
        let _agents = (Listener::bind(AGENT)?, Listener::bind(AGENT + 1)?);
        let pre = |rule: &str| {
            table(&format!("chain pre {{\ntype nat hook prerouting priority -100\n{rule}\n}}"))
        };
        pre("tcp dport 4118 redirect to :4119")?;
        let value = meets(&peer, "a redirection", true, "reaches the port")?;
        ensure!(value["arrives_at"]["port"] == 4119, "{value:#}");
        ensure!(value["listening"] == true, "{value:#}");
        // Without connection tracking, the answer comes from where nobody has asked.
        let changes = "chain pre {\ntype filter hook prerouting priority 0\n\
                       tcp dport 4118 tcp dport set 4119\n}\n";
        table(changes)?;
        let value = meets(&peer, "a changed port", false, "comes from")?;
        ensure!(value["arrives_at"]["port"] == 4119, "{value:#}");
        table(&format!(
            "{changes}chain out {{\ntype filter hook output priority 0\n\
             tcp sport 4119 tcp sport set 4118\n}}"
        ))?;
        meets(&peer, "a port that is changed back", true, "reaches the port")?;
        let proxy = "chain raw {\ntype filter hook prerouting priority raw\n\
                     tcp dport 4118 tcp flags syn notrack\n}\n\
                     chain input {\ntype filter hook input priority 0\n\
                     tcp dport 4118 ct state invalid,untracked \
                     synproxy mss 1460 wscale 7 timestamp sack-perm\n\
                     ct state invalid drop\n}\n";
        if table(proxy).is_ok() {
            // So that what the proxy has not begun is invalid.
            lab.host().set_sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
            let real = connect_from(&peer, address(SOURCE), AGENT)?;
            ensure!(has_connected(real), "through the proxy: {real}");
            let accepting = ["--from", SOURCE, "--accept-side-effects"];
            let (value, finished) = explain(&accepting)?;
            ensure!(value["connects"].is_null() && finished.code == Some(5), "{finished}");
            let said = value["conclusion"].as_str().context("a conclusion")?;
            ensure!(said.contains("SYNPROXY") && !said.contains("queue"), "{said}");
        }
        Ok(())
    })
}

fn explain_names_a_full_table_of_connections() -> Result<()> {
    /// More take too long to make.
    const MOST: u64 = 600_000;
    Lab::run(|lab| {
        let peer = scene(lab)?;
        let _agent = Listener::bind(AGENT)?;
        table("chain input {\ntype filter hook input priority 0\nct state invalid drop\n}")?;
        meets(&peer, "room", true, "reaches the port")?;
        let most = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?;
        let most: u64 = most.trim().parse()?;
        if most > MOST || is_emulated() {
            println!("not tested: a table of {most} connections takes too long to fill");
            return Ok(());
        }
        let mut memory = Memory::open()?;
        let here = SocketAddr::from(([10, 0, 0, 1], 443));
        let mut number = 0_u32;
        let mut fill = || -> Result<()> {
            for _ in 0..=most {
                number += 1;
                let there = Ipv4Addr::from(0x0b00_0000 + number / 50_000);
                let there = SocketAddr::from((there, u16::try_from(1024 + number % 50_000)?));
                if memory.keep(TCP, Opener::There, here, there).is_err() {
                    break;
                }
            }
            Ok(())
        };
        fill()?;
        let real = connect_from(&peer, address(SOURCE), AGENT)?;
        ensure!(real == Outcome::Silent, "no room: {real}");
        // Meanwhile the kernel may have found one that had expired.
        until("the table is full", || {
            fill()?;
            let (value, finished) = explain(&["--from", SOURCE])?;
            let said = value["conclusion"].as_str().unwrap_or_default();
            Ok(said.contains("its table is full") && finished.code == Some(1))
        })?;
        Ok(())
    })
}

fn explain_says_where_a_socket_listens_that_does_not_take_the_packet() -> Result<()> {
    Lab::run(|lab| {
        let peer = scene(lab)?;
        let told = |what: &str, words: &str| -> Result<()> {
            let real = connect_from(&peer, address(SOURCE), AGENT)?;
            ensure!(real == Outcome::Refused, "{what}: {real}");
            let (value, _) = explain(&["--from", SOURCE])?;
            ensure!(value["listening"] == false, "{what}: {value:#}");
            let said = value["not_taken"].as_str().unwrap_or_default();
            ensure!(said.contains(words), "{what}: {value:#}");
            Ok(())
        };
        told("nobody", "nothing listens on TCP 4118")?;
        {
            let _agent = TcpListener::bind(("127.0.0.1", AGENT))?;
            told("loopback", "does so at 127.0.0.1")?;
        }
        {
            let _agent = Listener::bind_v6_only(AGENT)?;
            told("IPv6 only", "every IPv6 address")?;
        }
        {
            let _agent = Listener::bind_to_device(AGENT, "lo")?;
            told("another interface", "by one interface alone")?;
        }
        let _agent = Listener::bind(AGENT)?;
        let value = meets(&peer, "every address", true, "reaches the port")?;
        ensure!(value["listening"] == true && value["not_taken"].is_null(), "{value:#}");
        Ok(())
    })
}

fn explain_says_that_it_has_invented_a_mac_address() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        peer.add_address(address(SOURCE))?;
        let _agent = Listener::bind(AGENT)?;
        let mac = peer.mac()?.to_string();
        install(&["--allow-from", SOURCE, "--allow-mac", &mac])?;
        peer.forget_neighbours()?;
        let (value, finished) = explain(&["--from", SOURCE])?;
        ensure!(value["mac_is_invented"] == true, "{value:#}");
        ensure!(value["connects"].is_null() && finished.code == Some(5), "{finished}");
        let plain = agent_fw(["explain", "--from", SOURCE])?;
        ensure!(plain.stdout.contains("--mac names it"), "{plain}");
        let (value, finished) = explain(&["--from", SOURCE, "--mac", &mac])?;
        ensure!(value["connects"] == true && finished.code == Some(0), "{finished}");
        let (value, finished) = explain(&["--from", SOURCE, "--mac", "02:00:00:00:00:99"])?;
        ensure!(value["connects"] == false && finished.code == Some(1), "{finished}");
        // A real connection makes the neighbour known.
        let real = connect_from(&peer, address(SOURCE), AGENT)?;
        agrees("a known neighbour", real, true, &["--from", SOURCE], "reaches the port")?;
        // One that the policy does not list is refused, whatever its neighbour is.
        let (value, finished) = explain(&["--from", "198.51.100.7", "--interface", "manager0"])?;
        ensure!(value["connects"] == false && finished.code == Some(1), "{finished}");
        Ok(())
    })
}
