//! What leads past the gate and what only looks like it: each is tried with a real connection.

use crate::foreign::choose_sockets;
use crate::scene::{AGENT, PATIENCE, UNLISTED, address, check, from, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, connect, feed, output, run};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};

tests![
    what_tproxy_hands_over_is_a_detour_where_the_agents_socket_takes_it,
    a_rule_about_other_addresses_or_ports_sends_nothing_of_the_agents_on,
    a_program_that_chooses_sockets_is_named,
];

const DETOURS: &str = "ways past the gate";

/// Whether `status` calls the port closed, and why not.
fn is_closed() -> Result<(bool, String)> {
    let (said, _) = status()?;
    Ok((said["closed"] == true, said["not_closed"].to_string()))
}

fn what_tproxy_hands_over_is_a_detour_where_the_agents_socket_takes_it() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let rules = "table ip hand { chain prerouting {
                       type filter hook prerouting priority mangle;
                       tcp dport 80 tproxy to :4118 accept\n}\n}";
        if feed(["nft", "-f", "-"], rules).is_err() {
            println!("this kernel has no TPROXY");
            return Ok(());
        }
        install(&["--allow-from", "region:us-1"])?;
        // Nobody knows what will listen.
        ensure!(!is_closed()?.0, "nothing listens");
        let agent = Listener::bind(AGENT)?;
        let (closed, why) = is_closed()?;
        ensure!(closed, "an ordinary socket: {why}");
        let seen = from(&manager, UNLISTED[0], 80)?;
        ensure!(seen != Outcome::Talked && agent.accepted().is_empty(), "it arrives: {seen}");
        ensure!(check(DETOURS)?.0 == "good", "{:?}", check(DETOURS)?);
        agent.become_transparent()?;
        let seen = from(&manager, UNLISTED[0], 80)?;
        ensure!(seen == Outcome::Talked, "a transparent socket: {seen}");
        let (closed, why) = is_closed()?;
        ensure!(!closed && why.contains("handed"), "{why}");
        ensure!(check(DETOURS)?.0 == "bad", "{:?}", check(DETOURS)?);
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Silent);
        Ok(())
    })
}

/// Rules by which a port may be sent on, and whether the agent's stays closed all the same.
const SENDING: [(&str, bool); 36] = [
    ("ip daddr HERE tcp dport 4118 dnat to THERE", false),
    ("ip daddr HERE/28 tcp dport 4118 dnat to THERE", false),
    ("ip daddr != 203.0.113.9 tcp dport 4118 dnat to THERE", false),
    ("fib daddr type local tcp dport 4118 dnat to THERE", false),
    ("ip daddr 203.0.113.9 tcp dport 4118 dnat to THERE", true),
    ("ip daddr 203.0.113.0/24 tcp dport 4118 dnat to THERE", true),
    ("ip daddr { 203.0.113.9, 203.0.113.11 } tcp dport 4118 dnat to THERE", true),
    ("ip daddr 203.0.113.1-203.0.113.9 tcp dport 4118 dnat to THERE", true),
    ("dnat to tcp dport map { 8080 : THERE }", true),
    ("dnat to tcp dport map { 80-90 : THERE }", true),
    ("dnat to tcp dport map { 8080 : THERE, 4118 : THERE }", false),
    ("dnat to tcp dport map { 4000-5000 : THERE }", false),
    ("dnat to ip daddr . tcp dport map { HERE . 8080 : THERE }", true),
    ("dnat to ip daddr . tcp dport map { 203.0.113.9 . 4118 : THERE }", true),
    ("dnat to ip daddr . tcp dport map { HERE . 4118 : THERE }", false),
    ("dnat to ip daddr map { 203.0.113.9 : THERE }", true),
    // What a rule reads behind the port takes the port's register.
    ("tcp dport 4118 ct mark 0 dnat to THERE", false),
    ("tcp dport 4118 fib daddr type local dnat to THERE", false),
    ("tcp dport 4118 ct original saddr 198.51.100.7 dnat to THERE", false),
    ("tcp dport 4118 dnat to numgen inc mod 2 map { 0 : THERE, 1 : THERE }", false),
    ("tcp dport 4118 dnat to jhash ip saddr mod 2 map { 0 : THERE, 1 : THERE }", false),
    ("tcp dport 4118 ip daddr . iifname { HERE . manager0 } dnat to THERE", false),
    ("tcp dport 8080 ct mark 0 dnat to THERE", true),
    ("tcp dport 8080 dnat to numgen inc mod 2 map { 0 : THERE, 1 : THERE }", true),
    // Maps of verdicts, by whatever they are looked up.
    ("tcp dport 4118 numgen random mod 2 vmap { 0 : goto on, 1 : goto on }", false),
    ("tcp dport 4118 ip saddr . ip daddr vmap { 198.51.100.7 . HERE : goto on }", false),
    ("tcp dport 4118 iifname . ip daddr vmap { manager0 . HERE : goto on }", false),
    ("ip daddr . tcp dport vmap { HERE . 4118 : goto on }", false),
    ("ip daddr . tcp dport vmap { HERE . 4000-5000 : goto on }", false),
    ("ip daddr . meta l4proto . th dport vmap { HERE . tcp . 4118 : goto on }", false),
    ("tcp dport vmap { 4000-5000 : goto on }", false),
    ("tcp dport 8080 numgen random mod 2 vmap { 0 : goto on, 1 : goto on }", true),
    ("ip daddr . tcp dport vmap { HERE . 8080 : goto on }", true),
    ("ip daddr . tcp dport vmap { HERE . 8000-9000 : goto on }", true),
    ("ip daddr . tcp dport vmap { 203.0.113.9 . 4118 : goto on }", true),
    ("tcp dport vmap { 8000-9000 : goto on }", true),
];

