//! What the kernel enforces, for every packet, and a packet that tells where it differs from a
//! policy.
//!
//! The kernel's rules and tables are carried out on all packets at once: `table` does it for
//! nf_tables, `program` for XDP. Nothing here knows how a policy was encoded.

mod comparison;
mod expected;
mod machine;
mod plain;
#[cfg(feature = "xdp")]
mod program;
mod sample;
mod sources;
mod table;
mod value;

#[cfg(feature = "xdp")]
pub use program::programs;
pub use sample::{Addresses, PacketDirection, Sample, Sender};
pub use sources::{Otherwise, sources_decided_otherwise};
pub use table::{Effect, Late, effect};

use crate::model::firewall::{self, Firewall};
use crate::model::packet_set::{Cube, ETHERNET, Field, NO, PacketSet, only};
use crate::model::{AddressSet, Policy, Range, Verdict};
use crate::netlink::link::Interface;
use expected::refused;

/// What the kernel does with packets, by all that agent-fw has put there.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// The gate's table, where there is one.
    pub table: Option<Effect>,
    /// The tables of a firewall policy.
    pub firewall: Vec<Effect>,
    /// This host's addresses, which a packet to it goes to if it can.
    pub own: AddressSet,
    /// The programs.
    pub programs: Vec<Program>,
}

/// A program of agent-fw's on an interface.
#[derive(Clone, Debug)]
pub struct Program {
    /// The interface.
    pub interface: Interface,
    /// What it does with packets.
    pub effect: Effect,
    /// What is wrong with it, in words.
    pub faults: Vec<String>,
    /// How many ranges of sources it lists.
    pub ranges: usize,
}

/// Reads the programs on interfaces: a build without the feature `xdp` has none.
#[cfg(not(feature = "xdp"))]
pub fn programs() -> anyhow::Result<Vec<Program>> {
    Ok(Vec::new())
}

/// Which packets a policy is enforced on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All: by the table.
    Everywhere,
    /// Those that come in by these interfaces.
    Interfaces(Vec<u32>),
}

/// What the kernel does with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Actual {
    /// It drops it.
    Drops,
    /// It lets it pass.
    Passes,
    /// It lets it pass where a rule at the hook `input`, or IPVS, has given it this port.
    PassesRewritten,
    /// It lets it pass, and does not note that a Bypass did so: answers are taken for others'.
    PassesUnlabelled,
    /// It lets it pass, and notes that a Bypass did so, which is not so: answers are refused.
    PassesLabelled,
    /// That is not known: it comes to something that agent-fw has not put there.
    Unknown(String),
}

/// What a policy says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// That of a port.
    Port(Verdict),
    /// That of a firewall.
    Firewall(firewall::Verdict),
    /// Nothing: it is not its business.
    Nothing,
}

impl Expected {
    /// Whether the packet is to be dropped.
    pub fn is_drop(self) -> bool {
        matches!(self, Self::Port(Verdict::Drop) | Self::Firewall(firewall::Verdict::Drop))
    }
}

/// A packet that is not decided as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counterexample {
    /// The packet.
    pub packet: Sample,
    /// What the policy says.
    pub due: Expected,
    /// What the kernel does.
    pub deed: Actual,
}

/// So many cubes are looked through for the plainest packet.
const LOOKED_THROUGH: usize = 256;

/// The plainest packet of a set, and what the kernel does with it.
fn plainest(
    packets: &PacketSet,
    deed: Actual,
    own: &AddressSet,
    due: impl Fn(&Sample) -> Expected,
) -> Option<Counterexample> {
    let cubes = packets.cubes().iter().take(LOOKED_THROUGH);
    let packet = cubes.filter_map(|cube| Sample::of(cube, own)).min_by_key(Sample::oddity)?;
    Some(Counterexample { packet, due: due(&packet), deed })
}

fn cubes(of: &[(Cube, String)]) -> PacketSet {
    of.iter().map(|(cube, _)| cube.clone()).collect()
}

/// What a policy of the agent's port drops, and what the kernel does.
struct Decided {
    /// The packets that the policy drops.
    refused: PacketSet,
    /// Those that the kernel drops.
    dropped: PacketSet,
    /// Those of which it is not known what the kernel does.
    unknown: Vec<(Cube, String)>,
}

impl Decided {
    fn by(kernel: &Kernel, policy: &Policy) -> Self {
        let at_interfaces: Vec<Effect> =
            kernel.programs.iter().map(|program| program.effect.clone().before_any_vrf()).collect();
        let effects = || kernel.table.iter().chain(&at_interfaces);
        Self {
            refused: refused(policy),
            dropped: effects().flat_map(|effect| effect.dropped.clone()).collect(),
            unknown: effects().flat_map(|effect| effect.unknown.clone()).collect(),
        }
    }
}

