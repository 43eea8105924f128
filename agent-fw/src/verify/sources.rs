//! The sources that the kernel decides otherwise than a policy.

use super::{Decided, Kernel, Scope, cubes, within};
use crate::model::packet_set::PacketSet;
use crate::model::{AddressSet, Policy};

/// Sources of which some packet to the agent's port is decided otherwise than the policy says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Otherwise {
    /// They get through, though the policy drops them.
    pub admitted: AddressSet,
    /// They are dropped, though the policy admits them, or leaves them alone.
    pub dropped: AddressSet,
}

/// All of them.
pub fn sources_decided_otherwise(policy: &Policy, reach: &Scope, kernel: &Kernel) -> Otherwise {
    let Decided { refused, dropped, unknown } = Decided::by(kernel, policy);
    let missing = within(refused.clone(), reach).difference(&dropped);
    Otherwise {
        admitted: sources(&missing.difference(&cubes(&unknown))),
        dropped: sources(&dropped.difference(&refused)),
    }
}

fn sources(packets: &PacketSet) -> AddressSet {
    packets.cubes().iter().fold(AddressSet::default(), |all, cube| all.union(&cube.sources()))
}
