//! The list by which a program knows this host's frames: nobody can change it in the kernel, and where
//! it is no longer this host's, `status` says so and the guard mends it.

use crate::scene::{AGENT, Guard, expect, install, status, until};
use crate::tests;
use crate::xdp::{attached, flags, pins};
use crate::xdp_others::ip;
use agent_fw_ebpf::OwnFrames;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, is_emulated};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo, PerCpuArray};
use aya::programs::loaded_programs;
use std::fs;
use std::time::Duration;

tests![
    nobody_can_change_the_list_by_which_a_program_knows_this_hosts_frames,
    status_tells_a_list_that_is_not_this_hosts,
    the_guard_mends_a_list_that_is_not_this_hosts,
];

const LISTED: &str = "34.205.5.1";
const UNLISTED: &str = "198.51.100.7";

/// A map of the program on an interface, as root has it by its number.
fn map(interface: &str, name: &str) -> Result<Map> {
    let (_, program) = attached(interface)?.context("no program")?;
    let program = loaded_programs().flatten().find(|info| u64::from(info.id()) == program);
    for number in program.context("it has gone")?.map_ids()?.unwrap_or_default() {
        if MapInfo::from_id(number)?.name_as_str() == Some(name) {
            return Ok(Map::from_map_data(MapData::from_id(number)?)?);
        }
    }
    anyhow::bail!("it has no map {name}")
}

fn nobody_can_change_the_list_by_which_a_program_knows_this_hosts_frames() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("both", "manager0", &[]))?;
        let mut list = HashMap::<_, u32, OwnFrames>::try_from(map("manager0", "INTERFACES")?)?;
        let index: u32 = fs::read_to_string("/sys/class/net/manager0/ifindex")?.trim().parse()?;
        let own = list.get(&index, 0)?;
        let other = OwnFrames { mac: own.mac ^ 1, ..own };
        ensure!(list.insert(index, other, 0).is_err(), "it was changed");
        ensure!(list.remove(&index).is_err(), "it was emptied");
        ensure!(list.get(&index, 0)?.mac == own.mac);
        // By the same way, counters are changed.
        let mut tally =
            PerCpuArray::<_, agent_fw_ebpf::Tally>::try_from(map("manager0", "TALLY")?)?;
        let counted = tally.get(&0, 0)?;
        tally.set(0, counted, 0)?;
        expect(&manager, Outcome::Silent, &[UNLISTED])?;
        expect(&manager, Outcome::Talked, &[LISTED])?;
        agent_fw(["verify"])?.success().map(drop)
    })
}

/// Somebody pins another map where the list was.
fn replace_the_pin() -> Result<()> {
    let pins: Vec<_> = fs::read_dir(pins()?)?.flatten().map(|entry| entry.path()).collect();
    let named = |start: &str| {
        let is = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(start);
        pins.iter().find(|path| path.file_name().is_some_and(is)).context("no such pin")
    };
    let (own, other) = (named("own-")?, named("tally-")?);
    fs::remove_file(own)?;
    Ok(MapData::from_pin(other)?.pin(own)?)
}

/// Something that somebody does, and the words for what is wrong then.
type Change = (fn() -> Result<()>, &'static str);

/// What makes the list one of another host, or unknown.
const CHANGES: [Change; 4] = [
    (|| ip("link set manager0 address 02:00:00:00:00:77"), "should be frames to 02:00:00:00:00:77"),
    // The kernel announces no link for these.
    (|| ip("rule add from 10.9.9.9 table 100"), "should be frames to 02:00:00:00:00:77 whose"),
    (|| Ok(fs::remove_file(own_pin()?)?), "no pin that shows which frames"),
    (replace_the_pin, "no pin that shows which frames"),
];

fn own_pin() -> Result<std::path::PathBuf> {
    let all = fs::read_dir(pins()?)?.flatten();
    let own = all.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/own-"));
    own.context("the list has no pin")
}

fn status_tells_a_list_that_is_not_this_hosts() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("both", "manager0", &[]))?;
        for (change, words) in CHANGES {
            change()?;
            for command in ["status", "verify"] {
                let told = agent_fw([command])?;
                let said = told.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
                let times = said.matches(words).count();
                ensure!(told.code == Some(1) && times == 1, "{words}: {told}");
                ensure!(said.contains("run `agent-fw apply`"), "{told}");
            }
            agent_fw(["apply"])?.success()?;
            ensure!(status()?.1 == Some(0), "{words}: not restored");
            agent_fw(["verify"])?.success()?;
            manager.forget_neighbours()?;
            expect(&manager, Outcome::Silent, &[UNLISTED])?;
            expect(&manager, Outcome::Talked, &[LISTED])?;
        }
        Ok(())
    })
}

fn the_guard_mends_a_list_that_is_not_this_hosts() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("both", "manager0", &[]))?;
        let _guard = Guard::start_as_unit()?;
        for (change, words) in CHANGES {
            let before = attached("manager0")?;
            change()?;
            let took =
                until(words, || Ok(attached("manager0")? != before && status()?.1 == Some(0)))?;
            println!("{words}: mended within {} ms", took.as_millis());
            ensure!(is_emulated() || took < Duration::from_secs(4), "{words}: it took {took:?}");
            manager.forget_neighbours()?;
            expect(&manager, Outcome::Silent, &[UNLISTED])?;
            expect(&manager, Outcome::Talked, &[LISTED])?;
        }
        agent_fw(["verify"])?.success().map(drop)
    })
}
