//! What the kernel's routing is asked about a packet and its answer, and its refusals in words.

use super::syn::Syn;
use crate::netlink::route_lookup::Flow;
use nix::errno::Errno;
use std::net::IpAddr;

/// How the packet comes in, with the mark that rules give it.
pub(super) fn of_arrival(syn: &Syn, mark: u32, interface: u32) -> Flow {
    let ports = Some((syn.source_port, syn.port));
    let (from, to) = (Some(syn.source), syn.destination);
    Flow { from, to, ports, mark, interface: Some(interface) }
}

/// The interface that a socket's answers are bound to: that of an address of one link, or the VRF by
/// which the packet has come in.
pub(super) fn scope(source: IpAddr, interface: u32, vrf: Option<&(u32, String)>) -> Option<u32> {
    if is_of_link(source) { Some(interface) } else { vrf.map(|(index, _)| *index) }
}

/// How the packet that answers it leaves, where it is bound to this interface.
pub(super) fn of_answer(syn: &Syn, mark: u32, interface: Option<u32>) -> Flow {
    let ports = Some((syn.port, syn.source_port));
    Flow { from: Some(syn.destination), ports, mark, interface, ..Flow::to(syn.source) }
}

/// Whether an address is one of a single link, so that it takes an interface to know whose it is.
pub(super) fn is_of_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Why routing does not take a packet in.
pub(super) fn refused(errno: Errno) -> String {
    match errno {
        Errno::EXDEV => {
            "by rp_filter: this host would not answer by the interface that the packet \
                         comes in by"
                .to_owned()
        }
        Errno::EINVAL => {
            "as a martian: its source or destination is none that can come in by this \
                          interface, or rp_filter refuses it"
                .to_owned()
        }
        errno => format!("by routing ({errno})"),
    }
}

/// Why routing has no way to an address. A rule of type unreachable looks like no route.
pub(super) fn no_way_to(address: IpAddr, errno: Errno) -> String {
    let of_type =
        |kind| format!("by routing: the route to {address}, or a rule, is of type {kind}");
    match errno {
        Errno::ENETUNREACH => format!("by routing: this host has no route to {address}"),
        Errno::EHOSTUNREACH => of_type("unreachable"),
        Errno::EACCES => of_type("prohibit"),
        Errno::EINVAL => of_type("blackhole"),
        errno => format!("by routing: this host has no route to {address} ({errno})"),
    }
}
