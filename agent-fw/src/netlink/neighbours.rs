//! What a bridge has learnt of its neighbours: by which port each MAC address comes in.

use crate::model::MacAddr;
use crate::netlink::message::{self, attribute, attributes, number};

/// `AF_BRIDGE`; `struct ndmsg`, and what it has of linux/neighbour.h.
const AF_BRIDGE: u8 = 7;
const NEIGHBOUR_BYTES: usize = 12;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
/// `NTF_MASTER`: on the bridge's list, not the port's own.
const OF_MASTER: u8 = 4;

/// The port of a bridge by which frames from this MAC address come in.
pub(crate) fn port_of(bridge: u32, mac: MacAddr) -> Option<u32> {
    let mut request = [0; NEIGHBOUR_BYTES];
    request[0] = AF_BRIDGE;
    let all = message::dump(libc::RTM_GETNEIGH, &request).ok()?;
    all.iter().find_map(|body| {
        let rest = body.get(NEIGHBOUR_BYTES..)?;
        let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
        let is_its = find(NDA_MASTER).and_then(number) == Some(bridge);
        let is_it = find(NDA_LLADDR) == Some(&mac.0[..]);
        (is_its && is_it).then(|| number(body.get(4..)?)).flatten()
    })
}

/// Has a bridge forget that frames from this MAC address come in by this port.
pub(crate) fn forget(port: u32, mac: MacAddr) -> nix::Result<()> {
    let mut request = vec![0; NEIGHBOUR_BYTES];
    request[0] = AF_BRIDGE;
    request[4..8].copy_from_slice(&port.to_ne_bytes());
    request[10] = OF_MASTER;
    request.extend(attribute(NDA_LLADDR, &mac.0));
    message::order(libc::RTM_DELNEIGH, 0, &request)
}
