//! What brings packets to the agent, or to whatever stands for it, where no chain of agent-fw's can
//! see them as packets to the agent's port: rules of this host that send the port elsewhere, or
//! something else to the agent's socket.

use super::rewriting::{self, Rewriting};
use super::rule_text::{elements, words_of};
use crate::model::{Ordinal as _, Port, RangeSet};
use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, number, text};
use crate::trace::base_chains::Base;
use crate::trace::events::Place;
use crate::trace::{base_chains, iptables_legacy};
use std::collections::BTreeMap;
use std::fmt;

/// One way past the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Detour {
    /// Before routing, a rule sends packets to the port on to another host, or to a container: they
    /// are forwarded, and never come to the hook `input`.
    SentOn {
        /// The rule.
        rule: String,
    },
    /// A rule hands packets to other ports to the agent's socket, and leaves their port as it is.
    Handed {
        /// The rule.
        rule: String,
    },
    /// A BPF program chooses the socket that a packet is for, whatever its port.
    Chosen {
        /// The program's number.
        program: u32,
        /// Its name.
        name: String,
    },
    /// Where no table of agent-fw's sees it, packets to other ports get the agent's: by a rule, or by
    /// the load balancer.
    Rewritten {
        /// The rule, or the service.
        rule: String,
    },
    /// Where no table of agent-fw's sees them, packets come out of others that programs on interfaces
    /// cannot look into.
    Unpacked {
        /// Out of what.
        from: String,
    },
    /// At the hook `input`, a rule gives packets another source: the late gate judges by that one.
    Resourced {
        /// The rule.
        rule: String,
    },
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SentOn { rule } => {
                write!(f, "packets to the port are sent on to another host or a container: {rule}")
            }
            Self::Handed { rule } => {
                write!(f, "packets to other ports are handed to the agent's socket: {rule}")
            }
            Self::Chosen { program, name } => write!(
                f,
                "the BPF program {program} ({}) chooses sockets for packets, whatever their port",
                name.escape_debug()
            ),
            Self::Rewritten { rule } => {
                write!(f, "packets to other ports get the agent's behind the XDP program: {rule}")
            }
            Self::Unpacked { from } => {
                write!(f, "packets come out of {from}, where the XDP program cannot see them")
            }
            Self::Resourced { rule } => {
                write!(f, "packets get another source behind the gate: {rule}")
            }
        }
    }
}

impl Detour {
    /// Whether others than those that are admitted may get in by it.
    pub fn opens(&self) -> bool {
        !matches!(self, Self::Resourced { .. })
    }

    /// Whether it lets others in, as far as that can be known.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Chosen { .. } | Self::Resourced { .. })
    }

    /// Whether what decides at prerouting, or at the driver, comes before it.
    pub fn is_after_prerouting(&self) -> bool {
        matches!(self, Self::SentOn { .. })
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::SentOn { .. } => {
                "agent-fw install --early-drop, or XDP (--backend both), decides before that rule; \
                 or take the rule away (a container's -p, a DNAT rule)"
            }
            Self::Handed { .. } => "restrict that rule to the manager's addresses, or take it away",
            Self::Chosen { .. } => {
                "see with `bpftool link` whether it is attached in this network namespace, and \
                 whether it sends anything to the agent's port"
            }
            Self::Rewritten { .. } | Self::Unpacked { .. } => {
                "agent-fw install --backend both: its table sees them"
            }
            Self::Resourced { .. } => {
                "leave packets to the agent's port out of that rule, or admit the source that it \
                 gives them"
            }
        }
    }
}

