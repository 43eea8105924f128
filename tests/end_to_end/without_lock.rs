//! Whoever stands on the lock: at boot the policy is in force all the same, by tables that are
//! exchanged only where nobody has changed the ruleset since it was looked at.

use crate::scene::{AGENT, expect, install, status};
use crate::tests;
use agent_fw::model::rule::AgentPolicy;
use agent_fw::model::{DefaultAction, OriginMap, Policy, Port, Range};
use agent_fw::nft::{Extras, Image, NetlinkError, Nftables, Rest, Ruleset};
use agent_fw_lab::{Finished, Lab, Listener, Outcome, agent_fw, command, run};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

tests![
    at_boot_a_changed_policy_is_in_force_though_a_stopped_process_has_the_lock,
    at_boot_what_stands_in_for_a_faulty_policy_is_in_force_without_the_lock,
    without_the_lock_the_table_holds_beside_programs_that_are_left_alone,
    a_lock_that_cannot_be_made_does_not_keep_the_policy_out_at_boot,
    a_transaction_for_another_generation_changes_nothing,
    without_the_lock_the_policy_gets_in_between_somebody_elses_changes,
    a_table_without_counters_closes_the_port,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";
const LOCK: &str = "/run/agent-fw/lock";

/// A process that took the lock and was stopped. Dropping this ends it.
struct Stopped(Child);

impl Stopped {
    fn on_the_lock() -> Result<Self> {
        let script =
            format!("exec 9<>{LOCK} && flock --exclusive 9 && echo held && exec sleep 600");
        let mut holder = command(["sh", "-c", &script]).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 4];
        let output = holder.stdout.as_mut().context("its output")?;
        std::io::Read::read_exact(output, &mut said).context("it did not get the lock")?;
        kill(Pid::from_raw(holder.id().cast_signed()), Signal::SIGSTOP)?;
        Ok(Self(holder))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `apply --boot`, which waits a second for the lock and must not take much longer.
fn boot() -> Result<Finished> {
    let start = Instant::now();
    let finished = agent_fw(["apply", "--boot", "--wait", "1"])?;
    ensure!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    Ok(finished)
}

/// Demands that it said that it went without the lock, and why.
fn says_so(finished: &Finished) -> Result<()> {
    let words = finished.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(words.contains("without the lock, which"), "{finished}");
    Ok(())
}

fn at_boot_a_changed_policy_is_in_force_though_a_stopped_process_has_the_lock() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let text = fs::read_to_string(POLICY)?;
        let _holder = Stopped::on_the_lock()?;
        let changed = text.replace("region:us-1", "198.51.100.0/24");
        for flushed in [false, true] {
            fs::write(POLICY, &text)?;
            says_so(&boot()?)?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            fs::write(POLICY, &changed)?;
            if flushed {
                run(["nft", "flush", "ruleset"])?;
            }
            let applied = boot()?;
            ensure!(applied.code == Some(0), "{applied}");
            says_so(&applied)?;
            expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
            expect(&manager, Outcome::Silent, &["34.205.5.1", "203.0.113.1"])?;
            ensure!(status()?.1 == Some(0));
        }
        // What is as it should be is not exchanged.
        let table = run(["nft", "--handle", "list", "ruleset"])?;
        boot()?.success()?;
        ensure!(run(["nft", "--handle", "list", "ruleset"])? == table);
        Ok(())
    })
}

fn at_boot_what_stands_in_for_a_faulty_policy_is_in_force_without_the_lock() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let _holder = Stopped::on_the_lock()?;
        // Somebody has made a table of this name that closes nothing.
        let open = || run(["sh", "-c", "nft flush ruleset; nft add table inet agent_fw"]);
        fs::write(POLICY, "nonsense")?;
        open()?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let fallen = boot()?;
        ensure!(fallen.code == Some(1) && fallen.stdout.contains("last good"), "{fallen}");
        says_so(&fallen)?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        // What would open the port does not.
        fs::write(POLICY, "allow_from = [\"any\"]\n")?;
        ensure!(boot()?.code == Some(1));
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        fs::write(POLICY, "nonsense")?;
        fs::remove_file("/var/lib/agent-fw/last-good.json")?;
        open()?;
        let closed = boot()?;
        ensure!(closed.code == Some(1), "{closed}");
        expect(&manager, Outcome::Silent, &["198.51.100.7", "34.205.5.1"])
    })
}

fn without_the_lock_the_table_holds_beside_programs_that_are_left_alone() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for backend in ["xdp", "both"] {
            let from = ["--allow-from", "region:us-1", "--allow-from", "192.0.2.0/24"];
            let xdp = ["--backend", backend, "--interface", "manager0"];
            install(&[&from[..], &xdp].concat())?;
            let programs = run(["ip", "-details", "link", "show", "manager0"])?;
            let holder = Stopped::on_the_lock()?;
            let text = fs::read_to_string(POLICY)?;
            fs::write(POLICY, text.replace("192.0.2.0/24", "198.51.100.0/24"))?;
            let applied = boot()?;
            ensure!(applied.code == Some(1), "not all of it is in force: {applied}");
            says_so(&applied)?;
            ensure!(applied.stdout.contains("left as they are"), "{applied}");
            ensure!(
                run(["ip", "-details", "link", "show", "manager0"])? == programs,
                "{backend}: a program was exchanged"
            );
            // What both admit, and nothing else.
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            expect(&manager, Outcome::Silent, &["192.0.2.1", "198.51.100.7", "203.0.113.1"])?;
            drop(holder);
            agent_fw(["apply", "--boot"])?.success()?;
            expect(&manager, Outcome::Talked, &["34.205.5.1", "198.51.100.7"])?;
            expect(&manager, Outcome::Silent, &["192.0.2.1"])?;
            agent_fw(["verify"])?.success().with_context(|| backend.to_owned())?;
        }
        Ok(())
    })
}

