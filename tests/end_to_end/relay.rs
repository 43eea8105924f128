//! A relay's port, TCP 4122: `--relay`.

use crate::scene::{AGENT, PATIENCE, address, from, install, try_install};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, agent_fw_path, connect, feed, run};
use anyhow::{Result, ensure};
use std::fs;
use std::net::SocketAddr;

tests![
    a_relay_is_reached_from_the_given_sources_and_by_nobody_else,
    a_relays_sources_are_one_thing_and_the_agents_another,
    behind_a_program_the_table_closes_the_relays_port,
    what_is_altered_of_a_relays_rules_is_told_and_put_back,
    a_restrictive_policy_leaves_the_relay_open_to_its_sources,
    a_relay_that_is_not_named_again_is_not_opened,
    sources_of_a_relay_that_came_by_a_pipe_are_there_at_the_next_boot,
    where_nothing_can_be_read_at_boot_the_relays_port_is_closed_too,
];

/// The relay's port, and the one that it talks to itself by.
const RELAY: u16 = 4122;
const INTERNAL: u16 = 4123;

fn expect(peer: &Peer, port: u16, due: Outcome, sources: &[&str]) -> Result<()> {
    for source in sources {
        let seen = from(peer, source, port)?;
        ensure!(seen == due, "from {source} to {port}: {seen}, should be {due}");
    }
    Ok(())
}

fn a_relay_is_reached_from_the_given_sources_and_by_nobody_else() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("agents")?;
        let _here = [AGENT, RELAY, INTERNAL, 22].map(|port| Listener::bind(port).expect("free"));
        let (ours, others) = (["192.0.2.7", "2001:db8::7"], ["203.0.113.7", "2001:db9::7"]);
        install(&[])?;
        expect(&peer, RELAY, Outcome::Talked, &others)?;
        let words = ["--relay", "192.0.2.0/24", "--relay", "2001:db8::/32"];
        let said = install(&words)?;
        ensure!(said.contains("TCP port 4122 is closed to all but these sources"), "{said}");
        expect(&peer, RELAY, Outcome::Talked, &ours)?;
        expect(&peer, RELAY, Outcome::Silent, &others)?;
        // Every other port is as before.
        for port in [AGENT, INTERNAL, 22] {
            expect(&peer, port, Outcome::Talked, &others)?;
        }
        for (here, port) in [("127.0.0.1", INTERNAL), ("127.0.0.1", RELAY), ("::1", INTERNAL)] {
            let here = address(here);
            let seen = connect(here, SocketAddr::new(here, port), PATIENCE)?;
            ensure!(seen == Outcome::Talked, "{here} to {port}: {seen}");
        }
        let verified = agent_fw(["verify"])?;
        ensure!(verified.code == Some(0), "{verified}");
        agent_fw(["uninstall"])?.success()?;
        expect(&peer, RELAY, Outcome::Talked, &others)
    })
}

fn a_relays_sources_are_one_thing_and_the_agents_another() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [AGENT, RELAY].map(|port| Listener::bind(port).expect("free"));
        let words = ["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"];
        install(&words)?;
        for (port, source, due) in [
            (AGENT, "34.205.5.1", Outcome::Talked),
            (AGENT, "192.0.2.7", Outcome::Silent),
            (RELAY, "34.205.5.1", Outcome::Silent),
            (RELAY, "192.0.2.7", Outcome::Talked),
        ] {
            expect(&peer, port, due, &[source])?;
        }
        // Nobody needs to reach the agent; the relay all the same.
        install(&["--direction", "agent-initiated", "--relay", "192.0.2.0/24"])?;
        expect(&peer, AGENT, Outcome::Silent, &["34.205.5.1", "192.0.2.7"])?;
        expect(&peer, RELAY, Outcome::Talked, &["192.0.2.7"])
    })
}

