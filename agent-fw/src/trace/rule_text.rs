//! A rule of any firewall in nftables' words, as far as its instructions are common ones.

mod statement;
mod value;

use crate::netlink::message::attributes;
use crate::netlink::nfnetlink::{Connection, Kind, Message, find, long, named, number, text};
use crate::trace::events::ChainRef;
use nix::errno::Errno;
use std::collections::BTreeMap;
use value::{Form, Key, Loaded, host_number, states};

/// Numbers of linux/netfilter/nf_tables.h.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// The text of the rule with this handle, or `None` if it has gone.
pub(super) fn rule_text(connection: &mut Connection, at: &ChainRef, handle: u64) -> Option<String> {
    let ask = [named(RULE_TABLE, &at.table), named(RULE_CHAIN, &at.chain)].concat();
    let rules = connection.dump(Kind::GetRule, at.family, &ask).ok()?;
    let rule = rules.iter().find(|rule| {
        rule.find(RULE_HANDLE).and_then(long) == Some(handle)
            && rule.text(RULE_CHAIN).as_deref() == Some(at.chain.as_str())
    })?;
    Some(words_of(connection, at, rule))
}

/// The text of a rule.
pub(super) fn words_of(connection: &mut Connection, at: &ChainRef, rule: &Message) -> String {
    let expressions = attributes(rule.find(RULE_EXPRESSIONS).unwrap_or_default());
    let mut sentence = Sentence::default();
    for (_, expression) in expressions {
        let name = find(expression, 1).map(text).unwrap_or_default();
        let data = find(expression, 2).unwrap_or_default();
        sentence.add(&name, data, |set| few_elements(connection, at, set));
    }
    let mut words = sentence.words.join(" ");
    if let Some(comment) = rule.find(RULE_USERDATA).and_then(comment) {
        words = format!("{words} comment \"{}\"", comment.escape_debug());
    }
    words
}

/// The handles of the rules in a chain that have this comment; none where there is no such chain.
pub(super) fn commented(
    connection: &mut Connection,
    at: &ChainRef,
    comment: &str,
) -> anyhow::Result<Vec<u64>> {
    let ask = [named(RULE_TABLE, &at.table), named(RULE_CHAIN, &at.chain)].concat();
    let rules = match connection.dump(Kind::GetRule, at.family, &ask) {
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Vec::new(),
        rules => rules?,
    };
    let is_it = |rule: &&Message| {
        rule.text(RULE_CHAIN).as_deref() == Some(at.chain.as_str())
            && rule.find(RULE_USERDATA).and_then(self::comment).as_deref() == Some(comment)
    };
    let handle = |rule: &Message| rule.find(RULE_HANDLE).and_then(long);
    Ok(rules.iter().filter(is_it).filter_map(handle).collect())
}

/// The comment in a rule's user data: type 0, its length, its text.
fn comment(data: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = data else { return None };
    Some(text(rest.get(..usize::from(*length))?))
}

/// The elements of a set without a name of its own, if they are few: more are not written out.
fn few_elements(connection: &mut Connection, at: &ChainRef, set: &str) -> Option<Vec<Key>> {
    const MOST: usize = 9;
    let is_nameless = set.starts_with("__set");
    is_nameless.then(|| elements(connection, at, set)).flatten().filter(|keys| keys.len() <= MOST)
}

/// The elements of a set.
pub(super) fn elements(connection: &mut Connection, at: &ChainRef, set: &str) -> Option<Vec<Key>> {
    let ask = [named(1, &at.table), named(2, set)].concat();
    let lists = connection.dump(Kind::GetSetElements, at.family, &ask).ok()?;
    let mut keys = Vec::new();
    for list in &lists {
        for (_, element) in attributes(list.find(3)?) {
            // `NFTA_SET_ELEM_KEY_END`: of several values, each with bounds of its own.
            if find(element, 10).is_some() {
                return None;
            }
            let key = find(find(element, 1)?, 1)?.to_vec();
            let is_end = find(element, 3).and_then(number).is_some_and(|flags| flags & 1 != 0);
            keys.push((key, is_end));
        }
    }
    keys.sort();
    Some(keys)
}

/// Where a map of verdicts leads packets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Branch {
    /// The key, or the least of several.
    pub(super) first: Vec<u8>,
    /// The greatest of several, where each value has bounds of its own.
    pub(super) last: Vec<u8>,
    /// Whether an interval ends here, and nothing begins.
    pub(super) is_end: bool,
    /// The chain; nothing, where the verdict is another.
    pub(super) chain: String,
}