fn a_lock_that_cannot_be_made_does_not_keep_the_policy_out_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let text = fs::read_to_string(POLICY)?;
        fs::write(POLICY, text.replace("region:us-1", "198.51.100.0/24"))?;
        // Something else is where the directory should be.
        fs::remove_dir_all("/run/agent-fw")?;
        fs::write("/run/agent-fw", "")?;
        let applied = boot()?;
        says_so(&applied)?;
        ensure!(applied.code == Some(0), "{applied}");
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1"])
    })
}

/// A table that closes these ports to everybody.
fn closing(ports: impl IntoIterator<Item = u16>) -> Image {
    let ports = ports.into_iter().map(|port| Range::single(Port(port))).collect();
    let policy = Policy::new(ports, DefaultAction::Drop, []);
    let nobody = AgentPolicy { policy, ledger: OriginMap::default() };
    Ruleset::compile(&nobody, Extras::default()).into_image()
}

fn a_transaction_for_another_generation_changes_nothing() -> Result<()> {
    Lab::run(|_| {
        let mut nftables = Nftables::open()?;
        let (old, new) = ([closing([4118])], [closing([4119, 4120])]);
        let read = || run(["nft", "--handle", "list", "ruleset"]);
        for there in [false, true] {
            let generation = nftables.generation()?;
            run(["nft", "add", "table", "ip", &format!("other_{there}")])?;
            let before = read()?;
            let overtaken = nftables.replace_at(generation, &new, Rest::Goes);
            ensure!(matches!(overtaken, Err(NetlinkError::Overtaken)), "{overtaken:?}");
            ensure!(read()? == before, "something was changed");
            // Of the present generation, it is taken.
            let generation = nftables.generation()?;
            nftables.replace_at(generation, &old, Rest::Goes)?;
            ensure!(nftables.generation()? != generation);
        }
        let generation = nftables.generation()?;
        nftables.replace_at(generation, &new, Rest::Goes)?;
        ensure!(read()?.contains("4120"));
        Ok(())
    })
}

/// Somebody who changes tables of their own as fast as they can, until `done`.
fn change_all_the_time(done: &AtomicBool) -> Result<()> {
    let mut nft = command(["nft", "--interactive"]);
    let nft = nft.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut nft = nft.spawn()?;
    let mut input = nft.stdin.take().context("its input")?;
    while !done.load(Ordering::Relaxed) {
        input.write_all(b"add table ip others\ndelete table ip others\n")?;
    }
    nft.kill()?;
    nft.wait()?;
    Ok(())
}

fn without_the_lock_the_policy_gets_in_between_somebody_elses_changes() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let text = fs::read_to_string(POLICY)?;
        let _holder = Stopped::on_the_lock()?;
        let done = AtomicBool::new(false);
        let changing = || -> Result<()> {
            // Changes do come in between.
            let mut nftables = Nftables::open()?;
            let (mut overtaken, mut tried) = (0, 0);
            let image = [closing([4199])];
            let deadline = Instant::now() + Duration::from_secs(20);
            while (overtaken == 0 || tried == overtaken) && Instant::now() < deadline {
                tried += 1;
                let generation = nftables.generation()?;
                match nftables.replace_at(generation, &image, Rest::Goes) {
                    Err(NetlinkError::Overtaken) => overtaken += 1,
                    // So much is changed that it could not even be read.
                    Err(NetlinkError::KeptChanging) => {}
                    replaced => replaced?,
                }
            }
            println!("{overtaken} of {tried} exchanges were overtaken");
            ensure!(overtaken > 0, "nobody changed anything");
            for from in ["198.51.100.0/24", "region:us-1", "198.51.100.0/24"] {
                fs::write(POLICY, text.replace("region:us-1", from))?;
                let applied = boot()?;
                ensure!(applied.code == Some(0), "{applied}");
                says_so(&applied)?;
            }
            expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
            expect(&manager, Outcome::Silent, &["34.205.5.1"])
        };
        let host = lab.host();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| host.enter(|| change_all_the_time(&done))?);
            let worked = changing();
            done.store(true, Ordering::Relaxed);
            other.join().ok().context("the one who changes tables panicked")??;
            worked
        })
    })
}

/// What closes the port where the kernel cannot load the module of counters; that it is chosen there is
/// tested in virtual machines.
fn a_table_without_counters_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let mut nftables = Nftables::open()?;
        ensure!(nftables.create(&[closing([AGENT]).without_counters()])?);
        let table = run(["nft", "list", "ruleset"])?;
        ensure!(table.contains("4118") && !table.contains("counter"), "{table}");
        expect(&manager, Outcome::Silent, &["198.51.100.7", "34.205.5.1"])?;
        // Once the policy can be enforced again, it is exchanged for that.
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}
