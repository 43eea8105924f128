//! What this host sends to itself is not filtered, and nothing else passes for it: neither by a
//! forged source, nor inside a VRF, nor by MPLS.

use crate::scene::{AGENT, PATIENCE, address, install};
use crate::tests;
use agent_fw_lab::packet::{Ethernet, Ipv4, Ipv6, Tcp};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, Wire, connect, feed, run};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect as connect_socket, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

tests![
    this_host_reaches_its_agent_by_each_of_its_addresses,
    an_own_connection_that_has_slept_goes_on,
    an_own_connection_that_has_slept_can_be_reset,
    a_source_that_is_this_hosts_own_gets_nobody_in_by_ethernet,
    an_answer_to_a_forged_packet_makes_no_source_this_hosts_own,
];

/// On a kernel with VRF.
pub(crate) const WITH_VRF: &[crate::Test] = &[
    ("inside_a_vrf_this_host_reaches_its_agent", inside_a_vrf_this_host_reaches_its_agent),
    (
        "a_source_that_is_this_hosts_own_gets_nobody_in_inside_a_vrf",
        a_source_that_is_this_hosts_own_gets_nobody_in_inside_a_vrf,
    ),
];

/// On a kernel with MPLS.
pub(crate) const WITH_MPLS: &[crate::Test] = &[(
    "what_mpls_pops_to_loopback_is_not_this_hosts_own",
    what_mpls_pops_to_loopback_is_not_this_hosts_own,
)];

/// Each form of gate: the last chain alone drops what the first has let through, too.
const FORMS: [&[&str]; 2] =
    [&["--allow-from", "region:us-1"], &["--allow-from", "region:us-1", "--early-drop"]];

/// The source port of forged packets, by which they are counted.
const FORGED: u16 = 41_118;

/// Counts the forged packets that get past every chain of agent-fw's.
fn count_arrivals() -> Result<()> {
    let rules = format!(
        "table inet arrivals {{ chain last {{ type filter hook input priority 2147483646;
         tcp dport {AGENT} tcp sport {FORGED} counter\n}}\n}}"
    );
    feed(["nft", "-f", "-"], &rules).map(drop)
}

fn arrivals() -> Result<u64> {
    let listed = run(["nft", "list", "chain", "inet", "arrivals", "last"])?;
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().context("no counter")?.parse().context("no number")
}

/// How many of this frame get past every chain.
fn arrivals_of(peer: &Peer, frame: &[u8]) -> Result<u64> {
    let before = arrivals()?;
    let wire = peer.enter(|| Wire::open(peer.own_interface()))??;
    wire.send(frame)?;
    thread::sleep(Duration::from_millis(200));
    Ok(arrivals()? - before)
}

/// A SYN to the agent, of this source, as the peer would forge it.
fn forged(peer: &Peer, source: IpAddr, port: u16, to: u16) -> Result<Vec<u8>> {
    let ethernet = Ethernet::new(peer.mac()?, peer.host_mac());
    let syn = Tcp::syn(port, to);
    Ok(match source {
        IpAddr::V4(source) => (ethernet / Ipv4::new(source, peer.host_v4()) / syn).bytes(),
        IpAddr::V6(source) => (ethernet / Ipv6::new(source, peer.host_v6()) / syn).bytes(),
    })
}

/// The frame with its packet behind an MPLS label.
fn labelled(frame: &[u8], label: u32) -> Vec<u8> {
    const BOTTOM: u32 = 1 << 8;
    const TIME_TO_LIVE: u32 = 64;
    let entry = (label << 12 | BOTTOM | TIME_TO_LIVE).to_be_bytes();
    [&frame[..12], &[0x88, 0x47], &entry, &frame[14..]].concat()
}

/// For IPv4 the kernel itself drops a source of this host's own, unless it is told not to.
fn take_own_sources(lab: &Lab) -> Result<()> {
    lab.host().set_sysctl("net/ipv4/conf/all/accept_local", "1")
}

/// The link-local address of an interface here, with its scope.
fn link_local(interface: &str) -> Result<SocketAddr> {
    let line = run(["ip", "-6", "-oneline", "address", "show", "dev", interface, "scope", "link"])?;
    let word = line.split_whitespace().find(|word| word.starts_with("fe80"));
    let text = word.and_then(|word| word.split('/').next()).context("no link-local address")?;
    let index = run(["cat", &format!("/sys/class/net/{interface}/ifindex")])?.trim().parse()?;
    Ok(SocketAddrV6::new(text.parse()?, AGENT, 0, index).into())
}

