//! What brings packets to the agent, or to whatever stands for it, where no chain of agent-fw's can
//! see them as packets to the agent's port: rules of this host that send the port elsewhere, or
//! something else to the agent's socket.

use super::destination;
use super::detour::Detour;
use super::entrance_detours;
use super::reach::Reach;
use super::registers;
use super::registers::{Registers, word};
use super::rewriting::{self, Rewriting};
use super::rule_text::{Branch, elements, verdicts, words_of};
use crate::model::{AddressRange, AddressSet, Ordinal as _, Port, RangeSet};
use crate::netlink::listeners;
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, number, text};
use crate::netlink::routes::local_addresses;
use crate::trace::base_chains::Base;
use crate::trace::events::ChainRef;
use crate::trace::{base_chains, iptables_legacy};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The ways past the gate that this host has, as far as its rules and programs tell. `last` is the
/// priority at `input` where packets to these ports are decided on for the last time.
pub fn detours(ports: &RangeSet<Port>, last: i32) -> anyhow::Result<Vec<Detour>> {
    let mut connection = Connection::open()?;
    let bases = base_chains::list(&mut connection)?;
    let every_family = 0;
    let rules = connection.dump(Kind::GetRule, every_family, &[])?;
    let mut found = Vec::new();
    // A table of agent-fw's sees packets nearly last of all, with the port that they have then.
    let is_lone = !bases.keys().any(|base| base.table == GATE);
    let here = rewriting::addresses();
    let known = Known { ports, here: &here, local: &local_addresses(), takes: takes_handed(ports) };
    let mut read = Vec::new();
    for message in &rules {
        let (Some(table), Some(chain)) = (message.text(1), message.text(2)) else { continue };
        let at = ChainRef { family: message.family, table, chain };
        if OURS.contains(&at.table.as_str()) {
            continue;
        }
        let mut rule = Rule::new(&known);
        let mut rewriting = Rewriting::new(ports, &here);
        for (_, expression) in attributes(message.find(EXPRESSIONS).unwrap_or_default()) {
            let name = find(expression, 1).map(text).unwrap_or_default();
            let data = find(expression, 2).unwrap_or_default();
            rule.add(&name, data, &mut |ask| match ask {
                Ask::Set(set) => Told::Keys(elements(&mut connection, &at, set)),
                Ask::Verdicts(map) => Told::Chains(verdicts(&mut connection, &at, map)),
            });
            rewriting.add(&name, data);
        }
        read.push((at, rule, rewriting, message));
    }
    let jumps = |needs_port: bool| {
        let read = read.iter().filter(move |(_, rule, ..)| rule.is_about_port || !needs_port);
        read.flat_map(|(at, rule, ..)| rule.jumps.iter().map(move |to| (at, to.as_str())))
    };
    let (reach, reach_with_port) =
        (Reach::of(&bases, &jumps(false)), Reach::of(&bases, &jumps(true)));
    for (at, rule, rewriting, message) in &read {
        // Of two chains with one priority, it is not known which comes first.
        let is_last = |base: &Base| base.hook == "input" && base.priority >= last;
        let is_incoming = |base: &Base| !matches!(base.hook, "output" | "postrouting");
        if rewriting.rewrites() && is_lone && reach.bases(at).iter().any(is_incoming) {
            found.push(Detour::Rewritten { rule: describe(&mut connection, at, message) });
        } else if rewriting.rewrites() && reach.bases(at).iter().any(is_last) {
            found.push(Detour::RewrittenLast { rule: describe(&mut connection, at, message) });
        }
        if let Some(make) = rule.concerns(reach_with_port.bases(at)) {
            found.push(make(describe(&mut connection, at, message)));
        }
    }
    let rewriting = Rewriting::new(ports, &here);
    if iptables_legacy::has_tables() {
        for is_v4 in [true, false] {
            let saved = iptables_legacy::saved(is_v4, &[]);
            found.extend(of_lines(&saved, &known));
            for line in saved.lines().filter(|line| is_lone && rewriting.is_line(line)) {
                found.push(Detour::Rewritten { rule: format!("iptables-legacy: {line}") });
            }
        }
    }
    let balanced =
        if is_lone || last < IPVS_PRIORITY { rewriting::balanced(&rewriting) } else { Vec::new() };
    for rule in balanced {
        found.push(if is_lone {
            Detour::Rewritten { rule }
        } else {
            Detour::RewrittenLast { rule }
        });
    }
    if is_lone {
        found.extend(rewriting::unpacked().into_iter().map(|from| Detour::Unpacked { from }));
    }
    found.extend(entrance_detours::delivered());
    found.extend(entrance_detours::at_entrances(ports, is_lone)?);
    found.extend(choosers());
    Ok(found)
}

