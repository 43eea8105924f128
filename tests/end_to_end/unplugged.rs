//! An interface that is taken out and put in again, where a program stands alone: what udev has run when
//! it has gone keeps the port closed until it is back and has its program. That udev has it run is
//! tested in virtual machines.

use crate::scene::{AGENT, expect, install};
use crate::tests;
use crate::xdp::{attached, flags};
use agent_fw_lab::{Lab, Listener, Outcome, Peer, agent_fw, command, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

tests![
    an_interface_that_was_unplugged_is_closed_from_its_first_packet_on,
    one_interface_of_two_that_was_unplugged_is_closed_from_its_first_packet_on,
    an_interface_that_goes_and_comes_while_the_policy_is_applied_is_never_open,
    an_interface_that_was_renamed_and_unplugged_is_closed_when_it_is_back,
    udev_knows_an_interface_that_has_gone_by_its_index,
];

const LISTED: &str = "34.205.5.1";
const UNLISTED: &str = "198.51.100.7";

fn is_closed(peer: &Peer) -> Result<()> {
    expect(peer, Outcome::Silent, &[UNLISTED])?;
    expect(peer, Outcome::Talked, &[LISTED])
}

/// What udev has run for an interface that comes and goes.
fn unit() -> Result<()> {
    agent_fw(["apply", "--boot"])?.success().map(drop)
}

fn has_table() -> Result<bool> {
    Ok(run(["nft", "list", "tables"])?.contains("inet agent_fw"))
}

/// Demands that the program stands alone, as the policy says.
fn stands_alone(interface: &str) -> Result<()> {
    ensure!(attached(interface)?.is_some(), "{interface} has no program");
    ensure!(!has_table()?, "the table still stands in");
    agent_fw(["verify"])?.success().map(drop)
}

fn an_interface_that_was_unplugged_is_closed_from_its_first_packet_on() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        is_closed(&manager)?;
        // If nothing runs, it comes back open.
        manager.unplug()?;
        manager.plug_in()?;
        expect(&manager, Outcome::Talked, &[UNLISTED])?;
        unit()?;
        stands_alone("manager0")?;
        for _ in 0..2 {
            manager.unplug()?;
            unit()?;
            ensure!(has_table()?, "nothing stands in");
            manager.plug_in()?;
            is_closed(&manager).context("before anything else has run")?;
            unit()?;
            stands_alone("manager0")?;
            is_closed(&manager)?;
        }
        Ok(())
    })
}

fn one_interface_of_two_that_was_unplugged_is_closed_from_its_first_packet_on() -> Result<()> {
    Lab::run(|lab| {
        let (manager, other) = (lab.peer("manager")?, lab.peer("other")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &["--interface", "other0"]))?;
        other.unplug()?;
        unit()?;
        is_closed(&manager)?;
        other.plug_in()?;
        is_closed(&other).context("before anything else has run")?;
        unit()?;
        stands_alone("other0")?;
        stands_alone("manager0")?;
        is_closed(&other)?;
        is_closed(&manager)
    })
}

/// As when the cable is loose: units run at each event, and one may not have ended by the next.
fn an_interface_that_goes_and_comes_while_the_policy_is_applied_is_never_open() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let start = || {
            let mut unit = command([agent_fw_lab::agent_fw_path()]);
            let unit = unit.args(["apply", "--boot"]).stdin(Stdio::null());
            unit.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        for delay in [0, 10, 20, 40, 80, 160] {
            manager.unplug()?;
            unit()?;
            manager.plug_in()?;
            let mut coming = start()?;
            std::thread::sleep(Duration::from_millis(delay));
            manager.unplug()?;
            // As systemd restarts the unit.
            coming.kill()?;
            coming.wait()?;
            unit()?;
            manager.plug_in()?;
            is_closed(&manager).with_context(|| format!("gone after {delay} ms"))?;
            // The one that began with the interface there, and saw it go, ends with the table.
            let mut coming = start()?;
            std::thread::sleep(Duration::from_millis(delay));
            manager.unplug()?;
            coming.wait()?;
            unit()?;
            manager.plug_in()?;
            is_closed(&manager).with_context(|| format!("gone after {delay} ms"))?;
            unit()?;
            stands_alone("manager0")?;
        }
        Ok(())
    })
}

fn an_interface_that_was_renamed_and_unplugged_is_closed_when_it_is_back() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        for line in ["set manager0 down", "set manager0 name lan0", "set lan0 up"] {
            run(["ip", "link"].into_iter().chain(line.split(' ')))?;
        }
        unit()?;
        stands_alone("lan0")?;
        run(["ip", "link", "del", "lan0"])?;
        unit()?;
        manager.plug_in()?;
        is_closed(&manager).context("before anything else has run")?;
        unit()?;
        stands_alone("manager0")?;
        is_closed(&manager)
    })
}

fn udev_knows_an_interface_that_has_gone_by_its_index() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        install(&flags("xdp", "manager0", &[]))?;
        let index = || -> Result<String> {
            Ok(fs::read_to_string("/sys/class/net/manager0/ifindex")?.trim().to_owned())
        };
        let mark =
            |index: &str| Path::new("/run/agent-fw/interfaces").join(format!("ifindex-{index}"));
        let before = index()?;
        ensure!(mark(&before).exists() && mark("manager0").parent().is_some_and(Path::exists));
        manager.unplug()?;
        unit()?;
        manager.plug_in()?;
        unit()?;
        let after = index()?;
        ensure!(before != after && mark(&after).exists() && !mark(&before).exists());
        agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(!mark(&after).exists());
        Ok(())
    })
}
