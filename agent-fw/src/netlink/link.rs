//! The interfaces of this network namespace, as the kernel's routing socket lists them.

use crate::netlink::message;
use crate::netlink::message::{attributes, number, text};
use anyhow::Context as _;
use std::path::Path;

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// Its number, which no other interface of this namespace has had.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Other names that it goes by.
    pub altnames: Vec<String>,
    /// Its MAC address, where it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// The MAC address that its device was made with, where it has a device of its own.
    pub permanent_mac: Option<[u8; 6]>,
    /// The most bytes that an IP packet may have.
    pub mtu: u32,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether its frames begin with Ethernet's header, as XDP sees them.
    pub is_ethernet: bool,
    /// The XDP program that it has.
    pub xdp: Option<AttachedXdp>,
    /// The interface that it is a port of: a bridge, a bond.
    pub master: Option<u32>,
    /// The interface below it: what a VLAN or a macvlan is made on.
    pub lower: Option<u32>,
    /// What it is: a VLAN, a bridge; nothing for most that have a driver.
    pub kind: Option<String>,
    /// The tag of the frames that are a VLAN's, as they have it.
    pub vlan_tag: Option<[u8; 4]>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachedXdp {
    /// Where it runs.
    pub place: XdpPlace,
    /// The kernel's number of the program; of one of them where there are several.
    pub program: u32,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpPlace {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// In the device.
    Offloaded,
    /// In several of these.
    Several,
}

impl std::fmt::Display for XdpPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
            Self::Several => "native and generic",
        })
    }
}

impl Interface {
    /// Whether a device is behind it, and not another interface or a program.
    pub fn is_physical(&self) -> bool {
        Path::new("/sys/class/net").join(&self.name).join("device").exists()
    }

    /// What kind of virtual interface it is, by the kernel's name for that.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// The interface that it is a port of.
    pub fn master(&self) -> Option<u32> {
        self.master
    }

    /// The interface that it is made on.
    pub fn lower(&self) -> Option<u32> {
        self.lower
    }

    /// The same, as one of this kind on another.
    #[cfg(test)]
    pub(crate) fn standing_on(self, kind: &str, lower: u32) -> Self {
        Self { kind: Some(kind.to_owned()), lower: Some(lower), ..self }
    }
}

/// Every interface there is, by index.
pub fn list() -> anyhow::Result<Vec<Interface>> {
    let mut interfaces = dump().context("cannot list the network interfaces")?;
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// The interfaces on top of one, at any height.
pub fn tops<'a>(interface: &Interface, all: &'a [Interface]) -> Vec<&'a Interface> {
    let mut found: Vec<&Interface> = Vec::new();
    let mut below = vec![interface.clone()];
    while let Some(low) = below.pop() {
        for top in directly_on(&low, all) {
            let is_new = !found.iter().any(|known| known.index == top.index);
            if top.index != interface.index && is_new {
                found.push(top);
                below.push(top.clone());
            }
        }
    }
    found
}

/// The interfaces right on top of one.
pub fn directly_on<'a>(
    low: &Interface,
    all: &'a [Interface],
) -> impl Iterator<Item = &'a Interface> {
    let (index, master) = (low.index, low.master);
    all.iter().filter(move |top| {
        // The lower of one end of a veth pair is its other end.
        let is_made_on = top.lower == Some(index) && top.kind.as_deref() != Some("veth");
        master == Some(top.index) || is_made_on
    })
}

/// A request for all links: `struct ifinfomsg` of nothing in particular.
fn dump() -> anyhow::Result<Vec<Interface>> {
    let links = message::dump(libc::RTM_GETLINK, &[0; LINK_BYTES])?;
    Ok(links.iter().filter_map(|link| parse(link)).collect())
}

/// `struct ifinfomsg`.
const LINK_BYTES: usize = 16;

/// `IFLA_XDP_ATTACHED` and the numbers of programs, of linux/if_link.h.
const XDP_ATTACHED: u16 = 2;
const XDP_PROG_ID: u16 = 4;
const XDP_DRV_PROG_ID: u16 = 5;
const XDP_SKB_PROG_ID: u16 = 6;
/// `IFLA_INFO_KIND` and `IFLA_INFO_DATA` of linux/if_link.h.
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// `IFLA_PROP_LIST`, `IFLA_ALT_IFNAME` and `IFLA_PERM_ADDRESS` of linux/if_link.h (5.5, 5.6).
const PROPERTIES: u16 = 52;
const ALTNAME: u16 = 53;
const PERMANENT_ADDRESS: u16 = 54;

