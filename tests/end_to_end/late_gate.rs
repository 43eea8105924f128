//! Packets that become ones to the agent's port behind the gate, and ways past every chain.

use crate::scene::{AGENT, LISTED, PATIENCE, UNLISTED, address, check, from, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, connect, feed, output, run};
use anyhow::{Context as _, Result, ensure};
use std::net::SocketAddr;

tests![
    a_rule_that_sets_the_port_behind_the_gate_lets_nobody_in,
    the_late_gate_counts_what_it_refuses_once_and_nothing_that_is_admitted,
    verify_misses_the_late_gate,
    of_a_saved_ruleset_over_the_table_verify_says_nothing_untrue,
    explain_names_the_late_gate,
    doctor_names_a_rule_that_sends_the_port_on_to_a_container,
    doctor_names_a_rule_that_hands_other_ports_to_the_agent,
    doctor_names_a_rule_that_changes_sources_behind_the_gate,
    a_program_alone_is_not_called_closed_where_the_port_is_rewritten_behind_it,
    a_rule_behind_the_last_gate_is_named_wherever_closed_is_shown,
    a_port_that_is_sent_on_by_way_of_other_chains_is_not_called_closed,
    what_segment_routing_unpacks_is_refused_too,
];

/// On a kernel with IPVS.
pub(crate) const WITH_IPVS: &[crate::Test] =
    &[("a_port_that_ipvs_sends_to_the_agent_is_closed_too", ipvs_is_closed_too)];

/// Another port, which leads to the agent's.
pub(crate) const OTHER: u16 = 8444;

/// Has packets to the other port changed into ones to `agent` at this priority, and its answers
/// back, but for clients that talk to that port itself.
pub(crate) fn rewrite(priority: i32, agent: u16) -> Result<()> {
    feed(
        ["nft", "-f", "-"],
        &format!(
            "table inet rewriting {{
               set clients {{ type inet_service; flags dynamic; size 65535; }}
               chain in {{ type filter hook input priority {priority};
                 tcp dport {OTHER} add @clients {{ tcp sport }} tcp dport set {agent}
               }}
               chain out {{ type filter hook output priority 10;
                 tcp sport {agent} tcp dport @clients tcp sport set {OTHER}
               }}
             }}"
        ),
    )
    .map(drop)
}

fn a_rule_that_sets_the_port_behind_the_gate_lets_nobody_in() -> Result<()> {
    for priority in [-299, 10, 2_147_483_644] {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            rewrite(priority, AGENT)?;
            for source in [UNLISTED[0], "2001:db8::1"] {
                let seen = from(&manager, source, OTHER)?;
                ensure!(seen == Outcome::Talked, "{source} would get in, {priority}: {seen}");
            }
            install(&["--allow-from", "region:us-1", "--allow-from", "2001:db8:1::/64"])?;
            for source in [UNLISTED[0], "2001:db8::1"] {
                let seen = from(&manager, source, OTHER)?;
                ensure!(seen == Outcome::Silent, "{source}, {priority}: {seen}");
            }
            for source in [LISTED[0], "2001:db8:1::1"] {
                for port in [OTHER, AGENT] {
                    let seen = from(&manager, source, port)?;
                    ensure!(seen == Outcome::Talked, "{source} to {port}, {priority}: {seen}");
                }
            }
            let verified = agent_fw(["verify"])?;
            ensure!(verified.code == Some(0), "{verified}");
            Ok(())
        })?;
    }
    Ok(())
}

fn refused() -> Result<u64> {
    Ok(status()?.0["refused"]["packets"].as_u64().unwrap_or_default())
}

fn the_late_gate_counts_what_it_refuses_once_and_nothing_that_is_admitted() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        rewrite(10, AGENT)?;
        install(&["--allow-from", "34.205.5.1"])?;
        ensure!(from(&manager, LISTED[1], AGENT)? == Outcome::Silent);
        let at_the_gate = refused()?;
        ensure!(at_the_gate > 0, "the gate counts");
        ensure!(from(&manager, LISTED[1], OTHER)? == Outcome::Silent);
        ensure!(refused()? == 2 * at_the_gate, "{} after {at_the_gate}", refused()?);
        let input = "table inet sum { chain c { type filter hook input priority -301;
                     tcp dport 4118 counter\n}\n}";
        feed(["nft", "-f", "-"], input)?;
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Talked);
        std::thread::sleep(PATIENCE);
        let (value, _) = status()?;
        let counters = value["admitted"].as_array().into_iter().flatten();
        let admitted: u64 = counters.filter_map(|counter| counter["packets"].as_u64()).sum();
        let listed = run(["nft", "list", "chain", "inet", "sum", "c"])?;
        ensure!(listed.contains(&format!("packets {admitted} ")), "{admitted}: {listed}");
        Ok(())
    })
}