/// A connection of this host's own, from a socket that is bound to this device. It speaks twice,
/// and sleeps in between.
fn reaches_itself(to: SocketAddr, device: Option<&str>, sleep: Duration) -> Result<bool> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device))?;
    }
    // Half a second for the connection, and for each answer.
    let patience = TimeVal::new(0, 500_000);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    if connect_socket(socket.as_raw_fd(), &SockaddrStorage::from(to)).is_err() {
        return Ok(false);
    }
    thread::sleep(sleep);
    let mut stream = std::net::TcpStream::from(socket);
    Ok(speaks(&mut stream) && speaks(&mut stream))
}

fn speaks(stream: &mut std::net::TcpStream) -> bool {
    use std::io::{Read as _, Write as _};
    stream.write_all(b"?").is_ok() && stream.read(&mut [0; 16]).is_ok_and(|length| length > 0)
}

fn this_host_reaches_its_agent_by_each_of_its_addresses() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let at = |ip: IpAddr| SocketAddr::new(ip, AGENT);
        let addresses = [
            at(address("127.0.0.1")),
            at(address("127.9.9.9")),
            at(address("::1")),
            at(manager.host_v4().into()),
            at(manager.host_v6().into()),
            link_local(&manager.interface())?,
        ];
        for form in FORMS {
            install(form)?;
            for to in addresses {
                ensure!(reaches_itself(to, None, Duration::ZERO)?, "{to}, {form:?}");
            }
            // From one address to another.
            let outcome = connect(manager.host_v4().into(), at(address("127.0.0.1")), PATIENCE)?;
            ensure!(outcome == Outcome::Talked, "{outcome}");
        }
        Ok(())
    })
}

fn an_own_connection_that_has_slept_goes_on() -> Result<()> {
    Lab::run(|_| {
        let _agent = Listener::bind(AGENT)?;
        install(FORMS[0])?;
        let to = SocketAddr::new(address("::1"), AGENT);
        ensure!(reaches_itself(to, None, Duration::from_millis(2500))?, "longer than it is known");
        Ok(())
    })
}

/// A client that goes away with data unread, or lingers for nothing, resets its connection.
fn an_own_connection_that_has_slept_can_be_reset() -> Result<()> {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let own = [address("127.0.0.1"), address("::1"), manager.host_v4().into()];
        let own = own.map(|ip| SocketAddr::new(ip, AGENT)).into_iter();
        let addresses: Vec<SocketAddr> = own.chain([link_local(&manager.interface())?]).collect();
        for form in FORMS {
            install(form)?;
            for to in &addresses {
                let agent = TcpListener::bind(to).with_context(|| to.to_string())?;
                let client = TcpStream::connect(to)?;
                let (mut there, _) = agent.accept()?;
                there.write_all(b"unread")?;
                thread::sleep(Duration::from_millis(1500));
                drop(client);
                there.set_read_timeout(Some(PATIENCE))?;
                let ended = there.read(&mut [0; 8]).map_err(|error| error.kind());
                ensure!(ended == Err(std::io::ErrorKind::ConnectionReset), "{to}: {ended:?}");
            }
        }
        Ok(())
    })
}

fn a_source_that_is_this_hosts_own_gets_nobody_in_by_ethernet() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        take_own_sources(lab)?;
        count_arrivals()?;
        let own: [IpAddr; 2] = [manager.host_v4().into(), manager.host_v6().into()];
        for source in own {
            let frame = forged(&manager, source, FORGED, AGENT)?;
            ensure!(arrivals_of(&manager, &frame)? > 0, "{source} would arrive");
        }
        for form in FORMS {
            install(form)?;
            for source in own {
                let frame = forged(&manager, source, FORGED, AGENT)?;
                ensure!(arrivals_of(&manager, &frame)? == 0, "{source}, {form:?}");
            }
        }
        Ok(())
    })
}

/// The stranger has this host answer a packet that seems to come from its own port 4118, and so send
/// from a port of the stranger's choice to that port.
fn an_answer_to_a_forged_packet_makes_no_source_this_hosts_own() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        take_own_sources(lab)?;
        install(FORMS[0])?;
        let _other = Listener::bind(FORGED + 1)?;
        let own = || run(["nft", "list", "set", "inet", "agent_fw", "own_ports"]);
        for source in [manager.host_v4().into(), IpAddr::from(manager.host_v6())] {
            // A closed port answers with a reset, an open one with a SYN of its own.
            for port in [FORGED, FORGED + 1] {
                let wire = manager.enter(|| Wire::open(manager.own_interface()))??;
                wire.send(&forged(&manager, source, AGENT, port)?)?;
                thread::sleep(Duration::from_millis(100));
                ensure!(!own()?.contains(&port.to_string()), "{source}: {}", own()?);
            }
        }
        // What it could have learned is seen of a connection of its own.
        let _agent = Listener::bind(AGENT)?;
        let to = SocketAddr::new(manager.host_v6().into(), AGENT);
        ensure!(reaches_itself(to, None, Duration::ZERO)?);
        ensure!(own()?.contains("elements"), "{}", own()?);
        Ok(())
    })
}