/// The ways past the gate that this host has, as far as its rules and programs tell.
pub fn detours(ports: &RangeSet<Port>) -> anyhow::Result<Vec<Detour>> {
    let mut connection = Connection::open()?;
    let bases = base_chains::list(&mut connection)?;
    let every_family = 0;
    let rules = connection.dump(Kind::GetRule, every_family, &[])?;
    let mut found = Vec::new();
    // A table of agent-fw's sees packets last of all, with the port that they have then.
    let is_lone = !bases.keys().any(|base| base.table == GATE);
    let here = rewriting::addresses();
    for message in &rules {
        let (Some(table), Some(chain)) = (message.text(1), message.text(2)) else { continue };
        let at = Place { family: message.family, table, chain };
        if at.table.starts_with("agent_fw") {
            continue;
        }
        let mut rule = Rule::new(ports);
        let mut rewriting = Rewriting::new(ports, &here);
        for (_, expression) in attributes(message.find(EXPRESSIONS).unwrap_or_default()) {
            let name = find(expression, 1).map(text).unwrap_or_default();
            let data = find(expression, 2).unwrap_or_default();
            rule.add(&name, data, |set| elements(&mut connection, &at, set));
            rewriting.add(&name, data);
        }
        if is_lone && rewriting.is_one(bases.get(&at).map(|base| base.hook)) {
            found.push(Detour::Rewritten { rule: describe(&mut connection, &at, message) });
        }
        if let Some(make) = rule.concerns(bases.get(&at)) {
            found.push(make(describe(&mut connection, &at, message)));
        }
    }
    let rewriting = Rewriting::new(ports, &here);
    if iptables_legacy::has_tables() {
        for is_v4 in [true, false] {
            for line in iptables_legacy::saved(is_v4, &[]).lines() {
                found.extend(of_line(line, ports));
                let rule = format!("iptables-legacy: {line}");
                let rewrites = is_lone && rewriting.is_line(line);
                found.extend(rewrites.then_some(Detour::Rewritten { rule }));
            }
        }
    }
    if is_lone {
        let balanced = rewriting::balanced(&rewriting).into_iter();
        found.extend(balanced.map(|rule| Detour::Rewritten { rule }));
        found.extend(rewriting::unpacked().into_iter().map(|from| Detour::Unpacked { from }));
    }
    found.extend(choosers());
    Ok(found)
}

/// The gate's table.
const GATE: &str = "agent_fw";
/// `NFTA_RULE_EXPRESSIONS`.
const EXPRESSIONS: u16 = 4;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

fn describe(connection: &mut Connection, at: &Place, message: &Message) -> String {
    format!("{at}: {}", words_of(connection, at, message))
}

/// What a rule does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    SendOn,
    Hand,
    Resource,
}

/// A rule, as far as it matters: whether it can be about the port, and what it does then.
struct Rule<'a> {
    ports: &'a RangeSet<Port>,
    /// What registers hold: a port of the packet, a protocol, or a constant.
    registers: BTreeMap<u32, Value>,
    names_port: bool,
    is_about_port: bool,
    deed: Option<Deed>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    Port,
    Protocol,
    Constant(Vec<u8>),
}

impl<'a> Rule<'a> {
    fn new(ports: &'a RangeSet<Port>) -> Self {
        let registers = BTreeMap::new();
        Self { ports, registers, names_port: false, is_about_port: true, deed: None }
    }

    /// The detour that the rule is, in a chain that hangs there.
    fn concerns(&self, base: Option<&Base>) -> Option<fn(String) -> Detour> {
        if !self.is_about_port {
            return None;
        }
        let hook = base.map(|base| base.hook);
        match self.deed? {
            // Of a chain that others lead to, it is not known for which packets they do.
            Deed::SendOn if self.names_port || hook.is_some() => {
                let is_before = !matches!(hook, Some("output" | "input" | "postrouting"));
                is_before.then_some(|rule| Detour::SentOn { rule })
            }
            Deed::SendOn => None,
            Deed::Hand => Some(|rule| Detour::Handed { rule }),
            Deed::Resource => (hook == Some("input")).then_some(|rule| Detour::Resourced { rule }),
        }
    }

    fn add(
        &mut self,
        name: &str,
        data: &[u8],
        set: impl FnOnce(&str) -> Option<Vec<(Vec<u8>, bool)>>,
    ) {
        let field = |kind| find(data, kind).and_then(number);
        match name {
            "meta" | "payload" => self.load(name, data),
            "immediate" => {
                let value = find(data, 2).and_then(|value| find(value, 1));
                if let (Some(register), Some(value)) = (field(1), value) {
                    self.registers.insert(register, Value::Constant(value.to_vec()));
                }
            }
            "cmp" => {
                let value = find(data, 3).and_then(|data| find(data, 1)).unwrap_or_default();
                self.compare(field(1), field(2).unwrap_or(0), value);
            }
            "range" => {
                let bound = |kind| find(data, kind).and_then(|data| find(data, 1)).and_then(port);
                if let (Some(from), Some(to), 0) = (bound(3), bound(4), field(2).unwrap_or(0)) {
                    self.restrict(field(1), |wanted| from <= wanted && wanted <= to);
                }
            }
            "lookup" if field(5).unwrap_or(0) & 1 == 0 => {
                let name = find(data, 1).map(text).unwrap_or_default();
                if let Some(keys) = set(&name) {
                    self.restrict(field(2), |wanted| holds(&keys, wanted));
                }
            }
            // Type 1 is DNAT; without an address, it changes the port alone.
            "nat" if field(1) == Some(1) && field(3).is_some() => self.deed = Some(Deed::SendOn),
            "nat" if field(1) == Some(0) => self.deed = Some(Deed::Resource),
            "masq" => self.deed = Some(Deed::Resource),
            "tproxy" => self.hand(field(3).and_then(|register| self.constant_port(register))),
            "match" => self.matched(data),
            "target" => self.target(data),
            _ => {}
        }
    }

