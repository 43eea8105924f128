//! Changes of the kernel's table behind agent-fw's back, of every kind that `nft` can make.

use crate::chance::Chance;
use agent_fw_lab::{feed, output, run};
use anyhow::{Context as _, Result};

/// A change, in words, and what `nft -f` carries out. The kernel may refuse it.
pub(crate) struct Mutation {
    pub(crate) words: &'static str,
    pub(crate) script: String,
}

const TABLE: &str = "inet agent_fw";

/// The table as `nft --handle list` prints it.
pub(crate) struct Listing(Vec<String>);

/// A rule in the listing.
#[derive(Clone)]
struct Rule {
    chain: String,
    text: String,
    handle: String,
    place: usize,
}

impl Listing {
    pub(crate) fn read() -> Result<Self> {
        let text = run(["nft", "--handle", "list", "table", "inet", "agent_fw"])?;
        Ok(Self(text.lines().map(str::to_owned).collect()))
    }

    /// The names of what is declared by this word: `set`, `chain`.
    fn named(&self, kind: &str) -> Vec<String> {
        let name = |line: &String| {
            let rest = line.strip_prefix('\t')?.strip_prefix(kind)?.strip_prefix(' ')?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        self.0.iter().filter_map(name).collect()
    }

    fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        let mut chain = None;
        for line in &self.0 {
            if let Some(rest) = line.strip_prefix("\tchain ") {
                chain = rest.split_whitespace().next().map(str::to_owned);
            } else if line == "\t}" {
                chain = None;
            } else if let Some(chain) = &chain
                && let Some((text, handle)) = line.trim().split_once(" # handle ")
            {
                let place = rules.iter().filter(|rule| rule.chain == *chain).count();
                let (text, handle) = (text.to_owned(), handle.to_owned());
                rules.push(Rule { chain: chain.clone(), text, handle, place });
            }
        }
        rules
    }

    /// The elements of a set, and whether they are ranges.
    fn elements(set: &str) -> Result<(Vec<String>, bool)> {
        let text = run(["nft", "list", "set", "inet", "agent_fw", set])?;
        let is_of_ranges = text.contains("flags interval");
        let Some((_, rest)) = text.split_once("elements = {") else {
            return Ok((Vec::new(), is_of_ranges));
        };
        let inside = rest.split_once('}').context("elements end")?.0;
        let elements = inside.split(',').map(|element| element.trim().to_owned());
        Ok((elements.collect(), is_of_ranges))
    }

    /// The table's text with something replaced, loaded in the place of the table.
    fn rewritten(&self, from: &str, to: &str) -> String {
        let text = self.without_handles().replacen(from, to, 1);
        format!("delete table {TABLE}\n{text}\n")
    }

    /// The table's text: equal where nothing has changed.
    pub(crate) fn without_handles(&self) -> String {
        let bare = |line: &String| {
            line.split_once(" # handle ").map_or(line.as_str(), |(text, _)| text).to_owned()
        };
        let lines: Vec<String> = self.0.iter().map(bare).collect();
        lines.join("\n")
    }
}

const KINDS: usize = 22;