/// Puts the interface towards this peer into a VRF. Sockets of the host listen there, too.
fn into_vrf(lab: &Lab, peer: &Peer) -> Result<()> {
    lab.host().set_sysctl("net/ipv4/tcp_l3mdev_accept", "1")?;
    let (interface, v6) = (peer.interface(), peer.host_v6());
    // An interface that changes its master loses its IPv6 addresses.
    let lines = format!(
        "link add red type vrf table 10\nlink set red up\nlink set {interface} master red
         address replace {v6}/64 dev {interface} nodad\n"
    );
    feed(["ip", "-batch", "-"], &lines).map(drop)
}

fn inside_a_vrf_this_host_reaches_its_agent() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        into_vrf(lab, &manager)?;
        let _agent = Listener::bind(AGENT)?;
        let v4 = (SocketAddr::from((manager.host_v4(), AGENT)), "red");
        let v6 = (SocketAddr::from((manager.host_v6(), AGENT)), "red");
        let interface = manager.interface();
        let ways = [v4, v6, (link_local(&interface)?, interface.as_str())];
        for (to, device) in ways {
            ensure!(reaches_itself(to, Some(device), Duration::ZERO)?, "{to} without agent-fw");
        }
        for form in FORMS {
            install(form)?;
            for (to, device) in ways {
                ensure!(reaches_itself(to, Some(device), Duration::ZERO)?, "{to}, {form:?}");
            }
        }
        Ok(())
    })
}

fn a_source_that_is_this_hosts_own_gets_nobody_in_inside_a_vrf() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        into_vrf(lab, &manager)?;
        take_own_sources(lab)?;
        count_arrivals()?;
        let own = [manager.host_v4().into(), IpAddr::from(manager.host_v6())];
        let strangers = ["198.51.100.7", "2001:db8::7", "fe80::bad"].map(address);
        let all: Vec<IpAddr> = own.into_iter().chain(strangers).collect();
        for source in &all {
            let frame = forged(&manager, *source, FORGED, AGENT)?;
            ensure!(arrivals_of(&manager, &frame)? > 0, "{source} would arrive");
        }
        for form in FORMS {
            install(form)?;
            for source in &all {
                let frame = forged(&manager, *source, FORGED, AGENT)?;
                ensure!(arrivals_of(&manager, &frame)? == 0, "{source}, {form:?}");
            }
            let listed = forged(&manager, address("34.205.5.1"), FORGED, AGENT)?;
            ensure!(arrivals_of(&manager, &listed)? > 0, "a listed source arrives");
        }
        Ok(())
    })
}

fn what_mpls_pops_to_loopback_is_not_this_hosts_own() -> Result<()> {
    const LABEL: u32 = 100;
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        take_own_sources(lab)?;
        count_arrivals()?;
        lab.host().set_sysctl("net/mpls/platform_labels", "1000")?;
        let input = format!("net/mpls/conf/{}/input", manager.interface());
        lab.host().set_sysctl(&input, "1")?;
        run(["ip", "-family", "mpls", "route", "add", &LABEL.to_string(), "dev", "lo"])?;
        let own = [manager.host_v4().into(), IpAddr::from(manager.host_v6())];
        let strangers = ["198.51.100.7", "2001:db8::7", "::1", "fe80::bad"].map(address);
        let all: Vec<IpAddr> = own.into_iter().chain(strangers).collect();
        for source in &all {
            let frame = labelled(&forged(&manager, *source, FORGED, AGENT)?, LABEL);
            ensure!(arrivals_of(&manager, &frame)? > 0, "{source} would arrive");
        }
        for form in FORMS {
            install(form)?;
            for source in &all {
                let frame = labelled(&forged(&manager, *source, FORGED, AGENT)?, LABEL);
                ensure!(arrivals_of(&manager, &frame)? == 0, "{source}, {form:?}");
            }
            let listed = labelled(&forged(&manager, address("34.205.5.1"), FORGED, AGENT)?, LABEL);
            ensure!(arrivals_of(&manager, &listed)? > 0, "a listed source arrives");
        }
        Ok(())
    })
}
