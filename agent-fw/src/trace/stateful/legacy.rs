//! Rules of iptables-legacy, as its own program saves them: which conditions they have that are
//! certain, and which of their matches and targets remember packets.

use super::packet::Packet;
use super::ruleset::{BaseChain, Chain, Hook};
use super::truth::Truth;
use super::xtables;
use crate::system::program;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) text: String,
    words: Vec<String>,
}

/// The tables for a version of IP.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tables {
    pub(super) lines: Vec<Line>,
    /// The chains, each with its table.
    chains: BTreeSet<(String, String)>,
}

impl Tables {
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    pub(super) fn has_chain(&self, table: &str, chain: &str) -> bool {
        self.chains.contains(&(table.to_owned(), chain.to_owned()))
    }
}

/// Reads them. Where there is none, nothing is asked for, and so none is loaded.
pub(super) fn read(is_v4: bool) -> Result<Tables, String> {
    let (names, name) = if is_v4 {
        ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save")
    } else {
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save")
    };
    match fs::read_to_string(names) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Tables::default()),
        Err(error) => return Err(format!("{names} cannot be read ({error})")),
        Ok(tables) if tables.trim().is_empty() => return Ok(Tables::default()),
        Ok(_) => {}
    }
    match program::call(name).output() {
        Ok(output) if output.status.success() => {
            Ok(tables(&String::from_utf8_lossy(&output.stdout)))
        }
        Ok(output) => Err(format!("{name} failed ({})", output.status)),
        Err(error) => Err(format!("{name} cannot be run ({error})")),
    }
}

fn tables(saved: &str) -> Tables {
    let mut table = "";
    let mut found = Tables::default();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        } else if let Some(declared) = line.strip_prefix(':') {
            let chain = declared.split(' ').next().unwrap_or_default();
            found.chains.insert((table.to_owned(), chain.to_owned()));
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let mut words = words(rest).into_iter();
            let (Some(chain), table) = (words.next(), table.to_owned()) else { continue };
            found.lines.push(Line { table, chain, text: line.to_owned(), words: words.collect() });
        }
    }
    found
}

/// Words, of which those in quotes have spaces.
fn words(text: &str) -> Vec<String> {
    let (mut found, mut word) = (Vec::new(), String::new());
    let (mut is_quoted, mut is_word) = (false, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => (is_quoted, is_word) = (!is_quoted, true),
            '\\' if is_quoted => word.extend(characters.next()),
            ' ' if !is_quoted => {
                if is_word {
                    found.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            other => {
                word.push(other);
                is_word = true;
            }
        }
    }
    if is_word {
        found.push(word);
    }
    found
}

/// Where its tables hang.
pub(super) fn base_chains() -> Vec<BaseChain> {
    const HOOKS: [(Hook, &str); 5] = [
        (Hook::Prerouting, "PREROUTING"),
        (Hook::Input, "INPUT"),
        (Hook::Forward, "FORWARD"),
        (Hook::Output, "OUTPUT"),
        (Hook::Postrouting, "POSTROUTING"),
    ];
    // A table has none at most of the hooks; it has no rules there then.
    const TABLES: [(&str, i32); 6] = [
        ("raw", -300),
        ("mangle", -150),
        ("nat", -100),
        ("filter", 0),
        ("security", 50),
        ("nat", 100),
    ];
    let all = HOOKS.iter().flat_map(|(hook, chain)| {
        TABLES.iter().map(|(table, priority)| BaseChain {
            chain: Chain::Legacy(table, chain),
            hook: *hook,
            priority: *priority,
            devices: Vec::new(),
        })
    });
    all.collect()
}

/// What a rule comes to for a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Met<'a> {
    pub(super) holds: Truth,
    pub(super) effect: Option<&'static str>,
    pub(super) target: Option<&'a str>,
    /// The target is another chain, from which nothing comes back here.
    pub(super) is_goto: bool,
}

