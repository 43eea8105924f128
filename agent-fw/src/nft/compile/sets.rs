//! The sets that rules look into: one value is compared with, several are looked up in a set that
//! all rules share which name the same.

use crate::model::{AddressSet, Family, MacAddr, Ordinal, Port, RangeSet};
use crate::nft::compile::address_lookup::AddressLookup;
use crate::nft::{Elements, End, Set, Statement};

/// Sets in the making.
#[derive(Default)]
pub(crate) struct Sets(Vec<Set>);

impl Sets {
    pub(crate) fn into_sets(self) -> Vec<Set> {
        self.0
    }

    /// How an address of this version is looked up among these; `None` if it is always one of them.
    pub(crate) fn addresses(
        &mut self,
        end: End,
        family: Family,
        addresses: &AddressSet,
    ) -> Option<AddressLookup> {
        let AddressSet { v4, v6 } = addresses;
        match family {
            Family::V4 if v4.is_all() => None,
            Family::V6 if v6.is_all() => None,
            Family::V4 => {
                Some(AddressLookup::new(end, v4, |_, set| self.name("addresses_v4", set)))
            }
            Family::V6 => {
                Some(AddressLookup::new(end, v6, |_, set| self.name("addresses_v6", set)))
            }
        }
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
