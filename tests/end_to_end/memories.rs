//! Rules with a memory: asking the kernel passes them as a manager's own connection does, and so is
//! not done where one is on the way, unless it is asked for.

use crate::scene::{AGENT, address, connect_from, install};
use crate::tests;
use agent_fw_lab::{Finished, Lab, Listener, Outcome, Peer, agent_fw, feed, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;

tests![
    asking_does_not_change_what_rules_of_nftables_remember,
    asking_does_not_change_what_rules_of_iptables_nft_remember,
    asking_does_not_change_what_rules_of_iptables_legacy_remember,
    asked_with_consent_rules_of_nftables_remember_it,
    asked_with_consent_rules_of_iptables_nft_remember_it,
    asked_with_consent_rules_of_iptables_legacy_remember_it,
    a_rule_with_a_memory_that_the_packet_does_not_meet_is_no_reason_not_to_ask,
    a_rule_with_a_memory_that_the_packet_may_meet_by_a_roundabout_way_is_found,
    doctor_has_no_loopback_address_banned,
    where_rules_of_iptables_legacy_cannot_be_read_nothing_is_asked,
    a_limit_that_is_only_for_the_log_is_no_reason_not_to_ask,
    counters_grow_by_the_packets_that_are_told,
];

/// The manager.
const MANAGER: &str = "34.205.5.1";

/// A host's rules: nftables' text, or the command lines of other programs.
struct Host {
    rules: &'static [&'static str],
    /// Whether a packet that was asked with leaves something that can be seen.
    shows: bool,
}

const fn host(rules: &'static [&'static str]) -> Host {
    Host { rules, shows: true }
}

const NFT: &[Host] = &[
    // Banned for a day, from the second connection on.
    host(&[
        "table inet host {\nset banned {\ntype ipv4_addr; flags dynamic,timeout; timeout 1d;\n}\n\
            chain input {\ntype filter hook input priority 0;\nct state established,related accept\n\
            ip saddr @banned drop\ntcp dport 4118 ct state new update @banned { ip saddr }\n}\n}\n",
    ]),
    host(&["table inet host {\nchain input {\ntype filter hook input priority 0;\n\
            ct state established,related accept\n\
            tcp dport 4118 limit rate 1/hour burst 1 packets accept\ntcp dport 4118 drop\n}\n}\n"]),
    host(&["table inet host {\nlimit slow {\nrate 1/hour burst 1 packets\n}\n\
            chain input {\ntype filter hook input priority 0;\nct state established,related accept\n\
            tcp dport 4118 limit name \"slow\" accept\ntcp dport 4118 drop\n}\n}\n"]),
    host(&["table inet host {\nlimit slow {\nrate 1/hour burst 1 packets\n}\n\
            map limits {\ntype ipv4_addr : limit; elements = { 34.205.5.1 : \"slow\" }\n}\n\
            chain input {\ntype filter hook input priority 0;\nct state established,related accept\n\
            tcp dport 4118 limit name ip saddr map @limits accept\ntcp dport 4118 drop\n}\n}\n"]),
    host(&["table inet host {\nchain input {\ntype filter hook input priority 0;\n\
            ct state established,related accept\ntcp dport 4118 quota over 90 bytes drop\n}\n}\n"]),
    host(&["table inet host {\nquota few {\nover 90 bytes\n}\nchain input {\n\
            type filter hook input priority 0;\nct state established,related accept\n\
            tcp dport 4118 quota name \"few\" drop\n}\n}\n"]),
    // A knock is good for one connection.
    host(&["table inet host {\nset knocked {\ntype ipv4_addr; flags dynamic;\n\
            elements = { 34.205.5.1 }\n}\nchain input {\ntype filter hook input priority 0;\n\
            ct state established,related accept\n\
            tcp dport 4118 ip saddr @knocked delete @knocked { ip saddr } accept\n\
            tcp dport 4118 drop\n}\n}\n"]),
    host(&["table inet host {\nset many {\ntype ipv4_addr; flags dynamic;\n}\nchain input {\n\
            type filter hook input priority 0;\n\
            tcp dport 4118 ct state new add @many { ip saddr ct count over 9 } drop\n}\n}\n"]),
    Host {
        rules: &["table inet host {\nchain input {\ntype filter hook input priority 0;\n\
                  tcp dport 4118 ct count over 9 drop\n}\n}\n"],
        shows: false,
    },
    host(&["table inet host {\nchain input {\ntype filter hook input priority 0;\n\
            ct state established,related accept\n\
            tcp dport 4118 meter flood { ip saddr limit rate over 1/hour burst 1 packets } drop\n\
            }\n}\n"]),
    host(&["table inet host {\nchain input {\ntype filter hook input priority 0;\n\
            ct state established,related accept\ntcp dport 4118 numgen inc mod 5 3 drop\n}\n}\n"]),
    // Elsewhere on the way: at the interface, before routing, and of the answer.
    host(&[
        "table netdev host {\nset seen {\ntype ipv4_addr; flags dynamic;\n}\nchain ingress {\n\
            type filter hook ingress device \"manager0\" priority 0;\n\
            tcp dport 4118 add @seen { ip saddr }\n}\n}\n",
    ]),
    host(&["table ip host {\nset seen {\ntype ipv4_addr; flags dynamic;\n}\nchain early {\n\
            type filter hook prerouting priority -300;\n\
            ip saddr 18.0.0.0/7 jump notes\nip saddr 32.0.0.0/6 jump notes\n}\nchain notes {\n\
            add @seen { ip saddr }\n}\n}\n"]),
    host(&["table inet host {\nset seen {\ntype ipv4_addr; flags dynamic;\n}\nchain output {\n\
            type filter hook output priority 0;\ntcp sport 4118 add @seen { ip daddr }\n}\n}\n"]),
    host(&["table ip host {\nset seen {\ntype ipv4_addr; flags dynamic;\n}\nchain last {\n\
            type filter hook postrouting priority 200;\n\
            ip daddr 16.0.0.0-35.0.0.0 add @seen { ip daddr }\n}\n}\n"]),
];