impl Line {
    /// What the rule comes to for the packet; some targets are chains of its table.
    pub(super) fn meet(&self, packet: &Packet, is_chain: impl Fn(&str) -> bool) -> Met<'_> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let parts = parts(&words);
        let target = parts.iter().find(|part| matches!(part[0], "-j" | "-g"));
        let name = target.and_then(|part| part.get(1).copied());
        let only_logs = matches!(name, Some("LOG" | "NFLOG" | "ULOG" | "AUDIT"));
        let mut met = Met {
            holds: Truth::Yes,
            effect: None,
            target: name,
            is_goto: target.is_some_and(|part| part[0] == "-g"),
        };
        for part in &parts {
            if met.holds == Truth::No {
                break;
            }
            match part[..] {
                ["-m", name, ref options @ ..] => {
                    let effect = xtables::of_words(name, options);
                    let only_limits_log = name == "limit" && only_logs;
                    met.effect = met.effect.or(effect.filter(|_| !only_limits_log));
                    let holds = options_hold(options, packet);
                    met.holds = met.holds.and(if effect.is_some() { Truth::Maybe } else { holds });
                }
                ["-j", name, ..] if !is_chain(name) => {
                    met.effect = met.effect.or_else(|| xtables::of_target(name));
                }
                ["-j" | "-g", ..] => {}
                ref options => met.holds = met.holds.and(options_hold(options, packet)),
            }
        }
        met
    }
}

/// A rule's own conditions, each match with its options, and the target with its.
fn parts<'w>(words: &[&'w str]) -> Vec<Vec<&'w str>> {
    let mut parts: Vec<Vec<&str>> = vec![Vec::new()];
    let mut is_target = false;
    let mut before = "";
    for word in words {
        let is_text = std::mem::replace(&mut before, word) == "--comment";
        let begins = matches!(*word, "-m" | "-j" | "-g") && !is_target && !is_text;
        if begins {
            is_target = *word != "-m";
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push(word);
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Whether conditions hold, each an option with its values, and `!` before it where it is inverted.
fn options_hold(words: &[&str], packet: &Packet) -> Truth {
    let mut holds = Truth::Yes;
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        let (is_inverted, option) =
            if word == "!" { (true, words.next().unwrap_or_default()) } else { (false, word) };
        let mut values = Vec::new();
        if option == "--comment" {
            // Whatever it begins with.
            words.next();
        }
        while let Some(value) = words.next_if(|next| !next.starts_with('-') && *next != "!") {
            values.push(value);
        }
        holds = holds.and(option_holds(option, &values, packet).inverted(is_inverted));
    }
    holds
}

fn option_holds(option: &str, values: &[&str], packet: &Packet) -> Truth {
    let value = values.first().copied().unwrap_or_default();
    match option {
        "--comment" => Truth::Yes,
        "-p" => protocol_is(value, packet),
        "-s" => Truth::of(network_has(value, packet.address(true))),
        "-d" => Truth::of(network_has(value, packet.address(false))),
        "-i" => match (&packet.by, value.strip_suffix('+')) {
            (Some((_, name)), Some(begin)) => Truth::certain(name.starts_with(begin)),
            (Some((_, name)), None) => Truth::certain(name == value),
            (None, _) => Truth::Maybe,
        },
        "--sport" | "--sports" => Truth::of(port_is(value, packet.port(true))),
        "--dport" | "--dports" => Truth::of(port_is(value, packet.port(false))),
        "--ctstate" | "--state" => Truth::of(state_is(value, packet.state)),
        "--dst-type" if packet.is_to_here => {
            Truth::certain(value.split(',').any(|kind| kind == "LOCAL"))
        }
        _ => Truth::Maybe,
    }
}

fn protocol_is(name: &str, packet: &Packet) -> Truth {
    let number = match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmp" => Some(1),
        "ipv6-icmp" | "icmpv6" => Some(58),
        "all" => return Truth::Yes,
        other => other.parse().ok(),
    };
    // Another name is another protocol's.
    Truth::certain(number.is_some() && number == packet.protocol())
}

