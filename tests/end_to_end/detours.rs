//! What leads past the gate and what only looks like it: each is tried with a real connection.

use crate::foreign::{at_tc, choose_sockets};
use crate::scene::{AGENT, PATIENCE, UNLISTED, address, check, from, install, status};
use crate::tests;
use agent_fw_lab::{Conversation, Lab, Listener, Outcome, connect, feed, output, run};
use anyhow::{Context as _, Result, ensure};
use aya::programs::links::LinkOrder;
use std::net::{IpAddr, SocketAddr};

tests![
    what_tproxy_hands_over_is_a_detour_where_the_agents_socket_takes_it,
    a_rule_about_other_addresses_or_ports_sends_nothing_of_the_agents_on,
    a_program_that_chooses_sockets_is_named,
    a_program_at_an_interfaces_entrance_is_named,
];

/// On a kernel with flowtables.
pub(crate) const WITH_FLOWTABLES: &[crate::Test] = &[(
    "a_connection_that_goes_on_by_a_flowtable_is_not_called_closed",
    a_connection_that_goes_on_by_a_flowtable_is_not_called_closed,
)];

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
const SENDING: [(&str, bool); 43] = [
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
    // As systemd-networkd writes it for containers.
    ("dnat ip addr . port to meta l4proto . th dport map { tcp . 4118 : THERE . 4118 }", false),
    ("dnat ip addr . port to meta l4proto . th dport map { tcp . 8080 : THERE . 4118 }", true),
    ("dnat ip addr . port to meta l4proto . th dport map { udp . 4118 : THERE . 4118 }", true),
    ("iifname . tcp dport { manager0 . 4118 } dnat to THERE", false),
    ("iifname . tcp dport { manager0 . 8080 } dnat to THERE", true),
    ("tcp dport != { 22, 80 } dnat to THERE", false),
    ("tcp dport != { 22, 4118 } dnat to THERE", true),
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
        // Past the network's layer, to another interface.
        for (port, closed) in [(4118, false), (8080, true)] {
            let rules = format!(
                "table netdev sent {{ chain p {{ type filter hook ingress device manager0 priority 0;
                   tcp dport {port} fwd to container0\n}}\n}}"
            );
            feed(["nft", "-f", "-"], &rules)?;
            ensure!(is_closed()?.0 == closed, "{port}: {}", is_closed()?.1);
            run(["nft", "delete", "table", "netdev", "sent"])?;
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

fn a_program_at_an_interfaces_entrance_is_named() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for backend in ["nft", "both"] {
            let flags = ["--allow-from", "region:us-1", "--backend", backend];
            let by: &[&str] = if backend == "both" { &["--interface", "manager0"] } else { &[] };
            install(&[&flags[..], by].concat())?;
            let at = format!("at the entrance of {}", manager.interface());
            ensure!(!check(DETOURS)?.1.contains(&at), "{:?}", check(DETOURS)?);
            let Ok(program) = at_tc(&manager.interface(), LinkOrder::default()) else {
                println!("this kernel has no TCX");
                return Ok(());
            };
            let (health, seen) = check(DETOURS)?;
            // Not every kernel tells its name.
            ensure!(health == "note" && seen.contains(&at), "{health}: {seen}");
            // It may be harmless: nothing is said against what is closed.
            ensure!(is_closed()?.0, "{}", is_closed()?.1);
            drop(program);
        }
        // A filter that takes packets elsewhere.
        run(["tc", "qdisc", "add", "dev", "manager0", "clsact"])?;
        let redirect = "filter add dev manager0 ingress pref 5 protocol ip u32 match ip src \
                        192.0.2.1/32 action mirred egress redirect dev lo";
        run(["tc"].into_iter().chain(redirect.split_whitespace()))?;
        let (health, seen) = check(DETOURS)?;
        ensure!(health == "note" && seen.contains("tc filter u32"), "{health}: {seen}");
        Ok(())
    })
}

fn a_connection_that_goes_on_by_a_flowtable_is_not_called_closed() -> Result<()> {
    const RULES: &str = "
        table inet fast {
          flowtable f { hook ingress priority 0; devices = { manager0, container0 }; }
          chain forward { type filter hook forward priority 0;
            meta l4proto tcp ct state established flow add @f\n}
        }
        table ip sent { chain p { type nat hook prerouting priority dstnat;
          iif manager0 tcp dport 4118 dnat to THERE\n}\n}";
    Lab::run(|lab| {
        let (manager, container) = (lab.peer("manager")?, lab.peer("container")?);
        lab.forward()?;
        let _published = container.enter(|| Listener::bind(AGENT))??;
        feed(["nft", "-f", "-"], &RULES.replace("THERE", &container.v4().to_string()))?;
        let early = ["--allow-from", "region:us-1", "--early-drop"];
        let (stranger, listed) = (address(UNLISTED[0]), address("34.205.5.1"));
        let talk = |source| -> Result<Conversation> {
            manager.add_address(source)?;
            let to = manager.host_address(source, AGENT);
            let mut talk = manager.enter(|| Conversation::open(source, to, PATIENCE))??;
            // The second packet is the flowtable's.
            for _ in 0..2 {
                ensure!(talk.say(PATIENCE)? == Outcome::Talked, "{source}: it does not stand");
            }
            Ok(talk)
        };
        // Of a listed source, it is as it should be.
        let mut admitted = talk(listed)?;
        install(&early)?;
        ensure!(is_closed()?.0, "{}", is_closed()?.1);
        install(&early[..2])?;
        let mut talking = talk(stranger)?;
        install(&early)?;
        ensure!(talking.say(PATIENCE)? == Outcome::Talked, "it is so");
        let (closed, why) = is_closed()?;
        ensure!(!closed && why.contains("flowtable") && why.contains(UNLISTED[0]), "{why}");
        ensure!(check(DETOURS)?.0 == "bad", "{:?}", check(DETOURS)?);
        // As is advised.
        run(["nft", "delete", "table", "inet", "fast"])?;
        ensure!(talking.say(PATIENCE)? == Outcome::Silent, "it goes on");
        ensure!(admitted.say(PATIENCE)? == Outcome::Talked);
        ensure!(is_closed()?.0, "{}", is_closed()?.1);
        Ok(())
    })
}
