//! The guard: what others change in the kernel is put back, and who did it is said.

use crate::scene::{AGENT, Guard, SAID, expect, install, is_linux, status, until};
use crate::tests;
use agent_fw_lab::{
    Lab, Listener, Outcome, agent_fw, agent_fw_path, command, is_emulated, run, while_knocking,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

tests![
    what_others_take_away_the_guard_puts_back_or_the_kernel_keeps,
    while_a_command_holds_the_guard_off_the_table_is_anybodys_and_then_it_is_put_back,
    the_table_outlives_a_guard_that_is_killed_and_the_next_one_takes_it_over,
    the_guard_does_not_fight_with_other_commands,
    a_guard_that_has_nothing_to_do_takes_no_time_and_little_memory,
    an_interface_that_comes_is_given_its_program_by_the_guard,
    the_guard_keeps_the_tables_of_a_firewall_policy_too,
    while_commands_come_and_go_and_somebody_flushes_the_port_stays_closed,
    a_command_that_is_stopped_at_the_guards_door_opens_nothing,
    a_program_that_is_detached_behind_the_guards_back_is_put_back,
];

fn is_whole() -> Result<bool> {
    Ok(agent_fw(["verify"])?.code == Some(0))
}

/// What somebody else may try with nft.
const VANDALISM: [&[&str]; 5] = [
    &["flush", "ruleset"],
    &["delete", "table", "inet", "agent_fw"],
    &["flush", "chain", "inet", "agent_fw", "gate"],
    &["insert", "rule", "inet", "agent_fw", "agent_port", "ip saddr 198.51.100.0/24 accept"],
    &["insert", "rule", "inet", "agent_fw", "gate", "accept"],
];

/// Whether this kernel lets a process own a table that outlives it.
fn has_ownership() -> bool {
    is_linux(6, 9)
}

fn what_others_take_away_the_guard_puts_back_or_the_kernel_keeps() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let guard = Guard::start()?;
        let owned = has_ownership();
        let unlisted = Ipv4Addr::new(198, 51, 100, 7);
        manager.add_address(unlisted.into())?;
        for vandal in VANDALISM {
            // Before 6.9, a twin of the table keeps the port closed until it is put back.
            while_knocking(&manager, unlisted, AGENT, || {
                let nft = command(std::iter::once("nft").chain(vandal.iter().copied())).output()?;
                if owned {
                    // It passes by what is another process's.
                    let passes_by = vandal == ["flush", "ruleset"];
                    ensure!(nft.status.success() == passes_by, "{vandal:?}: {nft:?}");
                    ensure!(is_whole()?, "after {vandal:?}");
                } else {
                    ensure!(nft.status.success(), "{vandal:?}: {nft:?}");
                    let took = until(&format!("put back after {vandal:?}"), is_whole)?;
                    println!("{vandal:?}: put back within {} ms, proof included", took.as_millis());
                }
                Ok(())
            })?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        }
        let repairs = if owned { 0 } else { VANDALISM.len() };
        let said = || fs::read_to_string(SAID);
        until("each is said", || Ok(said()?.matches("put back: nft (process ").count() == repairs))
            .with_context(|| said().unwrap_or_default())?;
        let said = said()?;
        // What is no concern of agent-fw's is left alone.
        run(["nft", "add", "table", "inet", "other"])?;
        run(["nft", "delete", "table", "inet", "other"])?;
        ensure!(fs::read_to_string(SAID)? == said, "{}", fs::read_to_string(SAID)?);
        // Without guard and table, the same source is answered.
        drop(guard);
        run(["nft", "flush", "ruleset"])?;
        manager.remove_address(unlisted.into())?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])
    })
}