/// A packet that the kernel decides otherwise than the policy of the agent's port; `None` if there is
/// no such packet.
pub fn counterexample(policy: &Policy, reach: &Scope, kernel: &Kernel) -> Option<Counterexample> {
    let Decided { refused, dropped, mut unknown } = Decided::by(kernel, policy);
    let of = |packets: &PacketSet, deed: Actual| {
        plainest(packets, deed, &kernel.own, |packet| Expected::Port(packet.due_by(policy)))
    };
    let too_many = dropped.clone().difference(&refused);
    if let Some(found) = of(&too_many, Actual::Drops) {
        return Some(found);
    }
    let late = kernel.table.as_ref().and_then(|effect| effect.late.as_ref());
    let rewritten = late.and_then(|late| {
        let settled = late.dropped.clone().union(cubes(&late.unknown));
        of(&refused.clone().difference(&settled), Actual::PassesRewritten)
    });
    let missing = within(refused.clone(), reach).difference(&dropped);
    let found = of(&missing.difference(&cubes(&unknown)), Actual::Passes);
    unknown.extend(late.iter().flat_map(|late| late.unknown.clone()));
    found.or(rewritten).or_else(|| doubt(&unknown, &refused, of))
}

/// A packet that the kernel decides otherwise than a firewall policy; `None` if there is no such
/// packet. Without such a policy, nothing is to be dropped.
pub fn firewall_counterexample(
    policy: Option<&Firewall>,
    kernel: &Kernel,
) -> Option<Counterexample> {
    let none = Firewall::default();
    let policy = policy.unwrap_or(&none);
    let expected = expected::verdicts(policy);
    let effects = || kernel.firewall.iter();
    let dropped: PacketSet = effects().flat_map(|effect| effect.dropped.clone()).collect();
    let labelled: PacketSet = effects().flat_map(|effect| effect.labelled.clone()).collect();
    let unknown: Vec<(Cube, String)> =
        effects().flat_map(|effect| effect.unknown.clone()).collect();
    let of = |packets: &PacketSet, deed: Actual| {
        if packets.is_empty() {
            return None;
        }
        // Rather one on a connection that the policy lets begin.
        let usual = packets.intersection(&expected.usual());
        let packets = if usual.is_empty() { packets } else { &usual };
        plainest(packets, deed, &kernel.own, |packet| {
            packet.due_by_firewall(policy).map_or(Expected::Nothing, Expected::Firewall)
        })
    };
    let uncertain = cubes(&unknown);
    let possible = |packets: PacketSet| packets.intersection(&expected.possible);
    let too_many = possible(dropped.clone()).difference(&expected.drop);
    let missing = expected.drop.clone().difference(&dropped).difference(&uncertain);
    of(&too_many, Actual::Drops)
        .or_else(|| of(&missing, Actual::Passes))
        .or_else(|| {
            let label = expected.label.clone();
            let unlabelled = label.difference(&labelled).difference(&uncertain);
            of(&unlabelled, Actual::PassesUnlabelled)
        })
        .or_else(|| {
            let others = possible(labelled.clone()).difference(&expected.label);
            of(&others, Actual::PassesLabelled)
        })
        .or_else(|| doubt(&unknown, &expected.drop, of))
}

/// A packet of which it is not known what the kernel does: rather one that must not pass than one
/// that nobody cares for.
fn doubt(
    unknown: &[(Cube, String)],
    refused: &PacketSet,
    of: impl Fn(&PacketSet, Actual) -> Option<Counterexample>,
) -> Option<Counterexample> {
    let feared = |(cube, why): &(Cube, String)| {
        let both = PacketSet::from(cube.clone()).intersection(refused);
        of(&both, Actual::Unknown(why.clone()))
    };
    let any = |(cube, why): &(Cube, String)| of(&cube.clone().into(), Actual::Unknown(why.clone()));
    unknown.iter().find_map(feared).or_else(|| unknown.iter().find_map(any))
}

/// The packets that come within reach of what enforces the policy.
fn within(packets: PacketSet, reach: &Scope) -> PacketSet {
    let Scope::Interfaces(indices) = reach else { return packets };
    let numbers = indices.iter().map(|index| Range::single(u128::from(*index))).collect();
    packets
        .limited(Field::InputInterface, &numbers)
        .limited(Field::Hardware, &only(ETHERNET))
        .limited(Field::Vrf, &only(NO))
}