fn behind_a_program_the_table_closes_the_relays_port() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [AGENT, RELAY].map(|port| Listener::bind(port).expect("free"));
        let interface = peer.interface();
        let words = ["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"];
        let with =
            |backend| [&words, &["--backend", backend, "--interface", &interface][..]].concat();
        let alone = try_install(&with("xdp"))?;
        ensure!(alone.code == Some(2) && alone.stderr.contains("--relay needs tables"), "{alone}");
        install(&with("both"))?;
        expect(&peer, RELAY, Outcome::Talked, &["192.0.2.7"])?;
        expect(&peer, RELAY, Outcome::Silent, &["34.205.5.1"])?;
        expect(&peer, AGENT, Outcome::Talked, &["34.205.5.1"])?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        Ok(())
    })
}

fn what_is_altered_of_a_relays_rules_is_told_and_put_back() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        install(&["--relay", "192.0.2.0/24"])?;
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7"])?;
        run(["nft", "flush", "chain", "inet", "agent_fw_policy", "incoming"])?;
        expect(&peer, RELAY, Outcome::Talked, &["203.0.113.7"])?;
        for command in ["verify", "status"] {
            let told = agent_fw([command])?;
            ensure!(told.code == Some(1) && told.stdout.contains("agent_fw_policy"), "{told}");
        }
        agent_fw(["apply"])?.success()?;
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7"])?;
        ensure!(agent_fw(["verify"])?.code == Some(0));
        Ok(())
    })
}

fn a_restrictive_policy_leaves_the_relay_open_to_its_sources() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [RELAY, 22].map(|port| Listener::bind(port).expect("free"));
        let rules = crate::firewall::rules("01-allow-list-of-a-web-server")?;
        install(&["--rules", &rules, "--policy", "--accept-risk", "tcp/4122"])?;
        expect(&peer, RELAY, Outcome::Silent, &["198.51.100.7"])?;
        install(&["--rules", &rules, "--policy", "--relay", "198.51.100.0/24"])?;
        expect(&peer, RELAY, Outcome::Talked, &["198.51.100.7"])?;
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7", "192.0.2.7"])?;
        expect(&peer, 22, Outcome::Silent, &["198.51.100.7"])
    })
}

fn a_relay_that_is_not_named_again_is_not_opened() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        install(&["--allow-from", "region:us-1", "--relay", "192.0.2.0/24"])?;
        let forgotten = try_install(&["--allow-from", "region:gb-1"])?;
        ensure!(forgotten.code == Some(2), "{forgotten}");
        ensure!(forgotten.stderr.contains("--relay any"), "{forgotten}");
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7"])?;
        install(&["--allow-from", "region:gb-1", "--relay", "any"])?;
        expect(&peer, RELAY, Outcome::Talked, &["203.0.113.7"])
    })
}

fn sources_of_a_relay_that_came_by_a_pipe_are_there_at_the_next_boot() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _relay = Listener::bind(RELAY)?;
        let program = agent_fw_path().to_string_lossy().into_owned();
        let words = [program.as_str(), "install", "--no-boot", "--untested", "--relay", "file:-"];
        let words = words.into_iter().chain(["--allow-from", "any"]);
        feed(words, "192.0.2.0/24\n")?;
        run(["nft", "flush", "ruleset"])?;
        agent_fw(["apply", "--boot"])?.success()?;
        expect(&peer, RELAY, Outcome::Talked, &["192.0.2.7"])?;
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7"])
    })
}

fn where_nothing_can_be_read_at_boot_the_relays_port_is_closed_too() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("world")?;
        let _here = [RELAY, AGENT].map(|port| Listener::bind(port).expect("free"));
        fs::write("/run/offices.list", "192.0.2.0/24\n")?;
        install(&["--relay", "file:/run/offices.list"])?;
        fs::remove_file("/run/offices.list")?;
        run(["nft", "flush", "ruleset"])?;
        // What was last in force is known, with its lists.
        ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
        expect(&peer, RELAY, Outcome::Talked, &["192.0.2.7"])?;
        expect(&peer, RELAY, Outcome::Silent, &["203.0.113.7"])?;
        fs::remove_file("/var/lib/agent-fw/last-good.json")?;
        run(["nft", "flush", "ruleset"])?;
        let fallen = agent_fw(["apply", "--boot"])?;
        ensure!(fallen.code == Some(1), "{fallen}");
        for port in [RELAY, AGENT] {
            expect(&peer, port, Outcome::Silent, &["192.0.2.7", "203.0.113.7"])?;
        }
        Ok(())
    })
}