fn verify_misses_the_late_gate() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        run(["nft", "flush", "chain", "inet", "agent_fw", "late"])?;
        let verified = agent_fw(["verify"])?;
        ensure!(verified.code == Some(1), "{verified}");
        ensure!(verified.stdout.contains("has given it this port"), "{verified}");
        Ok(())
    })
}

/// `nft -f` of a ruleset that was saved yesterday adds its rules to those of today.
fn of_a_saved_ruleset_over_the_table_verify_says_nothing_untrue() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "198.51.100.7"])?;
        let saved = run(["nft", "list", "ruleset"])?;
        install(&["--allow-from", "region:us-1"])?;
        feed(["nft", "-f", "-"], &saved)?;
        rewrite(10, AGENT)?;
        for port in [AGENT, OTHER] {
            for source in [UNLISTED[0], "198.51.100.7"] {
                let seen = from(&manager, source, port)?;
                ensure!(seen == Outcome::Silent, "from {source} to {port}: {seen}");
            }
            let seen = from(&manager, LISTED[0], port)?;
            ensure!(seen == Outcome::Talked, "of those listed, to {port}: {seen}");
        }
        let verified = agent_fw(["verify"])?;
        ensure!(verified.code == Some(1), "{verified}");
        let passes = verified.stdout.contains("the kernel: lets it pass");
        ensure!(!passes && verified.stdout.contains("not known"), "{verified}");
        agent_fw(["apply"])?.success()?;
        agent_fw(["verify"])?.success()?;
        Ok(())
    })
}

fn explain_names_the_late_gate() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        rewrite(10, AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let source = address("198.51.100.7");
        manager.add_address(source)?;
        let port = OTHER.to_string();
        // The rule that gives the port notes the client.
        let consent = "--accept-side-effects";
        let said = agent_fw(["explain", "--from", "198.51.100.7", "--port", &port, consent])?;
        ensure!(said.code == Some(1), "{said}");
        ensure!(said.stdout.contains("late") && said.stdout.contains("agent_fw"), "{said}");
        Ok(())
    })
}

/// A container, as far as a rule can tell: another host, behind this one.
fn publish(lab: &Lab) -> Result<(Peer, Peer)> {
    let (manager, container) = (lab.peer("manager")?, lab.peer("container")?);
    lab.forward()?;
    let rules = format!(
        "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat;
           ip daddr {} tcp dport {AGENT} dnat to {}:{AGENT}\n}}\n}}",
        manager.host_v4(),
        container.v4()
    );
    feed(["nft", "-f", "-"], &rules)?;
    Ok((manager, container))
}

const DETOURS: &str = "ways past the gate";

fn doctor_names_a_rule_that_sends_the_port_on_to_a_container() -> Result<()> {
    Lab::run(|lab| {
        let (manager, container) = publish(lab)?;
        let _published = container.enter(|| Listener::bind(AGENT))??;
        install(&["--allow-from", "region:us-1"])?;
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "bad" && seen.contains("dport 4118"), "{health}: {seen}");
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Talked, "it is so");
        // What doctor advises.
        install(&["--allow-from", "region:us-1", "--early-drop"])?;
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Silent, "closed");
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "good", "{health}: {seen}");
        install(&["--allow-from", "region:us-1"])?;
        // The same by iptables, as containers' engines write it; and another port's.
        for (dport, expected) in [("4118", "bad"), ("4117:4119", "bad"), ("8080", "good")] {
            run(["nft", "flush", "ruleset"])?;
            install(&["--allow-from", "region:us-1"])?;
            let to = format!("{}:{AGENT}", container.v4());
            run(["iptables-nft", "-t", "nat", "-N", "ENGINE"])?;
            run(["iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "ENGINE"])?;
            let rule = ["iptables-nft", "-t", "nat", "-A", "ENGINE", "-p", "tcp"];
            let target = ["--dport", dport, "-j", "DNAT", "--to-destination", &to];
            run(rule.iter().chain(&target))?;
            let (health, seen) = check(DETOURS)?;
            ensure!(health == expected, "{dport}, {health}: {seen}");
        }
        Ok(())
    })
}