/// Where a map of verdicts leads packets, in the order of the keys.
pub(super) fn verdicts(connection: &mut Connection, at: &ChainRef, map: &str) -> Vec<Branch> {
    let ask = [named(1, &at.table), named(2, map)].concat();
    let lists = connection.dump(Kind::GetSetElements, at.family, &ask).unwrap_or_default();
    let mut found = Vec::new();
    for (_, element) in lists.iter().filter_map(|list| list.find(3)).flat_map(attributes) {
        let value = |kind| find(element, kind).and_then(|key| find(key, 1)).map(<[u8]>::to_vec);
        let first = value(1).unwrap_or_default();
        // `NFTA_SET_ELEM_KEY_END`.
        let last = value(10).unwrap_or_else(|| first.clone());
        let is_end = find(element, 3).and_then(number).is_some_and(|flags| flags & 1 != 0);
        // `NFTA_DATA_VERDICT`, and in it `NFTA_VERDICT_CHAIN`.
        let chain = find(element, 2).and_then(|data| find(find(data, 2)?, 2)).map(text);
        found.push(Branch { first, last, is_end, chain: chain.unwrap_or_default() });
    }
    found.sort();
    found
}

/// Words in the making.
#[derive(Default)]
struct Sentence {
    words: Vec<String>,
    registers: BTreeMap<u32, Loaded>,
}

impl Sentence {
    fn add(&mut self, name: &str, data: &[u8], set: impl FnOnce(&str) -> Option<Vec<Key>>) {
        let done = match name {
            "meta" => self.meta(data),
            "payload" => self.payload(data),
            "ct" => self.ct(data),
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "range" => self.range(data),
            "lookup" => self.look_up(data, set),
            "immediate" => self.immediate(data),
            _ => self.other(name, data),
        };
        if done.is_none() {
            self.words.push(format!("[{name}]"));
        }
    }

    fn load(&mut self, register: Option<&[u8]>, words: &str, form: Form) -> Option<()> {
        let loaded = Loaded { words: words.to_owned(), form, mask: None };
        self.registers.insert(number(register?)?, loaded);
        Some(())
    }

    /// Takes back the condition that the one to come implies.
    fn forget(&mut self, implied: &str) -> bool {
        let is_implied = self.words.last().is_some_and(|last| last == implied);
        if is_implied {
            self.words.pop();
        }
        is_implied
    }

    fn meta(&mut self, data: &[u8]) -> Option<()> {
        if find(data, 3).is_some() {
            let key = number(find(data, 2)?)?;
            let what = if key == 3 { "meta mark set …" } else { "meta … set …" };
            self.words.push(what.to_owned());
            return Some(());
        }
        let (words, form) = match number(find(data, 2)?)? {
            3 => ("meta mark", Form::HostNumber),
            4 => ("iif", Form::HostNumber),
            5 => ("oif", Form::HostNumber),
            6 => ("iifname", Form::Name),
            7 => ("oifname", Form::Name),
            8 => ("meta iiftype", Form::HostNumber),
            15 => ("meta nfproto", Form::Family),
            16 => ("meta l4proto", Form::Protocol),
            1 => ("meta protocol", Form::Hex),
            17 => ("pkttype", Form::Hex),
            _ => ("meta …", Form::Hex),
        };
        self.load(find(data, 1), words, form)
    }

    fn ct(&mut self, data: &[u8]) -> Option<()> {
        let (words, form) = match number(find(data, 2)?)? {
            0 => ("ct state", Form::State),
            1 => ("ct direction", Form::Hex),
            2 => ("ct status", Form::HostNumber),
            3 => ("ct mark", Form::HostNumber),
            _ => ("ct …", Form::Hex),
        };
        self.load(find(data, 1), words, form)
    }

    fn payload(&mut self, data: &[u8]) -> Option<()> {
        let field = |kind| find(data, kind).and_then(number);
        let (base, offset, length) = (field(2)?, field(3)?, field(4)?);
        let (words, form) = match (base, offset, length) {
            (0, 0, 6) => ("ether daddr", Form::Mac),
            (0, 6, 6) => ("ether saddr", Form::Mac),
            (1, 9, 1) => ("ip protocol", Form::Protocol),
            (1, 6, 1) => ("ip6 nexthdr", Form::Protocol),
            (1, 12, 1..=4) => ("ip saddr", Form::V4),
            (1, 16, 1..=4) => ("ip daddr", Form::V4),
            (1, 8, 5..=16) => ("ip6 saddr", Form::V6),
            (1, 24, _) => ("ip6 daddr", Form::V6),
            (2, 0, 2) => ("sport", Form::Port),
            (2, 2, 2) => ("dport", Form::Port),
            (2, 13, 1) => ("tcp flags", Form::Hex),
            _ => {
                let base = ["link", "network", "transport"].get(usize::try_from(base).ok()?)?;
                let words = format!("@{base},{},{}", offset * 8, length * 8);
                return self.load(find(data, 1), &words, Form::Hex);
            }
        };
        let words = match form {
            Form::Port if self.forget("meta l4proto tcp") => format!("tcp {words}"),
            Form::Port if self.forget("meta l4proto udp") => format!("udp {words}"),
            Form::Port => format!("th {words}"),
            Form::V4 => {
                self.forget("meta nfproto ipv4");
                words.to_owned()
            }
            Form::V6 => {
                self.forget("meta nfproto ipv6");
                words.to_owned()
            }
            _ => words.to_owned(),
        };
        self.load(find(data, 1), &words, form)
    }