fn a_rule_about_other_addresses_or_ports_sends_nothing_of_the_agents_on() -> Result<()> {
    Lab::run(|lab| {
        let (manager, container) = (lab.peer("manager")?, lab.peer("container")?);
        lab.forward()?;
        let _published = container.enter(|| Listener::bind(AGENT))??;
        install(&["--allow-from", "region:us-1"])?;
        let (here, there) = (manager.host_v4().to_string(), container.v4().to_string());
        let stranger = address("198.51.100.7");
        manager.add_address(stranger)?;
        let other = "203.0.113.9";
        let gateway = format!("{other}/32");
        manager.enter(|| run(["ip", "route", "add", &gateway, "via", &here]))??;
        let to = |to: &str, port| -> Result<Outcome> {
            let to = SocketAddr::new(to.parse::<IpAddr>()?, port);
            manager.enter(|| connect(stranger, to, PATIENCE))?
        };
        let base = "type nat hook prerouting priority dstnat";
        let judge = |how: &str, is_closed_too: bool| -> Result<()> {
            let (closed, why) = is_closed()?;
            ensure!(closed == is_closed_too, "{how}: {why}");
            let seen = to(&here, AGENT)?;
            let due = if is_closed_too { Outcome::Silent } else { Outcome::Talked };
            ensure!(seen == due, "{how}: {seen}");
            Ok(())
        };
        for (how, closed) in SENDING {
            let rule = how.replace("THERE", &there).replace("HERE", &here);
            let on = format!("chain on {{ dnat to {there}\n}}");
            let rules = format!("table ip sent {{ {on}\nchain p {{ {base};\n{rule}\n}}\n}}");
            feed(["nft", "-f", "-"], &rules).with_context(|| rule.clone())?;
            judge(&rule, closed)?;
            if how.contains(other) && !how.contains("!=") {
                ensure!(to(other, AGENT)? == Outcome::Talked, "{rule}: it sends nothing on");
            }
            run(["nft", "delete", "table", "ip", "sent"])?;
        }
        // What a route makes this host's is this host's.
        let rules = format!(
            "table ip sent {{ chain p {{ {base};\nip daddr {other} tcp dport 4118 dnat to {there}\n}}\n}}"
        );
        feed(["nft", "-f", "-"], &rules)?;
        ensure!(is_closed()?.0, "{}", is_closed()?.1);
        run(["ip", "route", "add", "local", "203.0.113.0/24", "dev", "lo"])?;
        ensure!(!is_closed()?.0 && to(other, AGENT)? == Outcome::Talked, "a local route");
        run(["ip", "route", "del", "local", "203.0.113.0/24", "dev", "lo"])?;
        run(["nft", "delete", "table", "ip", "sent"])?;
        for iptables in ["iptables-nft", "iptables-legacy"] {
            let nat = |words: &str| -> Result<Option<i32>> {
                Ok(output([iptables, "-t", "nat"].into_iter().chain(words.split(' ')))?.code)
            };
            let rule = |to: &str| {
                format!(
                    "-A PREROUTING -d {to} -p tcp --dport 4118 -j DNAT --to-destination {there}"
                )
            };
            if nat(&rule(other))? != Some(0) {
                // This kernel has not both.
                continue;
            }
            judge(iptables, true)?;
            nat("-F PREROUTING")?;
            nat(&rule(&here))?;
            judge(iptables, false)?;
            nat("-F PREROUTING")?;
        }
        Ok(())
    })
}

fn a_program_that_chooses_sockets_is_named() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let (_, before) = check(DETOURS)?;
        ensure!(!before.contains("chooser"), "{before}");
        let program = choose_sockets("chooser")?;
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "note" && seen.contains("chooser"), "{health}: {seen}");
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Talked, "it lets all pass");
        ensure!(from(&manager, UNLISTED[0], AGENT)? == Outcome::Silent);
        drop(program);
        let (_, after) = check(DETOURS)?;
        ensure!(!after.contains("chooser"), "{after}");
        Ok(())
    })
}
