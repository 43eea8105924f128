//! Firewalls beside agent-fw: how each is put up, looked at and loaded again.

use agent_fw_lab::{Lab, run};
use anyhow::Result;
use std::any::Any;

/// A firewall beside agent-fw.
pub(crate) struct Neighbour {
    /// Puts it up, so that it stops everything but what it must; what it returns keeps it up.
    pub(crate) put_up: fn(&Lab) -> Result<Box<dyn Any>>,
    /// What it has, without what changes by itself.
    pub(crate) rules: fn() -> Result<String>,
    /// Loads it again from where it keeps its rules.
    pub(crate) reload: fn() -> Result<()>,
    /// Whether it keeps what it is told.
    pub(crate) keeps: bool,
}

/// Drops by policy both ways; only what belongs to known connections passes.
const HAND_WRITTEN: &str = "\
#!/usr/sbin/nft -f
flush ruleset
table inet host {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state vmap { established : accept, related : accept, invalid : drop }
		iif lo accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		jump services
	}
	chain services {
		tcp dport 22 ct state new accept
	}
	chain output {
		type filter hook output priority filter; policy drop;
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		tcp dport 443 accept
	}
}
";

pub(crate) fn firewalld_rules() -> Result<String> {
    let lists = [&["--list-all-zones"][..], &["--permanent", "--list-all-zones"]];
    let sets = [&["--get-ipsets"][..], &["--permanent", "--get-ipsets"]];
    let all = lists.iter().chain(&sets);
    all.map(|list| run(["firewall-cmd"].iter().chain(*list))).collect()
}

pub(crate) fn reload_firewalld() -> Result<()> {
    run(["firewall-cmd", "--reload"]).map(drop)
}

pub(crate) fn put_up_ufw(_: &Lab) -> Result<Box<dyn Any>> {
    run(["ufw", "--force", "enable"])?;
    Ok(Box::new(()))
}

pub(crate) fn ufw_rules() -> Result<String> {
    Ok(run(["ufw", "show", "added"])? + &std::fs::read_to_string("/etc/ufw/user.rules")?)
}

/// The programs of a kind of iptables, each with the file that its rules are loaded from.
fn saved(kind: &str) -> [(String, String); 2] {
    ["iptables", "ip6tables"]
        .map(|version| (format!("{version}-{kind}"), format!("/etc/{version}")))
}

/// What many hosts have: answers and neighbour discovery pass, and the rest ends.
pub(crate) fn put_up_iptables(kind: &str) -> Result<Box<dyn Any>> {
    for (program, file) in saved(kind) {
        for rule in [
            "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "-A INPUT -i lo -j ACCEPT",
            if program.starts_with("ip6") { "-A INPUT -p icmpv6 -j ACCEPT" } else { "-N theirs" },
            "-P INPUT DROP",
        ] {
            run([&*program].into_iter().chain(rule.split(' ')))?;
        }
        std::fs::write(file, run([format!("{program}-save")])?)?;
    }
    Ok(Box::new(()))
}

pub(crate) fn iptables_rules(kind: &str) -> Result<String> {
    let mut rules = String::new();
    for (program, _) in saved(kind) {
        for line in run([format!("{program}-save")])?.lines().filter(|l| !l.starts_with('#')) {
            let line = line.split_once(" [").map_or(line, |(chain, _)| chain);
            rules = rules + line + "\n";
        }
    }
    Ok(rules)
}

pub(crate) fn reload_iptables(kind: &str) -> Result<()> {
    for (program, file) in saved(kind) {
        run([&*format!("{program}-restore"), &file])?;
    }
    Ok(())
}

pub(crate) fn put_up_ruleset(_: &Lab) -> Result<Box<dyn Any>> {
    std::fs::write("/etc/nftables.conf", HAND_WRITTEN)?;
    load_ruleset()?;
    Ok(Box::new(()))
}

pub(crate) fn load_ruleset() -> Result<()> {
    run(["nft", "-f", "/etc/nftables.conf"]).map(drop)
}

pub(crate) fn ruleset() -> Result<String> {
    run(["nft", "list", "table", "inet", "host"])
}
