//! Sets of packets, with every field that a policy or a rule of the kernel's may look at.
//!
//! A [`PacketSet`] is made of [`Cube`]s. What rules shadow each other and what `verify` proves is
//! found by cutting cubes out of cubes.

mod connection;
mod cube;
mod field;

pub use connection::{Connection, State};
pub use cube::{Condition, Cube};
pub use field::{
    ELSEWHERE, ETHERNET, FORWARDED, Field, INCOMING, LOCAL, LOOPBACK, NO, OUTGOING, YES, only,
};

use crate::model::{Address, RangeSet};
use cube::Ends;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Packets.
#[derive(Clone, Debug, Default)]
pub struct PacketSet(Vec<Cube>);

impl From<Cube> for PacketSet {
    fn from(cube: Cube) -> Self {
        [cube].into_iter().collect()
    }
}

impl FromIterator<Cube> for PacketSet {
    fn from_iter<I: IntoIterator<Item = Cube>>(cubes: I) -> Self {
        Self(united(cubes.into_iter().filter(|cube| !cube.is_empty()).collect()))
    }
}

impl IntoIterator for PacketSet {
    type Item = Cube;
    type IntoIter = std::vec::IntoIter<Cube>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl PacketSet {
    /// The cubes that it is made of; none of them is empty.
    pub fn cubes(&self) -> &[Cube] {
        &self.0
    }

    /// Whether there is no such packet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        self.into_iter().chain(other).collect()
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let with = |cube: &Cube| {
            other.0.iter().filter_map(|other| cube.intersection(other)).collect::<Vec<Cube>>()
        };
        self.0.iter().flat_map(with).collect()
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(self, other: &Self) -> Self {
        self.difference_within(other, usize::MAX).unwrap_or_default()
    }

    /// The same; `None` where it takes more cubes than these.
    pub fn difference_within(self, other: &Self, most: usize) -> Option<Self> {
        let mut bound = bound(self.0.len());
        let mut left = self;
        for cut in &other.0 {
            if left.0.iter().any(|cube| cube.intersects(cut)) {
                left = Self(left.0.into_iter().flat_map(|cube| cube.without(cut)).collect());
            }
            let mut tight = bound.min(most);
            left = left.compacted(&mut tight);
            bound = bound.max(tight);
            if left.0.len() > most {
                return None;
            }
        }
        Some(Self(united(left.0)))
    }

    /// What is in the other, too, and what is not.
    pub fn divide(self, by: &Self) -> [Self; 2] {
        let (mut inside, mut outside) = (Vec::new(), self.0);
        for cut in &by.0 {
            let mut left = Vec::with_capacity(outside.len());
            for cube in outside {
                let Some(common) = cube.intersection(cut) else {
                    left.push(cube);
                    continue;
                };
                inside.push(common);
                left.extend(cube.without(cut));
            }
            outside = left;
        }
        [Self(inside), Self(outside)]
    }

    /// The same packets in as few cubes as are easily found, if they have become many since that was
    /// done last, when `bound` was set.
    #[must_use]
    pub fn compacted(self, bound: &mut usize) -> Self {
        if self.0.len() <= *bound {
            return self;
        }
        let compact = united(self.0);
        *bound = self::bound(compact.len());
        Self(compact)
    }

    /// The packets that meet the condition.
    #[must_use]
    pub fn met(self, condition: &Condition) -> Self {
        self.into_iter().filter_map(|cube| cube.met(condition)).collect()
    }

    /// The packets of which a field is in this set.
    #[must_use]
    pub fn limited(self, field: Field, wanted: &RangeSet<u128>) -> Self {
        self.into_iter().filter_map(|cube| cube.limited(field, wanted)).collect()
    }
}

/// How many cubes there may be before it is worth the trouble to unite them again.
const fn bound(cubes: usize) -> usize {
    2 * cubes + 8
}

/// Unites cubes that have the same limits and the same destinations.
fn united(cubes: Vec<Cube>) -> Vec<Cube> {
    if cubes.len() < 2 {
        return cubes;
    }
    let mut groups: BTreeMap<BTreeMap<Field, RangeSet<u128>>, Vec<Group>> = BTreeMap::new();
    for Cube { limits, v4, v6, arp } in cubes {
        let alike = groups.entry(limits).or_default();
        let beside =
            |group: &&mut Group| suits(&group.v4, v4.as_ref()) && suits(&group.v6, v6.as_ref());
        match alike.iter_mut().find(beside) {
            Some(group) => group.add(v4, v6, arp),
            None => alike.push(Group {
                v4: v4.into_iter().collect(),
                v6: v6.into_iter().collect(),
                arp,
            }),
        }
    }
    let cube = |limits: &BTreeMap<Field, RangeSet<u128>>, Group { v4, v6, arp }: Group| Cube {
        limits: limits.clone(),
        v4: unite(v4),
        v6: unite(v6),
        arp,
    };
    let cubes = groups.into_iter().flat_map(|(limits, alike)| {
        alike.into_iter().map(|group| cube(&limits, group)).collect::<Vec<Cube>>()
    });
    cubes.collect()
}

/// Cubes that have the same limits and, by version of IP, the same destinations.
struct Group {
    v4: Vec<Ends<Ipv4Addr>>,
    v6: Vec<Ends<Ipv6Addr>>,
    arp: bool,
}

impl Group {
    fn add(&mut self, v4: Option<Ends<Ipv4Addr>>, v6: Option<Ends<Ipv6Addr>>, arp: bool) {
        self.v4.extend(v4);
        self.v6.extend(v6);
        self.arp |= arp;
    }
}

/// Whether these packets go where those of a group do, if there are any.
fn suits<T: Address>(group: &[Ends<T>], ends: Option<&Ends<T>>) -> bool {
    let pair = group.first().zip(ends);
    pair.is_none_or(|(known, ends)| known.destination == ends.destination)
}

/// All of those, which have one destination.
fn unite<T: Address>(mut group: Vec<Ends<T>>) -> Option<Ends<T>> {
    let last = group.pop()?;
    if group.iter().all(|ends| ends.source == last.source) {
        return Some(last);
    }
    let all = group.iter().chain([&last]).flat_map(|ends| ends.source.ranges());
    Some(Ends { source: Arc::new(all.copied().collect()), ..last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AddressSet, Range};
    use proptest::prelude::*;

    /// A packet of a small world, in which every one can be tried.
    #[derive(Clone, Copy, Debug)]
    struct Point {
        /// `None` for ARP, or whether it is IPv4, source and destination.
        ip: Option<(bool, u8, u8)>,
        protocol: u128,
        port: u128,
    }

    fn points() -> impl Iterator<Item = Point> {
        let ends = |is_v4| (0..4).flat_map(move |a| (0..4).map(move |b| Some((is_v4, a, b))));
        let ip = ends(true).chain(ends(false)).chain([None]);
        let rest = || (0..3).flat_map(|a| (0..3).map(move |b| (a, b)));
        ip.flat_map(move |ip| rest().map(move |(protocol, port)| Point { ip, protocol, port }))
    }

    fn v4(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn v6(last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())
    }

    /// Whether a cube has a packet, said field by field.
    fn has(cube: &Cube, point: &Point) -> bool {
        let is_met = match point.ip {
            None => cube.arp,
            Some((true, from, to)) => cube
                .v4
                .as_ref()
                .is_some_and(|e| e.source.contains(v4(from)) && e.destination.contains(v4(to))),
            Some((false, from, to)) => cube
                .v6
                .as_ref()
                .is_some_and(|e| e.source.contains(v6(from)) && e.destination.contains(v6(to))),
        };
        is_met
            && cube.values(Field::Protocol).contains(point.protocol)
            && cube.values(Field::DestinationPort).contains(point.port)
    }

    fn contains(set: &PacketSet, point: &Point) -> bool {
        set.cubes().iter().any(|cube| has(cube, point))
    }

    /// Some of these values, or `None` for all that there are.
    fn some(of: u8) -> impl Strategy<Value = Option<Vec<u8>>> {
        prop::option::of(prop::collection::vec(0..of, 0..3))
    }

    fn addresses(v4_ends: Option<Vec<u8>>, v6_ends: Option<Vec<u8>>) -> AddressSet {
        AddressSet {
            v4: v4_ends.map_or_else(RangeSet::all, |ends| {
                ends.into_iter().map(|last| Range::single(v4(last))).collect()
            }),
            v6: v6_ends.map_or_else(RangeSet::all, |ends| {
                ends.into_iter().map(|last| Range::single(v6(last))).collect()
            }),
        }
    }

    fn numbers(values: Option<Vec<u8>>, field: Field) -> RangeSet<u128> {
        let set = |values: Vec<u8>| values.into_iter().map(|n| Range::single(n.into())).collect();
        values.map_or_else(|| field.all(), set)
    }

    prop_compose! {
        fn any_cube()(
            ends in [some(4), some(4), some(4), some(4)],
            fields in [some(3), some(3)],
            is_arp in prop::bool::weighted(0.2),
        ) -> Option<Cube> {
            let [a, b, c, d] = ends;
            let [protocol, port] = fields;
            let cube = if is_arp { Cube::arp() } else {
                Cube::between(&addresses(a, b), &addresses(c, d))
            };
            let cube = cube.limited(Field::Protocol, &numbers(protocol, Field::Protocol))?;
            cube.limited(Field::DestinationPort, &numbers(port, Field::DestinationPort))
        }
    }

    fn any_set() -> impl Strategy<Value = PacketSet> {
        prop::collection::vec(any_cube(), 0..6)
            .prop_map(|cubes| cubes.into_iter().flatten().collect())
    }

    proptest! {
        #[test]
        fn the_operations_agree_with_single_packets(a in any_set(), b in any_set()) {
            let union = a.clone().union(b.clone());
            let intersection = a.intersection(&b);
            let difference = a.clone().difference(&b);
            let [inside, outside] = a.clone().divide(&b);
            for point in points() {
                let (in_a, in_b) = (contains(&a, &point), contains(&b, &point));
                prop_assert_eq!(contains(&union, &point), in_a || in_b, "{:?}", point);
                prop_assert_eq!(contains(&intersection, &point), in_a && in_b, "{:?}", point);
                prop_assert_eq!(contains(&difference, &point), in_a && !in_b, "{:?}", point);
                prop_assert_eq!(contains(&inside, &point), in_a && in_b, "{:?}", point);
                prop_assert_eq!(contains(&outside, &point), in_a && !in_b, "{:?}", point);
            }
            let all = [union, intersection, difference, inside, outside];
            prop_assert!(!all.iter().flat_map(PacketSet::cubes).any(Cube::is_empty));
        }

        #[test]
        fn a_condition_parts_the_packets_that_meet_it_from_the_others(
            cube in any_cube(), ends in [some(4), some(4)], ports in some(3), which in 0..3,
        ) {
            let Some(cube) = cube else { return Ok(()) };
            let [a, b] = ends;
            let set = addresses(a, b);
            let ports = numbers(ports, Field::DestinationPort);
            let condition = match which {
                0 => Condition::Source(set.clone()),
                1 => Condition::Destination(set.clone()),
                _ => Condition::Field(Field::DestinationPort, ports.clone()),
            };
            let parts = cube.clone().split(&condition);
            for point in points() {
                let is_met = match (which, point.ip) {
                    (2, _) => ports.contains(point.port),
                    (_, None) => false,
                    (_, Some((is_v4, from, to))) => {
                        let end = if which == 0 { from } else { to };
                        set.contains(if is_v4 { v4(end).into() } else { v6(end).into() })
                    }
                };
                let is_in = parts.each_ref().map(|part| {
                    part.as_ref().is_some_and(|part| has(part, &point))
                });
                let is_there = has(&cube, &point);
                prop_assert_eq!(is_in, [is_there && is_met, is_there && !is_met]);
            }
        }
    }
}