/// A change drawn at random.
pub(crate) fn draw(chance: &mut Chance, listing: &Listing) -> Result<Mutation> {
    let rules = listing.rules();
    let chains = listing.named("chain");
    // Of what rules learn, nothing stays.
    let mut sets = listing.named("set");
    sets.retain(|set| !set.starts_with("own_"));
    let rule = chance.pick(&rules).clone();
    let chain = chance.pick(&chains).clone();
    let set = chance.pick(&sets).clone();
    let (elements, is_of_ranges) = Listing::elements(&set)?;
    let element = chance.pick(&elements).clone();
    let new = any_element(chance, &element, is_of_ranges);
    let Rule { handle, text, .. } = &rule;
    let kind = chance.below(KINDS);
    let (words, script) = match kind {
        0 => ("an element is added", format!("add element {TABLE} {set} {{ {new} }}")),
        1 => ("an element is removed", format!("delete element {TABLE} {set} {{ {element} }}")),
        // A set of values has its size, and no room for more.
        2 | 3 if !is_of_ranges => ("a value is exchanged", {
            format!(
                "delete element {TABLE} {set} {{ {element} }}\nadd element {TABLE} {set} {{ {new} }}"
            )
        }),
        2 => ("an element is widened", {
            let wider = resized(&element, -1);
            format!(
                "delete element {TABLE} {set} {{ {element} }}\nadd element {TABLE} {set} {{ {wider} }}"
            )
        }),
        3 => ("an element is narrowed", {
            let narrower = resized(&element, 1);
            format!(
                "delete element {TABLE} {set} {{ {element} }}\nadd element {TABLE} {set} {{ {narrower} }}"
            )
        }),
        4 => ("a set is emptied", format!("flush set {TABLE} {set}")),
        5 => ("a set is exchanged", {
            format!("flush set {TABLE} {set}\nadd element {TABLE} {set} {{ {new} }}")
        }),
        6 => ("a rule is removed", format!("delete rule {TABLE} {} handle {handle}", rule.chain)),
        7 | 8 => ("a rule is added at a chain's end", {
            format!("add rule {TABLE} {chain} {}", any_rule(chance))
        }),
        9 | 10 => ("a rule is added at a chain's beginning", {
            format!("insert rule {TABLE} {chain} {}", any_rule(chance))
        }),
        11 => ("a rule is replaced", {
            format!("replace rule {TABLE} {} handle {handle} {}", rule.chain, any_rule(chance))
        }),
        12 => ("a rule's port is changed", {
            let port = chance.pick(&["4117", "4119", "22", "4118-4119", "!= 4118"]);
            let changed = text.replace("4118", port);
            format!("replace rule {TABLE} {} handle {handle} {changed}", rule.chain)
        }),
        13 => ("a rule's verdict is changed", {
            let to = *chance.pick(&["accept", "drop", "return", "continue", "reject"]);
            let changed = match text.rsplit_once(' ') {
                Some((front, "drop" | "accept")) => format!("{front} {to}"),
                _ => format!("{text} {to}"),
            };
            format!("replace rule {TABLE} {} handle {handle} {changed}", rule.chain)
        }),
        14 => ("a rule loses a condition", {
            let changed = text.split_once(' ').map_or("accept", |(_, rest)| rest);
            let changed = changed.split_once(' ').map_or("accept", |(_, rest)| rest);
            format!("replace rule {TABLE} {} handle {handle} {changed}", rule.chain)
        }),
        15 => ("rules change places", {
            let in_chain: Vec<&Rule> = rules.iter().filter(|r| r.chain == rule.chain).collect();
            let other = chance.pick(&in_chain);
            let (from, to) = (&rule.chain, other.place);
            format!(
                "insert rule {TABLE} {from} index {to} {text}\ndelete rule {TABLE} {from} handle {handle}"
            )
        }),
        16 => ("a chain is emptied", format!("flush chain {TABLE} {chain}")),
        17 => ("the priority is changed", listing.rewritten("priority raw", "priority 100")),
        18 => ("the hook is changed", {
            let to = chance.pick(&["hook forward", "hook output", "hook prerouting"]);
            listing.rewritten("hook input", to)
        }),
        19 => ("the policy is changed", listing.rewritten("policy accept", "policy drop")),
        20 => ("a second base chain", {
            let (hook, policy) = (
                chance.pick(&["input", "prerouting", "forward"]),
                chance.pick(&["accept", "drop"]),
            );
            let priority = *chance.pick(&[-400, -300, -200, 0, 50]);
            let rule = any_rule(chance);
            format!(
                "add chain {TABLE} extra {{ type filter hook {hook} priority {priority}; policy {policy}; }}\n\
                 add rule {TABLE} extra {rule}"
            )
        }),
        _ => ("the table sleeps", format!("add table {TABLE} {{ flags dormant; }}")),
    };
    Ok(Mutation { words, script })
}

/// Carries a change out. False where the kernel or nft refuses it, and nothing has changed.
pub(crate) fn carry_out(mutation: &Mutation) -> Result<bool> {
    let path = format!("/run/mutation-{}.nft", std::process::id());
    std::fs::write(&path, &mutation.script)?;
    Ok(output(["nft", "-f", &path])?.code == Some(0))
}

