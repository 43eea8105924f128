//! What is below the interface that has the address, and interfaces without Ethernet: a bridge's port, a
//! macvlan's device, a tun device. `explain` sends its packet through them, as a real one comes.

use crate::scene::{AGENT, PATIENCE, address, install};
use crate::tests;
use crate::way_back::{agrees, explain, ip};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

tests![
    explain_meets_what_a_frame_meets_at_a_bridge_and_its_port,
    the_program_on_a_bridges_port_is_seen_by_explain_and_install,
    explain_meets_what_a_frame_meets_below_a_macvlan,
    explain_asks_by_an_interface_without_ethernet_and_for_one_of_a_link,
];

/// On a kernel with VRF.
pub(crate) const WITH_VRF: &[crate::Test] =
    &[("explain_answers_inside_a_vrf", explain_answers_inside_a_vrf)];

const SOURCE: &str = "34.205.5.1";
const STRANGER: &str = "198.51.100.7";

/// Moves the host's addresses from the interface towards a peer to another, which stands on it, and
/// gives the peer addresses to which the way is by that one.
fn move_up(peer: &Peer, top: &str) -> Result<()> {
    let (low, v4) = (peer.interface(), peer.host_v4());
    ip(&format!("address flush dev {low}"))?;
    ip(&format!("address add {v4}/24 dev {top}"))?;
    ip(&format!("link set {top} up"))?;
    for source in [SOURCE, STRANGER] {
        peer.enter(|| ip(&format!("address add {source}/32 dev {}", peer.own_interface())))??;
        ip(&format!("route add {source}/32 via {} dev {top}", peer.v4()))?;
    }
    peer.enter(|| ip(&format!("neighbour flush dev {}", peer.own_interface())))??;
    // The first one waits for the link.
    for _ in 0..20 {
        if from(peer, SOURCE)? != Outcome::Silent {
            return Ok(());
        }
    }
    anyhow::bail!("no packet comes in by {top}")
}

fn from(peer: &Peer, source: &str) -> Result<Outcome> {
    let to = peer.host_address(address(source), AGENT);
    peer.enter(|| connect(address(source), to, PATIENCE))?
}

fn meets(peer: &Peer, what: &str, connects: bool, words: &str) -> Result<serde_json::Value> {
    agrees(what, from(peer, SOURCE)?, connects, &["--from", SOURCE], words)
}

/// Runs it with these rules.
fn with(rules: &str, meets: impl FnOnce() -> Result<()>) -> Result<()> {
    feed(["nft", "-f", "-"], rules)?;
    meets().with_context(|| rules.to_owned())?;
    let mut words = rules.split_whitespace().skip(1);
    let (family, table) = (words.next().context("a family")?, words.next().context("a table")?);
    run(["nft", "delete", "table", family, table]).map(drop)
}

fn bridged(lab: &Lab) -> Result<Peer> {
    let peer = lab.peer("manager")?;
    ip("link add br0 type bridge")?;
    ip("link set manager0 master br0")?;
    move_up(&peer, "br0")?;
    Ok(peer)
}