/// With `iptables`, which stands for one of its two kinds.
const IPTABLES: &[Host] = &[
    host(&[
        "iptables -A INPUT -p tcp --dport 4118 -m conntrack --ctstate NEW -m recent --name mgr --set",
        "iptables -A INPUT -p tcp --dport 4118 -m conntrack --ctstate NEW -m recent --name mgr \
         --update --seconds 600 --hitcount 3 -j DROP",
    ]),
    host(&["iptables -A INPUT -p tcp --dport 4118 -m conntrack --ctstate NEW -m hashlimit \
            --hashlimit-above 1/hour --hashlimit-burst 1 --hashlimit-mode srcip \
            --hashlimit-name mgr -j DROP"]),
    host(&[
        "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "iptables -A INPUT -p tcp --dport 4118 -m limit --limit 1/hour --limit-burst 1 -j ACCEPT",
        "iptables -A INPUT -p tcp --dport 4118 -j DROP",
    ]),
    host(&[
        "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "iptables -A INPUT -p tcp --dport 4118 -m quota --quota 90 -j ACCEPT",
        "iptables -A INPUT -p tcp --dport 4118 -j DROP",
    ]),
    host(&[
        "ipset create seen hash:ip timeout 600",
        "iptables -N knocks",
        "iptables -A INPUT -p tcp --dport 4118 -j knocks",
        "iptables -A knocks -m conntrack --ctstate NEW -m set --match-set seen src -j DROP",
        "iptables -A knocks -m conntrack --ctstate NEW -j SET --add-set seen src --exist",
    ]),
    host(&["iptables -A INPUT -p tcp --dport 4118 -m conntrack --ctstate NEW -m statistic \
            --mode nth --every 2 --packet 1 -j DROP"]),
    Host {
        rules: &["iptables -A INPUT -p tcp --dport 4118 -m connlimit --connlimit-above 9 -j DROP"],
        shows: false,
    },
    host(&[
        "ipset create counted hash:ip counters",
        "ipset add counted 34.205.5.1",
        "iptables -A INPUT -p tcp --dport 4118 -m conntrack --ctstate NEW -m set \
         --match-set counted src --packets-gt 1 -j DROP",
    ]),
];

