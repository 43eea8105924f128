//! By which device a frame gets to the interface that has the address: a bridge's port, what a VLAN or
//! a macvlan is made on, a bond's member. There it meets programs and chains first.

use super::driver::{self, Driver};
use super::tc;
use crate::model::MacAddr;
use crate::netlink::link::Interface;
use crate::netlink::neighbours;
use std::path::Path;

/// How a frame comes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entrance {
    /// The devices that it passes, from the lowest one to the interface.
    pub(super) devices: Vec<Interface>,
    /// The VLAN tags that it has at the lowest one, the outermost first.
    tags: Vec<[u8; 4]>,
    /// What it passes below these, which cannot be asked; in words.
    pub(super) missing: Option<String>,
    /// The port of a bridge that does not know yet by which one the MAC address comes in.
    taught: Option<u32>,
}

impl Entrance {
    /// For a frame that comes to this interface from this MAC address.
    pub(super) fn of(interface: &Interface, from: MacAddr, all: &[Interface]) -> Self {
        let mut found = Self {
            devices: vec![interface.clone()],
            tags: Vec::new(),
            missing: None,
            taught: None,
        };
        while let Some(first) = found.devices.first() {
            let under = below(first, from, all);
            match under {
                Below::Nothing => break,
                Below::Unknown(why) => {
                    found.missing = Some(why);
                    break;
                }
                Below::Device(device) | Below::UntaughtPort(device) => {
                    if matches!(under, Below::UntaughtPort(_)) {
                        found.taught = Some(device.index);
                    }
                    if let Some([a, b, c, d]) = first.vlan_tag {
                        found.tags.insert(0, [a, b, c, d]);
                    }
                    found.devices.insert(0, device.clone());
                }
            }
        }
        found
    }

    /// Has a bridge forget what the frame has taught it.
    pub(super) fn leave_no_trace(&self, from: MacAddr) {
        if let Some(port) = self.taught {
            // Where that fails, it forgets by itself, or knows already that it is not so.
            let _ = neighbours::forget(port, from);
        }
    }

    /// The one where it comes in.
    pub(super) fn lowest(&self) -> Option<&Interface> {
        self.devices.first()
    }

    /// The frame as the lowest device receives it.
    pub(super) fn tagged(&self, frame: &[u8]) -> Vec<u8> {
        /// Two MAC addresses.
        const MACS: usize = 12;
        let (macs, rest) = frame.split_at(MACS.min(frame.len()));
        [macs, &self.tags.concat(), rest].concat()
    }

    /// What the XDP programs on its way do with it: the first that does not let it pass, or else the
    /// first.
    pub(super) fn driver(&self, frame: &[u8]) -> Option<Driver> {
        let tagged = self.tagged(frame);
        let ran = self.devices.iter().enumerate().filter_map(|(place, device)| {
            // The stack has taken the tags off before a frame comes to what stands on a device.
            driver::of_interface(device, if place == 0 { &tagged } else { frame })
        });
        let ran: Vec<Driver> = ran.collect();
        let guilty = ran.iter().find(|driver| driver.ends()).or(ran.first());
        guilty.cloned()
    }

    /// What at the entrance of the lowest device may have ended it.
    pub(super) fn suspects(&self, frame: &[u8]) -> Vec<String> {
        let tagged = self.tagged(frame);
        self.lowest().map(|lowest| tc::suspects(lowest, &tagged)).unwrap_or_default()
    }

    /// What at the entrances of those above may have.
    pub(super) fn suspects_above(&self, frame: &[u8]) -> Vec<String> {
        let above = self.devices.iter().skip(1);
        above.flat_map(|device| tc::suspects(device, frame)).collect()
    }
}

/// What a device stands on.
enum Below<'a> {
    Nothing,
    Device(&'a Interface),
    /// The only port of a bridge, which has not learnt the MAC address there.
    UntaughtPort(&'a Interface),
    Unknown(String),
}

fn below<'a>(interface: &Interface, from: MacAddr, all: &'a [Interface]) -> Below<'a> {
    let name = &interface.name;
    let lower = || all.iter().find(|other| Some(other.index) == interface.lower);
    let ports: Vec<&Interface> =
        all.iter().filter(|other| other.master == Some(interface.index) && other.is_up).collect();
    match interface.kind() {
        Some("vlan" | "macvlan" | "ipvlan") => lower().map_or(Below::Nothing, Below::Device),
        Some("bridge") => {
            let learnt = neighbours::port_of(interface.index, from);
            match (ports.iter().find(|port| Some(port.index) == learnt), &ports[..]) {
                (Some(port), _) => Below::Device(port),
                (None, [port]) => Below::UntaughtPort(port),
                (None, []) => Below::Nothing,
                // To come in by the wrong one would teach the bridge a wrong way.
                (None, _) => Below::Unknown(format!(
                    "programs and chains at the ports of {name}: it does not know by which one \
                     {from} comes in"
                )),
            }
        }
        Some("bond") => {
            let path = Path::new("/sys/class/net").join(name).join("bonding/active_slave");
            let active = std::fs::read_to_string(path).unwrap_or_default();
            let is_active = |port: &&&Interface| port.name == active.trim();
            match ports.iter().find(is_active).or(ports.first()) {
                Some(port) => Below::Device(port),
                None => Below::Nothing,
            }
        }
        Some("team") => Below::Unknown(format!("programs and chains at the ports of {name}")),
        _ => Below::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str) -> Interface {
        Interface { index, name: name.to_owned(), is_up: true, ..Interface::default() }
    }

    #[test]
    fn a_frame_passes_the_port_of_a_bridge_and_has_the_tags_of_the_vlans_on_it() {
        let port = Interface { master: Some(3), ..device(2, "eth0") };
        let bridge = Interface { kind: Some("bridge".to_owned()), ..device(3, "br0") };
        let vlan = device(4, "br0.7").standing_on("vlan", 3);
        let vlan = Interface { vlan_tag: Some([0x81, 0, 0, 7]), ..vlan };
        let all = [port, bridge, vlan.clone()];
        let found = Entrance::of(&vlan, MacAddr([2, 0, 0, 0, 0, 9]), &all);
        let names: Vec<&str> = found.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["eth0", "br0", "br0.7"]);
        let frame = [[1; 6], [2; 6]].concat();
        let frame = [&frame[..], &[8, 0, 0x45]].concat();
        assert_eq!(found.tagged(&frame)[12..], [0x81, 0, 0, 7, 8, 0, 0x45]);
        assert!(found.missing.is_none());
    }

    #[test]
    fn with_two_ports_none_is_guessed() {
        let ports = [2, 5].map(|index| Interface { master: Some(3), ..device(index, "eth") });
        let bridge = Interface { kind: Some("bridge".to_owned()), ..device(3, "br0") };
        let [a, b] = ports;
        let found = Entrance::of(&bridge, MacAddr([2, 0, 0, 0, 0, 9]), &[a, b, bridge.clone()]);
        assert!(found.devices.len() == 1 && found.missing.is_some());
    }
}
