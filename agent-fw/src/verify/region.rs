//! Sets of packets: what is dropped, as products of sets of what a policy looks at.

use crate::model::{
    AddressSet, MacAddr, MacMatch, Ordinal, Packet, Policy, Port, Range, RangeSet, Transport,
    Verdict,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A number of the kernel's: an interface's index, a type, a protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Number(pub u32);

impl Ordinal for Number {
    type Bits = u32;
    const MIN: Self = Self(0);
    const MAX: Self = Self(u32::MAX);
    fn bits(self) -> u32 {
        self.0
    }
    fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
    fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

/// The index of the loopback interface, in every network namespace.
pub(super) const LOOPBACK: Number = Number(1);
/// `ARPHRD_ETHER`: the hardware that has MAC addresses.
pub(super) const ETHERNET: Number = Number(1);
/// `RTN_LOCAL`: an address of this host.
pub(super) const LOCAL: Number = Number(2);
/// `RTN_UNICAST`: an address elsewhere, to which this host may forward.
const ELSEWHERE: Number = Number(1);
/// `IPPROTO_TCP`.
pub(super) const TCP: Number = Number(6);

/// Whether something is so, as a number.
pub(super) const NO: Number = Number(0);
pub(super) const YES: Number = Number(1);

pub(super) fn truth(is_so: bool) -> Number {
    if is_so { YES } else { NO }
}

/// All packets whose every property is in the set for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The index of the interface that it came in through.
    pub interface: RangeSet<Number>,
    /// The type of that interface's hardware.
    pub hardware: RangeSet<Number>,
    /// The type of its destination address.
    pub destination: RangeSet<Number>,
    /// The transport protocol's number.
    pub protocol: RangeSet<Number>,
    /// The destination port: the bytes where TCP has it, whatever the protocol.
    pub port: RangeSet<Port>,
    /// The MAC address that it came from; without meaning but for Ethernet.
    pub mac: RangeSet<MacAddr>,
    /// Its source, and with it the version of IP.
    pub source: AddressSet,
    /// Whether that interface is a VRF's own device.
    pub vrf: RangeSet<Number>,
    /// Whether its source port is one that this host has just sent to the agent's port from.
    pub own_port: RangeSet<Number>,
    /// Whether its source is an address that this host has just done so from.
    pub own_source: RangeSet<Number>,
}

/// One property of a packet, and a set that it is to be in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    Interface(RangeSet<Number>),
    Hardware(RangeSet<Number>),
    Destination(RangeSet<Number>),
    Protocol(RangeSet<Number>),
    Port(RangeSet<Port>),
    Mac(RangeSet<MacAddr>),
    Source(AddressSet),
    Vrf(RangeSet<Number>),
    OwnPort(RangeSet<Number>),
    OwnSource(RangeSet<Number>),
}

pub(super) fn only(number: Number) -> RangeSet<Number> {
    Range::single(number).into()
}

/// What of `set` is in `wanted`, and what is not.
fn cut<T: Ordinal>(set: &RangeSet<T>, wanted: &RangeSet<T>) -> (RangeSet<T>, RangeSet<T>) {
    if wanted.is_all() || set == wanted {
        return (set.clone(), RangeSet::default());
    }
    (set.intersection(wanted), set.difference(wanted))
}

impl Block {
    /// Every packet that can come in: to this host, or to be forwarded.
    pub(super) fn everything() -> Self {
        let number =
            |last| Range::new(Number(0), Number(last)).map_or_else(RangeSet::all, Into::into);
        Self {
            interface: Range::new(LOOPBACK, Number::MAX).map_or_else(RangeSet::all, Into::into),
            hardware: number(u16::MAX.into()),
            destination: [ELSEWHERE, LOCAL].map(Range::single).into_iter().collect(),
            protocol: number(u8::MAX.into()),
            port: RangeSet::all(),
            mac: RangeSet::all(),
            source: AddressSet::all(),
            vrf: number(YES.0),
            own_port: number(YES.0),
            own_source: number(YES.0),
        }
    }

    /// Those that this host itself sends to itself: over loopback, and inside a VRF.
    fn own() -> [Self; 2] {
        let own = Self { own_port: only(YES), own_source: only(YES), ..Self::everything() };
        [Self { interface: only(LOOPBACK), ..own.clone() }, Self { vrf: only(YES), ..own }]
    }

    fn is_empty(&self) -> bool {
        self.interface.is_empty()
            || self.hardware.is_empty()
            || self.destination.is_empty()
            || self.protocol.is_empty()
            || self.port.is_empty()
            || self.mac.is_empty()
            || self.source.is_empty()
            || self.vrf.is_empty()
            || self.own_port.is_empty()
            || self.own_source.is_empty()
    }