/// A host with agent-fw, and a manager who can reach it.
fn on_host(
    rules: &[&str],
    kind: &str,
    test: impl FnOnce(&Peer) -> Result<()> + Send,
) -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        peer.add_address(address(MANAGER))?;
        run(["ip", "route", "add", "default", "via", &peer.v4().to_string()])?;
        install(&["--allow-from", "region:us-1"])?;
        for rule in rules {
            match rule.split_once(' ') {
                Some(("iptables", arguments)) => {
                    run([kind].into_iter().chain(arguments.split_whitespace()))?
                }
                Some(("ipset", arguments)) => {
                    run(["ipset"].into_iter().chain(arguments.split_whitespace()))?
                }
                _ => feed(["nft", "-f", "-"], rule)?,
            };
        }
        test(&peer)
    })
    .with_context(|| format!("{kind}: {rules:#?}"))
}

/// What the host's rules remember: without plain counters, and without what time alone changes.
fn memory() -> Result<String> {
    let mut text = String::new();
    for table in run(["nft", "list", "tables"])?.lines() {
        if !table.contains(" agent_fw") {
            text += &run(["nft", "list"].into_iter().chain(table.split(' ')))?;
        }
    }
    text += &run(["ipset", "save"])?;
    let mut words = Vec::new();
    let mut all = text.split_whitespace();
    while let Some(word) = all.next() {
        words.push(word.to_owned());
        // `counter packets 1 bytes 40`, `expires 59m`, `timeout 599`; and a set's random numbers.
        if matches!(word, "packets" | "bytes" | "expires" | "timeout" | "initval") {
            all.next();
        }
    }
    // As the kernel lists them: when, how often; and of these, the rest counts down.
    for (directory, columns) in [("xt_recent", 0), ("ipt_hashlimit", 1)] {
        let lists =
            fs::read_dir(format!("/proc/thread-self/net/{directory}")).into_iter().flatten();
        for list in lists {
            for line in fs::read_to_string(list?.path())?.lines() {
                match columns {
                    0 => words.push(line.to_owned()),
                    column => words.extend(line.split(' ').nth(column).map(str::to_owned)),
                }
            }
        }
    }
    let tracked = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
    // Doctor speaks TLS over loopback.
    let loopback = ["src=127.0.0.1 ", "src=0000:0000:0000:0000:0000:0000:0000:0001 "];
    let is_of_agent = |line: &&str| {
        line.contains("dport=4118") && !loopback.iter().any(|source| line.contains(source))
    };
    let of_agent = tracked.lines().filter(is_of_agent).count();
    words.push(format!("{of_agent} connections"));
    Ok(words.join(" "))
}

fn connects(peer: &Peer) -> Result<()> {
    let met = connect_from(peer, address(MANAGER), AGENT)?;
    ensure!(met == Outcome::Talked, "the manager: {met}");
    Ok(())
}