fn while_a_command_holds_the_guard_off_the_table_is_anybodys_and_then_it_is_put_back() -> Result<()>
{
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let _guard = Guard::start()?;
        let mut held_off = UnixStream::connect("/run/agent-fw/guard")?;
        held_off.read_exact(&mut [0])?;
        run(["nft", "flush", "chain", "inet", "agent_fw", "gate"])?;
        ensure!(!is_whole()?, "the flush changed nothing");
        drop(held_off);
        let took = until("put back", is_whole)?;
        println!("put back within {} ms, proof included", took.as_millis());
        // It says so, and owns the table, a moment after the table is whole.
        until("said", || Ok(fs::read_to_string(SAID)?.contains("put back: ")))
            .with_context(|| fs::read_to_string(SAID).unwrap_or_default())?;
        until("owned again", || {
            let again = command(["nft", "flush", "chain", "inet", "agent_fw", "gate"]).output()?;
            Ok(!again.status.success() || !has_ownership())
        })?;
        Ok(())
    })
}

fn the_table_outlives_a_guard_that_is_killed_and_the_next_one_takes_it_over() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        for _ in 0..3 {
            drop(Guard::start()?);
            ensure!(is_whole()?, "after the guard's end");
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            // Without a guard, commands work as ever.
            agent_fw(["apply"])?.success()?;
        }
        run(["nft", "flush", "ruleset"])?;
        let _guard = Guard::start()?;
        ensure!(is_whole()?, "after the guard's start");
        let said = fs::read_to_string(SAID)?;
        ensure!(said.contains("put back: at the start"), "{said}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        agent_fw(["uninstall"])?.success()?;
        // A guard that is slow to stand again is not waited for without end.
        until("all is gone", || Ok(run(["nft", "list", "ruleset"])?.is_empty()))?;
        Ok(())
    })
}

fn the_guard_does_not_fight_with_other_commands() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let [first, second] = ["198.51.100.7", "203.0.113.9"];
        install(&["--allow-from", "region:us-1"])?;
        let _guard = Guard::start()?;
        for (listed, other) in [(first, second), (second, first), (first, second)] {
            install(&["--allow-from", listed])?;
            agent_fw(["apply"])?.success()?;
            ensure!(status()?.1 == Some(0), "with {listed}");
            // Also where it has a twin of the gate: of the new one.
            until("the new source is admitted", || {
                Ok(expect(&manager, Outcome::Talked, &[listed]).is_ok())
            })?;
            expect(&manager, Outcome::Silent, &[other])?;
        }
        agent_fw(["uninstall"])?.success()?;
        // The guard has seen this, too: it answers to what follows.
        run(["nft", "add", "table", "inet", "agent_fw"])?;
        run(["nft", "delete", "table", "inet", "agent_fw"])?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(run(["nft", "list", "ruleset"])?.is_empty(), "it put back what was uninstalled");
        let said = fs::read_to_string(SAID)?;
        ensure!(!said.contains("put back"), "{said}");
        Ok(())
    })
}

fn a_guard_that_has_nothing_to_do_takes_no_time_and_little_memory() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let guard = Guard::start()?;
        let process = format!("/proc/{}", guard.0.id());
        let ticks = || -> Result<u64> {
            let stat = fs::read_to_string(format!("{process}/stat"))?;
            let fields = stat.rsplit(')').next().unwrap_or_default();
            let fields: Vec<&str> = fields.split_whitespace().collect();
            Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
        };
        let is_idle = || {
            let before = ticks()?;
            std::thread::sleep(Duration::from_secs(1));
            Ok(ticks()? == before)
        };
        if is_emulated() {
            // There, what it does at its start takes until now.
            until("a second without a tick", is_idle)?;
        } else {
            ensure!(is_idle()?, "it took time, and nothing had happened");
        }
        let memory = fs::read_to_string(format!("{process}/status"))?;
        let line = memory.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
        let kilobytes: u64 = line.split_whitespace().nth(1).context("no RssAnon")?.parse()?;
        ensure!(kilobytes < 10_000, "it holds {kilobytes} kB");
        Ok(())
    })
}

