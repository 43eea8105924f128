//! An nftables table as a value: counters, sets with their elements, chains with their rules.
//!
//! [`Table`] is generic over what a rule is: statements, as a person reads them, in a
//! [`Ruleset`](super::Ruleset); expressions, as the kernel keeps them, in an [`Image`].

use super::expression::{Expression, Program};
use crate::model::TableName;
use crate::model::{Address, MacAddr, Notation, Port, Range};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table<R> {
    /// Which one.
    pub name: TableName,
    /// The table's comment.
    pub comment: String,
    /// Its named counters.
    pub counters: Vec<Counter>,
    /// Its named sets and maps.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain<R>>,
}

/// A table in the kernel's terms: what is sent to it and what is read back.
pub type Image = Table<Program>;

impl<R> Table<R> {
    /// The table with each rule made into something else.
    pub fn map_rules<S>(self, mut rule: impl FnMut(R) -> S) -> Table<S> {
        let Self { name, comment, counters, sets, chains } = self;
        let chains = chains
            .into_iter()
            .map(|Chain { name, base, rules }| Chain {
                name,
                base,
                rules: rules.into_iter().map(&mut rule).collect(),
            })
            .collect();
        Table { name, comment, counters, sets, chains }
    }

    /// Lets counters go on from where those of the same name in `before` are.
    pub fn carry_counts<S>(&mut self, before: &Table<S>) {
        for counter in &mut self.counters {
            if let Some(known) = before.counter(&counter.name) {
                counter.count = known.count;
            }
        }
    }

    /// The counter of this name.
    pub fn counter(&self, name: &str) -> Option<&Counter> {
        self.counters.iter().find(|counter| counter.name == name)
    }
}

impl Image {
    /// The same gate in a table of its own, behind the first: what that one refuses, it has refused,
    /// and counted, before this one sees it.
    #[must_use]
    pub fn into_twin(self) -> Self {
        let mut twin = Self { name: TableName::Twin, ..self };
        for base in twin.chains.iter_mut().filter_map(|chain| chain.base.as_mut()) {
            base.priority += 1;
        }
        twin
    }
}

impl Image {
    /// The same gate, admitting nobody but this host itself: without the sets of sources, which take
    /// all the room.
    #[must_use]
    pub fn into_closed(mut self) -> Self {
        let is_kept = |set: &Set| matches!(set.elements, Elements::Port(_) | Elements::Learned(_));
        self.sets.retain(is_kept);
        let kept: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
        let admits = |rule: &Program| {
            let looks_into = |expression: &Expression| match expression {
                Expression::Lookup { set } => Some(kept.contains(&set.as_str())),
                _ => None,
            };
            let lookups: Vec<bool> = rule.expressions.iter().filter_map(looks_into).collect();
            let accepts = matches!(
                rule.expressions.last(),
                Some(Expression::Accept | Expression::Goto { .. })
            );
            lookups.contains(&false) || accepts && lookups.is_empty()
        };
        for chain in self.chains.iter_mut().filter(|chain| chain.base.is_none()) {
            chain.rules.retain(|rule| !admits(rule));
        }
        self
    }
}

impl Image {
    /// The same without counters, for a kernel that has none.
    #[must_use]
    pub fn without_counters(mut self) -> Self {
        self.counters.clear();
        for rule in self.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            rule.expressions.retain(|expression| !matches!(expression, Expression::Count { .. }));
        }
        self
    }
}

/// A named counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// What it counts, in words.
    pub comment: String,
    /// What it has counted.
    pub count: Count,
}

/// Packets and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// A named set: of intervals, of prefixes of one length, or of what rules learn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub elements: Elements,
}

/// The elements of a set, by the type of its key: sorted, disjoint ranges, or prefixes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elements {
    /// IPv4 addresses.
    V4(Vec<Range<Ipv4Addr>>),
    /// IPv6 addresses.
    V6(Vec<Range<Ipv6Addr>>),
    /// MAC addresses.
    Mac(Vec<Range<MacAddr>>),
    /// TCP ports.
    Port(Vec<Range<Port>>),
    /// IPv4 prefixes of one length, found by a hash.
    HashedV4(Prefixes<Ipv4Addr>),
    /// IPv6 prefixes likewise.
    HashedV6(Prefixes<Ipv6Addr>),
    /// Values that rules themselves add while packets pass, and that are forgotten after
    /// [`MEMORY`].
    Learned(Key),
}

/// Prefixes of one length, as the kernel has them: their first addresses, which are compared with an
/// address of which a rule has kept as many bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefixes<T> {
    /// The length, in bits. The kernel does not keep it: the rules tell it that look into the set.
    pub length: u8,
    /// The first addresses, sorted.
    pub first: Vec<T>,
}

impl<T: Address> Prefixes<T> {
    /// None yet, of single addresses.
    pub(super) fn new() -> Self {
        Self { length: T::FAMILY.bits(), first: Vec::new() }
    }

    /// How the one that begins with this address is written.
    pub(super) fn notation(&self, first: T) -> String {
        let Self { length, .. } = self;
        let address = first.into();
        if *length == T::FAMILY.bits() {
            address.to_string()
        } else {
            format!("{address}/{length}")
        }
    }
}

/// How long a set remembers what a rule has added to it. The packet that it is about is on its way
/// over loopback, which takes microseconds.
pub(super) const MEMORY: Duration = Duration::from_secs(1);
/// How many values such a set holds: every port.
pub(super) const MEMORIES: u32 = 65536;

/// What the values of a set are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// IPv4 addresses.
    V4,
    /// IPv6 addresses.
    V6,
    /// TCP ports.
    Port,
}

impl Elements {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.len(),
            Self::V6(ranges) => ranges.len(),
            Self::Mac(ranges) => ranges.len(),
            Self::Port(ranges) => ranges.len(),
            Self::HashedV4(prefixes) => prefixes.first.len(),
            Self::HashedV6(prefixes) => prefixes.first.len(),
            Self::Learned(_) => 0,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the one at `index` is written.
    pub fn notation(&self, index: usize) -> Option<String> {
        match self {
            Self::V4(ranges) => ranges.get(index).map(Notation::notation),
            Self::V6(ranges) => ranges.get(index).map(Notation::notation),
            Self::Mac(ranges) => ranges.get(index).map(Notation::notation),
            Self::Port(ranges) => ranges.get(index).map(Notation::notation),
            Self::HashedV4(prefixes) => {
                prefixes.first.get(index).map(|first| prefixes.notation(*first))
            }
            Self::HashedV6(prefixes) => {
                prefixes.first.get(index).map(|first| prefixes.notation(*first))
            }
            Self::Learned(_) => None,
        }
    }
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain<R> {
    /// Its name.
    pub name: String,
    /// Where it hangs in the kernel's path of a packet, if it does; its policy is accept.
    pub base: Option<BaseChain>,
    /// Its rules, in order.
    pub rules: Vec<R>,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseChain {
    /// The hook.
    pub hook: Hook,
    /// The priority: lower runs earlier.
    pub priority: i32,
}

/// A point in the kernel's path of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Before routing: every packet that comes in.
    Prerouting,
    /// After routing: packets to this host, with the port that they really go to.
    Input,
    /// Packets that this host itself sends.
    Output,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}