fn doctor_names_a_rule_that_hands_other_ports_to_the_agent() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        install(&["--allow-from", "region:us-1"])?;
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "good", "{health}: {seen}");
        for (to, expected) in [("4118", "bad"), ("4119", "good")] {
            let rules = format!(
                "table ip hand\ndelete table ip hand\ntable ip hand {{ chain prerouting {{
                   type filter hook prerouting priority mangle;
                   tcp dport 80 tproxy to :{to} accept\n}}\n}}"
            );
            if feed(["nft", "-f", "-"], &rules).is_err() {
                // This kernel has no TPROXY.
                return Ok(());
            }
            let (health, seen) = check(DETOURS)?;
            ensure!(health == expected, "{to}, {health}: {seen}");
        }
        Ok(())
    })
}

fn doctor_names_a_rule_that_changes_sources_behind_the_gate() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let rules = "table ip source { chain input { type nat hook input priority 100;
                     tcp dport 4118 snat to 10.0.0.1\n}\n}";
        feed(["nft", "-f", "-"], rules)?;
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "note" && seen.contains("another source"), "{health}: {seen}");
        Ok(())
    })
}

/// What gives packets the agent's port where only a program on the interface has seen them.
const REWRITING: [&str; 6] = [
    // The mark has been in the register of the port.
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       meta l4proto tcp meta mark set 5 redirect to :tcp dport map { 8444 : 4118 }\n}\n}",
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       tcp dport 8444 redirect to :4118\n}\n}",
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       tcp dport 8444 dnat to HERE:4118\n}\n}",
    "table ip x { map m { type inet_service : inet_service; elements = { 8444 : 4118 }\n}
       chain p { type nat hook prerouting priority dstnat;
       meta l4proto tcp redirect to :tcp dport map @m\n}\n}",
    "table ip x { chain p { type nat hook prerouting priority dstnat; meta l4proto tcp jump q\n}
       chain q { meta l4proto tcp redirect to :4000-4200\n}\n}",
    "table ip x { chain p { type filter hook prerouting priority -150;
       tcp dport 8444 tcp dport set 4118\n}\n}",
];
/// Of these, what does not.
const HARMLESS: [&str; 4] = [
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       tcp dport 8444 redirect to :4119\n}\n}",
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       udp dport 8444 redirect to :4118\n}\n}",
    "table ip x { chain p { type nat hook prerouting priority dstnat;
       tcp dport 8444 dnat to 192.0.2.99:4118\n}\n}",
    "table ip x { chain p { type nat hook output priority -100;
       tcp dport 8444 redirect to :4118\n}\n}",
];

fn a_program_alone_is_not_called_closed_where_the_port_is_rewritten_behind_it() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let stranger = address(UNLISTED[0]);
        manager.add_address(stranger)?;
        let to = SocketAddr::from((manager.host_v4(), 8444));
        let knock = || manager.enter(|| connect(stranger, to, PATIENCE))?;
        let alone = ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
        install(&alone)?;
        let is_closed = || -> Result<(bool, String)> {
            let (said, _) = status()?;
            Ok((said["closed"] == true, said["not_closed"].to_string()))
        };
        let here = manager.host_v4().to_string();
        for rules in REWRITING {
            feed(["nft", "-f", "-"], &rules.replace("HERE", &here))?;
            let (closed, why) = is_closed()?;
            ensure!(!closed && why.contains("behind the XDP program"), "{rules}: {why}");
            let (health, seen) = check(DETOURS)?;
            ensure!(health == "bad", "{rules}: {seen}");
            // Without a rule that changes the answer back, what is set reaches the agent alone.
            if !rules.contains("set 4118") && !rules.contains("4000-4200") {
                ensure!(knock()? == Outcome::Talked, "it is so: {rules}");
            }
            // What is advised.
            let both = ["--allow-from", "region:us-1", "--backend", "both"];
            install(&[&both[..], &["--interface", "manager0"]].concat())?;
            ensure!(knock()? != Outcome::Talked, "{rules}");
            ensure!(is_closed()?.0, "{rules}: {}", is_closed()?.1);
            install(&alone)?;
            run(["nft", "delete", "table", "ip", "x"])?;
        }
        for rules in HARMLESS {
            feed(["nft", "-f", "-"], rules)?;
            ensure!(is_closed()?.0, "{rules}: {}", is_closed()?.1);
            run(["nft", "delete", "table", "ip", "x"])?;
        }
        // The same by iptables, in both of its ways.
        for iptables in ["iptables-nft", "iptables-legacy"] {
            let nat = [iptables, "-t", "nat"];
            let redirect = ["-p", "tcp", "--dport", "8444", "-j", "REDIRECT", "--to-ports", "4118"];
            let rule = |verb| [&nat[..], &[verb, "PREROUTING"], &redirect].concat();
            if output(rule("-A"))?.code != Some(0) {
                // This kernel has not both.
                continue;
            }
            let (closed, why) = is_closed()?;
            ensure!(!closed && why.contains("behind the XDP program"), "{iptables}: {why}");
            ensure!(knock()? == Outcome::Talked, "it is so: {iptables}");
            run(rule("-D"))?;
            ensure!(is_closed()?.0, "{iptables}: {}", is_closed()?.1);
        }
        Ok(())
    })
}

