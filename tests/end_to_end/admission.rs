//! Who gets through to the agent, and who does not.

use crate::scene::{
    AGENT, LISTED, UNLISTED, admitted, connect_from, expect, from, install, status,
};
use crate::tests;
use agent_fw_lab::{Lab, Listener, MacAddr, Outcome, feed};
use anyhow::{Result, ensure};

tests![
    a_source_of_the_region_connects_and_talks_and_its_neighbours_do_not,
    over_ipv6_a_listed_source_connects_and_an_unlisted_one_does_not,
    a_range_admits_its_edges_and_nothing_beyond_them,
    a_source_is_admitted_by_its_mac_address,
    with_both_lists_a_packet_must_match_both,
    a_list_in_a_file_and_on_standard_input_admits_its_sources,
    without_a_source_the_hidden_rule_admits_everyone,
    in_agent_initiated_mode_nobody_gets_through,
    otherwise_continue_leaves_the_others_to_the_hosts_other_rules,
    another_port_is_closed_instead_when_the_agent_listens_there,
    ten_thousand_prefixes_admit_exactly_theirs,
    packets_are_counted_by_the_region_that_admitted_them,
    early_drop_refuses_the_same_sources,
];

fn a_source_of_the_region_connects_and_talks_and_its_neighbours_do_not() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        expect(&manager, Outcome::Talked, &LISTED)?;
        expect(&manager, Outcome::Talked, &UNLISTED)?;
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Talked, &LISTED)?;
        expect(&manager, Outcome::Silent, &UNLISTED)?;
        expect(&manager, Outcome::Silent, &["2001:db8::1", "10.0.0.1"])
    })
}

fn over_ipv6_a_listed_source_connects_and_an_unlisted_one_does_not() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "2001:db8:1::/64"])?;
        let listed = ["2001:db8:1::1", "2001:db8:1:0:ffff:ffff:ffff:fffe"];
        expect(&manager, Outcome::Talked, &listed)?;
        expect(&manager, Outcome::Silent, &["2001:db8:0:ffff::1", "2001:db8:1:1::1", "34.205.5.1"])
    })
}

fn a_range_admits_its_edges_and_nothing_beyond_them() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&[
            "--allow-from",
            "198.51.100.7 - 198.51.100.13",
            "--allow-from",
            "2001:db8::7-2001:db8::d",
        ])?;
        let edges = ["198.51.100.7", "198.51.100.13", "2001:db8::7", "2001:db8::d"];
        expect(&manager, Outcome::Talked, &edges)?;
        let beyond = ["198.51.100.6", "198.51.100.14", "2001:db8::6", "2001:db8::e"];
        expect(&manager, Outcome::Silent, &beyond)
    })
}

fn a_source_is_admitted_by_its_mac_address() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let listed = MacAddr([2, 0x41, 0x18, 0, 0, 1]);
        install(&["--allow-mac", &listed.to_string()])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7", "2001:db8::7"])?;
        manager.set_mac(listed)?;
        expect(&manager, Outcome::Talked, &["198.51.100.7", "2001:db8::7"])?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 2]))?;
        expect(&manager, Outcome::Silent, &["198.51.100.7", "2001:db8::7"])
    })
}

fn with_both_lists_a_packet_must_match_both() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let listed = MacAddr([2, 0x41, 0x18, 0, 0, 1]);
        let mac = listed.to_string();
        let sources = ["--allow-from", "region:us-1", "--allow-from", "2001:db8::/64"];
        install(&[&sources[..], &["--allow-mac", &mac]].concat())?;
        expect(&manager, Outcome::Silent, &["34.205.5.1", "2001:db8::1", "198.51.100.7"])?;
        manager.set_mac(listed)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "2001:db8::1"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7", "2001:db9::1"])
    })
}

fn a_list_in_a_file_and_on_standard_input_admits_its_sources() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        std::fs::write("/run/offices.list", "# offices\n192.0.2.0/28 # Oslo\n")?;
        let agent_fw = agent_fw_lab::agent_fw_path();
        let command = [agent_fw.as_os_str(), "install".as_ref(), "--no-boot".as_ref()];
        let sources = ["--allow-from", "file:/run/offices.list", "--allow-from", "file:-"];
        let words = command.into_iter().chain(sources.iter().map(AsRef::as_ref));
        feed(words, "2001:db8:5::/48\r\n203.0.113.7\r\n")?;
        let listed = ["192.0.2.15", "203.0.113.7", "2001:db8:5:ffff::1"];
        expect(&manager, Outcome::Talked, &listed)?;
        expect(&manager, Outcome::Silent, &["192.0.2.16", "203.0.113.8", "2001:db8:6::1"])?;
        // What came on standard input is still known at the next boot.
        agent_fw_lab::run(["nft", "flush", "ruleset"])?;
        agent_fw_lab::agent_fw(["apply"])?.success()?;
        expect(&manager, Outcome::Talked, &listed)?;
        expect(&manager, Outcome::Silent, &["192.0.2.16", "203.0.113.8", "2001:db8:6::1"])
    })
}