    /// The packets that meet the condition, and the others.
    pub(super) fn split(self, condition: &Condition) -> (Option<Self>, Option<Self>) {
        let (mut met, mut other) = (self.clone(), self);
        match condition {
            Condition::Interface(set) => {
                (met.interface, other.interface) = cut(&met.interface, set);
            }
            Condition::Hardware(set) => (met.hardware, other.hardware) = cut(&met.hardware, set),
            Condition::Destination(set) => {
                (met.destination, other.destination) = cut(&met.destination, set);
            }
            Condition::Protocol(set) => (met.protocol, other.protocol) = cut(&met.protocol, set),
            Condition::Port(set) => (met.port, other.port) = cut(&met.port, set),
            Condition::Mac(set) => (met.mac, other.mac) = cut(&met.mac, set),
            Condition::Source(set) => {
                (met.source.v4, other.source.v4) = cut(&met.source.v4, &set.v4);
                (met.source.v6, other.source.v6) = cut(&met.source.v6, &set.v6);
            }
            Condition::Vrf(set) => (met.vrf, other.vrf) = cut(&met.vrf, set),
            Condition::OwnPort(set) => (met.own_port, other.own_port) = cut(&met.own_port, set),
            Condition::OwnSource(set) => {
                (met.own_source, other.own_source) = cut(&met.own_source, set);
            }
        }
        let some = |block: Self| (!block.is_empty()).then_some(block);
        (some(met), some(other))
    }

    pub(super) fn met(self, condition: &Condition) -> Option<Self> {
        self.split(condition).0
    }

    /// What is left without the packets of `other`.
    fn without(self, other: &Self) -> Vec<Self> {
        let conditions = [
            Condition::Interface(other.interface.clone()),
            Condition::Destination(other.destination.clone()),
            Condition::Protocol(other.protocol.clone()),
            Condition::Port(other.port.clone()),
            Condition::Hardware(other.hardware.clone()),
            Condition::Source(other.source.clone()),
            Condition::Mac(other.mac.clone()),
            Condition::Vrf(other.vrf.clone()),
            Condition::OwnPort(other.own_port.clone()),
            Condition::OwnSource(other.own_source.clone()),
        ];
        let mut rest = Some(self);
        let mut left = Vec::new();
        for condition in &conditions {
            let Some(block) = rest else { break };
            let (met, other) = block.split(condition);
            left.extend(other);
            rest = met;
        }
        left
    }

    /// Whether two blocks differ in their sources only.
    fn is_beside(&self, other: &Self) -> bool {
        self.interface == other.interface
            && self.hardware == other.hardware
            && self.destination == other.destination
            && self.protocol == other.protocol
            && self.port == other.port
            && self.mac == other.mac
            && self.vrf == other.vrf
            && self.own_port == other.own_port
            && self.own_source == other.own_source
    }
}

/// Unites blocks that differ in their sources only.
pub(super) fn united(blocks: Vec<Block>) -> Vec<Block> {
    let mut groups: Vec<Vec<Block>> = Vec::new();
    for block in blocks {
        let beside = |group: &&mut Vec<Block>| group[0].is_beside(&block);
        if let Some(group) = groups.iter_mut().find(beside) {
            group.push(block);
        } else {
            groups.push(vec![block]);
        }
    }
    groups.into_iter().filter_map(unite).collect()
}

/// One block of those, which differ in their sources only.
fn unite(mut group: Vec<Block>) -> Option<Block> {
    let last = group.pop()?;
    if group.is_empty() {
        return Some(last);
    }
    group.push(last.clone());
    let v4 = group.iter().flat_map(|block| block.source.v4.ranges()).copied().collect();
    let v6 = group.iter().flat_map(|block| block.source.v6.ranges()).copied().collect();
    Some(Block { source: AddressSet { v4, v6 }, ..last })
}

/// What is in `blocks` and not in `others`.
pub(super) fn difference(blocks: Vec<Block>, others: &[Block]) -> Vec<Block> {
    others.iter().fold(blocks, |left, other| {
        united(left.into_iter().flat_map(|block| block.without(other)).collect())
    })
}

/// What a policy drops, of packets to this host.
pub(super) fn refused(policy: &Policy) -> Vec<Block> {
    if !policy.drops_others() {
        return Vec::new();
    }
    let concerned = [
        Condition::Destination(only(LOCAL)),
        Condition::Protocol(only(TCP)),
        Condition::Port(policy.ports().clone()),
    ];
    let concerned = concerned.iter().try_fold(Block::everything(), Block::met);
    let mut admitted: Vec<Block> = Block::own().into();
    let listed = policy.admissions().iter().map(|admission| {
        let block = Block { source: admission.addresses.clone(), ..Block::everything() };
        match &admission.macs {
            MacMatch::Any => block,
            MacMatch::Only(macs) => Block { hardware: only(ETHERNET), mac: macs.clone(), ..block },
        }
    });
    admitted.extend(listed);
    difference(concerned.into_iter().collect(), &admitted)
}

