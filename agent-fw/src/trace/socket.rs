//! Whom a packet is for that has reached the port: the kernel is asked which socket would take it.

use super::syn::Syn;
use crate::netlink::listeners::{self, Listener, Target};
use std::net::SocketAddr;

/// Who would take the packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taker {
    /// A socket that listens; with its cgroup, where the kernel tells.
    Socket(Option<u64>),
    /// Nobody: nothing listens on that port.
    Nobody,
    /// Nobody, though something listens on that port: in words, at what.
    Elsewhere(Vec<String>),
    /// This kernel does not say.
    NotKnown,
}

impl Taker {
    /// Who takes the packet that has arrived by this interface, as it is then.
    pub(super) fn of(syn: &Syn, interface: u32) -> Self {
        let remote = SocketAddr::new(syn.source, syn.source_port.0);
        let own = SocketAddr::new(syn.destination, syn.port.0);
        match listeners::target(remote, own, interface) {
            Ok(Some(Target { listens: true, cgroup, .. })) => Self::Socket(cgroup),
            Ok(_) => Self::elsewhere(syn.port.0),
            Err(_) => Self::NotKnown,
        }
    }

    fn elsewhere(port: u16) -> Self {
        let Ok(all) = listeners::list() else { return Self::NotKnown };
        let here = all.iter().filter(|listener| listener.port == port);
        let places: Vec<String> = here.map(place).collect();
        if places.is_empty() { Self::Nobody } else { Self::Elsewhere(places) }
    }
}

/// What a socket takes, in words.
fn place(listener: &Listener) -> String {
    let address = match listener.address {
        address if !address.is_unspecified() => address.to_string(),
        address if address.is_ipv4() => "every IPv4 address".to_owned(),
        _ if listener.is_v6_only => "every IPv6 address".to_owned(),
        _ => "every address".to_owned(),
    };
    if listener.interface.is_some() {
        format!("{address}, by one interface alone")
    } else {
        address
    }
}
