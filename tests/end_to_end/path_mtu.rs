//! `agent-fw doctor` and the word of routers that a packet was too large: what it says is what
//! becomes of a real one.

use crate::scene::{AGENT, address, check, install};
use crate::tests;
use agent_fw_lab::packet::checksum;
use agent_fw_lab::{Conversation, Lab, Listener, Outcome, Peer, Wire, feed, run};
use anyhow::{Context as _, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

tests![doctor_says_of_icmp_for_the_paths_mtu_what_becomes_of_a_real_one];

const V4: &str = "ICMP for the path's MTU";
const V6: &str = "ICMPv6 for the path's MTU";
const SOURCE: &str = "34.205.5.1";
const ROUTER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

fn doctor_says_of_icmp_for_the_paths_mtu_what_becomes_of_a_real_one() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        peer.add_address(address(SOURCE))?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        run(["ip", "-6", "route", "add", "default", "via", &peer.v6().to_string()])?;
        let agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
        let drops = "dropped by the policy of chain inet host input";
        for (rules, v4, v6) in [
            ("ct state established,related accept", "let it in", "let it in"),
            ("ct state established accept", drops, drops),
            ("icmp type destination-unreachable accept", "let it in", drops),
            ("icmpv6 type packet-too-big accept", drops, "let it in"),
        ] {
            let text = format!(
                "table inet host {{}}\nflush table inet host\ntable inet host {{\nchain input {{\n\
                 type filter hook input priority 0; policy drop;\n{neighbours}\n{rules}\n\
                 tcp dport {AGENT} accept\n}}\n}}\n"
            );
            feed(["nft", "-f", "-"], &text)?;
            for (name, due) in [(V4, v4), (V6, v6)] {
                let (health, seen) = check(name)?;
                ensure!(seen.contains(due), "{rules}: {name}: {seen}");
                ensure!(seen.contains("about a connection with the agent"), "{seen}");
                ensure!((health == "good") == (due == "let it in"), "{rules}: {name}: {health}");
            }
            ensure!(is_heard(&peer, &agent)? == (v4 == "let it in"), "{rules}");
        }
        Ok(())
    })
}

/// Whether this host hears a router's word about a real connection.
fn is_heard(peer: &Peer, agent: &Listener) -> Result<bool> {
    let host = peer.host_v4();
    let to = SocketAddr::from((host, AGENT));
    let mut conversation =
        peer.enter(|| Conversation::open(address(SOURCE), to, Duration::from_secs(5)))??;
    ensure!(conversation.say(Duration::from_secs(5))? == Outcome::Talked);
    let accepted = agent.accepted();
    let remote = accepted.iter().rfind(|remote| remote.ip() == address(SOURCE));
    let remote = *remote.context("nobody has connected")?;
    let (SocketAddr::V4(remote), before) = (remote, heard()?) else {
        anyhow::bail!("{remote} is of another version of IP");
    };
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    let ports = [AGENT.to_be_bytes(), remote.port().to_be_bytes()].concat();
    let quoted = [packet(host, *remote.ip(), 6, &[0; 20]), ports, vec![0; 4]].concat();
    // The header says twenty bytes; eight are quoted.
    let quoted: Vec<u8> = [&quoted[..20], &quoted[40..]].concat();
    let mut message = [&[3, 4, 0, 0, 0, 0], &1400_u16.to_be_bytes()[..], &quoted].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let frame =
        [&peer.host_mac().0[..], &peer.mac()?.0, &[8, 0], &packet(ROUTER, host, 1, &message)]
            .concat();
    peer.enter(|| wire.send(&frame))??;
    let deadline = Instant::now() + Duration::from_millis(300);
    while Instant::now() < deadline {
        if heard()? > before {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// An IPv4 packet.
pub(crate) fn packet(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, inside: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + inside.len()).unwrap_or_default().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, inside].concat()
}

/// How many packets of ICMP's type 3 this network namespace has taken in.
fn heard() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "InDestUnreachs").context("counter")?;
    Ok(value.parse()?)
}
