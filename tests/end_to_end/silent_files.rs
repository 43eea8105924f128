//! A file system that does not answer keeps no command waiting, nor the lock, nor the port open.

use crate::scene::{AGENT, Guard, expect, install, until};
use crate::tests;
use agent_fw_lab::{
    Finished, Lab, Listener, Outcome, Peer, Silence, SilentFiles, agent_fw, is_emulated, run,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

tests![
    a_list_that_does_not_answer_keeps_no_command_waiting_and_changes_nothing,
    a_list_that_cannot_even_be_looked_for_keeps_no_command_waiting,
    regions_and_rules_that_do_not_answer_keep_no_command_waiting,
    nobody_has_the_lock_while_the_policy_before_is_read,
    with_a_list_that_does_not_answer_the_port_is_closed_at_boot,
    the_guard_closes_the_port_while_a_list_does_not_answer,
];

const DIRECTORY: &str = "/run/silent";
const LIST: &str = "/run/silent/list";
const POLICY: &str = "/etc/agent-fw/policy.toml";
/// A file is waited for 20 s; the machine is busy.
const BOUND: Duration = Duration::from_secs(45);

fn serve() -> Result<SilentFiles> {
    let rules = "{\"firewallRules\": []}";
    let regions = "[home]\nplace = \"here\"\nsubnets = [\"34.205.5.0/27\"]\n\
                   domain = \"example.org\"\nas_of = \"2026-01-01\"\nsource = \"a test\"\n";
    let files = [("list", "34.205.5.0/27\n"), ("rules", rules), ("regions", regions)];
    SilentFiles::mount(DIRECTORY, &files)
}

fn is_closed(peer: &Peer) -> Result<()> {
    expect(peer, Outcome::Silent, &["198.51.100.7"])?;
    expect(peer, Outcome::Talked, &["34.205.5.1"])
}

/// All that is in force, and on disk.
fn everything() -> Result<String> {
    let rules = run(["nft", "--stateless", "list", "ruleset"])?;
    Ok([rules, fs::read_to_string(POLICY)?].concat())
}

/// Commands at the same time: each must end in time, and say which file did not answer.
fn end_in_time(file: &str, commands: &[&[&str]]) -> Result<()> {
    let one = |arguments: &[&str]| -> Result<()> {
        let start = Instant::now();
        let finished: Finished = agent_fw(arguments)?;
        let took = start.elapsed();
        ensure!(took < BOUND, "{finished}: it took {took:?}");
        let said = [finished.stdout.as_str(), &finished.stderr].concat();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = [file, "the file system that it is on does not answer", "a local disk instead"];
        ensure!(words.iter().all(|words| said.contains(words)), "{finished}");
        ensure!(arguments[0] == "metrics" || finished.code != Some(0), "{finished}");
        Ok(())
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = commands.iter().map(|words| scope.spawn(|| one(words))).collect();
        started.into_iter().try_for_each(|ended| ended.join().ok().context("panicked")?)
    })
}

/// Demands that nobody holds the lock, though what reads may still be there.
fn the_lock_is_free() -> Result<()> {
    run(["flock", "--nonblock", "/run/agent-fw/lock", "true"]).map(drop)
}

fn a_list_that_does_not_answer_keeps_no_command_waiting_and_changes_nothing() -> Result<()> {
    for silence in [Silence::Open, Silence::Read] {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            let files = serve()?;
            let list = format!("file:{LIST}");
            install(&["--allow-from", &list])?;
            is_closed(&manager)?;
            let before = everything()?;
            files.fall_silent(silence);
            end_in_time(
                LIST,
                &[
                    &["status"],
                    &["status", "--json"],
                    &["doctor"],
                    &["metrics"],
                    &["apply"],
                    &["install", "--no-boot", "--allow-from", &list, "--log"],
                    &["verify"],
                    &["explain", "--all"],
                    &["compile", "--allow-from", &list],
                ],
            )?;
            the_lock_is_free()?;
            ensure!(everything()? == before, "something was changed");
            is_closed(&manager)?;
            // Without what does not answer, everything goes on.
            install(&["--allow-from", "34.205.5.0/27"])?;
            is_closed(&manager)?;
            files.speak();
            install(&["--allow-from", &list])?;
            agent_fw(["verify"])?.success().map(drop)
        })
        .with_context(|| format!("{silence:?}"))?;
    }
    Ok(())
}