fn a_rule_behind_the_last_gate_is_named_wherever_closed_is_shown() -> Result<()> {
    for priority in [2_147_483_645_i32, 2_147_483_646, 2_147_483_647] {
        Lab::run(|_| {
            let rules = format!(
                "table inet last {{ chain input {{ type filter hook input priority {priority};
                   tcp dport {OTHER} jump rewrite\n}}
                   chain rewrite {{ tcp dport set {AGENT}\n}}\n}}"
            );
            feed(["nft", "-f", "-"], &rules)?;
            install(&["--allow-from", "region:us-1"])?;
            let (said, _) = status()?;
            let why = said["not_closed"].to_string();
            ensure!(said["closed"] == false && why.contains("behind the last gate"), "{why}");
            let (health, seen) = check(DETOURS)?;
            ensure!(health == "bad", "{health}: {seen}");
            // Before the gate, it changes nothing.
            run(["nft", "delete", "table", "inet", "last"])?;
            let before = rules.replace(&priority.to_string(), "2147483644");
            feed(["nft", "-f", "-"], &before)?;
            let (said, _) = status()?;
            ensure!(said["closed"] == true, "{}", said["not_closed"]);
            Ok(())
        })
        .with_context(|| priority.to_string())?;
    }
    Ok(())
}

fn a_port_that_is_sent_on_by_way_of_other_chains_is_not_called_closed() -> Result<()> {
    Lab::run(|lab| {
        let (manager, container) = (lab.peer("manager")?, lab.peer("container")?);
        lab.forward()?;
        let _published = container.enter(|| Listener::bind(AGENT))??;
        install(&["--allow-from", "region:us-1"])?;
        let to = format!("{}:{AGENT}", container.v4());
        let base = "type nat hook prerouting priority dstnat";
        let send = format!("chain pod {{ meta l4proto tcp dnat to {to}\n}}");
        let is_closed = || -> Result<(bool, String)> {
            let (said, _) = status()?;
            Ok((said["closed"] == true, said["not_closed"].to_string()))
        };
        for (how, closed) in [
            ("tcp dport 4118 jump pod", false),
            ("meta l4proto tcp tcp dport vmap { 22 : accept, 4118 : goto pod }", false),
            ("ip daddr . tcp dport vmap { HERE . 4118 : jump pod }", false),
            ("tcp dport 4000-5000 jump pod", false),
            ("tcp dport 8080 jump pod", true),
            ("tcp dport vmap { 8080 : jump pod }", true),
            ("udp dport 4118 jump pod", true),
        ] {
            let how = how.replace("HERE", &manager.host_v4().to_string());
            let rules = format!("table ip sent {{ {send}\nchain p {{ {base};\n{how}\n}}\n}}");
            feed(["nft", "-f", "-"], &rules)?;
            let (seen, why) = is_closed()?;
            ensure!(seen == closed, "{how}: {why}");
            let outcome = from(&manager, UNLISTED[0], AGENT)?;
            ensure!((outcome == Outcome::Silent) == closed, "{how}: {outcome}");
            run(["nft", "delete", "table", "ip", "sent"])?;
        }
        // As container engines and their proxies write it.
        for iptables in ["iptables-nft", "iptables-legacy"] {
            let nat = |words: &str| -> Result<Option<i32>> {
                let words = words.replace("TO", &to);
                Ok(output([iptables, "-t", "nat"].into_iter().chain(words.split(' ')))?.code)
            };
            if nat("-N POD")? != Some(0) {
                // This kernel has not both.
                continue;
            }
            nat("-A PREROUTING -p tcp --dport 4118 -j POD")?;
            nat("-A POD -p tcp -j DNAT --to-destination TO")?;
            let (closed, why) = is_closed()?;
            ensure!(!closed, "{iptables}: {why}");
            ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Talked, "{iptables}: it is so");
            nat("-F PREROUTING")?;
            nat("-A PREROUTING -p tcp --dport 8080 -j POD")?;
            ensure!(is_closed()?.0, "{iptables}: {}", is_closed()?.1);
            nat("-F PREROUTING")?;
            nat("-F POD")?;
            nat("-X POD")?;
        }
        Ok(())
    })
}

