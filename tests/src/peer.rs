//! Another host, at the other end of a veth pair.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::command::{feed, run};
use crate::lab::set_defaults;
use crate::mac::MacAddr;
use crate::namespace::Namespace;

/// The peer's own interface.
const LINK: &str = "eth0";

/// The longest name that leaves room for the `0` of its interface (IFNAMSIZ less the NUL).
const NAME_LENGTH: usize = 14;

/// Ample for a veth pair on a busy machine.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// Another host, with a network namespace of its own and as many addresses as wanted. The
/// lab's host is its gateway for everything.
#[derive(Debug)]
pub struct Peer {
    name: String,
    number: u8,
    here: Namespace,
    host: Namespace,
}

impl Peer {
    pub(crate) fn connect(host: &Namespace, name: &str, number: u8) -> Result<Self> {
        ensure!(name.len() <= NAME_LENGTH, "a peer's name has at most {NAME_LENGTH} characters");
        host.enter(|| run(["ip", "netns", "add", name]))??;
        let here = Namespace::open(name, &Path::new("/run/netns").join(name))?;
        here.enter(set_defaults)??;
        let peer = Self { name: name.to_owned(), number, here, host: host.clone() };
        peer.plug_in()?;
        Ok(peer)
    }

    /// Takes the cable away, and the interfaces at both of its ends, with all that they had.
    pub fn unplug(&self) -> Result<()> {
        self.ip_on_host(&format!("link del {}", self.interface()))
    }

    /// Connects the peer, with new interfaces at both ends.
    pub fn plug_in(&self) -> Result<()> {
        self.ip_on_host(&format!(
            "link add {link} address {mac} type veth peer name {LINK} address {peer_mac} netns {name}
             address add {v4}/24 dev {link}
             address add {v6}/64 dev {link} nodad
             link set {link} up",
            link = self.interface(),
            mac = self.host_mac(),
            peer_mac = MacAddr([2, 0, 0, 0, self.number, 2]),
            v4 = self.host_v4(),
            v6 = self.host_v6(),
            name = self.name,
        ))?;
        self.ip(&format!(
            "link set lo up
             address add {v4}/24 dev {LINK}
             address add {v6}/64 dev {LINK} nodad
             link set {LINK} up
             route add default via {host_v4}
             route add default via {host_v6}",
            v4 = self.v4(),
            v6 = self.v6(),
            host_v4 = self.host_v4(),
            host_v6 = self.host_v6(),
        ))?;
        self.wait_for_link()
    }

    /// Waits until both ends send. The end that was brought up first learns of its carrier
    /// from a work queue of the kernel, and until then drops what it should send.
    fn wait_for_link(&self) -> Result<()> {
        let deadline = Instant::now() + LINK_PATIENCE;
        let both_up = || -> Result<bool> {
            let there = run(["ip", "-netns", &self.name, "-oneline", "link", "show", "dev", LINK])?;
            let here = self
                .host
                .enter(|| run(["ip", "-oneline", "link", "show", "dev", &self.interface()]))??;
            Ok(there.contains(" state UP ") && here.contains(" state UP "))
        };
        while !both_up()? {
            ensure!(Instant::now() < deadline, "the link to {} does not come up", self.name);
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Runs `work` on a thread inside the peer's network namespace and returns its value.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.here.enter(work)
    }

    /// The peer's network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.here
    }

    /// The host's interface towards this peer.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("{}0", self.name)
    }

    /// The peer's own interface, inside its namespace.
    #[must_use]
    pub fn own_interface(&self) -> &'static str {
        LINK
    }

    /// The host's IPv4 address on the link to this peer.
    #[must_use]
    pub fn host_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 118, self.number, 1)
    }

    /// The host's IPv6 address on the link to this peer.
    #[must_use]
    pub fn host_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x118, u16::from(self.number), 0, 0, 0, 0, 1)
    }

    /// The peer's IPv4 address on its link.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 118, self.number, 2)
    }

    /// The peer's IPv6 address on its link.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x118, u16::from(self.number), 0, 0, 0, 0, 2)
    }

    /// A port of the host, by its address of the same family as `source`.
    #[must_use]
    pub fn host_address(&self, source: IpAddr, port: u16) -> SocketAddr {
        match source {
            IpAddr::V4(_) => (self.host_v4(), port).into(),
            IpAddr::V6(_) => (self.host_v6(), port).into(),
        }
    }

    /// The MAC address of the host's interface towards this peer.
    #[must_use]
    pub fn host_mac(&self) -> MacAddr {
        MacAddr([2, 0, 0, 0, self.number, 1])
    }

    /// The MAC address of the peer.
    pub fn mac(&self) -> Result<MacAddr> {
        let link = run(["ip", "-netns", &self.name, "-oneline", "link", "show", "dev", LINK])?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
        words.next().unwrap_or_default().parse()
    }

    /// Gives the peer another MAC address; the host asks for it anew.
    pub fn set_mac(&self, mac: MacAddr) -> Result<()> {
        self.ip(&format!("link set {LINK} address {mac}"))?;
        self.forget_neighbours()
    }

    /// Adds an address to the peer, from which it can then talk: the host has a route back.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let length = length(address);
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        self.ip(&format!("address add {address}/{length} dev {LINK} {nodad}"))?;
        self.ip_on_host(&format!("route add {address}/{length} {}", self.way(address)))?;
        self.wait_for_address(address)
    }

    /// Waits until the peer takes packets for an address. For IPv6 the kernel does the last step,
    /// the route, from a work queue, and until then throws such packets away.
    fn wait_for_address(&self, address: IpAddr) -> Result<()> {
        if address.is_ipv4() {
            return Ok(());
        }
        let deadline = Instant::now() + LINK_PATIENCE;
        let address = address.to_string();
        let routes =
            ["ip", "-6", "-netns", &self.name, "route", "show", "table", "local", &address];
        while run(routes)?.trim().is_empty() {
            ensure!(
                Instant::now() < deadline,
                "{address} does not become an address of {}",
                self.name
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Takes an address away from the peer, and the host's route to it.
    pub fn remove_address(&self, address: IpAddr) -> Result<()> {
        let length = length(address);
        self.ip_on_host(&format!("route del {address}/{length} {}", self.way(address)))?;
        self.ip(&format!("address del {address}/{length} dev {LINK}"))
    }

    /// Makes both ends of the link forget each other's MAC address, so that the next packet
    /// waits for ARP or neighbour discovery.
    pub fn forget_neighbours(&self) -> Result<()> {
        self.ip(&format!("neighbour flush dev {LINK}"))?;
        self.ip_on_host(&format!("neighbour flush dev {}", self.interface()))
    }

    /// The host's way to an address of this peer: through the address on the link, so that
    /// one neighbour entry serves all.
    fn way(&self, address: IpAddr) -> String {
        let gateway: IpAddr = if address.is_ipv4() { self.v4().into() } else { self.v6().into() };
        format!("via {gateway} dev {}", self.interface())
    }

    /// Has `ip` carry out lines of its language inside the peer, in one process.
    fn ip(&self, lines: &str) -> Result<()> {
        feed(["ip", "-netns", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// Has `ip` carry out lines of its language on the host, from wherever this is called.
    fn ip_on_host(&self, lines: &str) -> Result<()> {
        self.host.enter(|| feed(["ip", "-batch", "-"], lines).map(drop))?
    }
}

fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
