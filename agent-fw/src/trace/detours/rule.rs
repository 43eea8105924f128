//! A rule of nf_tables, as far as it matters to packets to the agent's port: whether it can be about
//! them, and what it does then.

use super::{Known, any};
use crate::model::{AddressRange, AddressSet, Port};
use crate::netlink::nfnetlink::{find, number, text};
use crate::trace::base_chains::Base;
use crate::trace::destination;
use crate::trace::detour::Detour;
use crate::trace::registers::{self, Registers, word};
use crate::trace::rule_text::Branch;
use std::net::IpAddr;

/// The priority of what drops early, at prerouting.
const EARLY_PRIORITY: i32 = -300;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// What a rule does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RuleEffect {
    SendOn,
    Hand,
    Resource,
}

/// A rule, as far as it matters: whether it can be about the port, and what it does then.
pub(super) struct Rule<'a> {
    known: &'a Known<'a>,
    /// The addresses of this host that packets can be to which it is about.
    to: AddressSet,
    /// What registers hold: a port of the packet, a protocol, or a constant.
    registers: Registers<Value>,
    pub(super) is_about_port: bool,
    deed: Option<RuleEffect>,
    /// Other chains that it leads to.
    pub(super) jumps: Vec<String>,
}

/// What a rule's expression asks the kernel.
pub(super) enum Ask<'n> {
    /// The keys of a set.
    Set(&'n str),
    /// The chains of a map of verdicts.
    Verdicts(&'n str),
}

/// What the kernel tells.
pub(super) enum Told {
    Keys(Option<Vec<(Vec<u8>, bool)>>),
    Chains(Vec<Branch>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    Port,
    /// These bits of the destination address, as many as it has.
    Destination(Vec<u8>),
    Protocol,
    Constant(Vec<u8>),
}

impl<'a> Rule<'a> {
    pub(super) fn new(known: &'a Known<'a>) -> Self {
        let (registers, jumps) = (Registers::default(), Vec::new());
        let to = known.local.clone();
        Self { known, to, registers, is_about_port: true, deed: None, jumps }
    }

    /// The detour that the rule is, in a chain to which these base chains lead packets to the port.
    pub(super) fn concerns(&self, bases: &[Base]) -> Option<fn(String) -> Detour> {
        if !self.is_about_port {
            return None;
        }
        let is_before = |base: &&Base| matches!(base.hook, "prerouting" | "ingress");
        match self.deed? {
            RuleEffect::SendOn => {
                let is_early =
                    |base: &Base| base.hook == "ingress" || base.priority < EARLY_PRIORITY;
                let mut before = bases.iter().filter(is_before).peekable();
                before.peek()?;
                Some(if before.any(is_early) {
                    |rule| Detour::SentOn { rule, is_early: true }
                } else {
                    |rule| Detour::SentOn { rule, is_early: false }
                })
            }
            RuleEffect::Hand => Some(|rule| Detour::Handed { rule }),
            RuleEffect::Resource => bases
                .iter()
                .any(|base| base.hook == "input")
                .then_some(|rule| Detour::Resourced { rule }),
        }
    }

    pub(super) fn add(&mut self, name: &str, data: &[u8], ask: &mut impl FnMut(Ask<'_>) -> Told) {
        let field = |kind| find(data, kind).and_then(number);
        match name {
            "meta" | "payload" => self.load(name, data),
            "immediate" => {
                // `NFTA_DATA_VERDICT`, and in it `NFTA_VERDICT_CHAIN`.
                let chain = find(data, 2).and_then(|data| find(find(data, 2)?, 2)).map(text);
                self.jumps.extend(chain);
                let value = find(data, 2).and_then(|value| find(value, 1));
                if let (Some(register), Some(value)) = (field(1), value) {
                    self.registers.set(register, Some(Value::Constant(value.to_vec())));
                }
            }
            "cmp" => {
                let value = find(data, 3).and_then(|data| find(data, 1)).unwrap_or_default();
                self.compare(field(1), field(2).unwrap_or(0), value);
            }
            "bitwise" => self.mask(field(1), field(2), data),
            "range" => {
                let end = |kind| find(data, kind).and_then(|data| find(data, 1));
                if let (true, Some(first), Some(last)) =
                    (self.is_destination(field(1)), end(3), end(4))
                {
                    self.restrict_address(destination::between(first, last), field(2) == Some(1));
                }
                let bound = |kind| find(data, kind).and_then(|data| find(data, 1)).and_then(port);
                if let (Some(from), Some(to), 0) = (bound(3), bound(4), field(2).unwrap_or(0)) {
                    self.restrict(field(1), |wanted| from <= wanted && wanted <= to);
                }
            }
            // Into the register of verdicts.
            "lookup" if field(3) == Some(0) => {
                let name = find(data, 1).map(text).unwrap_or_default();
                if let Told::Chains(chains) = ask(Ask::Verdicts(&name)) {
                    let led_to = self.led_to(field(2), &chains);
                    self.jumps.extend(led_to);
                }
            }
            "lookup" if field(3).is_some() => {
                let name = find(data, 1).map(text).unwrap_or_default();
                if let Told::Keys(Some(keys)) = ask(Ask::Set(&name)) {
                    self.look_up(field(2), &keys);
                }
                if let Some(register) = field(3) {
                    self.registers.set(register, None);
                }
            }
            "lookup" if field(5).unwrap_or(0) & 1 == 0 => {
                let name = find(data, 1).map(text).unwrap_or_default();
                if let Told::Keys(Some(keys)) = ask(Ask::Set(&name)) {
                    self.look_up(field(2), &keys);
                }
            }
            "lookup" => {
                let name = find(data, 1).map(text).unwrap_or_default();
                if let Told::Keys(Some(keys)) = ask(Ask::Set(&name)) {
                    self.look_up_others(field(2), &keys);
                }
            }
            // Type 1 is DNAT; without an address, it changes the port alone.
            "nat" if field(1) == Some(1) && field(3).is_some() => {
                let to = field(3).and_then(|register| self.registers.get(register));
                let is_here = matches!(to, Some(Value::Constant(to)) if self.is_here(to));
                self.deed = (!is_here).then_some(RuleEffect::SendOn);
            }
            // At an interface's entrance, to another interface.
            "fwd" => self.deed = Some(RuleEffect::SendOn),
            "nat" if field(1) == Some(0) => self.deed = Some(RuleEffect::Resource),
            "masq" => self.deed = Some(RuleEffect::Resource),
            "tproxy" => self.hand(field(3).and_then(|register| self.constant_port(register))),
            "match" => self.matched(data),
            "target" => self.target(data),
            // Whatever it reads takes the place of what the register held.
            _ => {
                if let Some(register) = registers::written(name, data) {
                    self.registers.set(register, None);
                }
            }
        }
    }

    fn load(&mut self, name: &str, data: &[u8]) {
        let field = |kind| find(data, kind).and_then(number);
        if name == "payload" && find(data, 5).is_some() {
            // It writes: a source address, of IPv4 or IPv6.
            match (field(2), field(3)) {
                (Some(1), Some(8 | 12)) => self.deed = Some(RuleEffect::Resource),
                // A destination.
                (Some(1), Some(16 | 24)) => self.deed = Some(RuleEffect::SendOn),
                _ => {}
            }
            return;
        }
        let value = match name {
            "meta" if field(2) == Some(16) => Some(Value::Protocol),
            "payload" if (field(2), field(3), field(4)) == (Some(2), Some(2), Some(2)) => {
                Some(Value::Port)
            }
            "payload" if field(2) == Some(1) => {
                destination::part(field(3), field(4)).map(Value::Destination)
            }
            _ => None,
        };
        if let Some(register) = field(1) {
            self.registers.set(register, value);
        }
    }

    fn compare(&mut self, register: Option<u32>, operation: u32, value: &[u8]) {
        if let Some(Value::Destination(mask)) = self.value(register) {
            let mask = mask.clone();
            let is_whole = is_whole(&mask);
            let [least, most] = [0, u8::MAX].map(|byte| vec![byte; value.len()]);
            // `NFT_CMP_EQ`, `NEQ`, `LT`, `LTE`, `GT`, `GTE`.
            match operation {
                0 | 1 => self.restrict_address(destination::masked(value, &mask), operation == 1),
                2 | 5 if is_whole => {
                    self.restrict_address(destination::between(value, &most), operation == 2);
                }
                3 | 4 if is_whole => {
                    self.restrict_address(destination::between(&least, value), operation == 4);
                }
                _ => {}
            }
        } else if self.holds(register, &Value::Protocol) {
            self.is_about_port &= (operation == 0) == (value == [TCP]);
        } else if let Some(value) = port(value) {
            self.restrict(register, |wanted| match operation {
                0 => wanted == value,
                1 => wanted != value,
                2 => wanted < value,
                3 => wanted <= value,
                4 => wanted > value,
                _ => wanted >= value,
            });
        }
    }

    /// Takes in a condition on the destination port, if that is what the register holds.
    fn restrict(&mut self, register: Option<u32>, meets: impl Fn(u16) -> bool) {
        if self.holds(register, &Value::Port) {
            self.is_about_port &= any(self.known.ports, meets);
        }
    }

    /// Takes in a condition on the destination address: with `is_inverted`, that it is none of these.
    fn restrict_address(&mut self, to: Option<AddressRange>, is_inverted: bool) {
        let Some(to) = to else { return };
        let to: AddressSet = [to].into_iter().collect();
        self.narrow(&to, is_inverted);
    }

    fn narrow(&mut self, to: &AddressSet, is_inverted: bool) {
        self.to = if is_inverted { self.to.difference(to) } else { self.to.intersection(to) };
        self.is_about_port &= !self.to.is_empty();
    }

    /// What is looked up is one of these keys, or between two of them.
    fn look_up(&mut self, register: Option<u32>, keys: &[(Vec<u8>, bool)]) {
        const WORD_BYTES: usize = 4;
        match self.value(register) {
            Some(Value::Port) if keys.iter().all(|(key, _)| key.len() <= WORD_BYTES) => {
                self.restrict(register, |wanted| holds(keys, wanted));
            }
            Some(Value::Destination(mask)) if is_whole(mask) => {
                if let Some(addresses) = destination::of_keys(keys) {
                    self.narrow(&addresses, false);
                } else {
                    self.is_about_port &=
                        keys.iter().any(|(key, _)| self.may_be(register, key, key));
                }
            }
            Some(Value::Destination(_)) => {}
            // Of several values, the port may be any.
            _ => self.is_about_port &= keys.iter().any(|(key, _)| self.may_be(register, key, key)),
        }
    }

    /// What is looked up is none of these keys, nor between two of them.
    fn look_up_others(&mut self, register: Option<u32>, keys: &[(Vec<u8>, bool)]) {
        const PORT_BYTES: usize = 2;
        if self.is_destination(register)
            && let Some(addresses) = destination::of_keys(keys)
        {
            self.narrow(&addresses, true);
        } else if keys.iter().all(|(key, _)| key.len() == PORT_BYTES) {
            self.restrict(register, |wanted| !holds(keys, wanted));
        }
    }

    /// The chains that a map of verdicts may lead packets to the port to, by what this register and
    /// those behind it hold.
    fn led_to(&self, register: Option<u32>, branches: &[Branch]) -> Vec<String> {
        let is_interval = branches.iter().any(|branch| branch.is_end);
        let mut found = Vec::new();
        for (place, Branch { first, last, chain, .. }) in branches.iter().enumerate() {
            let may_be = if is_interval && self.holds(register, &Value::Port) {
                let next = branches.get(place + 1).and_then(|next| port(&next.first));
                let first = port(first).unwrap_or(0);
                let last = next.map_or(u16::MAX, |next| next.max(1) - 1).max(first);
                any(self.known.ports, |port| first <= port && port <= last)
            } else {
                is_interval || self.may_be(register, first, last)
            };
            if may_be && !chain.is_empty() {
                found.push(chain.clone());
            }
        }
        found
    }

    /// Whether a packet to the port here can have a key between these two, each of several values, the
    /// first of them in this register.
    fn may_be(&self, register: Option<u32>, first: &[u8], last: &[u8]) -> bool {
        const WORD_BYTES: usize = 4;
        let Some(mut word) = register.map(word) else { return true };
        let mut rest = 0;
        while rest < first.len() {
            let mut taken = WORD_BYTES;
            let bounds = |size| Some((first.get(rest..rest + size)?, last.get(rest..rest + size)?));
            match self.registers.get(word) {
                Some(Value::Port) => {
                    let bounds = bounds(2).and_then(|(from, to)| Some((port(from)?, port(to)?)));
                    let is_between = |(from, to)| any(self.known.ports, |p| from <= p && p <= to);
                    if !bounds.is_none_or(is_between) {
                        return false;
                    }
                }
                Some(Value::Protocol)
                    if bounds(1).is_some_and(|(from, to)| from[0] > TCP || to[0] < TCP) =>
                {
                    return false;
                }
                Some(Value::Destination(mask)) => {
                    taken = mask.len();
                    let addresses = bounds(taken).and_then(|(a, z)| destination::between(a, z));
                    let addresses: AddressSet = addresses.into_iter().collect();
                    if is_whole(mask) && self.known.local.intersection(&addresses).is_empty() {
                        return false;
                    }
                }
                _ => {}
            }
            rest += taken;
            word += u32::try_from(taken / WORD_BYTES).unwrap_or(1);
        }
        true
    }

    /// A register gets bits of what another has.
    fn mask(&mut self, from: Option<u32>, to: Option<u32>, data: &[u8]) {
        let mask = find(data, 4).and_then(|data| find(data, 1));
        let value = match (self.value(from), mask) {
            (Some(Value::Destination(whole)), Some(mask)) if is_whole(whole) => {
                Some(Value::Destination(mask.to_vec()))
            }
            _ => None,
        };
        if let Some(to) = to {
            self.registers.set(to, value);
        }
    }

    fn value(&self, register: Option<u32>) -> Option<&Value> {
        self.registers.get(register?)
    }

    /// Whether a register holds the whole destination address.
    fn is_destination(&self, register: Option<u32>) -> bool {
        matches!(self.value(register), Some(Value::Destination(mask)) if is_whole(mask))
    }

    fn holds(&self, register: Option<u32>, value: &Value) -> bool {
        self.value(register) == Some(value)
    }

    /// Whether these are the bytes of an address of this host.
    fn is_here(&self, address: &[u8]) -> bool {
        let v4 = || <[u8; 4]>::try_from(address).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(address).ok().map(IpAddr::from);
        v4().or_else(v6).is_some_and(|address| self.known.here.contains(&address))
    }

    fn constant_port(&self, register: u32) -> Option<u16> {
        match self.registers.get(register)? {
            Value::Constant(value) => port(value),
            _ => None,
        }
    }

    /// The packet is handed to a socket of this port, whatever port it is to.
    fn hand(&mut self, to: Option<u16>) {
        if self.known.takes && to.is_some_and(|to| self.known.ports.contains(Port(to))) {
            self.deed = Some(RuleEffect::Hand);
            self.is_about_port = true;
        }
    }

    /// A match of iptables', in iptables-nft: `struct xt_tcp`, `struct xt_multiport_v1`.
    fn matched(&mut self, data: &[u8]) {
        let info = find(data, 3).unwrap_or_default();
        let host = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        match find(data, 1).map(text).as_deref() {
            Some("udp") => self.is_about_port = false,
            Some("tcp") => {
                const INVERTED: u8 = 2;
                let is_plain = info.get(11).is_some_and(|flags| flags & INVERTED == 0);
                if let (Some(from), Some(to), true) = (host(4), host(6), is_plain)
                    && (from, to) != (0, u16::MAX)
                {
                    self.is_about_port &= any(self.known.ports, |port| from <= port && port <= to);
                }
            }
            Some("multiport") => {
                let count = usize::from(info.get(1).copied().unwrap_or(0)).min(15);
                let is_of_destination = info.first().is_some_and(|flags| *flags != 0);
                let is_plain = info.get(47).is_none_or(|inverted| *inverted == 0);
                if is_of_destination && is_plain {
                    let listed: Vec<u16> = (0..count).filter_map(|n| host(2 + 2 * n)).collect();
                    let is_range = |n: usize| info.get(32 + n).is_some_and(|flag| *flag != 0);
                    let meets = |port: u16| {
                        (0..listed.len()).any(|n| match listed.get(n + 1) {
                            Some(last) if is_range(n) => listed[n] <= port && port <= *last,
                            _ => listed[n] == port,
                        })
                    };
                    self.is_about_port &= any(self.known.ports, meets);
                }
            }
            _ => {}
        }
    }

    fn target(&mut self, data: &[u8]) {
        match find(data, 1).map(text).as_deref() {
            Some("DNAT" | "NETMAP") => self.deed = Some(RuleEffect::SendOn),
            Some("SNAT" | "MASQUERADE") => self.deed = Some(RuleEffect::Resource),
            Some("TPROXY") => {
                // `struct xt_tproxy_target_info_v1`: two marks, an address, the port.
                let info = find(data, 3).unwrap_or_default();
                self.hand(info.get(24..).and_then(port));
            }
            _ => {}
        }
    }
}

/// Whether a mask leaves every bit.
fn is_whole(mask: &[u8]) -> bool {
    mask.iter().all(|byte| *byte == u8::MAX)
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?))
}

/// Whether a set of values, or of bounds, has this port: the last bound that is not behind it says.
fn holds(keys: &[(Vec<u8>, bool)], wanted: u16) -> bool {
    let is_interval = keys.iter().any(|(_, is_end)| *is_end);
    let bounds = keys.iter().filter_map(|(key, is_end)| Some((port(key)?, *is_end)));
    if !is_interval {
        return bounds.into_iter().any(|(value, _)| value == wanted);
    }
    let before = bounds.filter(|(value, _)| *value <= wanted).max();
    before.is_some_and(|(_, is_end)| !is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_in_sets_of_values_and_of_intervals() {
        let key = |port: u16, is_end| (port.to_be_bytes().to_vec(), is_end);
        assert!(holds(&[key(22, false), key(4118, false)], 4118));
        assert!(!holds(&[key(22, false), key(4119, false)], 4118));
        let intervals = [key(0, true), key(4000, false), key(4119, true), key(5000, false)];
        assert!(holds(&intervals, 4118) && holds(&intervals, 5001));
        assert!(!holds(&intervals, 4119) && !holds(&intervals, 22));
    }
}