/// A rule that does something.
fn any_rule(chance: &mut Chance) -> String {
    let address = |chance: &mut Chance| match chance.below(6) {
        0 => "ip saddr 34.205.5.32".to_owned(),
        1 => "ip saddr 34.205.0.0/16".to_owned(),
        2 => "ip saddr 34.205.5.8-34.205.5.40".to_owned(),
        3 => "ip saddr != 34.205.5.0/27".to_owned(),
        4 => "ip6 saddr 2001:db8::/33".to_owned(),
        _ => "ip6 saddr { 2001:db8::1, 2001:db9::1 }".to_owned(),
    };
    let port = |chance: &mut Chance| match chance.below(5) {
        0 => "tcp dport { 22, 4118 }",
        1 => "tcp dport >= 4000",
        2 => "udp dport 4118",
        3 => "tcp dport 4000-5000",
        _ => "tcp dport 4118",
    };
    let other = |chance: &mut Chance| match chance.below(6) {
        0 => "ether saddr 02:41:18:00:00:01",
        1 => "iif \"manager0\"",
        2 => "meta nfproto ipv6",
        3 => "meta l4proto tcp",
        4 => "ct state new",
        _ => "counter",
    };
    let mut words = Vec::new();
    if chance.once_in(2) {
        words.push(address(chance));
    }
    if !chance.once_in(3) {
        words.push(port(chance).to_owned());
    }
    if chance.once_in(3) {
        words.push(other(chance).to_owned());
    }
    words
        .push((*chance.pick(&["accept", "accept", "drop", "drop", "return", "reject"])).to_owned());
    words.join(" ")
}

/// An element of the same kind as `like`.
fn any_element(chance: &mut Chance, like: &str, is_of_ranges: bool) -> String {
    if is_of_ranges { any_range(chance, like) } else { any_value(chance, like) }
}

/// A value of the same kind as `like`: one that a mask leaves, mostly.
fn any_value(chance: &mut Chance, like: &str) -> String {
    let last = if chance.once_in(4) { chance.below(200) } else { 32 * chance.below(8) };
    if like.contains('.') {
        format!("34.205.{}.{last}", chance.below(9))
    } else {
        format!("2001:{:x}::", 0xdb0 + chance.below(16))
    }
}

/// A range of the same kind as `like`.
fn any_range(chance: &mut Chance, like: &str) -> String {
    let last = chance.below(200);
    if like.contains('.') {
        match chance.below(3) {
            0 => format!("34.205.{}.{last}", chance.below(9)),
            1 => format!("198.51.100.{last}-198.51.100.{}", last + chance.below(40)),
            _ => format!("{}.0.0.0/{}", 1 + chance.below(100), 8 + chance.below(20)),
        }
    } else if like.split(':').count() == 6 && !like.contains("::") {
        format!("02:41:18:00:00:{last:02x}")
    } else {
        format!("2001:db8:{:x}::/{}", chance.below(4096), 48 + chance.below(40))
    }
}

/// The prefix, one bit longer or shorter. What is no prefix stays.
fn resized(element: &str, by: i32) -> String {
    let Some((address, length)) = element.split_once('/') else {
        let length = if element.contains(':') { 128 } else { 32 };
        let is_prefix = !element.contains('-') && element.split(':').count() != 6;
        return if by < 0 && is_prefix {
            format!("{element}/{}", length - 1)
        } else {
            element.to_owned()
        };
    };
    let length: i32 = length.parse().unwrap_or(32);
    format!("{address}/{}", length + by)
}

/// Rules of the test's own, by which it sees which packets came, and which got through.
pub(crate) fn witness() -> Result<()> {
    let sets: String = ["came", "passed"]
        .iter()
        .map(|name| format!("set {name} {{ type inet_service; flags dynamic; size 4096; }}\n"))
        .collect();
    let note = |set: &str| format!("iifname \"manager0\" add @{set} {{ th sport }}");
    let rules = format!(
        "table inet witness {{\n{sets}\
         chain first {{ type filter hook prerouting priority -450; {}; }}\n\
         chain last {{ type filter hook input priority 2147483646; {} drop; }}\n\
         chain away {{ type filter hook forward priority 2147483646; {} drop; }}\n}}\n",
        note("came"),
        note("passed").replace(" add", " meta l4proto != ipv6-icmp add"),
        note("passed"),
    );
    feed(["nft", "-f", "-"], &rules).map(drop)
}

/// The source ports in one of the witness's sets.
pub(crate) fn seen(set: &str) -> Result<Vec<u16>> {
    let text = run(["nft", "list", "set", "inet", "witness", set])?;
    let inside = text.split_once("elements = {").map_or("", |(_, rest)| rest);
    let inside = inside.split_once('}').map_or("", |(inside, _)| inside);
    Ok(inside.split(',').filter_map(|port| port.trim().parse().ok()).collect())
}

/// Forgets what was seen.
pub(crate) fn forget() -> Result<()> {
    let script = "flush set inet witness came\nflush set inet witness passed\n";
    feed(["nft", "-f", "-"], script).map(drop)
}