fn without_a_source_the_hidden_rule_admits_everyone() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let said = install(&["--allow-from", "any"])?;
        ensure!(said.contains("not closed"), "it does not say that nothing is closed: {said}");
        expect(&manager, Outcome::Talked, &["198.51.100.7", "2001:db8::1"])
    })
}

fn in_agent_initiated_mode_nobody_gets_through() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--direction", "agent-initiated"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1", "198.51.100.7", "2001:db8::1"])
    })
}

fn otherwise_continue_leaves_the_others_to_the_hosts_other_rules() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1", "--otherwise", "continue"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "198.51.100.7"])?;
        let rules = "table inet host { chain input { type filter hook input priority 0;
                     ip saddr 198.51.100.0/24 tcp dport 4118 drop\n}\n}";
        feed(["nft", "-f", "-"], rules)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "203.0.113.7"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn another_port_is_closed_instead_when_the_agent_listens_there() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(4218)?;
        let _other = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1", "--port", "4218"])?;
        ensure!(from(&manager, "34.205.5.1", 4218)? == Outcome::Talked);
        ensure!(from(&manager, "198.51.100.7", 4218)? == Outcome::Silent);
        ensure!(from(&manager, "198.51.100.7", AGENT)? == Outcome::Talked);
        // Changing the port opens the old one and closes the new one in the same moment.
        install(&["--allow-from", "region:us-1"])?;
        ensure!(from(&manager, "198.51.100.7", 4218)? == Outcome::Talked);
        ensure!(from(&manager, "198.51.100.7", AGENT)? == Outcome::Silent);
        Ok(())
    })
}

/// Every second /28 of 10.0.0.0/8 up to 10.4.226.0, and the same of an IPv6 block: more than one set
/// holds in each family.
fn ten_thousand_prefixes_admit_exactly_theirs() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let v4 = |n: u32| std::net::Ipv4Addr::from(0x0b00_0000 + n * 32);
        let v6 = |n: u32| format!("2001:db8:{:x}:{:x}::", n >> 16, n & 0xffff);
        let list: String =
            (0..10_000).map(|n| format!("{}/28\n{}/64\n", v4(n), v6(2 * n))).collect();
        std::fs::write("/run/many.list", list)?;
        for extra in [&[][..], &["--early-drop"]] {
            install(&[&["--allow-from", "file:/run/many.list"], extra].concat())?;
            for n in [0, 1, 4095, 4096, 4097, 8191, 8192, 9999] {
                let inside = u32::from(v4(n)) + 15;
                let (inside, outside) =
                    (std::net::Ipv4Addr::from(inside), std::net::Ipv4Addr::from(inside + 1));
                expect(
                    &manager,
                    Outcome::Talked,
                    &[&inside.to_string(), &format!("{}1", v6(2 * n))],
                )?;
                if n % 4096 < 2 {
                    let outside = [outside.to_string(), format!("{}1", v6(2 * n + 1))];
                    expect(&manager, Outcome::Silent, &[&outside[0], &outside[1]])?;
                }
            }
        }
        Ok(())
    })
}

fn packets_are_counted_by_the_region_that_admitted_them() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let words = ["--allow-from", "region:us-1", "--allow-from", "region:gb-1"];
        install(&[&words[..], &["--allow-from", "198.51.100.7"]].concat())?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "198.51.100.7"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.8"])?;
        let (status, _) = status()?;
        let us = admitted(&status, "region us-1");
        // At least SYN, ACK, one thing said and a RST; each is counted once.
        ensure!((4..12).contains(&us), "{us} packets of us-1");
        ensure!(admitted(&status, "region gb-1") == 0);
        ensure!(admitted(&status, "listed addresses") >= 4);
        ensure!(status["refused"]["packets"] == 1, "refused: {}", status["refused"]);
        ensure!(
            status["refused"]["bytes"] == 60,
            "a SYN of Linux is 60 bytes: {}",
            status["refused"]
        );
        Ok(())
    })
}

fn early_drop_refuses_the_same_sources() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let words = ["--allow-from", "region:us-1", "--allow-from", "2001:db8::/64"];
        install(&[&words[..], &["--early-drop"]].concat())?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "2001:db8::1"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.32", "2001:db8:0:1::1"])?;
        let (status, _) = status()?;
        ensure!(status["refused"]["packets"] == 2, "refused: {}", status["refused"]);
        let own = connect_from(&manager, manager.v4().into(), AGENT)?;
        ensure!(own == Outcome::Silent, "the peer's own address is not listed: {own}");
        Ok(())
    })
}
