//! What else is on this host's interfaces, and whether it forwards: what a program at the driver cannot
//! see, and must not cut off.

use super::multicast;
use crate::netlink::link::Interface;
use crate::netlink::message::{attributes, number};
use crate::netlink::{link, message};
use anyhow::Context as _;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A version of IP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The interfaces of this network namespace, and what is behind them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surroundings {
    /// The interfaces, by index.
    pub interfaces: Vec<Interface>,
    /// By index: what packets that come in by an interface are forwarded.
    pub forwarding: BTreeMap<u32, BTreeSet<IpVersion>>,
    /// By index: MAC addresses that an interface takes for others, its own among them where others
    /// share it. What is made on it and has gone to another network namespace shows only here.
    pub guests: BTreeMap<u32, BTreeSet<[u8; 6]>>,
    /// Whether there are routing rules besides the kernel's own.
    pub has_rules: bool,
}

impl Surroundings {
    /// Asks the kernel.
    pub fn read() -> anyhow::Result<Self> {
        let interfaces = link::list()?;
        let forwarding = interfaces.iter().map(|of| (of.index, forwarded(&of.name))).collect();
        let guests = guests().context("cannot list what the interfaces take for others")?;
        let has_rules = has_rules().context("cannot list the routing rules")?;
        let mut seen = Self { interfaces, forwarding, guests, has_rules };
        seen.add_strangers(&multicast::members()?);
        Ok(seen)
    }

    /// Adds an interface's own MAC address to those of its guests where more have joined a group by it
    /// than can be accounted for.
    fn add_strangers(&mut self, members: &BTreeMap<u32, usize>) {
        let has_stranger = |interface: &&Interface| {
            let known = multicast::known(interface, &self.interfaces, members);
            let known = known + self.guests(interface).count();
            members.get(&interface.index).is_some_and(|members| *members > known)
        };
        let shared: Vec<(u32, [u8; 6])> = self
            .interfaces
            .iter()
            .filter(has_stranger)
            .filter_map(|interface| Some((interface.index, interface.mac?)))
            .collect();
        for (index, mac) in shared {
            self.guests.entry(index).or_default().insert(mac);
        }
    }

    /// The interface with this index.
    #[cfg_attr(not(feature = "xdp"), expect(dead_code, reason = "nothing is attached"))]
    pub(crate) fn find(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    /// The versions of IP that are forwarded of what comes in by this interface.
    pub(crate) fn forwarded(&self, index: u32) -> impl Iterator<Item = IpVersion> {
        self.forwarding.get(&index).into_iter().flatten().copied()
    }

    /// The MAC addresses that an interface takes for others than this host's interfaces on top of it.
    pub(crate) fn guests(&self, interface: &Interface) -> impl Iterator<Item = [u8; 6]> {
        let tops = link::tops(interface, &self.interfaces);
        // A VLAN may have an address of its own.
        let known: BTreeSet<[u8; 6]> = tops.iter().filter_map(|top| top.mac).collect();
        let own = interface.mac;
        let all = self.guests.get(&interface.index).into_iter().flatten().copied();
        // What shares the interface's own address, it takes once more.
        all.filter(move |mac| Some(*mac) == own || !known.contains(mac))
    }
}

fn forwarded(name: &str) -> BTreeSet<IpVersion> {
    let is_on = |version: &IpVersion| {
        let folder = match version {
            IpVersion::V4 => "ipv4",
            IpVersion::V6 => "ipv6",
        };
        // Where a version of IP is off, there is no such file.
        let path = format!("/proc/sys/net/{folder}/conf/{name}/forwarding");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    };
    IpVersion::ALL.into_iter().filter(is_on).collect()
}

/// The families of linux/socket.h, as messages have them.
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// `struct ndmsg` of linux/neighbour.h.
const NEIGHBOUR_BYTES: usize = 12;
/// `NDA_LLADDR` and `NTF_SELF` of the same.
const LINK_ADDRESS: u16 = 2;
const SELF: u8 = 2;

fn guests() -> nix::Result<BTreeMap<u32, BTreeSet<[u8; 6]>>> {
    let mut request = [0; NEIGHBOUR_BYTES];
    request[0] = AF_BRIDGE;
    let mut guests: BTreeMap<u32, BTreeSet<[u8; 6]>> = BTreeMap::new();
    for entry in message::dump(libc::RTM_GETNEIGH, &request)? {
        if let Some((index, mac)) = guest(&entry) {
            guests.entry(index).or_default().insert(mac);
        }
    }
    Ok(guests)
}

/// A MAC address of one host, on an interface's own list.
fn guest(body: &[u8]) -> Option<(u32, [u8; 6])> {
    let index = number(body.get(4..)?)?;
    let is_own_list = body.get(10)? & SELF != 0;
    let mut all = attributes(body.get(NEIGHBOUR_BYTES..)?);
    let (_, mac) = all.find(|(kind, _)| *kind == LINK_ADDRESS)?;
    let mac: [u8; 6] = mac.try_into().ok()?;
    (is_own_list && mac[0] & 1 == 0).then_some((index, mac))
}

/// `struct fib_rule_hdr`, `FRA_PRIORITY` and `FRA_TABLE` of linux/fib_rules.h.
const RULE_BYTES: usize = 12;
const PRIORITY: u16 = 6;
const TABLE: u16 = 15;
/// The kernel's own rules: their priorities and tables.
const OWN_RULES: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];

