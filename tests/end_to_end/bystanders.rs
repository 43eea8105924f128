//! What must go on as if agent-fw were not there.

use crate::scene::{AGENT, PATIENCE, address, connect_from, from, install};
use crate::tests;
use agent_fw_lab::{
    Lab, Listener, Outcome, Peer, UdpEcho, agent_fw, ask, connect, feed, ping, run,
};
use anyhow::{Result, ensure};
use std::net::{IpAddr, SocketAddr};

tests![
    everything_else_on_the_host_still_works,
    loopback_is_never_filtered,
    arp_and_neighbour_discovery_are_never_filtered,
    forwarded_traffic_to_another_hosts_agent_port_passes,
    a_container_behind_nat_is_reached_on_its_agent_port,
    other_tables_of_the_host_are_left_exactly_as_they_were,
    a_drop_in_another_table_still_wins,
];

/// Installations of which none may touch anything but the agent's port.
const INSTALLATIONS: [&[&str]; 3] = [
    &["--allow-from", "region:us-1"],
    &["--allow-from", "region:us-1", "--early-drop", "--log"],
    &["--direction", "agent-initiated"],
];

fn everything_else_on_the_host_still_works() -> Result<()> {
    Lab::run(|lab| {
        let visitor = lab.peer("visitor")?;
        let _ssh = Listener::bind(22)?;
        let _near = [Listener::bind(4117)?, Listener::bind(4119)?, Listener::bind(4122)?];
        let _udp = UdpEcho::bind(AGENT)?;
        for flags in INSTALLATIONS {
            install(flags)?;
            for own in [IpAddr::from(visitor.v4()), visitor.v6().into()] {
                for port in [22, 4117, 4119, 4122] {
                    let seen = connect_from(&visitor, own, port)?;
                    ensure!(seen == Outcome::Talked, "{flags:?}: TCP {port} from {own}: {seen}");
                }
                let agent = visitor.host_address(own, AGENT);
                let seen = visitor.enter(|| ask(own, agent, PATIENCE))??;
                ensure!(seen == Outcome::Talked, "{flags:?}: UDP 4118 from {own}: {seen}");
                let seen = visitor.enter(|| ping(own, agent.ip(), PATIENCE))??;
                ensure!(seen == Outcome::Talked, "{flags:?}: ping from {own}: {seen}");
            }
        }
        Ok(())
    })
}

fn loopback_is_never_filtered() -> Result<()> {
    Lab::run(|lab| {
        let visitor = lab.peer("visitor")?;
        let _agent = Listener::bind(AGENT)?;
        for flags in INSTALLATIONS {
            install(flags)?;
            let own = [visitor.host_v4().into(), visitor.host_v6().into()];
            for here in [address("127.0.0.1"), address("::1")].into_iter().chain(own) {
                let seen = connect(here, SocketAddr::new(here, AGENT), PATIENCE)?;
                ensure!(seen == Outcome::Talked, "{flags:?}: {here}: {seen}");
            }
        }
        Ok(())
    })
}

fn arp_and_neighbour_discovery_are_never_filtered() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for flags in INSTALLATIONS {
            install(flags)?;
            for own in [IpAddr::from(manager.v4()), manager.v6().into()] {
                manager.forget_neighbours()?;
                let host = manager.host_address(own, 0).ip();
                let seen = manager.enter(|| ping(own, host, PATIENCE))??;
                ensure!(seen == Outcome::Talked, "{flags:?}: first packet from {own}: {seen}");
            }
        }
        Ok(())
    })
}

fn through_to(visitor: &Peer, from: IpAddr, to: IpAddr, port: u16) -> Result<Outcome> {
    visitor.enter(|| connect(from, SocketAddr::new(to, port), PATIENCE))?
}

fn forwarded_traffic_to_another_hosts_agent_port_passes() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (visitor, server) = (lab.peer("visitor")?, lab.peer("server")?);
        let _agent = Listener::bind(AGENT)?;
        let _other = server.enter(|| Listener::bind(AGENT))??;
        for flags in INSTALLATIONS {
            install(flags)?;
            let pairs = [
                (IpAddr::from(visitor.v4()), IpAddr::from(server.v4())),
                (visitor.v6().into(), server.v6().into()),
            ];
            for (from, to) in pairs {
                let seen = through_to(&visitor, from, to, AGENT)?;
                ensure!(seen == Outcome::Talked, "{flags:?}: from {from} to {to}: {seen}");
            }
            let seen = connect_from(&visitor, visitor.v4().into(), AGENT)?;
            ensure!(seen == Outcome::Silent, "{flags:?}: to this host: {seen}");
        }
        Ok(())
    })
}

/// A port of this host that is published for a container: the packets are not for this host.
fn a_container_behind_nat_is_reached_on_its_agent_port() -> Result<()> {
    Lab::run(|lab| {
        lab.forward()?;
        let (visitor, container) = (lab.peer("visitor")?, lab.peer("container")?);
        let _inside = container.enter(|| Listener::bind(AGENT))??;
        let rules = format!(
            "table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat;
             tcp dport 8118 dnat to {}:4118\n}}\n}}",
            container.v4()
        );
        feed(["nft", "-f", "-"], &rules)?;
        for flags in INSTALLATIONS {
            install(flags)?;
            let seen = from(&visitor, "198.51.100.7", 8118)?;
            ensure!(seen == Outcome::Talked, "{flags:?}: {seen}");
        }
        Ok(())
    })
}

/// A host's own rules, of many kinds.
const OTHERS: &str = "
table inet filter {
    counter seen { }
    set trusted { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        ip saddr @trusted counter name seen accept
        tcp dport { 22, 4118 } limit rate 5/second accept
    }
    chain output { type filter hook output priority 0; policy accept; }
}
table ip nat {
    chain post {
        type nat hook postrouting priority 100;
        masquerade
    }
}
table ip6 agent_fw {
    chain lookalike { }
}
table netdev early {
    chain ingress { type filter hook ingress device lo priority 0; }
}
";

fn other_tables_of_the_host_are_left_exactly_as_they_were() -> Result<()> {
    Lab::run(|_| {
        feed(["nft", "-f", "-"], OTHERS)?;
        // With handles: a table that was made anew would show.
        let list = || run(["nft", "--handle", "--stateless", "list", "ruleset"]);
        let before = list()?;
        for flags in INSTALLATIONS {
            install(flags)?;
            agent_fw(["apply"])?.success()?;
        }
        let during = list()?;
        ensure!(during.starts_with(&before), "before:\n{before}\nduring:\n{during}");
        let added = &during[before.len()..];
        ensure!(added.starts_with("table inet agent_fw {"), "added:\n{added}");
        ensure!(added.matches("\ntable ").count() == 0, "added:\n{added}");
        agent_fw(["uninstall"])?.success()?;
        ensure!(list()? == before, "after:\n{}", list()?);
        Ok(())
    })
}

fn a_drop_in_another_table_still_wins() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let said = install(&["--allow-from", "region:us-1"])?;
        ensure!(said.contains("not tested"), "it claims to know that the port is open: {said}");
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Talked);
        let rules = "table inet host { chain input { type filter hook input priority 0;
                     policy drop;\n}\n}";
        feed(["nft", "-f", "-"], rules)?;
        ensure!(from(&manager, "34.205.5.1", AGENT)? == Outcome::Silent);
        Ok(())
    })
}
