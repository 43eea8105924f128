//! Who takes multicast at an interface. What is made on it and has gone to another network namespace
//! shows nowhere else where it has the interface's own MAC address: an ipvlan, a VLAN, a macvtap in
//! mode passthru.

use crate::netlink::link;
use crate::netlink::link::Interface;
use anyhow::Context as _;
use std::collections::BTreeMap;

const LIST: &str = "/proc/net/dev_mcast";
/// 224.0.0.1, as Ethernet has it. Every interface that is up joins this group, and has what is below it
/// join too: this counts once below, and once more at the interface itself.
const ALL_HOSTS: &str = "01005e000001";
/// What stands on an interface, and has it join nothing.
const SILENT: [&str; 4] = ["bridge", "openvswitch", "vrf", "vxlan"];

/// How many have joined the group of all hosts at each interface, by index.
pub(crate) fn members() -> anyhow::Result<BTreeMap<u32, usize>> {
    let text = std::fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?;
    Ok(parse(&text))
}

/// A line has the interface's index and name, how many have joined, how many of them for good, and the
/// group's MAC address.
fn parse(text: &str) -> BTreeMap<u32, usize> {
    let member = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [index, _, members, _, ALL_HOSTS] = words[..] else { return None };
        Some((index.parse().ok()?, members.parse().ok()?))
    };
    text.lines().filter_map(member).collect()
}

/// What has the one interface below it join.
const MADE_ON_ONE: [&str; 6] = ["ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "vlan"];
/// What has its ports join, all of them or the one in use.
const MADE_OF_PORTS: [&str; 2] = ["bond", "team"];

/// The most members that an interface and what this host has made on it can account for.
pub(crate) fn known(
    interface: &Interface,
    all: &[Interface],
    members: &BTreeMap<u32, usize>,
) -> usize {
    let joins =
        |top: &&Interface| top.is_up && !top.kind().is_some_and(|kind| SILENT.contains(&kind));
    let on_top = link::directly_on(interface, all).filter(joins).count();
    // A port in use has joined for itself and for what it is a port of.
    let in_use = |port: &&Interface| {
        let count = members.get(&port.index).copied().unwrap_or_default();
        port.master == Some(interface.index) && count > 1
    };
    let below = match interface.kind() {
        Some(kind) if MADE_ON_ONE.contains(&kind) => 1,
        Some(kind) if MADE_OF_PORTS.contains(&kind) => all.iter().filter(in_use).count(),
        _ => 0,
    };
    1 + on_top + below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_all_hosts_is_found() {
        let text = "1    lo              1     0     333300000001\n\
                    2    eth0            2     0     01005e000001\n\
                    2    eth0            1     0     01005e0000fb\n\
                    13   a-longer-name0  1     1     01005e000001\n\
                    14   cut             1";
        assert_eq!(parse(text), [(2, 2), (13, 1)].into());
    }

    #[test]
    fn what_is_up_on_an_interface_joins_by_it() {
        let made = |index, kind: &str, master, lower, is_up| {
            let kind = Some(kind.to_owned());
            Interface { index, is_up, master, lower, kind, ..Interface::default() }
        };
        let port = made(2, "", Some(3), None, true);
        let none = BTreeMap::new();
        let on = |tops: &[Interface]| known(&port, tops, &none);
        assert_eq!(on(&[]), 1);
        assert_eq!(on(&[made(3, "bridge", None, None, true)]), 1);
        assert_eq!(on(&[made(3, "bond", None, None, true)]), 2);
        let vlan = made(4, "vlan", None, Some(2), true);
        assert_eq!(on(&[vlan.clone(), made(5, "vlan", None, Some(4), true)]), 2);
        assert_eq!(on(&[Interface { is_up: false, ..vlan }]), 1);
    }

    #[test]
    fn what_an_interface_has_joined_below_counts_at_itself_too() {
        let made = |index, kind: &str, master, lower| {
            let kind = Some(kind.to_owned());
            Interface { index, is_up: true, master, lower, kind, ..Interface::default() }
        };
        let ports = [made(2, "", Some(4), None), made(3, "", Some(4), None)];
        let (bond, vlan) = (made(4, "bond", None, None), made(5, "vlan", None, Some(4)));
        let all = [&ports[..], &[bond.clone(), vlan.clone()]].concat();
        let members = [(2, 2), (3, 1), (4, 3), (5, 2)].into();
        let known = |of: &Interface| known(of, &all, &members);
        assert_eq!([known(&bond), known(&vlan), known(&ports[0])], [3, 2, 2]);
    }
}