fn what_segment_routing_unpacks_is_refused_too() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        lab.forward()?;
        lab.host().set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        lab.host().set_sysctl("net/ipv4/conf/manager0/rp_filter", "0")?;
        let segment = "2001:db8:5e6::1";
        let (here, gateway) = (manager.host_v4().to_string(), manager.host_v6().to_string());
        let unpack = format!("route add {segment} encap seg6local action End.DX4 nh4 0.0.0.0");
        run(["ip", "-6"].into_iter().chain(unpack.split(' ')).chain(["dev", "manager0"]))?;
        let eth0 = manager.own_interface();
        manager.enter(|| {
            run(["ip", "-6", "route", "add", segment, "via", &gateway])?;
            let pack = format!("route add {here}/32 encap seg6 mode encap segs {segment}");
            run(["ip"].into_iter().chain(pack.split(' ')).chain(["dev", eth0]))
        })??;
        let stranger = || from(&manager, UNLISTED[0], AGENT);
        ensure!(stranger()? == Outcome::Talked, "it would get in");
        for backend in [&[][..], &["--backend", "both", "--interface", "manager0"]] {
            install(&[&["--allow-from", "region:us-1"], backend].concat())?;
            ensure!(stranger()? == Outcome::Silent, "{backend:?}");
            ensure!(from(&manager, LISTED[0], AGENT)? == Outcome::Talked, "{backend:?}");
        }
        // What forwards is no host for a program alone; once it no longer does, the road is named.
        run(["nft", "flush", "ruleset"])?;
        lab.host().set_sysctl("net/ipv4/ip_forward", "0")?;
        lab.host().set_sysctl("net/ipv6/conf/all/forwarding", "0")?;
        install(&["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"])?;
        let (said, _) = status()?;
        let why = said["not_closed"].to_string();
        ensure!(said["closed"] == false && why.contains("segment routing"), "{why}");
        Ok(())
    })
}

fn ipvs_is_closed_too() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let virtual_service = format!("{}:8443", manager.host_v4());
        let real = format!("{}:{AGENT}", manager.host_v4());
        run(["ipvsadm", "-A", "-t", &virtual_service, "-s", "rr"])?;
        run(["ipvsadm", "-a", "-t", &virtual_service, "-r", &real, "-m"])?;
        let stranger = address(UNLISTED[0]);
        manager.add_address(stranger)?;
        let to = SocketAddr::from((manager.host_v4(), 8443));
        let knock = || manager.enter(|| connect(stranger, to, PATIENCE))?;
        ensure!(knock()? == Outcome::Talked, "it would get in");
        install(&["--allow-from", "region:us-1"])?;
        ensure!(knock()? == Outcome::Silent);
        ensure!(from(&manager, LISTED[0], 8443)? == Outcome::Talked, "a listed source");
        // A program alone does not see it, and is not called closed.
        let alone = ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
        install(&alone)?;
        let (said, _) = status()?;
        let why = said["not_closed"].to_string();
        ensure!(said["closed"] == false && why.contains("IPVS: service"), "{why}");
        Ok(())
    })
}