fn json(arguments: &[&str]) -> Result<(Value, Finished)> {
    let finished = agent_fw(arguments.iter().chain(&["--json"]))?;
    let value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("the answer is no JSON: {finished}"))?;
    Ok((value, finished))
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whatever asks, does not, and says why.
fn nothing_asks() -> Result<()> {
    let (one, finished) = json(&["explain", "--from", MANAGER])?;
    ensure!(finished.code == Some(5), "{finished}");
    ensure!(one["asked"] == false && one["reaches"].is_null(), "{one:#}");
    ensure!(one["packets_sent"]["in"] == 0 && one["packets_sent"]["out"] == 0, "{one:#}");
    let rule = &one["stateful_rules"][0];
    for part in ["table", "rule", "effect"] {
        ensure!(rule[part].as_str().is_some_and(|text| !text.is_empty()), "{part}: {one:#}");
    }
    let plain = agent_fw(["explain", "--from", MANAGER])?;
    ensure!(plain.stdout.contains("not asked: rules of this host"), "{plain}");
    ensure!(plain.stdout.contains("--accept-side-effects"), "{plain}");
    let (all, finished) = json(&["explain", "--all"])?;
    ensure!(finished.code == Some(5) && all["as_promised"].is_null(), "{finished}");
    let answers = all["answers"].as_array().context("answers")?;
    let memory = |answer: &&Value| {
        let said = answer["conclusion"].as_str().unwrap_or_default();
        said.starts_with("not asked: rule") && said.contains("has a memory")
    };
    ensure!(answers.iter().any(|answer| memory(&answer)), "{all:#}");
    let (doctor, _) = json(&["doctor"])?;
    let checks = doctor["checks"].as_array().context("checks")?;
    let mut sources = checks.iter().filter(|check| check["check"] == "admitted sources");
    ensure!(
        sources.all(|check| check["health"] == "note"
            && check["seen"].as_str().is_some_and(|seen| seen.contains("not asked: rule"))),
        "{doctor:#}"
    );
    let metrics = agent_fw(["metrics", "--probe"])?;
    ensure!(metrics.code == Some(0), "{metrics}");
    ensure!(in_one_line(&metrics.stderr).contains("has a memory"), "{metrics}");
    let has = |name: &str| metrics.stdout.lines().any(|line| line.starts_with(name));
    ensure!(has("agent_fw_open_not_asked{") && !has("agent_fw_open{"), "{metrics}");
    let install = agent_fw(["install", "--no-boot", "--allow-from", "region:us-1"])?;
    let words = in_one_line(&install.stdout);
    ensure!(words.contains("not known for") && words.contains("has a memory"), "{install}");
    ensure!(!words.contains("they get through") && !words.contains("not open"), "{install}");
    Ok(())
}

fn asking_changes_nothing(hosts: &[Host], kind: &str) -> Result<()> {
    for host in hosts {
        on_host(host.rules, kind, |peer| {
            let before = memory()?;
            nothing_asks()?;
            let after = memory()?;
            ensure!(before == after, "before: {before}\nafter: {after}");
            connects(peer)
        })?;
    }
    Ok(())
}

/// With consent it is asked, and is remembered: so what is said above could have failed.
fn asking_changes_something(hosts: &[Host], kind: &str) -> Result<()> {
    for host in hosts {
        on_host(host.rules, kind, |peer| {
            let before = memory()?;
            let (value, _) = json(&["explain", "--from", MANAGER, "--accept-side-effects"])?;
            ensure!(value["asked"] == true && value["packets_sent"]["in"] != 0, "{value:#}");
            let rules = value["stateful_rules"].as_array().context("rules")?;
            ensure!(!rules.is_empty(), "{value:#}");
            let all = agent_fw(["explain", "--all", "--accept-side-effects"])?;
            ensure!(all.code != Some(5), "{all}");
            let is_remembered = memory()? != before
                || connect_from(peer, address(MANAGER), AGENT)? != Outcome::Talked;
            ensure!(is_remembered || !host.shows, "nothing shows that it was asked");
            Ok(())
        })?;
    }
    Ok(())
}

fn asking_does_not_change_what_rules_of_nftables_remember() -> Result<()> {
    asking_changes_nothing(NFT, "nft")
}

fn asking_does_not_change_what_rules_of_iptables_nft_remember() -> Result<()> {
    asking_changes_nothing(IPTABLES, "iptables-nft")
}

fn asking_does_not_change_what_rules_of_iptables_legacy_remember() -> Result<()> {
    asking_changes_nothing(IPTABLES, "iptables-legacy")
}

