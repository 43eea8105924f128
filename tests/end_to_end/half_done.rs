//! What a kill leaves between the table and the program is finished or taken back by whatever comes
//! next, and lets no stranger in meanwhile.

use crate::scene::{AGENT, Guard, address, connect_from, expect, install, status, until};
use crate::tests;
use crate::xdp::flags;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, kill_agent_fw_after, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

tests![
    an_apply_of_both_that_is_killed_at_any_moment_is_finished_or_taken_back,
    an_install_of_both_that_is_killed_at_any_moment_is_finished_or_taken_back,
    a_guard_follows_an_interface_to_its_new_name,
    an_uninstall_that_fails_leaves_the_policy_and_the_boot_unit,
    what_a_boot_falls_back_on_is_kept_again_by_a_repeated_install,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";

fn an_apply_of_both_that_is_killed_at_any_moment_is_finished_or_taken_back() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let policies = ["34.205.5.0/27", "34.205.5.0/26"];
        install(&["--allow-from", policies[0], "--backend", "both", "--interface", "manager0"])?;
        let start = Instant::now();
        agent_fw(["apply"])?.success()?;
        let took = start.elapsed();
        let (rounds, mut halves) = (24, 0);
        for round in 0..rounds {
            let text = fs::read_to_string(POLICY)?;
            let next = policies[(round as usize + 1) % 2];
            let now = policies[round as usize % 2];
            fs::write(POLICY, text.replace(now, next))?;
            kill_agent_fw_after(took * round / rounds + Duration::from_millis(1), ["apply"])?;
            halves += u32::from(status()?.1 != Some(0));
            finish(&manager, round).with_context(|| format!("round {round}"))?;
            let due = if next.ends_with("26") { Outcome::Talked } else { Outcome::Silent };
            expect(&manager, due, &["34.205.5.40"]).with_context(|| format!("round {round}"))?;
        }
        println!("{halves} of {rounds} were seen half done");
        Ok(())
    })
}

fn an_install_of_both_that_is_killed_at_any_moment_is_finished_or_taken_back() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let (narrow, wide) = ("34.205.5.0/27", "34.205.5.0/26");
        let flags = |from| ["--allow-from", from, "--backend", "both", "--interface", "manager0"];
        install(&flags(wide))?;
        let start = Instant::now();
        install(&flags(narrow))?;
        let took = start.elapsed();
        let rounds = 24;
        for round in 0..rounds {
            let next = if round % 2 == 0 { wide } else { narrow };
            let words =
                ["install", "--no-boot", "--untested", "--replace"].into_iter().chain(flags(next));
            kill_agent_fw_after(took * round / rounds + Duration::from_millis(1), words)?;
            finish(&manager, round).with_context(|| format!("round {round}"))?;
            let is_wide = fs::read_to_string(POLICY)?.contains(wide);
            let due = if is_wide { Outcome::Talked } else { Outcome::Silent };
            expect(&manager, due, &["34.205.5.40"]).with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

fn a_guard_follows_an_interface_to_its_new_name() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let _guard = Guard::start()?;
        let sources = ["198.51.100.7", "34.205.5.1"].map(address);
        sources.iter().try_for_each(|source| manager.add_address(*source))?;
        let is_as_it_should_be = || -> Result<()> {
            for (source, due) in sources.into_iter().zip([Outcome::Silent, Outcome::Talked]) {
                let seen = connect_from(&manager, source, AGENT)?;
                ensure!(seen == due, "from {source}: {seen}");
            }
            Ok(())
        };
        run(["ip", "link", "set", "manager0", "name", "lan0"])?;
        is_as_it_should_be()?;
        // By the new name, too, what is taken off is put back.
        run(["ip", "link", "set", "lan0", "xdp", "off"]).ok();
        for pin in fs::read_dir("/sys/fs/bpf/agent-fw")?.flatten().map(|entry| entry.path()) {
            if pin.is_dir() {
                fs::remove_dir_all(&pin)?;
            } else {
                fs::remove_file(&pin)?;
            }
        }
        until("it is put back", || {
            Ok(crate::xdp::attached("lan0")?.is_some() && status()?.1 == Some(0))
        })?;
        is_as_it_should_be()
    })
}

fn an_uninstall_that_fails_leaves_the_policy_and_the_boot_unit() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        agent_fw(["install", "--untested", "--allow-from", "region:us-1"])?.success()?;
        let files = || run(["find", "/etc/systemd/system", "/etc/agent-fw", "/var/lib/agent-fw"]);
        let before = files()?;
        for mount in [&["--bind", "/etc/agent-fw"][..], &["-o", "remount,bind,ro"]] {
            run(["mount"].iter().chain(mount).chain(&["/etc/agent-fw"]))?;
        }
        let failed = agent_fw(["uninstall"])?;
        ensure!(failed.code == Some(3) && failed.stderr.contains("policy.toml"), "{failed}");
        ensure!(files()? == before, "{before} became {}", files()?);
        ensure!(status()?.1 == Some(0), "{:#}", status()?.0);
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        run(["umount", "/etc/agent-fw"])?;
        agent_fw(["uninstall"])?.success()?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])
    })
}

fn what_a_boot_falls_back_on_is_kept_again_by_a_repeated_install() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        fs::remove_dir_all("/var/lib/agent-fw")?;
        install(&["--allow-from", "region:us-1"])?;
        fs::remove_file(POLICY)?;
        run(["nft", "flush", "ruleset"])?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let fallen = agent_fw(["apply", "--boot"])?;
        ensure!(fallen.code == Some(1) && fallen.stdout.contains("last good"), "{fallen}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}

/// What was killed half done lets in whom both policies admit, and no stranger; then a command, the
/// unit or the guard, in turn, brings it to an end.
fn finish(manager: &Peer, round: u32) -> Result<()> {
    expect(manager, Outcome::Talked, &["34.205.5.1"])?;
    expect(manager, Outcome::Silent, &["198.51.100.7"])?;
    match round % 3 {
        0 => drop(agent_fw(["apply"])?.success()?),
        1 => drop(agent_fw(["apply", "--boot"])?.success()?),
        _ => {
            let _guard = Guard::start()?;
            until("the guard finishes it", || Ok(status()?.1 == Some(0)))?;
        }
    }
    ensure!(status()?.1 == Some(0), "{:#}", status()?.0);
    Ok(())
}
