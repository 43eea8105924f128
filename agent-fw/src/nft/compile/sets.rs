//! The sets that rules look into: one value is compared with, several are looked up in a set that
//! all rules share which name the same.

use crate::model::Family;
use crate::model::{AddressSet, MacAddr, Ordinal, Port, RangeSet};
use crate::nft::{Elements, End, Set, Statement};
use std::net::IpAddr;

/// Sets in the making.
#[derive(Default)]
pub(crate) struct Sets(Vec<Set>);

impl Sets {
    pub(crate) fn into_sets(self) -> Vec<Set> {
        self.0
    }

    /// The condition that the address of this version is one of these; `None` if it always is.
    pub(crate) fn addresses(
        &mut self,
        end: End,
        family: Family,
        addresses: &AddressSet,
    ) -> Option<Statement> {
        let AddressSet { v4, v6 } = addresses;
        let (is_all, one, elements): (_, Option<IpAddr>, _) = match family {
            Family::V4 => (v4.is_all(), only(v4).map(Into::into), Elements::V4(v4.ranges().into())),
            Family::V6 => (v6.is_all(), only(v6).map(Into::into), Elements::V6(v6.ranges().into())),
        };
        (!is_all).then(|| {
            if let Some(address) = one {
                return Statement::AddressIs(end, address);
            }
            let kind = if family == Family::V4 { "addresses_v4" } else { "addresses_v6" };
            Statement::AddressIn(end, family, self.name(kind, elements))
        })
    }

    pub(crate) fn macs(&mut self, end: End, macs: &RangeSet<MacAddr>) -> Statement {
        if let Some(mac) = only(macs) {
            return Statement::MacIs(end, mac);
        }
        Statement::MacIn(end, self.name("macs", Elements::Mac(macs.ranges().into())))
    }

    pub(crate) fn ports(&mut self, end: End, ports: &RangeSet<Port>) -> Statement {
        match only(ports) {
            Some(port) => Statement::PortIs(end, port),
            None => self.port_set(end, ports),
        }
    }

    /// The same, looked up in a set even if it is one port.
    pub(crate) fn port_set(&mut self, end: End, ports: &RangeSet<Port>) -> Statement {
        Statement::PortIn(end, self.name("ports", Elements::Port(ports.ranges().into())))
    }

    /// The name of the set that has these elements.
    fn name(&mut self, kind: &str, elements: Elements) -> String {
        if let Some(known) = self.0.iter().find(|set| set.elements == elements) {
            return known.name.clone();
        }
        let name = format!("{kind}_{}", self.0.len() + 1);
        self.0.push(Set { name: name.clone(), elements });
        name
    }
}

/// The value of a set that has one.
fn only<T: Ordinal>(set: &RangeSet<T>) -> Option<T> {
    match set.ranges() {
        [range] if range.first() == range.last() => Some(range.first()),
        _ => None,
    }
}
