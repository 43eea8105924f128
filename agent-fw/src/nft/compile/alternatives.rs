//! The alternatives that a rule has to be written for, since one rule of nf_tables asks for one version
//! of IP and one protocol.

use crate::model::Family;
use crate::model::firewall::{Criteria, ICMPV6, Protocols};
use crate::nft::Statement;
use std::collections::BTreeSet;

/// The versions of IP that a rule has to be written for; `None` for both at once.
pub(super) fn families(criteria: &Criteria) -> Vec<Option<Family>> {
    let is_plain = criteria.source.addresses.is_all()
        && criteria.destination.addresses.is_all()
        && !(criteria.spares_icmpv6 && criteria.protocols.contains(ICMPV6));
    if is_plain {
        return vec![None];
    }
    let about = [Family::V4, Family::V6].into_iter().filter(|family| criteria.is_about(*family));
    about.map(Some).collect()
}

/// The conditions on the protocol: any of these, each of them all together, with the protocol where
/// they ask for one. Those that are `apart` have conditions of their own.
pub(super) fn protocols(
    criteria: &Criteria,
    family: Option<Family>,
    apart: &BTreeSet<u8>,
) -> Vec<(Option<u8>, Vec<Statement>)> {
    let one = |number: &u8| (Some(*number), vec![Statement::ProtocolIs(*number)]);
    match &criteria.protocols {
        Protocols::Only(numbers) => numbers.iter().map(one).collect(),
        Protocols::AllBut(numbers) => {
            let mut others: BTreeSet<u8> = numbers.union(apart).copied().collect();
            if criteria.spares_icmpv6 && family == Some(Family::V6) {
                others.insert(ICMPV6);
            }
            let others = others.into_iter().map(Statement::ProtocolIsNot).collect();
            apart.iter().map(one).chain([(None, others)]).collect()
        }
    }
}