/// A packet of a block, as plain as there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// The interface's index; `None` where any other than loopback will do.
    pub interface: Option<u32>,
    /// Whether it is to this host, and not to be forwarded.
    pub is_local: bool,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The destination port.
    pub port: Port,
    /// The source.
    pub source: IpAddr,
    /// The MAC address that it comes from, where that matters.
    pub mac: Option<MacAddr>,
    /// Whether it comes in by an interface without MAC addresses.
    pub is_without_mac: bool,
    /// Who has sent it.
    pub sender: Sender,
}

/// Who has sent a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Somebody else.
    Other,
    /// Somebody else, right after this host has sent from the same port or address.
    OtherAfterOwn,
    /// This host itself.
    Own,
}

impl Sample {
    /// A packet of this block.
    pub(super) fn of(block: &Block) -> Option<Self> {
        let others = block.interface.difference(&only(LOOPBACK));
        let is_free = others.ranges().last().is_some_and(|range| range.last() == Number::MAX);
        let interface = others.ranges().first().map_or(LOOPBACK, Range::first);
        let protocols = &block.protocol;
        let usual = [TCP, Number(17)].into_iter().find(|usual| protocols.contains(*usual));
        let protocol = usual.or_else(|| Some(protocols.ranges().first()?.first()))?;
        let is_ethernet = block.hardware.contains(ETHERNET);
        Some(Self {
            interface: (!is_free).then_some(interface.0),
            is_local: block.destination.contains(LOCAL),
            protocol: u8::try_from(protocol.0).ok()?,
            port: block.port.ranges().first()?.first(),
            source: source(&block.source)?,
            mac: if is_ethernet && !block.mac.is_all() { mac(&block.mac) } else { None },
            is_without_mac: !is_ethernet,
            sender: Sender::of(block, interface),
        })
    }

    /// What a policy says of it.
    pub fn due(&self, policy: &Policy) -> Verdict {
        if !self.is_local {
            return Verdict::Untouched;
        }
        let transport = match self.protocol {
            6 => Transport::Tcp(self.port),
            _ => Transport::Other,
        };
        let loopback = self.sender == Sender::Own;
        let mac = self.mac.or((!self.is_without_mac).then_some(MacAddr([2, 0, 0, 0, 0, 1])));
        policy.decide(&Packet { loopback, source: self.source, mac, transport })
    }
}

impl Sender {
    /// Of a packet that comes in there: this host only where no other can be it.
    fn of(block: &Block, interface: Number) -> Self {
        let is_sure = |set: &RangeSet<Number>| !set.contains(NO);
        let (port, source) = (is_sure(&block.own_port), is_sure(&block.own_source));
        if port && source && (interface == LOOPBACK || is_sure(&block.vrf)) {
            Self::Own
        } else if port || source {
            Self::OtherAfterOwn
        } else {
            Self::Other
        }
    }
}

/// The least strange address of a set: one that a router would forward, if there is one.
fn source(set: &AddressSet) -> Option<IpAddr> {
    let v4 = set.v4.ranges().iter().flat_map(|range| [range.first(), range.last()]);
    let usual = Ipv4Addr::new(198, 51, 100, 7);
    let v4: Vec<Ipv4Addr> = v4.chain(set.v4.contains(usual).then_some(usual)).collect();
    let plain_v4 = v4.iter().find(|a| {
        let [first, ..] = a.octets();
        (1..224).contains(&first) && !a.is_loopback() && !a.is_link_local()
    });
    let v6 = set.v6.ranges().iter().flat_map(|range| [range.first(), range.last()]);
    let usual = Ipv6Addr::new(0x2001, 0xdb8, 0x5a, 0, 0, 0, 0, 7);
    let v6: Vec<Ipv6Addr> = v6.chain(set.v6.contains(usual).then_some(usual)).collect();
    let plain_v6 = v6.iter().find(|a| a.segments()[0] & 0xe000 == 0x2000);
    let first = plain_v4.map(|a| IpAddr::V4(*a)).or(plain_v6.map(|a| IpAddr::V6(*a)));
    first
        .or_else(|| v4.first().map(|a| IpAddr::V4(*a)))
        .or_else(|| v6.first().map(|a| IpAddr::V6(*a)))
}

/// A unicast address of a set, if there is one.
fn mac(set: &RangeSet<MacAddr>) -> Option<MacAddr> {
    let all = set.ranges().iter().flat_map(|range| [range.last(), range.first()]);
    let all: Vec<MacAddr> = all.collect();
    let usual = MacAddr([2, 0, 0, 0, 0x5a, 7]);
    let plain = |mac: &&MacAddr| mac.0[0] & 1 == 0 && mac.0 != [0; 6];
    if set.contains(usual) {
        return Some(usual);
    }
    all.iter().find(plain).or(all.first()).copied()
}
