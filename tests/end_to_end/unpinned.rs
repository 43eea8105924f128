//! agent-fw's own programs whose pins cannot be seen: they are found by asking the kernel.

use crate::scene::{AGENT, LISTED, UNLISTED, expect, install, status};
use crate::tc::{PacketTrace, has_tcx};
use crate::xdp::{attached, flags, pins};
use crate::{foreign, tests};
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, output, run};
use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use nix::unistd::gettid;

tests![
    a_program_whose_pins_are_covered_is_named_taken_over_and_taken_off,
    a_program_at_the_tc_hook_whose_pins_are_covered_is_taken_over_and_taken_off,
    a_program_whose_pins_cannot_be_removed_is_taken_off,
    a_program_on_an_interface_that_was_elsewhere_is_taken_over,
    what_may_not_ask_the_kernel_calls_an_unexplained_program_unknown,
    units_see_a_program_at_the_tc_hook_by_its_pin,
];

/// A second BPF file system over the first.
fn cover_the_pins() -> Result<()> {
    run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"]).map(drop)
}

/// What `status` says of a program that no pin explains; it is no success.
fn is_named() -> Result<()> {
    let said = agent_fw(["status"])?;
    let words = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_said = words.contains("no pin below /sys/fs/bpf explains agent-fw's program");
    ensure!(said.code == Some(1) && is_said, "{said}");
    Ok(())
}

fn a_program_whose_pins_are_covered_is_named_taken_over_and_taken_off() -> Result<()> {
    for backend in ["xdp", "both"] {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            install(&flags(backend, "manager0", &[]))?;
            let before = attached("manager0")?.context("no program")?;
            cover_the_pins()?;
            is_named()?;
            // What it does is known all the same: there is no packet that it lets in.
            let verified = agent_fw(["verify", "--json"])?;
            let verified: serde_json::Value = serde_json::from_str(&verified.stdout)?;
            ensure!(verified["counterexample"].is_null(), "{verified:#}");
            agent_fw(["apply"])?.success()?;
            let after = attached("manager0")?.context("no program")?;
            ensure!(after.0 == before.0 && after.1 != before.1, "{before:?}, then {after:?}");
            let (seen, code) = status()?;
            ensure!(code == Some(0), "{seen:#}");
            ensure!(seen["xdp"]["interfaces"][0]["hook"] == "xdp", "{seen:#}");
            expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
            expect(&manager, Outcome::Talked, &LISTED[..1])?;
            agent_fw(["verify"])?.success()?;
            cover_the_pins()?;
            agent_fw(["uninstall"])?.success()?;
            ensure!(attached("manager0")?.is_none(), "it still filters");
            expect(&manager, Outcome::Talked, &UNLISTED[..1])
        })
        .context(backend)?;
    }
    Ok(())
}

fn a_program_at_the_tc_hook_whose_pins_are_covered_is_taken_over_and_taken_off() -> Result<()> {
    for road in [PacketTrace::Tcx, PacketTrace::Clsact] {
        let road = if has_tcx() { road } else { PacketTrace::Clsact };
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            let _agent = Listener::bind(AGENT)?;
            let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
            let theirs = attached("manager0")?;
            road.install("xdp", &[])?;
            cover_the_pins()?;
            is_named()?;
            agent_fw(["apply"])?.success()?;
            let (seen, code) = status()?;
            ensure!(code == Some(0), "{seen:#}");
            expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
            expect(&manager, Outcome::Talked, &LISTED[..1])?;
            cover_the_pins()?;
            agent_fw(["uninstall"])?.success()?;
            ensure!(attached("manager0")? == theirs, "the other program was touched");
            expect(&manager, Outcome::Talked, &UNLISTED[..1])
        })
        .context(road.name())?;
    }
    Ok(())
}

fn a_program_whose_pins_cannot_be_removed_is_taken_off() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        run(["mount", "-o", "remount,ro", "/sys/fs/bpf"])?;
        let tried = agent_fw(["apply"])?;
        ensure!(tried.code == Some(3), "{tried}");
        expect(&manager, Outcome::Silent, &UNLISTED[..1]).context("after apply")?;
        let removed = agent_fw(["uninstall"])?;
        ensure!(removed.code == Some(3) && removed.stderr.contains("Read-only"), "{removed}");
        ensure!(attached("manager0")?.is_none(), "it still filters: {removed}");
        run(["mount", "-o", "remount,rw", "/sys/fs/bpf"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(!pins()?.exists(), "pins are left");
        expect(&manager, Outcome::Talked, &UNLISTED[..1])
    })
}

fn a_program_on_an_interface_that_was_elsewhere_is_taken_over() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let shown = run(["ip", "-o", "address", "show", "dev", "manager0"])?;
        let words: Vec<&str> = shown.split_whitespace().collect();
        let addresses = words.windows(2).filter(|pair| ["inet", "inet6"].contains(&pair[0]));
        run(["ip", "netns", "add", "elsewhere"])?;
        run(["ip", "link", "set", "manager0", "netns", "elsewhere"])?;
        // Its number is taken meanwhile: it comes back with another.
        run(["ip", "link", "add", "other0", "index", &index_of(&words)?, "type", "veth"])?;
        let home = gettid().to_string();
        run(["ip", "-n", "elsewhere", "link", "set", "manager0", "netns", &home])?;
        run(["ip", "link", "set", "manager0", "up"])?;
        for pair in addresses.filter(|pair| !pair[1].starts_with("fe80")) {
            run(["ip", "address", "add", pair[1], "dev", "manager0", "nodad"])?;
        }
        is_named()?;
        agent_fw(["apply"])?.success()?;
        let (seen, code) = status()?;
        ensure!(code == Some(0) && seen["xdp"]["interfaces"][0]["hook"] == "xdp", "{seen:#}");
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(attached("manager0")?.is_none(), "it still filters");
        expect(&manager, Outcome::Talked, &UNLISTED[..1])
    })
}

/// The number that `ip -o` shows first.
fn index_of(words: &[&str]) -> Result<String> {
    let first = words.first().context("no address")?;
    Ok(first.trim_end_matches(':').to_owned())
}

fn what_may_not_ask_the_kernel_calls_an_unexplained_program_unknown() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        install(&flags("xdp", "manager0", &[]))?;
        cover_the_pins()?;
        // As the units are: without CAP_SYS_ADMIN.
        let unit = ["setpriv", "--bounding-set=-sys_admin"];
        let agent_fw = agent_fw_path();
        let agent_fw = agent_fw.to_str().context("a path")?;
        let said = output(unit.into_iter().chain([agent_fw, "status"]))?;
        let words = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_said = words
            .contains("manager0 has no XDP program that a pin shows to be agent-fw's")
            && words.contains("does there is not known");
        ensure!(said.code == Some(1) && is_said, "{said}");
        Ok(())
    })
}

fn units_see_a_program_at_the_tc_hook_by_its_pin() -> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        install(&flags("xdp", "manager0", &[]))?;
        let unit = ["setpriv", "--bounding-set=-sys_admin"];
        let agent_fw = agent_fw_path();
        let agent_fw = agent_fw.to_str().context("a path")?;
        for command in ["apply", "status"] {
            output(unit.into_iter().chain([agent_fw, command]))?.success()?;
            let (seen, code) = status()?;
            let hook = &seen["xdp"]["interfaces"][0]["hook"];
            ensure!(
                code == Some(0) && hook == if has_tcx() { "tcx" } else { "clsact" },
                "{seen:#}"
            );
        }
        Ok(())
    })
}