/// Where IPVS takes packets, at `input` (`NF_IP_PRI_NAT_SRC - 2`).
const IPVS_PRIORITY: i32 = 98;
/// The gate's table.
const GATE: &str = "agent_fw";
/// agent-fw's tables, of whatever family.
const OURS: [&str; 3] = [GATE, "agent_fw_policy", "agent_fw_guard"];
/// The priority of what drops early, at prerouting.
const EARLY_PRIORITY: i32 = -300;
/// `NFTA_RULE_EXPRESSIONS`.
const EXPRESSIONS: u16 = 4;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

fn describe(connection: &mut Connection, at: &ChainRef, message: &Message) -> String {
    format!("{at}: {}", words_of(connection, at, message))
}

/// What a rule does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RuleEffect {
    SendOn,
    Hand,
    Resource,
}

/// Whether a rule with TPROXY can hand packets to a socket of these ports: only one that has asked for
/// them (`IP_TRANSPARENT`) gets any. Where none listens, it is not known which will.
fn takes_handed(ports: &RangeSet<Port>) -> bool {
    let Ok(listeners) = listeners::list() else { return true };
    let mut ours =
        listeners.iter().filter(|listener| ports.contains(Port(listener.port))).peekable();
    ours.peek().is_none() || ours.any(|listener| listener.is_transparent)
}

/// What is known of the host.
struct Known<'a> {
    ports: &'a RangeSet<Port>,
    /// The addresses of interfaces.
    here: &'a BTreeSet<IpAddr>,
    /// The addresses at which this host takes packets.
    local: &'a AddressSet,
    /// Whether a socket of the ports takes what TPROXY hands it.
    takes: bool,
}

/// A rule, as far as it matters: whether it can be about the port, and what it does then.
struct Rule<'a> {
    known: &'a Known<'a>,
    /// The addresses of this host that packets can be to which it is about.
    to: AddressSet,
    /// What registers hold: a port of the packet, a protocol, or a constant.
    registers: Registers<Value>,
    is_about_port: bool,
    deed: Option<RuleEffect>,
    /// Other chains that it leads to.
    jumps: Vec<String>,
}