fn has_rules() -> nix::Result<bool> {
    match message::dump(libc::RTM_GETRULE, &[0; RULE_BYTES]) {
        Ok(rules) => Ok(rules.iter().any(|rule| !is_own_rule(rule))),
        // A kernel without such rules.
        Err(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_own_rule(body: &[u8]) -> bool {
    let Some((head, body)) = body.split_at_checked(RULE_BYTES) else { return false };
    // Multicast has rules, too.
    if ![AF_INET, AF_INET6].contains(&head[0]) {
        return true;
    }
    let find = |kind| {
        let found = attributes(body).find(|(of, _)| *of == kind);
        found.and_then(|(_, value)| number(value)).unwrap_or_default()
    };
    OWN_RULES.contains(&(find(PRIORITY), find(TABLE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_messages_flags_tell_whose_list_an_address_is_on() {
        let entry = |flags, mac: [u8; 6]| {
            let head = [7, 0, 0, 0, 5, 0, 0, 0, 0x80, 0, flags, 0];
            [&head[..], &message::attribute(LINK_ADDRESS, &mac)].concat()
        };
        let mac = [2, 0, 0, 0, 0, 9];
        assert_eq!(guest(&entry(SELF, mac)), Some((5, mac)));
        assert_eq!(guest(&entry(0, mac)), None, "a bridge has learnt it");
        assert_eq!(guest(&entry(SELF, [0x33, 0x33, 0, 0, 0, 1])), None, "multicast");
        assert_eq!(guest(&entry(SELF, mac)[..14]), None, "cut");
    }

    #[test]
    fn who_shares_an_interfaces_own_address_is_a_guest() {
        let own = [2, 0, 0, 0, 0, 1];
        let card = Interface { index: 2, mac: Some(own), is_up: true, ..Interface::default() };
        let macvlan = BTreeMap::from([(2, BTreeSet::from([[2, 0, 0, 0, 0, 9]]))]);
        for (guests, members, due) in [
            (BTreeMap::new(), 1, false),
            (BTreeMap::new(), 2, true),
            (macvlan.clone(), 2, false),
            (macvlan, 3, true),
        ] {
            let interfaces = vec![card.clone()];
            let mut seen = Surroundings { interfaces, guests, ..Surroundings::default() };
            seen.add_strangers(&[(2, members)].into());
            let is_shared = seen.guests(&card).any(|mac| mac == own);
            assert_eq!(is_shared, due, "{members}");
        }
    }

    #[test]
    fn this_host_can_be_asked() {
        let seen = Surroundings::read().expect("asked");
        assert!(seen.find(1).is_some_and(|loopback| loopback.name == "lo"));
    }

    /// Of linux/rtnetlink.h: IPv6 multicast.
    const RTNL_FAMILY_IP6MR: u8 = 129;

    #[test]
    fn a_routing_rule_is_told_from_the_kernels_own() {
        let rule = |family: u8, priority: u32, table: u32| {
            let mut head = [0; RULE_BYTES];
            head[0] = family;
            let [priority, table] = [(PRIORITY, priority), (TABLE, table)]
                .map(|(kind, value)| message::attribute(kind, &value.to_ne_bytes()));
            [&head[..], &priority, &table].concat()
        };
        assert!(is_own_rule(&rule(AF_INET, 32_766, 254)));
        assert!(is_own_rule(&rule(AF_INET6, 0, 255)));
        assert!(is_own_rule(&rule(RTNL_FAMILY_IP6MR, 32_767, 254)));
        assert!(!is_own_rule(&rule(AF_INET, 32_765, 254)));
        assert!(!is_own_rule(&rule(AF_INET, 0, 7)));
    }
}
