//! Where the program must not stand alone. It refuses every frame to the agent's port whose source is
//! not listed, whatever its MAC address and destination, so that no later change of these opens
//! anything; where others' frames come by the interface, it would cut them off. Pure.

use crate::netlink::link::{Interface, tops};
use crate::netlink::surroundings::{IpVersion, Surroundings};
use std::fmt;

/// Why a program that stands alone on an interface would cut others off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Objection {
    /// Something stands on the interface by which frames reach others.
    OnTop {
        /// The interface.
        interface: String,
        /// What stands on it.
        top: String,
        /// What that is.
        kind: String,
    },
    /// The interface takes frames for a MAC address that nothing of this host's explains: something
    /// was made on it and is in another network namespace.
    Guest {
        /// The interface.
        interface: String,
        /// The MAC address.
        mac: [u8; 6],
    },
    /// What comes in by the interface, or by what stands on it, is forwarded.
    Forwards {
        /// The interface.
        interface: String,
        /// The one that forwards: the same, or what stands on it.
        by: String,
        /// The version of IP.
        version: IpVersion,
    },
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnTop { interface, top, kind } => {
                write!(f, "{top} ({kind}) is on {interface}, and brings packets to others")
            }
            Self::Guest { interface, mac: [a, b, c, d, e, g] } => write!(
                f,
                "{interface} takes packets for {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}, \
                 which is on it in another network namespace"
            ),
            Self::Forwards { interface, by, version } if interface == by => {
                write!(f, "{interface} forwards {version}")
            }
            Self::Forwards { interface, by, version } => {
                write!(f, "{by} on {interface} forwards {version}")
            }
        }
    }
}

/// What may stand on an interface below a program that is alone: what brings packets to this host
/// only, or has a header of its own around them.
const HARMLESS: [&str; 19] = [
    "bond",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "sit",
    "team",
    "vlan",
    "vrf",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
];

/// Everything that speaks against a program that stands alone on this interface.
pub fn objections(interface: &Interface, seen: &Surroundings) -> Vec<Objection> {
    let tops = tops(interface, &seen.interfaces);
    let name = || interface.name.clone();
    let on_top = tops.iter().filter_map(|top| {
        let kind = top.kind.clone().unwrap_or_else(|| "of an unknown kind".to_owned());
        let is_harmless = HARMLESS.contains(&kind.as_str());
        (!is_harmless).then(|| Objection::OnTop { interface: name(), top: top.name.clone(), kind })
    });
    let guests = seen.guests(interface).map(|mac| Objection::Guest { interface: name(), mac });
    let forwards = std::iter::once(&interface).chain(&tops).flat_map(|by| {
        let by_name = &by.name;
        seen.forwarded(by.index).map(move |version| Objection::Forwards {
            interface: name(),
            by: by_name.clone(),
            version,
        })
    });
    on_top.chain(guests).chain(forwards).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn made(index: u32, kind: &str, master: Option<u32>, lower: Option<u32>) -> Interface {
        let name = format!("if{index}");
        let kind = (!kind.is_empty()).then(|| kind.to_owned());
        let mac = Some([2, 0, 0, 0, 0, 1]);
        Interface { index, name, mac, master, lower, kind, ..Interface::default() }
    }

    fn against(seen: &Surroundings) -> Vec<String> {
        objections(&seen.interfaces[0], seen).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_brings_packets_to_others_is_found_at_any_height() {
        for kind in ["bridge", "macvlan", "macvtap", "ipvlan", "ipvtap", "openvswitch", "new"] {
            let interfaces = vec![
                made(2, "", None, None),
                made(3, "vlan", Some(4), Some(2)),
                made(4, kind, None, None),
            ];
            let seen = Surroundings { interfaces, ..Surroundings::default() };
            let due = format!("if4 ({kind}) is on if2, and brings packets to others");
            assert_eq!(against(&seen), [due]);
        }
    }

    #[test]
    fn what_brings_packets_to_this_host_only_is_no_objection() {
        let interfaces = vec![
            made(2, "", Some(3), None),
            made(3, "bond", Some(5), None),
            made(4, "vlan", None, Some(3)),
            made(5, "vrf", None, None),
            made(6, "gre", None, Some(2)),
        ];
        let seen = Surroundings { interfaces, ..Surroundings::default() };
        assert!(against(&seen).is_empty(), "{:?}", against(&seen));
    }

    #[test]
    fn forwarding_is_found_on_what_stands_on_the_interface() {
        let interfaces = vec![made(2, "", None, None), made(3, "vlan", None, Some(2))];
        let forwarding = [(3, BTreeSet::from([IpVersion::V4]))].into();
        let seen = Surroundings { interfaces, forwarding, ..Surroundings::default() };
        assert_eq!(against(&seen), ["if3 on if2 forwards IPv4"]);
    }

    #[test]
    fn a_guest_in_another_namespace_is_found() {
        let interfaces = vec![made(2, "", None, None)];
        let guests = [(2, BTreeSet::from([[2, 0, 0, 0, 0, 1]]))].into();
        let seen = Surroundings { interfaces, guests, ..Surroundings::default() };
        let due =
            "if2 takes packets for 02:00:00:00:00:01, which is on it in another network namespace";
        assert_eq!(against(&seen), [due]);
    }
}