fn explain_meets_what_a_frame_meets_at_a_bridge_and_its_port() -> Result<()> {
    Lab::run(|lab| {
        let _agent = Listener::bind(AGENT)?;
        let peer = bridged(lab)?;
        install(&["--allow-from", SOURCE])?;
        let learnt = || run(["bridge", "fdb", "show"]);
        let before = learnt()?;
        meets(&peer, "no rules", true, "reaches the port")?;
        let drops = |family: &str, hook: &str| {
            format!(
                "table {family} low {{\nchain low {{\ntype filter hook {hook} priority 0\n\
                 ip saddr {SOURCE} counter drop\nip daddr {SOURCE} tcp sport 4118 counter drop\n\
                 }}\n}}\n"
            )
        };
        for (family, hook, connects) in [
            ("netdev", "ingress device manager0", false),
            ("netdev", "ingress device br0", false),
            ("inet", "ingress device manager0", false),
            ("bridge", "prerouting", false),
            ("bridge", "input", false),
            ("bridge", "forward", true),
            ("netdev", "egress device br0", false),
            ("netdev", "egress device manager0", false),
            ("netdev", "egress device lo", true),
            ("bridge", "output", false),
            ("bridge", "postrouting", false),
        ] {
            let words = if connects { "reaches the port" } else { "counter drop` in" };
            with(&drops(family, hook), || {
                meets(&peer, &format!("{family} {hook}"), connects, words).map(drop)
            })?;
        }
        // A rule with a memory, below: nothing is asked.
        let limits = drops("bridge", "input").replace("counter", "limit rate 5/second");
        with(&limits, || {
            let (value, finished) = explain(&["--from", SOURCE])?;
            ensure!(finished.code == Some(5) && value["asked"] == false, "{finished}");
            Ok(())
        })?;
        for device in ["manager0", "br0"] {
            let tc = |line: &str| run(["tc"].into_iter().chain(line.split(' '))).map(drop);
            tc(&format!("qdisc add dev {device} clsact"))?;
            tc(&format!(
                "filter add dev {device} ingress pref 5 protocol ip u32 match ip src {SOURCE}/32 \
                 action mirred egress redirect dev lo"
            ))?;
            meets(&peer, device, false, "tc filter u32 of priority 5")?;
            tc(&format!("qdisc del dev {device} clsact"))?;
        }
        if lab.host().set_sysctl("net/bridge/bridge-nf-call-iptables", "1").is_ok() {
            meets(&peer, "br_netfilter", true, "reaches the port")?;
            let drops = "table ip low {\nchain low {\ntype filter hook prerouting priority 0\n\
                         tcp dport 4118 counter drop\n}\n}\n";
            with(drops, || meets(&peer, "br_netfilter", false, "counter drop` in").map(drop))?;
            lab.host().set_sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
        }
        // The bridge learns nothing that is not so.
        ip("route add 192.0.2.9/32 via 10.118.1.99 dev br0")?;
        let (value, _) = explain(&["--from", "192.0.2.9"])?;
        ensure!(value["mac_is_invented"] == true, "{value:#}");
        ensure!(!learnt()?.contains("02:00:5e:00:53:01"), "{before} became {}", learnt()?);
        // With several ports it is not guessed.
        ip("link add other type veth peer name othere")?;
        ip("link set other master br0 up")?;
        ip("link set othere up")?;
        meets(&peer, "two ports", true, "reaches the port")?;
        let (value, _) = explain(&["--from", "192.0.2.9"])?;
        ensure!(
            value["missing"][0].as_str().is_some_and(|m| m.contains("ports of br0")),
            "{value:#}"
        );
        Ok(())
    })
}

fn the_program_on_a_bridges_port_is_seen_by_explain_and_install() -> Result<()> {
    Lab::run(|lab| {
        let _agent = Listener::bind(AGENT)?;
        let peer = bridged(lab)?;
        let flags = ["--allow-from", SOURCE, "--backend", "both", "--interface", "manager0"];
        let tested = agent_fw(["install", "--no-boot"].iter().chain(&flags))?;
        ensure!(tested.code == Some(0), "{tested}");
        ensure!(!tested.stdout.contains("not closed"), "{tested}");
        ensure!(tested.stdout.contains("open: tried with 1 admitted source"), "{tested}");
        meets(&peer, "listed", true, "reaches the port")?;
        let real = from(&peer, STRANGER)?;
        let value = agrees("unlisted", real, false, &["--from", STRANGER], "drop")?;
        ensure!(value["xdp"].as_str().is_some_and(|xdp| xdp.contains("native")), "{value:#}");
        Ok(())
    })
}

fn explain_meets_what_a_frame_meets_below_a_macvlan() -> Result<()> {
    Lab::run(|lab| {
        let _agent = Listener::bind(AGENT)?;
        let peer = lab.peer("manager")?;
        ip("link add link manager0 name mv0 type macvlan mode bridge")?;
        move_up(&peer, "mv0")?;
        install(&["--allow-from", SOURCE])?;
        meets(&peer, "no rules", true, "reaches the port")?;
        for (device, connects) in [("manager0", false), ("mv0", false), ("lo", true)] {
            let drops = format!(
                "table netdev low {{\nchain low {{\ntype filter hook ingress device {device} \
                 priority 0\nip saddr {SOURCE} counter drop\n}}\n}}\n"
            );
            let words = if connects { "reaches the port" } else { "in netdev low low" };
            with(&drops, || meets(&peer, device, connects, words).map(drop))?;
        }
        Ok(())
    })
}

/// Two tun devices, and a process that hands on what each sends to the other.
struct Tunnel(Child);