fn network_has(text: &str, address: Option<IpAddr>) -> Option<bool> {
    let address = address?;
    let network = text.parse::<IpNet>().ok();
    let network = network.or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))?;
    Some(network.contains(&address))
}

fn port_is(list: &str, port: Option<u16>) -> Option<bool> {
    let port = port?;
    let mut is_one = false;
    for item in list.split(',') {
        let (from, to) = item.split_once(':').unwrap_or((item, item));
        is_one |= (from.parse().ok()?..=to.parse().ok()?).contains(&port);
    }
    Some(is_one)
}

/// By the numbers of nf_tables.
fn state_is(list: &str, state: u32) -> Option<bool> {
    let mut is_one = false;
    for name in list.split(',') {
        let number = match name {
            "INVALID" => 1,
            "ESTABLISHED" => 2,
            "RELATED" => 4,
            "NEW" => 8,
            "UNTRACKED" => 64,
            _ => return None,
        };
        is_one |= state == number;
    }
    Some(is_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Port;
    use crate::trace::Syn;

    fn packet() -> Packet {
        let [source, destination] =
            ["34.205.5.1", "192.0.2.1"].map(|text| text.parse().expect("an address"));
        let (source_port, port) = (Port(40_000), Port::AGENT);
        let syn = Syn { source, source_port, destination, port, sequence: 1 };
        Packet { state: 8, ..Packet::of(&syn.packet().expect("one version of IP")) }
    }

    fn meet(rule: &str) -> (Truth, bool) {
        let saved =
            format!("*filter\n:INPUT ACCEPT [0:0]\n:mine - [0:0]\n-A INPUT {rule}\nCOMMIT\n");
        let tables = tables(&saved);
        let met = tables.lines[0].meet(&packet(), |name| tables.has_chain("filter", name));
        (met.holds, met.effect.is_some())
    }

    #[test]
    fn a_match_remembers_the_packet_unless_a_condition_before_it_certainly_fails() {
        assert_eq!(meet("-p tcp -m tcp --dport 22 -m recent --set --name x"), (Truth::No, false));
        let met = meet("-p tcp -m tcp --dport 4118 -m recent --set --name x");
        assert_eq!(met, (Truth::Maybe, true));
        // It comes before the port.
        assert!(meet("-p tcp -m limit --limit 3/min -m tcp --dport 22 -j ACCEPT").1);
        assert!(!meet("-p tcp -m recent --rcheck --name x -j ACCEPT").1);
        assert!(!meet("-m limit --limit 3/min -j LOG --log-prefix \"a -m recent --set\"").1);
        assert!(meet("-m psd").1, "what is not known may remember it");
        assert!(meet("-j SET --add-set seen src").1 && !meet("-j mine").1);
    }

    #[test]
    fn conditions_are_certain_only_where_all_of_them_are_known() {
        let holds = |rule: &str| meet(rule).0;
        assert_eq!(holds("-s 34.205.5.0/27 -p tcp -m tcp --dport 4118 -j ACCEPT"), Truth::Yes);
        assert_eq!(holds("! -s 34.205.5.0/27 -j ACCEPT"), Truth::No);
        assert_eq!(holds("-m conntrack --ctstate NEW -j ACCEPT"), Truth::Yes);
        assert_eq!(holds("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), Truth::No);
        assert_eq!(holds("-p tcp -m multiport ! --dports 22,4000:5000 -j ACCEPT"), Truth::No);
        assert_eq!(holds("-i eth0 -j ACCEPT"), Truth::Maybe);
        assert_eq!(holds("-m mark --mark 0x1 -j ACCEPT"), Truth::Maybe);
        assert_eq!(holds("-m comment --comment \"-p udp\" -j ACCEPT"), Truth::Yes);
    }
}
