//! Rules of iptables-legacy, as its program saves them.

use super::{Known, any};
use crate::model::{AddressRange, AddressSet, Port};
use crate::trace::detour::Detour;
/// The detours that rules of iptables-legacy are, as its program saves them.
pub(super) fn of_lines(saved: &str, known: &Known<'_>) -> Vec<Detour> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Range, RangeSet};
    use crate::trace::destination;
    use std::collections::BTreeSet;

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
}