impl Tunnel {
    fn make(names: [&str; 2]) -> Result<Self> {
        let script = "$| = 1; my @t; for my $n (@ARGV) { open(my $f, '+<', '/dev/net/tun') or die; \
                      my $r = pack('a16Sx22', $n, 0x1001); ioctl($f, 0x400454ca, $r) or die; \
                      push @t, $f } print \"stands\\n\"; while (1) { my $v = ''; \
                      vec($v, fileno($_), 1) = 1 for @t; select($v, undef, undef, undef); \
                      for my $i (0, 1) { next unless vec($v, fileno($t[$i]), 1); \
                      sysread($t[$i], my $p, 2000); syswrite($t[1 - $i], $p) } }";
        let mut perl = Command::new("perl");
        perl.arg("-e").arg(script).args(names).stdout(Stdio::piped());
        let mut tunnel = Self(perl.spawn()?);
        let mut said = String::new();
        let output = tunnel.0.stdout.take().context("its output")?;
        BufReader::new(output).read_line(&mut said)?;
        ensure!(said == "stands\n", "there is no tunnel: {said}");
        Ok(tunnel)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn explain_asks_by_an_interface_without_ethernet_and_for_one_of_a_link() -> Result<()> {
    Lab::run(|lab| {
        let _agent = Listener::bind(AGENT)?;
        let peer = lab.peer("manager")?;
        let _tunnel = Tunnel::make(["tun0", "tun1"])?;
        ip("link set tun1 netns manager")?;
        ip("address add 10.9.0.1/24 dev tun0")?;
        ip("link set tun0 up")?;
        ip(&format!("route add {SOURCE}/32 dev tun0"))?;
        peer.enter(|| {
            ip("address add 10.9.0.2/24 dev tun1")?;
            ip(&format!("address add {SOURCE}/32 dev tun1"))?;
            ip("link set tun1 up")
        })??;
        install(&["--allow-from", SOURCE, "--allow-from", "fe80::/64"])?;
        let over = || {
            peer.enter(|| connect(address(SOURCE), (address("10.9.0.1"), AGENT).into(), PATIENCE))?
        };
        let value = agrees("tun", over()?, true, &["--from", SOURCE], "reaches the port")?;
        ensure!(value["interface"] == "tun0", "{value:#}");
        let drops = format!(
            "table netdev low {{\nchain low {{\ntype filter hook ingress device tun0 priority 0\n\
             ip saddr {SOURCE} counter drop\n}}\n}}\n"
        );
        with(&drops, || {
            agrees("tun", over()?, false, &["--from", SOURCE], "in netdev low low").map(drop)
        })?;
        let all = agent_fw(["explain", "--all", "--json"])?;
        let tried: serde_json::Value = serde_json::from_str(&all.stdout)?;
        let by_tun = tried["answers"].as_array().into_iter().flatten();
        let by_tun = by_tun.filter(|answer| answer["interface"] == "tun0").count();
        ensure!(by_tun > 0, "{all}");
        // An address of one link, with the link.
        let links =
            run(["ip", "-netns", "manager", "-6", "-br", "address", "show", "dev", "eth0"])?;
        let local = links.split_whitespace().find(|word| word.starts_with("fe80"));
        let local = local.and_then(|word| word.split('/').next()).context("a link's address")?;
        let links = run(["ip", "-6", "-br", "address", "show", "dev", "manager0"])?;
        let own = links.split_whitespace().find(|word| word.starts_with("fe80"));
        let own = own.and_then(|word| word.split('/').next()).context("a link's address")?;
        let scoped = format!("{local}%manager0");
        let (value, finished) = explain(&["--from", &scoped])?;
        ensure!(value["connects"] == true && finished.code == Some(0), "{finished}");
        ensure!(value["destination"] == own && value["interface"] == "manager0", "{value:#}");
        let bare = agent_fw(["explain", "--from", local])?;
        ensure!(bare.code == Some(2) && bare.stderr.contains("%INTERFACE"), "{bare}");
        Ok(())
    })
}

fn explain_answers_inside_a_vrf() -> Result<()> {
    Lab::run(|lab| {
        let _agent = Listener::bind(AGENT)?;
        let peer = lab.peer("manager")?;
        lab.host().set_sysctl("net/ipv4/tcp_l3mdev_accept", "1")?;
        ip("link add red type vrf table 10")?;
        ip("link set red up")?;
        ip("link set manager0 master red")?;
        peer.enter(|| ip(&format!("address add {SOURCE}/32 dev eth0")))??;
        install(&["--allow-from", SOURCE])?;
        let by = ["--from", SOURCE, "--interface", "manager0"];
        let real = from(&peer, SOURCE)?;
        agrees("no route in the VRF", real, false, &by, "has no route to")?;
        ip(&format!("route add default via {} table 10", peer.v4()))?;
        let value = agrees("a route", from(&peer, SOURCE)?, true, &by, "reaches the port")?;
        ensure!(value["listening"] == true, "{value:#}");
        agrees("found", from(&peer, SOURCE)?, true, &["--from", SOURCE], "reaches the port")?;
        let drops = "table inet low {\nchain low {\ntype filter hook output priority 0\n\
                     tcp sport 4118 counter drop\n}\n}\n";
        with(drops, || agrees("a rule", from(&peer, SOURCE)?, false, &by, "counter drop").map(drop))
    })
}
