//! The packets that there can be, and those that a policy drops.

use crate::model::firewall::{Firewall, UDP, Verdicts, loopback};
use crate::model::packet_set::{
    Connection, Cube, ELSEWHERE, ETHERNET, FORWARDED, Field, INCOMING, LOCAL, LOOPBACK, NO,
    OUTGOING, PacketSet, YES, only,
};
use crate::model::{AddressSet, MacMatch, Policy, Range, RangeSet};

/// The number of TCP, as a field has it.
pub(super) const TCP: u128 = 6;

/// A cube, some of whose fields are limited.
pub(super) fn limited(
    cube: Cube,
    limits: impl IntoIterator<Item = (Field, RangeSet<u128>)>,
) -> PacketSet {
    let limit = |cube: Cube, (field, wanted): (Field, RangeSet<u128>)| cube.limited(field, &wanted);
    limits.into_iter().try_fold(cube, limit).into_iter().collect()
}

/// What comes in to an address of this host.
pub(super) fn incoming(cube: Cube) -> PacketSet {
    come_in(cube, INCOMING, only(LOCAL), only(NO))
}

/// What comes in to an address of this host, or to many hosts.
pub(super) fn incoming_to_all(cube: Cube) -> PacketSet {
    // `RTN_BROADCAST` to `RTN_MULTICAST`.
    let many = Range::new(LOCAL, 5).into_iter().collect();
    come_in(cube, INCOMING, many, only(NO))
}

/// What comes in to go through this host.
pub(super) fn forwarded(cube: Cube) -> PacketSet {
    come_in(cube, FORWARDED, only(ELSEWHERE), Field::OutputInterface.all_but(NO))
}

fn come_in(
    cube: Cube,
    direction: u128,
    destination: RangeSet<u128>,
    output: RangeSet<u128>,
) -> PacketSet {
    limited(
        cube,
        [
            (Field::Direction, only(direction)),
            (Field::InputInterface, Field::InputInterface.all_but(NO)),
            (Field::OutputInterface, output),
            (Field::DestinationType, destination),
        ],
    )
}

/// What this host sends.
pub(super) fn outgoing(cube: Cube) -> PacketSet {
    limited(
        cube,
        [
            (Field::Direction, only(OUTGOING)),
            (Field::InputInterface, only(NO)),
            (Field::OutputInterface, Field::OutputInterface.all_but(NO)),
            (Field::Hardware, only(NO)),
            (Field::Vrf, only(NO)),
        ],
    )
}

/// What this host itself sends to itself: over loopback, and inside a VRF. Over loopback, resets
/// pass from its addresses also where it has sent nothing just before.
fn own() -> PacketSet {
    const SYN: u128 = 2;
    const RST: u128 = 4;
    let is_reset = |flags: &u128| flags & (SYN | RST) == RST;
    let resets: RangeSet<u128> = (0..=0xff).filter(is_reset).map(Range::single).collect();
    let resets = loopback().limited(Field::TcpFlags, &resets);
    let own = [(Field::OwnPort, only(YES)), (Field::OwnSource, only(YES))];
    let by = |field, value| {
        limited(Cube::everything(), own.clone().into_iter().chain([(field, only(value))]))
    };
    by(Field::InputInterface, LOOPBACK).union(by(Field::Vrf, YES)).union(resets)
}

/// What the policy of a port drops, of packets to this host.
pub(super) fn refused(policy: &Policy) -> PacketSet {
    if !policy.drops_others() {
        return PacketSet::default();
    }
    let concerned = incoming(Cube::everything())
        .limited(Field::Protocol, &only(TCP))
        .limited(Field::DestinationPort, &policy.ports().numbers());
    let listed = policy.admissions().iter().flat_map(|admission| {
        let cube = Cube::between(&admission.addresses, &AddressSet::all());
        match &admission.macs {
            MacMatch::Any => limited(cube, []),
            MacMatch::Only(macs) => limited(
                cube,
                [(Field::Hardware, only(ETHERNET)), (Field::SourceMac, macs.numbers())],
            ),
        }
    });
    concerned.difference(&own().into_iter().chain(listed).collect())
}

/// What a firewall policy says of every packet that there can be.
pub(super) struct Expected {
    /// The packets that there can be.
    pub(super) possible: PacketSet,
    /// Those that are dropped.
    pub(super) drop: PacketSet,
    /// Those whose connections are labelled.
    pub(super) label: PacketSet,
    /// Those that Bypass lets pass, and those that pass otherwise.
    passing: [PacketSet; 2],
}

impl Expected {
    /// The packets that there can be on connections that the policy lets begin. Others are those of
    /// connections that were there before it.
    pub(super) fn usual(&self) -> PacketSet {
        let forth = Connection::numbers(|connection| !connection.is_reply);
        let [bypass, pass] = &self.passing;
        let back = replies(bypass, true).into_iter().chain(replies(pass, false));
        self.possible.clone().limited(Field::Connection, &forth).union(back.collect())
    }
}

/// The answers to those of these packets that open a connection.
fn replies(opening: &PacketSet, is_labelled: bool) -> PacketSet {
    // What this host sends to itself stays apart.
    let opening = opening
        .clone()
        .limited(Field::Connection, &Connection::OPENS.number())
        .limited(Field::InputInterface, &Field::InputInterface.all_but(LOOPBACK))
        .limited(Field::OutputInterface, &Field::OutputInterface.all_but(LOOPBACK));
    let connection = Connection::numbers(|of| of.is_reply && of.is_labelled == is_labelled);
    let ports = only(TCP).union(&only(UDP.into()));
    let back = |cube: Cube| {
        let way =
            if cube.values(Field::Direction).contains(INCOMING) { outgoing } else { incoming };
        // Of another protocol, what stands there is another message's.
        let (protocols, answer) = match cube.values(Field::Protocol).intersection(&ports) {
            others if others.is_empty() => {
                let bare = cube.clone().freed(Field::SourcePort).freed(Field::DestinationPort);
                (cube.values(Field::Protocol).into_owned(), bare)
            }
            with_ports => (with_ports, cube),
        };
        let kept = [Field::Protocol, Field::SourcePort, Field::DestinationPort];
        way(answer.keeping(&kept).reversed()).limited(Field::Protocol, &protocols)
    };
    opening
        .into_iter()
        .flat_map(back)
        .collect::<PacketSet>()
        .limited(Field::Connection, &connection)
}

/// What a firewall policy says of every packet that comes in, to this host or through it, or that
/// this host sends.
pub(super) fn verdicts(policy: &Firewall) -> Expected {
    let all = [Cube::everything(), Cube::arp()];
    let ends = all.into_iter().flat_map(|cube| incoming_to_all(cube.clone()).union(outgoing(cube)));
    let through = forwarded(Cube::everything());
    // Where nothing labels connections, none is labelled.
    let labelled = Connection::numbers(|connection| connection.is_labelled);
    let known = if policy.labels() {
        Field::Connection.all()
    } else {
        Field::Connection.all().difference(&labelled)
    };
    let ends = ends.collect::<PacketSet>().limited(Field::Connection, &known);
    let Verdicts { bypass, pass, drop, .. } = policy.decide_all(ends.clone(), usize::MAX);
    let opens = Connection::numbers(|connection| connection.is_tracked() && !connection.is_known);
    let label = if policy.labels() {
        bypass.intersection(&Cube::everything().into()).limited(Field::Connection, &opens)
    } else {
        PacketSet::default()
    };
    Expected { possible: ends.union(through), drop, label, passing: [bypass, pass] }
}
