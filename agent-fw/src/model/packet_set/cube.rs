//! Packets whose every property is in the set for it.

use super::field::Field;
use crate::model::{Address, AddressSet, RangeSet};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// All packets whose every property is in the set for it: a product of sets.
///
/// Its IPv4 packets, its IPv6 packets and its ARP frames have the same limits, but each addresses of
/// their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cube {
    /// The fields that may not have every value.
    pub(super) limits: BTreeMap<Field, RangeSet<u128>>,
    pub(super) v4: Option<Ends<Ipv4Addr>>,
    pub(super) v6: Option<Ends<Ipv6Addr>>,
    pub(super) arp: bool,
}

/// From where packets of a version of IP come and where they go: neither is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ends<T: Address> {
    pub(super) source: Arc<RangeSet<T>>,
    pub(super) destination: Arc<RangeSet<T>>,
}

/// A property of a packet, and a set that it is to be in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// This field.
    Field(Field, RangeSet<u128>),
    /// Where it comes from, and with it the version of IP.
    Source(AddressSet),
    /// Where it goes.
    Destination(AddressSet),
}

/// What of a set is in `wanted`, and what is not: `None` for nothing.
fn cut<T: Address>(set: &Arc<RangeSet<T>>, wanted: &RangeSet<T>) -> [Option<Arc<RangeSet<T>>>; 2] {
    if wanted.is_all() || **set == *wanted {
        return [Some(set.clone()), None];
    }
    let met = set.intersection(wanted);
    if met.is_empty() {
        return [None, Some(set.clone())];
    }
    let other = set.difference(wanted);
    [Some(Arc::new(met)), (!other.is_empty()).then(|| Arc::new(other))]
}

impl<T: Address> Ends<T> {
    fn between(source: &RangeSet<T>, destination: &RangeSet<T>) -> Option<Self> {
        let is_some = !source.is_empty() && !destination.is_empty();
        let shared = |set: &RangeSet<T>| Arc::new(set.clone());
        is_some.then(|| Self { source: shared(source), destination: shared(destination) })
    }

    /// Those that come from `wanted`, and the others.
    fn by_source(&self, wanted: &RangeSet<T>) -> [Option<Self>; 2] {
        let with = |source| Self { source, destination: self.destination.clone() };
        cut(&self.source, wanted).map(|part| part.map(with))
    }

    fn by_destination(&self, wanted: &RangeSet<T>) -> [Option<Self>; 2] {
        let with = |destination| Self { source: self.source.clone(), destination };
        cut(&self.destination, wanted).map(|part| part.map(with))
    }

    fn intersects(&self, other: &Self) -> bool {
        self.source.intersects(&other.source) && self.destination.intersects(&other.destination)
    }

    fn common(&self, other: &Self) -> Option<Self> {
        let [from, _] = self.by_source(&other.source);
        let [common, _] = from?.by_destination(&other.destination);
        common
    }

    /// What is not in the other: by its source, and by its destination alone.
    fn outside(&self, other: &Self) -> [Option<Self>; 2] {
        let [from, first] = self.by_source(&other.source);
        let second = from.and_then(|from| {
            let [_, outside] = from.by_destination(&other.destination);
            outside
        });
        [first, second]
    }

    fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// Splits what there is; of nothing, both parts are nothing.
fn split<T: Address>(
    ends: Option<&Ends<T>>,
    by: impl Fn(&Ends<T>) -> [Option<Ends<T>>; 2],
) -> [Option<Ends<T>>; 2] {
    ends.map_or([None, None], by)
}

impl Cube {
    /// Every IP packet.
    pub fn everything() -> Self {
        Self::between(&AddressSet::all(), &AddressSet::all())
    }

    /// Every ARP frame.
    pub fn arp() -> Self {
        Self { limits: BTreeMap::new(), v4: None, v6: None, arp: true }
    }

    /// The IP packets from some addresses to others; there may be none.
    pub fn between(source: &AddressSet, destination: &AddressSet) -> Self {
        Self {
            limits: BTreeMap::new(),
            v4: Ends::between(&source.v4, &destination.v4),
            v6: Ends::between(&source.v6, &destination.v6),
            arp: false,
        }
    }

    /// Whether there is no such packet.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none() && !self.arp
    }

