//! The IP addresses of this network namespace's interfaces.

use crate::model::{AddressRange, AddressSet, Range};
use crate::netlink::message;
use crate::netlink::message::{attributes, number};
use anyhow::Context as _;
use std::net::IpAddr;

/// `struct ifaddrmsg`, and attributes, of linux/if_addr.h.
const ADDRESS_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The addresses by which other hosts may reach this one: all but those of loopback. What `lo` has
/// besides may be reached, too.
pub(crate) fn outward() -> anyhow::Result<AddressSet> {
    let range = |own: OwnAddress| match own.address {
        IpAddr::V4(address) => AddressRange::V4(Range::single(address)),
        IpAddr::V6(address) => AddressRange::V6(Range::single(address)),
    };
    Ok(list()?.into_iter().map(range).collect())
}

/// An address of this host's, other than loopback's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnAddress {
    /// The interface that has it.
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
    /// Whether it is for this link alone.
    pub(crate) is_of_link: bool,
}

/// All of them, in the kernel's order.
pub(crate) fn list() -> anyhow::Result<Vec<OwnAddress>> {
    let found = message::dump(libc::RTM_GETADDR, &[0; ADDRESS_BYTES])
        .context("cannot list the addresses of this host")?;
    Ok(found.iter().filter_map(|body| parse(body)).collect())
}

fn parse(body: &[u8]) -> Option<OwnAddress> {
    /// `RT_SCOPE_LINK`.
    const LINK: u8 = 253;
    let rest = body.get(ADDRESS_BYTES..)?;
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
    // On a point-to-point link, the first is the neighbour's.
    let octets = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?));
    let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?));
    let address = v4().or_else(v6).filter(|address| !address.is_loopback())?;
    let interface = number(body.get(4..)?)?;
    Some(OwnAddress { interface, address, is_of_link: *body.get(3)? >= LINK })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::attribute;

    #[test]
    fn a_hosts_own_end_of_a_link_is_its_address_and_loopback_is_none() {
        let message =
            |attributes: &[Vec<u8>]| [vec![2, 24, 0, 0, 7, 0, 0, 0], attributes.concat()].concat();
        let ends = [attribute(IFA_ADDRESS, &[192, 0, 2, 1]), attribute(IFA_LOCAL, &[192, 0, 2, 2])];
        let address = IpAddr::from([192, 0, 2, 2]);
        let own = OwnAddress { interface: 7, address, is_of_link: false };
        assert_eq!(parse(&message(&ends)), Some(own));
        assert_eq!(parse(&message(&[attribute(IFA_LOCAL, &[127, 0, 0, 1])])), None);
        assert_eq!(parse(&message(&ends)[..6]), None);
    }
}