fn asked_with_consent_rules_of_nftables_remember_it() -> Result<()> {
    asking_changes_something(NFT, "nft")
}

fn asked_with_consent_rules_of_iptables_nft_remember_it() -> Result<()> {
    asking_changes_something(IPTABLES, "iptables-nft")
}

fn asked_with_consent_rules_of_iptables_legacy_remember_it() -> Result<()> {
    asking_changes_something(IPTABLES, "iptables-legacy")
}

/// Whether these rules are a reason not to ask about the manager.
fn is_asked(rules: &[&str], kind: &str) -> Result<()> {
    on_host(rules, kind, |peer| {
        let before = memory()?;
        let (value, finished) = json(&["explain", "--from", MANAGER])?;
        ensure!(finished.code == Some(0) && value["connects"] == true, "{finished}");
        ensure!(memory()? == before, "{before} became {}", memory()?);
        connects(peer)
    })
}

fn a_rule_with_a_memory_that_the_packet_does_not_meet_is_no_reason_not_to_ask() -> Result<()> {
    const SEEN: &str = "table inet host {\nset seen {\ntype ipv4_addr; flags dynamic;\n}\n";
    let chain = |hook: &str, rules: &str| {
        format!("{SEEN}chain only {{\ntype filter hook {hook} priority 0;\n{rules}\n}}\n}}\n")
    };
    for (hook, rules) in [
        ("input", "tcp dport 22 add @seen { ip saddr }"),
        ("input", "tcp dport { 22, 80, 5000-6000 } add @seen { ip saddr }"),
        ("input", "udp dport 4118 add @seen { ip saddr }"),
        ("input", "ip saddr 192.0.2.0/24 add @seen { ip saddr }"),
        ("input", "ip saddr != 34.205.5.0/24 add @seen { ip saddr }"),
        ("input", "iifname \"eth7\" add @seen { ip saddr }"),
        ("input", "ct state established add @seen { ip saddr }"),
        ("input", "tcp dport 4118 accept\nlimit rate 1/hour drop"),
        ("input", "tcp dport 4118 ct state new,untracked,related accept\nadd @seen { ip saddr }"),
        ("output", "tcp dport 443 limit rate 1/hour accept"),
        ("forward", "add @seen { ip saddr }"),
    ] {
        is_asked(&[&chain(hook, rules)], "nft")?;
    }
    let vmap = format!(
        "{SEEN}chain other {{\nadd @seen {{ ip saddr }}\n}}\nchain input {{\n\
         type filter hook input priority 0;\ntcp dport vmap {{ 22 : jump other, 23 : drop }}\n}}\n}}\n"
    );
    is_asked(&[&vmap], "nft")?;
    for kind in ["iptables-nft", "iptables-legacy"] {
        for rules in [
            &["iptables -A INPUT -p tcp --dport 22 -m recent --name ssh --set"][..],
            &["iptables -A INPUT -s 192.0.2.0/24 -m recent --name some --set"],
            &["iptables -A INPUT -p tcp -m multiport --dports 22,80:90 -m recent --name x --set"],
            &[
                "iptables -A INPUT -m conntrack --ctstate INVALID,ESTABLISHED -m recent --name x --set",
            ],
            &["iptables -A INPUT -m addrtype ! --dst-type LOCAL -m recent --name x --set"],
            // Only looks whether somebody has knocked.
            &[
                "iptables -A INPUT -p tcp --dport 7000 -m recent --name knock --set",
                "iptables -A INPUT -p tcp --dport 23 -m recent --name knock --rcheck -j ACCEPT",
            ],
            &[
                "iptables -A INPUT -s 34.205.5.0/24 -p tcp --dport 4118 -j ACCEPT",
                "iptables -A INPUT -m recent --name all --set",
            ],
        ] {
            is_asked(rules, kind)?;
        }
    }
    Ok(())
}