fn parse(body: &[u8]) -> Option<Interface> {
    let kind = u16::from_ne_bytes(*body.get(2..)?.first_chunk()?);
    let is_ethernet = matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK);
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let flags = u32::from_ne_bytes(*body.get(8..)?.first_chunk()?);
    let is_up = flags & 1 != 0; // IFF_UP
    let mut interface = Interface { index, is_up, is_ethernet, ..Interface::default() };
    let mut is_elsewhere = false;
    for (kind, value) in attributes(body.get(LINK_BYTES..)?) {
        match kind {
            libc::IFLA_ADDRESS => interface.mac = value.try_into().ok(),
            libc::IFLA_IFNAME => interface.name = text(value),
            libc::IFLA_MTU => interface.mtu = number(value).unwrap_or_default(),
            libc::IFLA_LINK => interface.lower = number(value),
            libc::IFLA_LINK_NETNSID => is_elsewhere = true,
            libc::IFLA_MASTER => interface.master = number(value),
            libc::IFLA_LINKINFO => {
                let find = |wanted| {
                    attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
                };
                interface.kind = find(INFO_KIND).map(text);
                let is_vlan = interface.kind.as_deref() == Some("vlan");
                interface.vlan_tag = find(INFO_DATA).filter(|_| is_vlan).and_then(vlan_tag);
            }
            libc::IFLA_XDP => interface.xdp = xdp(value),
            PROPERTIES => {
                let names = attributes(value).filter(|(kind, _)| *kind == ALTNAME);
                interface.altnames = names.map(|(_, name)| text(name)).collect();
            }
            PERMANENT_ADDRESS => interface.permanent_mac = value.try_into().ok(),
            _ => {}
        }
    }
    interface.lower = interface.lower.filter(|_| !is_elsewhere);
    Some(interface)
}

/// The protocol and the number of a VLAN.
fn vlan_tag(value: &[u8]) -> Option<[u8; 4]> {
    /// `IFLA_VLAN_ID`, `IFLA_VLAN_PROTOCOL`.
    const ID: u16 = 1;
    const PROTOCOL: u16 = 5;
    let find = |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let id = u16::from_ne_bytes(*find(ID)?.first_chunk()?).to_be_bytes();
    let protocol = find(PROTOCOL).and_then(|value| value.first_chunk::<2>().copied());
    let [a, b] = protocol.unwrap_or([0x81, 0x00]);
    Some([a, b, id[0], id[1]])
}

fn xdp(value: &[u8]) -> Option<AttachedXdp> {
    let find = |kind| attributes(value).find(|(of, _)| *of == kind).map(|(_, value)| value);
    let place = match find(XDP_ATTACHED)?.first()? {
        1 => XdpPlace::Native,
        2 => XdpPlace::Generic,
        3 => XdpPlace::Offloaded,
        4 => XdpPlace::Several,
        _ => return None,
    };
    let numbers = [XDP_PROG_ID, XDP_DRV_PROG_ID, XDP_SKB_PROG_ID];
    let program = numbers.into_iter().find_map(|kind| number(find(kind)?))?;
    Some(AttachedXdp { place, program })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_and_not_physical() {
        let all = list().expect("listed");
        let loopback = all.iter().find(|interface| interface.name == "lo").expect("there");
        assert_eq!((loopback.index, loopback.is_physical()), (1, false));
        assert_eq!(loopback.xdp, None);
    }

    fn stacked(index: u32, mac: u8, master: Option<u32>, lower: Option<u32>) -> Interface {
        let mac = Some([2, 0, 0, 0, 0, mac]);
        Interface { index, mac, master, lower, ..Interface::default() }
    }

    #[test]
    fn what_stands_on_an_interface_is_found_at_any_height() {
        // eth0 is a port of a bridge, on which a VLAN is made; eth1 stands alone.
        let all = [
            stacked(2, 1, Some(3), None),
            stacked(3, 1, None, None),
            stacked(4, 1, None, Some(3)),
            stacked(5, 9, None, None),
        ];
        let indices =
            |of: &Interface| tops(of, &all).iter().map(|top| top.index).collect::<Vec<_>>();
        assert_eq!(indices(&all[0]), [3, 4]);
        assert!(indices(&all[3]).is_empty());
    }

    #[test]
    fn a_message_that_was_cut_is_not_read() {
        assert_eq!(parse(&[0; 7]), None);
    }
}
