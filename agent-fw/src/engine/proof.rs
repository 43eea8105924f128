//! What is to be proved of this host, for [`verify`](crate::verify).

use super::kernel_state::KernelState;
use super::plan::interfaces_of;
use crate::configuration::{Compiled, Configuration};
use crate::model::{AddressSet, Notation, Policy};
use crate::netlink::address;
use crate::verify::{self, Kernel, Otherwise, Scope};

/// What the kernel does with packets, by all that agent-fw has put there.
pub fn kernel(held: &KernelState) -> anyhow::Result<Kernel> {
    Ok(Kernel {
        table: held.table.as_ref().map(verify::effect),
        firewall: held.firewall.iter().map(verify::effect).collect(),
        own: address::outward()?,
        programs: verify::programs()?,
    })
}

/// The packets on which a policy is enforced.
pub fn scope(configuration: &Configuration) -> anyhow::Result<Scope> {
    if configuration.backend.has_table() {
        return Ok(Scope::Everywhere);
    }
    let found = interfaces_of(configuration)?.interfaces();
    Ok(Scope::Interfaces(found.into_iter().map(|interface| interface.index).collect()))
}

/// So many ranges are named before the rest is only counted.
const NAMED: usize = 8;

/// The sources that the kernel decides otherwise than the policy of the agent's port, in sentences.
pub fn sources_in_words(
    configuration: &Configuration,
    compiled: &Compiled,
    kernel: &Kernel,
) -> anyhow::Result<Vec<String>> {
    let policy = &compiled.lowered.policy;
    let found = verify::sources_decided_otherwise(policy, &scope(configuration)?, kernel);
    Ok(in_words(policy, &found))
}

fn in_words(policy: &Policy, Otherwise { admitted, dropped }: &Otherwise) -> Vec<String> {
    let port = policy.ports();
    let listed = policy.admissions().iter();
    let listed = listed.fold(AddressSet::default(), |all, of| all.union(&of.addresses));
    let mut words = Vec::new();
    if !admitted.is_empty() && *admitted == listed.complement() {
        words.push(format!("every source that the policy does not admit gets to TCP port {port}"));
    } else if !admitted.is_empty() {
        let sources = sources(admitted);
        words.push(format!("{sources} can get to TCP port {port}, and should not"));
    }
    if !dropped.is_empty() {
        let sources = sources(dropped);
        words.push(format!("{sources} cannot get to TCP port {port} in every case, and should"));
    }
    words
}

fn sources(set: &AddressSet) -> String {
    let v4 = set.v4.ranges().iter().map(Notation::notation);
    let mut ranges = v4.chain(set.v6.ranges().iter().map(Notation::notation));
    let named: Vec<String> = ranges.by_ref().take(NAMED).collect();
    match ranges.count() {
        0 => named.join(", "),
        1 => format!("{} and 1 more range", named.join(", ")),
        rest => format!("{} and {rest} more ranges", named.join(", ")),
    }
}