    fn load(&mut self, name: &str, data: &[u8]) {
        let field = |kind| find(data, kind).and_then(number);
        if name == "payload" && find(data, 5).is_some() {
            // It writes: a source address, of IPv4 or IPv6.
            if matches!((field(2), field(3)), (Some(1), Some(8 | 12))) {
                self.deed = Some(Deed::Resource);
            }
            return;
        }
        let value = match name {
            "meta" if field(2) == Some(16) => Some(Value::Protocol),
            "payload" if (field(2), field(3), field(4)) == (Some(2), Some(2), Some(2)) => {
                Some(Value::Port)
            }
            _ => None,
        };
        if let Some(register) = field(1) {
            match value {
                Some(value) => self.registers.insert(register, value),
                None => self.registers.remove(&register),
            };
        }
    }

    fn compare(&mut self, register: Option<u32>, operation: u32, value: &[u8]) {
        if register.and_then(|register| self.registers.get(&register)) == Some(&Value::Protocol) {
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
        if register.and_then(|register| self.registers.get(&register)) == Some(&Value::Port) {
            self.names_port = true;
            self.is_about_port &= any(self.ports, meets);
        }
    }

    fn constant_port(&self, register: u32) -> Option<u16> {
        match self.registers.get(&register)? {
            Value::Constant(value) => port(value),
            _ => None,
        }
    }

    /// The packet is handed to a socket of this port, whatever port it is to.
    fn hand(&mut self, to: Option<u16>) {
        if to.is_some_and(|to| self.ports.contains(Port(to))) {
            self.deed = Some(Deed::Hand);
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
                    self.names_port = true;
                    self.is_about_port &= any(self.ports, |port| from <= port && port <= to);
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
                    self.names_port = true;
                    self.is_about_port &= any(self.ports, meets);
                }
            }
            _ => {}
        }
    }

    fn target(&mut self, data: &[u8]) {
        match find(data, 1).map(text).as_deref() {
            Some("DNAT") => self.deed = Some(Deed::SendOn),
            Some("SNAT" | "MASQUERADE") => self.deed = Some(Deed::Resource),
            Some("TPROXY") => {
                // `struct xt_tproxy_target_info_v1`: two marks, an address, the port.
                let info = find(data, 3).unwrap_or_default();
                self.hand(info.get(24..).and_then(port));
            }
            _ => {}
        }
    }
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

/// The detour that a rule of iptables-legacy is.
fn of_line(line: &str, ports: &RangeSet<Port>) -> Option<Detour> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|known| *known == word)?;
        words.get(at + 1).copied()
    };
    let is_named = |list: &str| {
        let meets = |port: u16| {
            list.split(',').any(|item| match item.split_once(':') {
                Some((from, to)) => {
                    from.parse().is_ok_and(|from: u16| from <= port)
                        && to.parse().is_ok_and(|to: u16| port <= to)
                }
                None => item.parse() == Ok(port),
            })
        };
        any(ports, meets)
    };
    let rule = format!("iptables-legacy: {line}");
    match after("-j")? {
        "DNAT" if line.starts_with("-A ") && !line.starts_with("-A OUTPUT ") => {
            let about = after("--dport").or_else(|| after("--dports"))?;
            is_named(about).then_some(Detour::SentOn { rule })
        }
        "TPROXY" => is_named(after("--on-port")?).then_some(Detour::Handed { rule }),
        "SNAT" | "MASQUERADE" if line.starts_with("-A INPUT ") => Some(Detour::Resourced { rule }),
        _ => None,
    }
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
    fn a_rule_of_iptables_legacy_is_a_detour_if_it_names_the_port() {
        let detour = |line: &str| of_line(line, &agent());
        let published = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 4118 -j DNAT \
                         --to-destination 172.17.0.2:4118";
        assert!(matches!(detour(published), Some(Detour::SentOn { .. })));
        assert_eq!(detour(&published.replace("--dport 4118", "--dport 4119")), None);
        assert_eq!(detour(&published.replace("-A DOCKER", "-A OUTPUT")), None);
        let listed = published.replace("-m tcp --dport 4118", "-m multiport --dports 22,4000:5000");
        assert!(matches!(detour(&listed), Some(Detour::SentOn { .. })));
        let handed =
            "-A PREROUTING -p tcp -m tcp --dport 80 -j TPROXY --on-port 4118 --on-ip 0.0.0.0";
        assert!(matches!(detour(handed), Some(Detour::Handed { .. })));
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