fn an_interface_that_comes_is_given_its_program_by_the_guard() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let flags = ["--allow-from", "region:us-1", "--backend", "both", "--interface", "manager0"];
        install(&flags)?;
        let policy = "/etc/agent-fw/policy.toml";
        let text = fs::read_to_string(policy)?;
        fs::write(policy, text.replace("\"manager0\"", "\"manager0\", \"later0\""))?;
        let _guard = Guard::start()?;
        let later = lab.peer("later")?;
        until("the new interface has its program", || {
            let interfaces = status()?.0["xdp"]["interfaces"].clone();
            Ok(interfaces.as_array().is_some_and(|all| all.len() == 2))
        })?;
        for peer in [&manager, &later] {
            expect(peer, Outcome::Silent, &["198.51.100.7"])?;
            expect(peer, Outcome::Talked, &["34.205.5.1"])?;
        }
        Ok(())
    })
}

fn the_guard_keeps_the_tables_of_a_firewall_policy_too() -> Result<()> {
    Lab::run(|_| {
        install(&["--rules", &crate::firewall::rules("06-allow-arp-and-watch")?, "--policy"])?;
        let _guard = Guard::start()?;
        for family in ["inet", "arp"] {
            let vandal = ["nft", "delete", "table", family, "agent_fw_policy"];
            let nft = command(vandal).output()?;
            ensure!(nft.status.success() != has_ownership(), "{family}: {nft:?}");
            until("put back", is_whole)?;
        }
        // To agent-fw's own commands the guard gives way.
        agent_fw(["uninstall"])?.success()?;
        until("all is gone", || Ok(run(["nft", "list", "tables"])?.is_empty()))?;
        Ok(())
    })
}

fn while_commands_come_and_go_and_somebody_flushes_the_port_stays_closed() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let _guard = Guard::start()?;
        let unlisted = Ipv4Addr::new(198, 51, 100, 7);
        manager.add_address(unlisted.into())?;
        let [seconds, least] = if is_emulated() { [20, 1] } else { [4, 3] };
        let end = Instant::now() + Duration::from_secs(seconds);
        let until_then = |arguments: &[&str]| -> Result<u32> {
            let mut times = 0;
            while Instant::now() < end {
                let mut command = command([agent_fw_path()]);
                let command = command.args(arguments).stdin(Stdio::null());
                command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
                times += 1;
            }
            Ok(times)
        };
        while_knocking(&manager, unlisted, AGENT, || {
            // A lab is a thread's: its commands are started by this one.
            let host = lab.host();
            std::thread::scope(|scope| {
                let run = |arguments: &'static [&'static str]| {
                    scope.spawn(move || host.enter(|| until_then(arguments))?)
                };
                let applying = run(&["apply"]);
                let asking = run(&["explain", "--from", "198.51.100.7"]);
                let mut flushed = 0_u64;
                while Instant::now() < end {
                    host.enter(|| command(["nft", "flush", "ruleset"]).output())??;
                    flushed += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
                let applied = applying.join().ok().context("panicked")??;
                let asked = asking.join().ok().context("panicked")??;
                println!("{flushed} flushes, {applied} times applied, {asked} times asked");
                ensure!(flushed > least && u64::from(applied) >= least, "too few");
                Ok(())
            })
        })?;
        until("put back in the end", is_whole)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}

fn a_command_that_is_stopped_at_the_guards_door_opens_nothing() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let _guard = Guard::start()?;
        let unlisted = Ipv4Addr::new(198, 51, 100, 7);
        manager.add_address(unlisted.into())?;
        while_knocking(&manager, unlisted, AGENT, || {
            let mut held_off = UnixStream::connect("/run/agent-fw/guard")?;
            held_off.read_exact(&mut [0])?;
            // It stands there, and somebody takes all away.
            run(["nft", "flush", "ruleset"])?;
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        })?;
        until("put back", is_whole)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.8"])
    })
}

fn a_program_that_is_detached_behind_the_guards_back_is_put_back() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let flags = ["--allow-from", "region:us-1", "--backend", "xdp", "--interface", "manager0"];
        install(&flags)?;
        let _guard = Guard::start()?;
        for _ in 0..2 {
            // Whatever holds the program lets go of it. The kernel announces nothing.
            fs::remove_dir_all(crate::xdp::pins()?)?;
            let took = until("put back", || {
                Ok(crate::xdp::attached("manager0")?.is_some() && status()?.1 == Some(0))
            })?;
            println!("put back within {} ms", took.as_millis());
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        }
        Ok(())
    })
}
