//! The dispatcher of libxdp, by which several programs share an interface's XDP hook: the real one,
//! as xdp-filter puts it there. On a kernel that has no use for it, xdp-filter's program is there
//! alone; Debian's kernels, in virtual machines, have one.

use crate::scene::{AGENT, LISTED, UNLISTED, expect, install, status};
use crate::tc::has_tcx;
use crate::tests;
use crate::xdp::{attached, flags};
use agent_fw_lab::{EMULATED, Lab, Listener, Outcome, agent_fw, command, run};
use anyhow::{Result, ensure};

tests![
    xdp_filter_and_its_dispatcher_stay_and_ours_goes_to_the_tc_hook_behind_them,
    xdp_filter_cannot_take_the_place_of_ours,
];

const LOAD: [&str; 5] = ["xdp-filter", "load", "manager0", "--mode", "native"];

fn xdp_filter_and_its_dispatcher_stay_and_ours_goes_to_the_tc_hook_behind_them() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        run(LOAD)?;
        run(["xdp-filter", "port", "9", "--mode", "dst", "--proto", "udp"])?;
        let theirs = attached("manager0")?;
        ensure!(theirs.is_some(), "xdp-filter has loaded nothing");
        let said = install(&flags("xdp", "manager0", &[]))?;
        let dispatched = run(["xdp-loader", "status", "manager0"])?.contains("xdp_dispatcher");
        ensure!(dispatched || std::env::var_os(EMULATED).is_none(), "there is no dispatcher");
        let name = if dispatched { "`xdp_dispatcher`" } else { "`xdpfilt_alw_all`" };
        ensure!(said.contains(name), "{said}");
        let (seen, code) = status()?;
        let hook = &seen["xdp"]["interfaces"][0]["hook"];
        let expected = if has_tcx() { "tcx" } else { "clsact" };
        ensure!(code == Some(0) && hook == expected, "{seen:#}");
        expect(&manager, Outcome::Talked, &LISTED)?;
        expect(&manager, Outcome::Silent, &UNLISTED)?;
        agent_fw(["verify"])?.success()?;
        ensure!(attached("manager0")? == theirs, "the dispatcher was touched");
        // Theirs can be changed as ever, and ours stays.
        run(["xdp-filter", "port", "10", "--mode", "dst", "--proto", "udp"])?;
        let listed = run(["xdp-filter", "status"])?;
        ensure!(listed.contains("manager0"), "{listed}");
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;

        run(["xdp-filter", "unload", "manager0"])?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        install(&flags("xdp", "manager0", &[]))?;
        let (seen, _) = status()?;
        ensure!(seen["xdp"]["interfaces"][0]["hook"] == "xdp", "{seen:#}");
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])
    })
}

fn xdp_filter_cannot_take_the_place_of_ours() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let ours = attached("manager0")?;
        let load = command(LOAD).output()?;
        ensure!(!load.status.success(), "{load:?}");
        ensure!(attached("manager0")? == ours, "another program is there");
        agent_fw(["verify"])?.success()?;
        expect(&manager, Outcome::Talked, &LISTED[..1])?;
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        agent_fw(["uninstall"])?.success()?;
        run(LOAD)?;
        ensure!(attached("manager0")?.is_some(), "xdp-filter could not have loaded anyway");
        Ok(())
    })
}