/// What a rule's expression asks the kernel.
enum Ask<'n> {
    /// The keys of a set.
    Set(&'n str),
    /// The chains of a map of verdicts.
    Verdicts(&'n str),
}

/// What the kernel tells.
enum Told {
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
    fn new(known: &'a Known<'a>) -> Self {
        let (registers, jumps) = (Registers::default(), Vec::new());
        let to = known.local.clone();
        Self { known, to, registers, is_about_port: true, deed: None, jumps }
    }

    /// The detour that the rule is, in a chain to which these base chains lead packets to the port.
    fn concerns(&self, bases: &[Base]) -> Option<fn(String) -> Detour> {
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

    fn add(&mut self, name: &str, data: &[u8], ask: &mut impl FnMut(Ask<'_>) -> Told) {
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

/// Whether some port meets the condition.
fn any(ports: &RangeSet<Port>, meets: impl Fn(u16) -> bool) -> bool {
    let all = |range: &crate::model::Range<Port>| {
        std::iter::successors(Some(range.first()), |port| port.next())
            .take_while(move |port| *port <= range.last())
            .any(|port| meets(port.0))
    };
    ports.ranges().iter().any(all)
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

/// The detours that rules of iptables-legacy are, as its program saves them.
fn of_lines(saved: &str, known: &Known<'_>) -> Vec<Detour> {
    let Known { ports, here, .. } = known;
    let mut table = "";
    let mut rules = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rule) = LegacyWords::of(line, known) {
            rules.push((table, rule));
        }
    }
    let mut reached = vec![];
    let mut due: Vec<(&str, &str)> =
        rules.iter().map(|(table, _)| (*table, "PREROUTING")).collect();
    while let Some(chain) = due.pop() {
        if reached.contains(&chain) {
            continue;
        }
        reached.push(chain);
        let rules = rules.iter().filter(|(table, rule)| (*table, rule.chain) == chain);
        due.extend(rules.filter(|(_, r)| r.is_about_port).map(|(table, r)| (*table, r.target)));
    }
    let detour = |(table, rule): &(&str, LegacyWords<'_>)| {
        let text = format!("iptables-legacy: {}", rule.line);
        let is_reached = reached.contains(&(*table, rule.chain));
        match rule.target {
            "DNAT" | "NETMAP" => {
                let to = rule.after("--to-destination").unwrap_or_default();
                let address = to.rsplit_once(':').map_or(to, |(address, _)| address);
                let is_here =
                    address.trim_matches(['[', ']']).parse().is_ok_and(|a| here.contains(&a));
                // Without an address, the port alone is changed.
                let sends = rule.target == "NETMAP" || !to.starts_with(':') && !is_here;
                let is_one = is_reached && rule.is_about_port && sends;
                is_one.then_some(Detour::SentOn { rule: text, is_early: false })
            }
            "TPROXY" => {
                let to = rule.after("--on-port").and_then(|port| port.parse().ok());
                to.is_some_and(|to| known.takes && ports.contains(Port(to)))
                    .then_some(Detour::Handed { rule: text })
            }
            "SNAT" | "MASQUERADE" if rule.chain == "INPUT" => {
                Some(Detour::Resourced { rule: text })
            }
            _ => None,
        }
    };
    rules.iter().filter_map(detour).collect()
}

/// A rule of iptables-legacy, as its program saves it.
struct LegacyWords<'a> {
    line: &'a str,
    words: Vec<&'a str>,
    chain: &'a str,
    target: &'a str,
    is_about_port: bool,
}

impl<'a> LegacyWords<'a> {
    fn of(line: &'a str, Known { ports, local, .. }: &Known<'_>) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["-A", chain, ..] = words[..] else { return None };
        let rule = Self { line, words, chain, target: "", is_about_port: true };
        let target = rule.after("-j").or_else(|| rule.after("-g"))?;
        let is_tcp = rule.after("-p").is_none_or(|protocol| matches!(protocol, "tcp" | "all"));
        let is_about = |word: &str| {
            let Some(list) = rule.after(word) else { return true };
            any(ports, |port| is_listed(list, port) != rule.is_inverted(word))
        };
        let to = rule.after("-d").and_then(|to| to.parse::<ipnet::IpNet>().ok());
        let is_to_here = to.is_none_or(|to| {
            let range = match to {
                ipnet::IpNet::V4(prefix) => AddressRange::from(prefix),
                ipnet::IpNet::V6(prefix) => AddressRange::from(prefix),
            };
            let named: AddressSet = [range].into_iter().collect();
            let is_inverted = rule.is_inverted("-d");
            let meeting =
                if is_inverted { local.difference(&named) } else { local.intersection(&named) };
            !meeting.is_empty()
        });
        let is_about_port = is_tcp && is_to_here && is_about("--dport") && is_about("--dports");
        Some(Self { target, is_about_port, ..rule })
    }

    fn after(&self, word: &str) -> Option<&'a str> {
        let at = self.words.iter().position(|known| *known == word)?;
        self.words.get(at + 1).copied()
    }

    /// Whether `!` stands before it.
    fn is_inverted(&self, word: &str) -> bool {
        self.words.windows(2).any(|pair| pair[0] == "!" && pair[1] == word)
    }
}

/// Whether a list of ports and ranges has this port.
fn is_listed(list: &str, port: u16) -> bool {
    list.split(',').any(|item| match item.split_once(':') {
        Some((from, to)) => {
            from.parse().is_ok_and(|from: u16| from <= port)
                && to.parse().is_ok_and(|to: u16| port <= to)
        }
        None => item.parse() == Ok(port),
    })
}

/// BPF programs that choose sockets. Which of them is attached where, the kernel tells of none.
#[cfg(feature = "xdp")]
fn choosers() -> Vec<Detour> {
    use aya::programs::loaded_programs;
    use aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP;
    let is_one =
        |program: &aya::programs::ProgramInfo| program.program_type() == BPF_PROG_TYPE_SK_LOOKUP;
    let chosen = |program: aya::programs::ProgramInfo| Detour::Chosen {
        program: program.id(),
        name: program.name_as_str().unwrap_or("without a name").to_owned(),
    };
    loaded_programs().filter_map(Result::ok).filter(is_one).map(chosen).collect()
}

#[cfg(not(feature = "xdp"))]
fn choosers() -> Vec<Detour> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Range;

    fn agent() -> RangeSet<Port> {
        Range::single(Port::AGENT).into()
    }

    #[test]
    fn a_rule_of_iptables_legacy_is_a_detour_if_packets_to_the_port_come_to_it() {
        let here = BTreeSet::from(["192.0.2.1".parse().expect("an address")]);
        let local: AddressSet =
            destination::between(&[192, 0, 2, 1], &[192, 0, 2, 1]).into_iter().collect();
        let ports = agent();
        let known = Known { ports: &ports, here: &here, local: &local, takes: true };
        let detours = |lines: &str| of_lines(&format!("*nat\n{lines}\nCOMMIT\n"), &known);
        let is_one = |lines: &str| matches!(detours(lines)[..], [Detour::SentOn { .. }]);
        let docker = "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n";
        let published = format!(
            "{docker}-A DOCKER ! -i docker0 -p tcp -m tcp --dport 4118 -j DNAT \
             --to-destination 172.17.0.2:4118"
        );
        assert!(is_one(&published));
        assert!(!is_one(&published.replace("--dport 4118", "--dport 4119")));
        assert!(!is_one(&published.replace("PREROUTING", "OUTPUT")));
        assert!(!is_one(&published.replace("172.17.0.2", "192.0.2.1")));
        let listed = published.replace("-m tcp --dport 4118", "-m multiport --dports 22,4000:5000");
        assert!(is_one(&listed));
        assert!(is_one(&published.replace("--dport 4118", "! --dport 22")));
        assert!(!is_one(&published.replace("--dport 4118", "! --dport 4118")));
        // The port stands where the other chain is called.
        let services = "-A PREROUTING -p tcp --dport 4118 -j KUBE-SVC\n\
                        -A KUBE-SVC -j KUBE-SEP\n\
                        -A KUBE-SEP -p tcp -j DNAT --to-destination 10.1.0.7:8080";
        assert!(is_one(services));
        assert!(!is_one(&services.replace("--dport 4118", "--dport 443")));
        assert!(is_one("-A PREROUTING -d 192.0.2.1/32 -j NETMAP --to 10.0.0.0/24"));
        assert!(!is_one("-A PREROUTING -d 192.0.2.2/32 -j NETMAP --to 10.0.0.0/24"));
        assert!(is_one("-A PREROUTING ! -d 192.0.2.2/32 -j NETMAP --to 10.0.0.0/24"));
        assert!(!is_one("-A PREROUTING ! -d 192.0.2.0/24 -j NETMAP --to 10.0.0.0/24"));
        let handed =
            "-A PREROUTING -p tcp -m tcp --dport 80 -j TPROXY --on-port 4118 --on-ip 0.0.0.0";
        assert!(matches!(detours(handed)[..], [Detour::Handed { .. }]));
    }

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
