//! Rules of iptables-legacy, which the kernel does not trace: those that end packets, and whose
//! counters grow with each packet that is sent.

use crate::system::program;
use crate::trace::path::{Conclusion, PacketTrace};
use std::path::Path;

/// So often the packet is sent again: counters that other packets move do not grow each time.
const ROUNDS: usize = 3;

/// A rule, or a chain's policy, that ends packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LegacyRule {
    /// The table.
    pub table: String,
    /// As `iptables-legacy-save` writes it: `-A INPUT -j DROP`, or `:INPUT DROP` for a policy.
    pub text: String,
    packets: u64,
}

/// Whether there are tables of iptables-legacy here.
pub(crate) fn has_tables() -> bool {
    let names = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];
    names.iter().any(|path| {
        std::fs::read_to_string(Path::new(path)).is_ok_and(|text| !text.trim().is_empty())
    })
}

/// The rules for a version of IP, as its program writes them; none where that is not there.
pub(crate) fn saved(is_v4: bool, options: &[&str]) -> String {
    let name = if is_v4 { "iptables-legacy-save" } else { "ip6tables-legacy-save" };
    let found = program::call(name).args(options).output();
    found.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// Names the rules that have ended a packet without a trace, if any did. `send` sends it again.
pub(super) fn name(
    road: &mut PacketTrace,
    is_v4: bool,
    mut send: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if matches!(road.conclusion, Conclusion::Vanished(_)) && has_tables() {
        let rules = growing(is_v4, || {
            road.sent += 1;
            send()
        })?;
        if !rules.is_empty() {
            road.conclusion = Conclusion::Legacy(rules);
        }
    }
    Ok(())
}

/// The rules whose counters grow each time that `send` sends the packet.
fn growing(
    is_v4: bool,
    mut send: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<LegacyRule>> {
    let read = || ending(&saved(is_v4, &["-c"]));
    let mut before = read();
    for _ in 0..ROUNDS {
        if before.is_empty() {
            break;
        }
        send()?;
        before = grown(&before, read());
    }
    Ok(before)
}

/// Those of `after` that have counted more than in `before`.
fn grown(before: &[LegacyRule], after: Vec<LegacyRule>) -> Vec<LegacyRule> {
    let has_grown = |rule: &LegacyRule| {
        let mut known =
            before.iter().filter(|old| old.table == rule.table && old.text == rule.text);
        known.any(|old| old.packets < rule.packets)
    };
    after.into_iter().filter(has_grown).collect()
}

/// The rules and policies that end packets, with their counters.
fn ending(saved: &str) -> Vec<LegacyRule> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        }
        found.extend(rule(line).map(|(text, packets)| LegacyRule {
            table: table.clone(),
            text: text.to_owned(),
            packets,
        }));
    }
    found
}

/// A line is `[packets:bytes] -A CHAIN … -j TARGET …`, or `:CHAIN POLICY [packets:bytes]`.
fn rule(line: &str) -> Option<(&str, u64)> {
    const ENDING: [&str; 5] = ["DROP", "REJECT", "NFQUEUE", "TARPIT", "STEAL"];
    let packets = |counters: &str| counters.split(':').next()?.parse().ok();
    if line.starts_with(':') {
        let (text, counters) = line.split_once(" [")?;
        return text.ends_with(" DROP").then_some((text, packets(counters)?));
    }
    let (counters, text) = line.strip_prefix('[')?.split_once("] ")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "-j");
    let target = words.nth(1)?;
    ENDING.contains(&target).then_some((text, packets(counters)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_packets_and_has_counted_more_is_named() {
        let before = "*filter\n:INPUT DROP [5:300]\n:FORWARD ACCEPT [9:9]\n:inner - [0:0]\n\
             [3:120] -A INPUT -p tcp -m tcp --dport 4118 -j inner\n\
             [0:0] -A inner -s 192.0.2.1/32 -j DROP\n\
             [7:280] -A inner -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
        let after = before.replace("[3:120]", "[4:160]").replace("[7:280]", "[8:320]");
        let found = grown(&ending(before), ending(&after));
        let texts: Vec<&str> = found.iter().map(|rule| rule.text.as_str()).collect();
        assert_eq!(texts, ["-A inner -j REJECT --reject-with icmp-port-unreachable"]);
        assert_eq!(found[0].table, "filter");
        let policy = grown(&ending(before), ending(&before.replace("[5:300]", "[6:340]")));
        assert_eq!(policy[0].text, ":INPUT DROP");
        assert_eq!(grown(&ending(before), ending(before)), []);
    }
}