fn a_list_that_cannot_even_be_looked_for_keeps_no_command_waiting() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let files = serve()?;
        let list = format!("file:{LIST}");
        install(&["--allow-from", &list])?;
        files.fall_silent(Silence::Lookup);
        end_in_time(
            LIST,
            &[
                &["status"],
                &["apply"],
                &["install", "--no-boot", "--allow-from", &list, "--log"],
                &["install", "--no-boot", "--allow-mac", &list],
                &["compile", "--allow-from", &list],
                &["rules", "check", LIST],
            ],
        )?;
        the_lock_is_free()?;
        is_closed(&manager)
    })
}

fn regions_and_rules_that_do_not_answer_keep_no_command_waiting() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let files = serve()?;
        fs::create_dir_all("/etc/agent-fw")?;
        std::os::unix::fs::symlink("/run/silent/regions", "/etc/agent-fw/regions.toml")?;
        install(&["--allow-from", "region:home"])?;
        is_closed(&manager)?;
        let before = everything()?;
        files.fall_silent(Silence::Open);
        end_in_time(
            "/etc/agent-fw/regions.toml",
            &[
                &["status"],
                &["apply"],
                &["verify"],
                &["compile", "--allow-from", "region:us-1"],
                &["regions", "list"],
                &["ports"],
            ],
        )?;
        let rules = "/run/silent/rules";
        fs::remove_file("/etc/agent-fw/regions.toml")?;
        end_in_time(
            rules,
            &[
                &["install", "--no-boot", "--rules", rules],
                &["compile", "--rules", rules],
                &["rules", "check", rules],
            ],
        )?;
        the_lock_is_free()?;
        ensure!(everything()? == before, "something was changed");
        is_closed(&manager)
    })
}

/// What a policy would cut off is told by comparison with the one before. Where that was not kept, its
/// files are read.
fn nobody_has_the_lock_while_the_policy_before_is_read() -> Result<()> {
    Lab::run(|_| {
        let files = serve()?;
        install(&["--allow-from", &format!("file:{LIST}")])?;
        fs::remove_file("/var/lib/agent-fw/last-good.json")?;
        fs::write("/run/rules", "{\"firewallRules\": []}")?;
        files.fall_silent(Silence::Open);
        std::thread::scope(|scope| {
            let words = ["install", "--no-boot", "--untested", "--allow-from", "192.0.2.1"];
            let more = ["--rules", "/run/rules", "--policy"];
            let installing = scope.spawn(move || agent_fw(words.into_iter().chain(more)));
            std::thread::sleep(Duration::from_secs(3));
            ensure!(!installing.is_finished(), "it does not wait for {LIST}");
            the_lock_is_free()?;
            // Nothing is known to be let pass: what it would cut off, if anything, needs consent.
            installing.join().ok().context("panicked")??;
            Ok(())
        })
    })
}

fn with_a_list_that_does_not_answer_the_port_is_closed_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let files = serve()?;
        install(&["--allow-from", &format!("file:{LIST}")])?;
        files.fall_silent(Silence::Open);
        run(["nft", "flush", "ruleset"])?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        std::thread::scope(|scope| {
            let boot = scope.spawn(|| agent_fw(["apply", "--boot"]));
            std::thread::sleep(Duration::from_secs(2));
            is_closed(&manager).context("while the list is waited for")?;
            let fallen = boot.join().ok().context("panicked")??;
            ensure!(fallen.code == Some(1) && fallen.stdout.contains("last good"), "{fallen}");
            ensure!(fallen.stdout.contains(LIST), "{fallen}");
            Ok(())
        })?;
        is_closed(&manager)?;
        the_lock_is_free()?;
        files.speak();
        agent_fw(["apply", "--boot"])?.success().map(drop)
    })
}

fn the_guard_closes_the_port_while_a_list_does_not_answer() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let files = serve()?;
        let list = format!("file:{LIST}");
        install(&["--allow-from", &list, "--backend", "xdp", "--interface", "manager0"])?;
        let _guard = Guard::start_as_unit()?;
        files.fall_silent(Silence::Open);
        // Whatever holds the program lets go of it.
        fs::remove_dir_all(crate::xdp::pins()?)?;
        let has_table = || Ok(run(["nft", "list", "tables"])?.contains("inet agent_fw"));
        let took = until("a table stands in", has_table)?;
        ensure!(is_emulated() || took < Duration::from_secs(5), "it took {took:?}");
        is_closed(&manager)?;
        // When the list has been waited for long enough, the last good policy is in force.
        let attached = || crate::xdp::attached("manager0");
        let start = Instant::now();
        while attached()?.is_none() {
            ensure!(start.elapsed() < BOUND, "it waits for ever");
            std::thread::sleep(Duration::from_millis(100));
        }
        is_closed(&manager)?;
        files.speak();
        agent_fw(["apply"])?.success()?;
        agent_fw(["verify"])?.success()?;
        is_closed(&manager)
    })
}