    /// What a field may have.
    pub fn values(&self, field: Field) -> Cow<'_, RangeSet<u128>> {
        self.limits.get(&field).map_or_else(|| Cow::Owned(field.all()), Cow::Borrowed)
    }

    /// Whether a field may have every value.
    pub fn is_free(&self, field: Field) -> bool {
        !self.limits.contains_key(&field)
    }

    /// Where these packets come from.
    pub fn sources(&self) -> AddressSet {
        self.addresses(|ends| &ends.source, |ends| &ends.source)
    }

    /// Where these packets go.
    pub fn destinations(&self) -> AddressSet {
        self.addresses(|ends| &ends.destination, |ends| &ends.destination)
    }

    fn addresses(
        &self,
        of_v4: fn(&Ends<Ipv4Addr>) -> &RangeSet<Ipv4Addr>,
        of_v6: fn(&Ends<Ipv6Addr>) -> &RangeSet<Ipv6Addr>,
    ) -> AddressSet {
        let v4 = self.v4.as_ref().map(of_v4).cloned().unwrap_or_default();
        let v6 = self.v6.as_ref().map(of_v6).cloned().unwrap_or_default();
        AddressSet { v4, v6 }
    }

    /// Whether there are ARP frames among them.
    pub const fn has_arp(&self) -> bool {
        self.arp
    }

    /// The same packets, but with no limit of a field.
    #[must_use]
    pub fn freed(mut self, field: Field) -> Self {
        self.limits.remove(&field);
        self
    }

    /// The same packets, but with no limit of a field that is not among these.
    #[must_use]
    pub fn keeping(mut self, fields: &[Field]) -> Self {
        self.limits.retain(|field, _| fields.contains(field));
        self
    }

    /// The same packets the other way round: addresses and ports change places.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        let ports = [Field::SourcePort, Field::DestinationPort];
        let [from, to] = ports.map(|port| self.limits.remove(&port));
        self.limits.extend(from.map(|ports| (Field::DestinationPort, ports)));
        self.limits.extend(to.map(|ports| (Field::SourcePort, ports)));
        Self { v4: self.v4.map(Ends::reversed), v6: self.v6.map(Ends::reversed), ..self }
    }

    /// The packets that meet the condition, and the others.
    pub fn split(self, condition: &Condition) -> [Option<Self>; 2] {
        match condition {
            Condition::Field(field, wanted) => self.split_by_field(*field, wanted),
            Condition::Source(wanted) => {
                let v4 = split(self.v4.as_ref(), |ends| ends.by_source(&wanted.v4));
                let v6 = split(self.v6.as_ref(), |ends| ends.by_source(&wanted.v6));
                self.with_addresses(v4, v6)
            }
            Condition::Destination(wanted) => {
                let v4 = split(self.v4.as_ref(), |ends| ends.by_destination(&wanted.v4));
                let v6 = split(self.v6.as_ref(), |ends| ends.by_destination(&wanted.v6));
                self.with_addresses(v4, v6)
            }
        }
    }

    /// The packets that meet the condition.
    pub fn met(self, condition: &Condition) -> Option<Self> {
        let [met, _] = self.split(condition);
        met
    }

    /// The packets of which a field is in this set.
    pub fn limited(self, field: Field, wanted: &RangeSet<u128>) -> Option<Self> {
        let [met, _] = self.split_by_field(field, wanted);
        met
    }

    fn split_by_field(self, field: Field, wanted: &RangeSet<u128>) -> [Option<Self>; 2] {
        let (met, other) = {
            let values = self.values(field);
            (values.intersection(wanted), values.difference(wanted))
        };
        if other.is_empty() {
            return [Some(self), None];
        }
        if met.is_empty() {
            return [None, Some(self)];
        }
        let mut inside = self.clone();
        inside.limits.insert(field, met);
        let mut outside = self;
        outside.limits.insert(field, other);
        [Some(inside), Some(outside)]
    }

    /// Two cubes of these addresses. ARP frames have none: they are in the second.
    fn with_addresses(
        self,
        [met_v4, other_v4]: [Option<Ends<Ipv4Addr>>; 2],
        [met_v6, other_v6]: [Option<Ends<Ipv6Addr>>; 2],
    ) -> [Option<Self>; 2] {
        let met = Self { v4: met_v4, v6: met_v6, arp: false, limits: self.limits.clone() };
        let other = Self { v4: other_v4, v6: other_v6, ..self };
        [met.some(), other.some()]
    }

    fn some(self) -> Option<Self> {
        (!self.is_empty()).then_some(self)
    }

    /// Whether some packet is in both.
    pub fn intersects(&self, other: &Self) -> bool {
        let is_apart = |(field, set): (&Field, &RangeSet<u128>)| {
            other.limits.get(field).is_some_and(|others| !set.intersects(others))
        };
        if self.limits.iter().any(is_apart) {
            return false;
        }
        let v4 = self.v4.as_ref().zip(other.v4.as_ref());
        let v6 = self.v6.as_ref().zip(other.v6.as_ref());
        self.arp && other.arp
            || v4.is_some_and(|(ends, others)| ends.intersects(others))
            || v6.is_some_and(|(ends, others)| ends.intersects(others))
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if !self.intersects(other) {
            return None;
        }
        let mut both = self.clone();
        for (field, wanted) in &other.limits {
            both = both.limited(*field, wanted)?;
        }
        both.v4 = both.v4.zip(other.v4.as_ref()).and_then(|(ends, others)| ends.common(others));
        both.v6 = both.v6.zip(other.v6.as_ref()).and_then(|(ends, others)| ends.common(others));
        both.arp &= other.arp;
        both.some()
    }

    /// What is not in the other, in cubes of which no two have a packet in common.
    pub fn without(self, other: &Self) -> Vec<Self> {
        if !self.intersects(other) {
            return vec![self];
        }
        let mut left = Vec::new();
        // Those of which the other has none at all.
        let strangers = Self {
            v4: self.v4.clone().filter(|_| other.v4.is_none()),
            v6: self.v6.clone().filter(|_| other.v6.is_none()),
            arp: self.arp && !other.arp,
            limits: self.limits.clone(),
        };
        let mut rest = Self {
            v4: self.v4.filter(|_| other.v4.is_some()),
            v6: self.v6.filter(|_| other.v6.is_some()),
            arp: self.arp && other.arp,
            limits: self.limits,
        };
        left.extend(strangers.some());
        for (field, wanted) in &other.limits {
            let [met, outside] = rest.split_by_field(*field, wanted);
            left.extend(outside);
            let Some(met) = met else { return left };
            rest = met;
        }
        let outside_v4 = rest.v4.as_ref().zip(other.v4.as_ref());
        let [first_v4, second_v4] =
            outside_v4.map_or([None, None], |(ends, others)| ends.outside(others));
        let outside_v6 = rest.v6.as_ref().zip(other.v6.as_ref());
        let [first_v6, second_v6] =
            outside_v6.map_or([None, None], |(ends, others)| ends.outside(others));
        let of = |v4, v6| Self { v4, v6, arp: false, limits: rest.limits.clone() };
        left.extend(of(first_v4, first_v6).some());
        left.extend(of(second_v4, second_v6).some());
        left
    }
}