    fn bitwise(&mut self, data: &[u8]) -> Option<()> {
        let from = number(find(data, 1)?)?;
        let mut loaded = self.registers.get(&from)?.clone();
        loaded.mask = Some(find(find(data, 4)?, 1)?.to_vec());
        self.registers.insert(number(find(data, 2)?)?, loaded);
        Some(())
    }

    fn compare(&mut self, data: &[u8]) -> Option<()> {
        let loaded = self.registers.get(&number(find(data, 1)?)?)?;
        let value = find(find(data, 3)?, 1)?;
        let operation = number(find(data, 2)?)?;
        if loaded.form == Form::State
            && let Some(mask) = &loaded.mask
        {
            let states = states(host_number(mask)?);
            let not = if operation == 0 { "! " } else { "" };
            self.words.push(format!("{} {not}{states}", loaded.words));
            return Some(());
        }
        let sign = ["", "!= ", "< ", "<= ", "> ", ">= "].get(usize::try_from(operation).ok()?)?;
        self.words.push(format!("{} {sign}{}", loaded.words, loaded.write(value)));
        Some(())
    }

    fn range(&mut self, data: &[u8]) -> Option<()> {
        let loaded = self.registers.get(&number(find(data, 1)?)?)?;
        let not = if number(find(data, 2)?)? == 0 { "" } else { "!= " };
        let (from, to) = (find(find(data, 3)?, 1)?, find(find(data, 4)?, 1)?);
        let (from, to) = (loaded.write(from), loaded.write(to));
        self.words.push(format!("{} {not}{from}-{to}", loaded.words));
        Some(())
    }

    fn look_up(&mut self, data: &[u8], set: impl FnOnce(&str) -> Option<Vec<Key>>) -> Option<()> {
        let name = text(find(data, 1)?);
        let loaded = self.registers.get(&number(find(data, 2)?)?)?;
        let flags = find(data, 5).and_then(number).unwrap_or(0);
        let not = if flags & 1 == 1 { "!= " } else { "" };
        let map = if find(data, 3).is_some() { " map" } else { "" };
        let members = match set(&name) {
            Some(keys) => loaded.members(&keys),
            None => format!("@{name}"),
        };
        self.words.push(format!("{}{map} {not}{members}", loaded.words));
        Some(())
    }

    fn immediate(&mut self, data: &[u8]) -> Option<()> {
        let value = find(data, 2)?;
        let Some(verdict) = find(value, 2) else { return Some(()) };
        let chain = find(verdict, 2).map(text).unwrap_or_default();
        self.words.push(match number(find(verdict, 1)?)?.cast_signed() {
            libc::NFT_JUMP => format!("jump {chain}"),
            libc::NFT_GOTO => format!("goto {chain}"),
            libc::NFT_RETURN => "return".to_owned(),
            libc::NFT_CONTINUE => "continue".to_owned(),
            libc::NF_ACCEPT => "accept".to_owned(),
            libc::NF_DROP => "drop".to_owned(),
            code => format!("verdict {code}"),
        });
        Some(())
    }

    fn other(&mut self, name: &str, data: &[u8]) -> Option<()> {
        let words = match name {
            "counter" => "counter".to_owned(),
            "log" => match find(data, 2) {
                Some(prefix) => format!("log prefix \"{}\"", text(prefix).escape_debug()),
                None => "log".to_owned(),
            },
            "reject" => "reject".to_owned(),
            "masq" => "masquerade".to_owned(),
            "nat" | "redir" | "tproxy" | "queue" | "notrack" | "fib" => name.to_owned(),
            // iptables' own, in iptables-nft.
            "match" => format!("-m {}", text(find(data, 1)?)),
            "target" => format!("-j {}", text(find(data, 1)?)),
            _ => {
                // `NFTA_DYNSET_SREG_KEY`.
                let register = find(data, 4).filter(|_| name == "dynset").and_then(number);
                let key = register.and_then(|register| self.registers.get(&register));
                statement::words(name, data, key.map(|loaded| loaded.words.as_str()))?
            }
        };
        self.words.push(words);
        Some(())
    }
}