fn a_rule_with_a_memory_that_the_packet_may_meet_by_a_roundabout_way_is_found() -> Result<()> {
    let seen = "set seen {\ntype ipv4_addr; flags dynamic;\n}\n";
    let input = "chain input {\ntype filter hook input priority 0;\n";
    for rules in [
        // By a map, by two jumps, in a table of its own family.
        format!(
            "table inet host {{\n{seen}chain a {{\ngoto b\n}}\nchain b {{\nadd @seen {{ ip saddr }}\n}}\n\
             {input}tcp dport vmap {{ 22 : drop, 4000-5000 : jump a }}\n}}\n}}\n"
        ),
        format!(
            "table inet host {{\n{seen}chain a {{\nadd @seen {{ ip saddr }}\n}}\n\
             {input}meta l4proto . th dport vmap {{ udp . 53 : accept, tcp . 4118 : jump a }}\n}}\n}}\n"
        ),
        // Its port is another by then.
        format!(
            "table inet host {{\n{seen}chain nat {{\ntype nat hook prerouting priority -100;\n\
             tcp dport 4118 redirect to :8118\n}}\n{input}tcp dport 8118 add @seen {{ ip saddr }}\n}}\n}}\n"
        ),
        // A mark, of which nothing is known beforehand.
        format!(
            "table inet host {{\n{seen}chain early {{\ntype filter hook prerouting priority -150;\n\
             tcp dport 4118 meta mark set 7\n}}\n{input}meta mark 7 add @seen {{ ip saddr }}\n}}\n}}\n"
        ),
        // Not yet tracked.
        format!(
            "table inet host {{\n{seen}chain raw {{\ntype filter hook prerouting priority -300;\n\
             ct state invalid add @seen {{ ip saddr }}\n}}\n}}\n"
        ),
        // The limit comes before the port.
        format!("table inet host {{\n{input}limit rate 9/second tcp dport 22 accept\n}}\n}}\n"),
        // A set whose elements have limits.
        "table inet host {\nset slow {\ntype ipv4_addr; limit rate 1/hour;\n\
         elements = { 34.205.5.1 limit rate 1/hour }\n}\nchain input {\n\
         type filter hook input priority 0;\nip saddr @slow accept\n}\n}\n"
            .to_owned(),
    ] {
        on_host(&[&rules], "nft", |_| {
            let (value, finished) = json(&["explain", "--from", MANAGER])?;
            ensure!(finished.code == Some(5), "{finished}");
            ensure!(value["stateful_rules"][0]["handle"].is_u64(), "{value:#}");
            Ok(())
        })?;
    }
    Ok(())
}

fn doctor_has_no_loopback_address_banned() -> Result<()> {
    let rules = |first: &str| {
        format!(
            "table inet host {{\nset v4 {{\ntype ipv4_addr; flags dynamic;\n}}\n\
             set v6 {{\ntype ipv6_addr; flags dynamic;\n}}\n\
             chain input {{\ntype filter hook input priority 0;\n{first}\n\
             tcp dport 4118 ct state new add @v4 {{ ip saddr }}\n\
             tcp dport 4118 ct state new add @v6 {{ ip6 saddr }}\n}}\n}}\n"
        )
    };
    let tls = |doctor: &Value| {
        let all = doctor["checks"].as_array().into_iter().flatten();
        let mut of_tls = all.filter(|check| check["check"] == "TLS on the agent's port");
        of_tls.next().map(|check| check["seen"].as_str().unwrap_or_default().to_owned())
    };
    on_host(&[&rules("")], "nft", |_| {
        let before = memory()?;
        let (value, _) = json(&["doctor"])?;
        ensure!(tls(&value).is_some_and(|seen| seen.contains("has a memory")), "{value:#}");
        ensure!(memory()? == before, "{before} became {}", memory()?);
        Ok(())
    })?;
    // Where loopback does not come to that rule, it is tried.
    on_host(&[&rules("iif lo accept")], "nft", |_| {
        let before = memory()?;
        let (value, _) = json(&["doctor"])?;
        ensure!(tls(&value).is_some_and(|seen| !seen.contains("has a memory")), "{value:#}");
        ensure!(memory()? == before, "{before} became {}", memory()?);
        Ok(())
    })
}

