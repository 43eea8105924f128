//! Exceptions in iptables, of both kinds: rules at the beginning of the chain that drops. Where
//! sources are many, they are in a chain of their own, which only packets to the port see.

use super::sources::Sources;
use super::step::{Presence, Step};
use crate::host_firewall::command::Call;
use crate::model::Port;
use std::fmt::Write as _;
use std::path::Path;

/// Sources that get a rule each in the chain that drops.
const FEW: usize = 8;
/// The chain, and the rules' comment.
const OURS: &str = "agent-fw";

/// Where distributions put them.
const PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Which iptables, and where in it.
pub(super) struct IptablesChain<'a> {
    pub(super) is_legacy: bool,
    pub(super) is_v4: bool,
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
}

pub(super) fn steps(at: &IptablesChain<'_>, sources: &Sources, port: Port) -> Vec<Step> {
    let by_address = sources.addresses(at.is_v4).into_iter().map(|address| format!("-s {address}"));
    let by_mac = sources.macs().iter().map(|mac| format!("-m mac --mac-source {mac}"));
    let mut matches: Vec<String> = by_address.chain(by_mac).collect();
    let port = format!("-p tcp -m tcp --dport {port}");
    if *sources == Sources::Everyone {
        matches.push(String::new());
    }
    if matches.len() <= FEW {
        let rule = |whom: &String| {
            at.rule(&format!("{port} {whom} -m comment --comment {OURS} -j ACCEPT"))
        };
        return matches.iter().map(rule).collect();
    }
    let comment = format!("-m comment --comment {OURS}");
    vec![at.new_chain(&matches), at.rule(&format!("{port} {comment} -j {OURS}"))]
}

impl IptablesChain<'_> {
    /// The program, or one that goes with it: `iptables-nft`, `ip6tables-legacy-restore`. Where
    /// there is no choice of kinds, it has no kind in its name.
    fn program(&self, what: &str) -> String {
        let version = if self.is_v4 { "iptables" } else { "ip6tables" };
        let kind = if self.is_legacy { "legacy" } else { "nft" };
        let of_kind = format!("{version}-{kind}");
        let is_there = |directory: &&str| Path::new(directory).join(&of_kind).exists();
        if PROGRAMS.iter().any(is_there) { of_kind + what } else { format!("{version}{what}") }
    }

    fn call(&self, verb: &str, chain: &str, rest: &str) -> Call {
        let program = self.program("");
        let words = [&*program, "-w", "-t", self.table, verb, chain];
        Call::new(words.into_iter().chain(rest.split_whitespace()))
    }

    fn rule(&self, rule: &str) -> Step {
        let Self { table, chain, .. } = self;
        let call = |verb: &str| self.call(verb, chain, rule);
        Step {
            what: format!("a rule in {} -t {table}, chain {chain}: {rule}", self.program("")),
            presence: Presence::Answer(call("-C")),
            is_named: false,
            make: vec![call("-I")],
            take_back: vec![call("-D")],
        }
    }

    fn new_chain(&self, matches: &[String]) -> Step {
        let table = self.table;
        let mut text = format!("*{table}\n:{OURS} - [0:0]\n");
        for whom in matches {
            // Writing to a string does not fail.
            let _ = writeln!(text, "-A {OURS} {whom} -j ACCEPT");
        }
        text.push_str("COMMIT\n");
        let restore = Call::new([&*self.program("-restore"), "-w", "--noflush"]).with_input(text);
        let count = matches.len();
        Step {
            what: format!("the chain {OURS} in {} -t {table}: {count} rules", self.program("")),
            presence: Presence::Answer(self.call("-n", "-L", OURS)),
            is_named: true,
            make: vec![restore],
            take_back: vec![self.call("-F", OURS, ""), self.call("-X", OURS, "")],
        }
    }
}
