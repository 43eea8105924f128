//! Which frames that come in by an interface are certain to be this host's: only these may a program
//! drop that has the gate behind it. Pure.

use crate::netlink::link::{Interface, tops};
use crate::netlink::surroundings::Surroundings;
use agent_fw_ebpf::{Mac, OwnFrames};

/// What the program is told of an interface; nothing, where nothing is certain.
///
/// Frames without a VLAN tag are received by the interface or by what it is a port of, at its MAC
/// address. Some drivers take VLAN tags off before the program can see them, so that what else stands
/// on the interface may receive such a frame, too: without a VRF there, an address of this host's is
/// this host's for all of them. Where a guest has the same MAC address, nothing is certain.
pub fn own_frames(interface: &Interface, seen: &Surroundings) -> Option<OwnFrames> {
    let (receiver, is_bridged) = receiver(interface, seen)?;
    let above = tops(receiver, &seen.interfaces);
    let vrf = seen.find_vrf(receiver);
    if above.iter().any(|top| is_vrf(top) && Some(top.index) != vrf.map(|vrf| vrf.index)) {
        return None;
    }
    if vrf.is_some() && above.len() > 1 {
        return None;
    }
    let guests: Vec<[u8; 6]> =
        [interface, receiver].iter().flat_map(|of| seen.guests(of)).collect();
    // Neither the MAC address nor the lack of a route tells a guest's frames from this host's.
    if guests.iter().any(|mac| Some(*mac) == receiver.mac)
        || above.iter().any(|top| shares_mac(top, receiver))
    {
        return None;
    }
    let is_alone = !is_bridged && guests.is_empty() && above.len() == usize::from(vrf.is_some());
    let flags = if is_alone { OwnFrames::ALONE } else { 0 }
        | if seen.has_rules { OwnFrames::RULES } else { 0 };
    let mac = Mac::new(receiver.mac?).bits();
    Some(OwnFrames { mac, receiver: receiver.index, flags })
}

impl Surroundings {
    /// The VRF that an interface is in.
    fn find_vrf(&self, interface: &Interface) -> Option<&Interface> {
        self.find(interface.master?).filter(|master| is_vrf(master))
    }
}

fn is_vrf(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("vrf")
}

/// Whether what is made on an interface has its MAC address, for somebody else: an ipvlan, or a
/// macvtap in mode passthru.
fn shares_mac(top: &Interface, interface: &Interface) -> bool {
    match top.kind.as_deref() {
        Some("ipvlan" | "ipvtap") => true,
        Some("macvlan" | "macvtap") => top.mac == interface.mac,
        _ => false,
    }
}

/// The interface that receives what comes in by a port, and whether a bridge is between them; nothing
/// where that is not known.
fn receiver<'a>(port: &'a Interface, seen: &'a Surroundings) -> Option<(&'a Interface, bool)> {
    let (mut at, mut is_bridged) = (port, false);
    // No interface is its own master, at however many removes.
    for _ in &seen.interfaces {
        let Some(master) = at.master else { return Some((at, is_bridged)) };
        let master = seen.find(master)?;
        match master.kind.as_deref() {
            Some("vrf") => return Some((at, is_bridged)),
            Some("bond" | "team") => {}
            Some("bridge") => is_bridged = true,
            _ => return None,
        }
        at = master;
    }
    Some((at, is_bridged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn made(index: u32, kind: &str, master: Option<u32>, lower: Option<u32>) -> Interface {
        let kind = (!kind.is_empty()).then(|| kind.to_owned());
        let mac = u8::try_from(index).ok().map(|last| [2, 0, 0, 0, 0, last]);
        Interface { index, mac, master, lower, kind, ..Interface::default() }
    }

    /// What is known of the first of these interfaces: MAC address, receiver, flags.
    fn known(interfaces: &[Interface]) -> Option<(u64, u32, u32)> {
        let seen = Surroundings { interfaces: interfaces.to_vec(), ..Surroundings::default() };
        let OwnFrames { mac, receiver, flags } = own_frames(&interfaces[0], &seen)?;
        Some((mac & 0xff, receiver, flags))
    }

    #[test]
    fn an_interface_with_nothing_on_it_has_its_frames_for_itself() {
        assert_eq!(known(&[made(2, "", None, None), made(3, "", None, None)]), Some((2, 2, 1)));
    }

    #[test]
    fn a_port_of_a_bond_or_bridge_receives_nothing_itself() {
        let port = made(2, "", Some(3), None);
        assert_eq!(known(&[port.clone(), made(3, "bond", None, None)]), Some((3, 3, 1)));
        assert_eq!(known(&[port.clone(), made(3, "bridge", None, None)]), Some((3, 3, 0)));
        let stacked = [port.clone(), made(3, "bond", Some(4), None), made(4, "bridge", None, None)];
        assert_eq!(known(&stacked), Some((4, 4, 0)));
        assert_eq!(known(&[port.clone(), made(3, "openvswitch", None, None)]), None);
        assert_eq!(known(&[port]), None, "a master that is not listed");
    }

    #[test]
    fn what_stands_on_an_interface_shares_it() {
        for (kind, due) in [
            ("vlan", Some((2, 2, 0))),
            ("macvlan", Some((2, 2, 0))),
            ("ipvlan", None),
            ("ipvtap", None),
        ] {
            let both = [made(2, "", None, None), made(3, kind, None, Some(2))];
            assert_eq!(known(&both), due, "{kind}");
        }
        let passthru =
            Interface { mac: Some([2, 0, 0, 0, 0, 2]), ..made(3, "macvtap", None, Some(2)) };
        assert_eq!(known(&[made(2, "", None, None), passthru]), None);
    }

    #[test]
    fn in_a_vrf_only_the_interface_itself_is_certain() {
        let vrf = made(9, "vrf", None, None);
        let member = made(2, "", Some(9), None);
        assert_eq!(known(&[member.clone(), vrf.clone()]), Some((2, 2, 1)));
        assert_eq!(known(&[member, vrf.clone(), made(3, "vlan", None, Some(2))]), None);
        let below = made(2, "", None, None);
        assert_eq!(known(&[below, vrf, made(3, "vlan", Some(9), Some(2))]), None);
    }

    #[test]
    fn a_guest_in_another_namespace_shares_the_interface() {
        let port = made(2, "", None, None);
        for (last, due) in [(2, None), (9, Some(0))] {
            let guests = [(2, BTreeSet::from([[2, 0, 0, 0, 0, last]]))].into();
            let interfaces = vec![port.clone()];
            let seen = Surroundings { interfaces, guests, ..Surroundings::default() };
            assert_eq!(own_frames(&port, &seen).map(|own| own.flags), due);
        }
    }
}