fn where_rules_of_iptables_legacy_cannot_be_read_nothing_is_asked() -> Result<()> {
    let rule = "iptables -A INPUT -p tcp --dport 22 -j DROP";
    is_asked(&[rule], "iptables-legacy")?;
    on_host(&[rule], "iptables-legacy", |_| {
        // Where agent-fw looks for it, there is another file.
        for directory in ["/usr/sbin", "/sbin"] {
            let program = format!("{directory}/iptables-legacy-save");
            if fs::exists(&program)? {
                run(["mount", "--bind", "/bin/false", &program])?;
            }
        }
        let (value, finished) = json(&["explain", "--from", MANAGER])?;
        ensure!(finished.code == Some(5), "{finished}");
        ensure!(value["stateful_rules"][0]["table"] == "iptables-legacy", "{value:#}");
        Ok(())
    })
}

fn a_limit_that_is_only_for_the_log_is_no_reason_not_to_ask() -> Result<()> {
    let rules = "table inet host {\nchain input {\ntype filter hook input priority 0;\n\
                 limit rate 3/minute log prefix \"seen \"\n}\n}\n";
    is_asked(&[rules], "nft")?;
    for kind in ["iptables-nft", "iptables-legacy"] {
        is_asked(&["iptables -A INPUT -m limit --limit 3/min -j LOG"], kind)?;
    }
    Ok(())
}

fn counters_grow_by_the_packets_that_are_told() -> Result<()> {
    let tables = [
        ("netdev", "ingress device \"manager0\"", "tcp dport 4118"),
        ("inet", "ingress device \"manager0\"", "tcp dport 4118"),
        ("ip", "prerouting", "tcp dport 4118"),
        ("inet", "input", "tcp dport 4118"),
        ("inet", "output", "tcp sport 4118"),
        ("ip", "postrouting", "tcp sport 4118"),
    ];
    let rules = tables.map(|(table, hook, ours)| {
        let name = hook.split(' ').next().unwrap_or_default();
        format!(
            "table {table} {name}_{table} {{\nchain one {{\ntype filter hook {hook} priority 0;\n\
             {ours} counter\n}}\n}}\n"
        )
    });
    let rules = rules.concat();
    let counted = || -> Result<Vec<u64>> {
        let text = run(["nft", "list", "ruleset"])?;
        let ours = text.split("table ").filter(|table| !table.contains("agent_fw"));
        let of = |text: &str| {
            let rest = text.split("counter packets ").nth(1)?;
            rest.split(' ').next()?.parse().ok()
        };
        Ok(ours.filter_map(of).collect())
    };
    on_host(&[&rules], "nft", |_| {
        let before = counted()?;
        ensure!(before.len() == 6 && before.iter().all(|count| *count == 0), "{before:?}");
        let (value, _) = json(&["explain", "--from", MANAGER])?;
        let told = |way: &str| value["packets_sent"][way].as_u64().context("a number");
        let (inward, outward) = (told("in")?, told("out")?);
        let (mut grown, mut due) = (counted()?, [inward, inward, inward, inward, outward, outward]);
        grown.sort_unstable();
        due.sort_unstable();
        ensure!(grown == due, "{grown:?}, but {value:#}");
        let (all, _) = json(&["explain", "--all"])?;
        let (doctor, _) = json(&["doctor"])?;
        let sum = |way: &str| {
            let of = |value: &Value| value["packets_sent"][way].as_u64().context("a number");
            Ok::<_, anyhow::Error>(of(&value)? + of(&all)? + of(&doctor)?)
        };
        let (inward, grown) = (sum("in")?, counted()?);
        // ICMP, and what the agent sends to the outside, are told, too, and are not to this port.
        ensure!(grown.iter().max().is_some_and(|most| *most <= inward), "{grown:?}: {doctor:#}");
        Ok(())
    })
}
