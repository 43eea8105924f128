//! The program at the tc hook, where another program has the interface's XDP.

use crate::scene::{AGENT, LISTED, UNLISTED, expect, install, is_linux, status, try_install};
use crate::xdp::{PINS, attached, flags, tagged_syn, under_traffic};
use crate::{foreign, tests, xdp_tags};
use agent_fw::configuration::Configuration;
use agent_fw::engine::interfaces;
use agent_fw::input::{Catalogue, Lists};
use agent_fw::xdp::{self, Targets};
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, kill_agent_fw_after, run};
use anyhow::{Context as _, Result, ensure};
use aya::programs::links::LinkOrder;
use aya::programs::{SchedClassifier, TcAttachType, XdpMode};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

tests![
    behind_anothers_xdp_program_the_tc_hook_admits_listed_sources_and_no_others,
    a_vlan_tag_gets_nobody_past_the_tc_hook,
    no_number_of_priority_tags_gets_an_unlisted_source_past_the_tc_hook,
    updates_at_the_tc_hook_lose_nothing_and_let_nobody_in,
    when_the_other_program_goes_the_next_update_moves_ours_to_xdp_without_a_gap,
    anothers_tc_programs_stay_and_one_in_front_of_ours_is_named,
    anothers_clsact_and_its_filters_stay,
    explain_names_the_tc_program_that_drops_and_no_other,
    when_a_later_step_fails_nothing_is_left_at_the_tc_hook,
    after_kill_9_at_any_moment_uninstall_leaves_the_tc_hook_clean_and_the_other_program_there,
];

/// The tests that a kernel without TCX can run: the others put a stranger's program there.
pub(crate) const WITHOUT_TCX: &[crate::Test] = &[
    (
        "behind_anothers_xdp_program_the_tc_hook_admits_listed_sources_and_no_others",
        behind_anothers_xdp_program_the_tc_hook_admits_listed_sources_and_no_others,
    ),
    ("a_vlan_tag_gets_nobody_past_the_tc_hook", a_vlan_tag_gets_nobody_past_the_tc_hook),
    (
        "no_number_of_priority_tags_gets_an_unlisted_source_past_the_tc_hook",
        no_number_of_priority_tags_gets_an_unlisted_source_past_the_tc_hook,
    ),
    (
        "updates_at_the_tc_hook_lose_nothing_and_let_nobody_in",
        updates_at_the_tc_hook_lose_nothing_and_let_nobody_in,
    ),
    (
        "when_the_other_program_goes_the_next_update_moves_ours_to_xdp_without_a_gap",
        when_the_other_program_goes_the_next_update_moves_ours_to_xdp_without_a_gap,
    ),
    ("anothers_clsact_and_its_filters_stay", anothers_clsact_and_its_filters_stay),
    (
        "explain_names_the_tc_program_that_drops_and_no_other",
        explain_names_the_tc_program_that_drops_and_no_other,
    ),
    (
        "when_a_later_step_fails_nothing_is_left_at_the_tc_hook",
        when_a_later_step_fails_nothing_is_left_at_the_tc_hook,
    ),
    (
        "after_kill_9_at_any_moment_uninstall_leaves_the_tc_hook_clean_and_the_other_program_there",
        after_kill_9_at_any_moment_uninstall_leaves_the_tc_hook_clean_and_the_other_program_there,
    ),
];

/// Whether this kernel has TCX, which came with 6.6.
pub(crate) fn has_tcx() -> bool {
    is_linux(6, 6)
}

/// How the program gets to the tc hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PacketTrace {
    /// As on this kernel.
    Tcx,
    /// As on one without TCX.
    Clsact,
}

impl PacketTrace {
    /// Those that this kernel has: TCX came with 6.6.
    fn all() -> impl Iterator<Item = Self> {
        [Self::Tcx, Self::Clsact].into_iter().filter(|road| *road == Self::Clsact || has_tcx())
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// `agent-fw install` on manager0. A program that is below clsact stays there.
    pub(crate) fn install(self, backend: &str, more: &[&str]) -> Result<String> {
        let flags = flags(backend, "manager0", more);
        if self == Self::Clsact && !Path::new(PINS).exists() {
            install(&flags)?;
            xdp::remove()?;
            let policy = "/etc/agent-fw/policy.toml";
            let wanted = Configuration::parse(policy, &std::fs::read_to_string(policy)?)?;
            let compiled = wanted.compile(&Catalogue::published()?, &Lists::default())?;
            let found = interfaces::named(&wanted.interfaces)?;
            let targets = Targets::of(found.interfaces())?.without_tcx();
            let gate = wanted.backend.has_table();
            xdp::attach(&compiled.lowered, gate, targets, wanted.xdp_mode)?.settle()?;
        }
        install(&flags)
    }
}

/// Nothing of agent-fw's is left, at either hook.
fn is_clean(interface: &str) -> Result<()> {
    ensure!(!Path::new(PINS).exists(), "pins are left");
    if has_tcx() {
        let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Ingress)?;
        ensure!(programs.is_empty(), "{} TCX programs are left", programs.len());
    }
    let disciplines = run(["tc", "qdisc", "show", "dev", interface])?;
    ensure!(!disciplines.contains("clsact"), "{disciplines}");
    Ok(())
}

fn behind_anothers_xdp_program_the_tc_hook_admits_listed_sources_and_no_others() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for (mode, word) in [(XdpMode::Driver, "native"), (XdpMode::Skb, "generic")] {
            let theirs = foreign::at_xdp("manager0", mode)?;
            let before = attached("manager0")?;
            for (road, backend) in [
                (PacketTrace::Tcx, "xdp"),
                (PacketTrace::Clsact, "xdp"),
                (PacketTrace::Tcx, "both"),
            ] {
                let road = if has_tcx() { road } else { PacketTrace::Clsact };
                let said = road.install(backend, &["--allow-from", "2001:db8:1::/64"])?;
                let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
                let seen = status()?;
                let hook = &seen.0["xdp"]["interfaces"][0];
                ensure!(hook["hook"] == road.name() && hook["mode"].is_null(), "{hook:#}");
                ensure!(seen.1 == Some(0), "{:#}", seen.0);
                if road == PacketTrace::Tcx {
                    let which = format!("somebody else's {word} XDP program");
                    ensure!(said.contains("the tc hook (TCX) on manager0"), "{said}");
                    ensure!(said.contains(&which) && said.contains("`others_drive`"), "{said}");
                }
                expect(&manager, Outcome::Talked, &LISTED)?;
                expect(&manager, Outcome::Silent, &UNLISTED[..1])
                    .with_context(|| format!("{road:?}, {backend}, {mode:?}: {:#}", seen.0))?;
                expect(&manager, Outcome::Talked, &["2001:db8:1::1"])?;
                expect(&manager, Outcome::Silent, &["2001:db8:2::1"])?;
                ensure!(attached("manager0")? == before, "the other program was touched");
                agent_fw(["uninstall"])?.success()?;
                is_clean("manager0")?;
                ensure!(attached("manager0")? == before, "the other program was touched");
                expect(&manager, Outcome::Talked, &UNLISTED[..1])?;
            }
            drop(theirs);
        }
        Ok(())
    })
}

fn a_vlan_tag_gets_nobody_past_the_tc_hook() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        let sources =
            [(Ipv4Addr::new(34, 205, 5, 1), true), (Ipv4Addr::new(198, 51, 100, 7), false)];
        for (source, _) in sources {
            peer.add_address(source.into())?;
        }
        for road in PacketTrace::all() {
            road.install("xdp", &[])?;
            for (source, listed) in sources {
                let answered = peer.enter(|| tagged_syn(&peer, source))??;
                ensure!(answered == listed, "{road:?}: {source} was answered: {answered}");
            }
            agent_fw(["uninstall"])?.success()?;
        }
        Ok(())
    })
}

fn no_number_of_priority_tags_gets_an_unlisted_source_past_the_tc_hook() -> Result<()> {
    Lab::run(|lab| {
        let peer = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        xdp_tags::prepare(&peer)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        for road in PacketTrace::all() {
            for backend in ["xdp", "both"] {
                road.install(backend, &xdp_tags::LISTED_V6)?;
                xdp_tags::expect_tags_to_hide_nothing(&peer)
                    .with_context(|| format!("{road:?}, {backend}"))?;
                agent_fw(["uninstall"])?.success()?;
            }
        }
        Ok(())
    })
}

fn updates_at_the_tc_hook_lose_nothing_and_let_nobody_in() -> Result<()> {
    for road in PacketTrace::all() {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
            road.install("xdp", &[])?;
            let update = || -> Result<()> {
                for round in 0..30 {
                    match round % 3 {
                        0 => road.install("xdp", &["--allow-from", "192.0.2.0/24"])?,
                        1 => agent_fw(["apply"])?.success()?,
                        _ => road.install("xdp", &[])?,
                    };
                }
                Ok(())
            };
            let (said, tried) = under_traffic(&peer, update)?;
            ensure!(said > 30 && tried > 30, "too little traffic: {said}, {tried}");
            let (seen, code) = status()?;
            let hook = &seen["xdp"]["interfaces"][0]["hook"];
            ensure!(code == Some(0) && hook == road.name(), "{seen:#}");
            ensure!(seen["xdp"]["refused"].as_u64() >= Some(tried), "{tried} of: {seen:#}");
            Ok(())
        })
        .with_context(|| format!("{road:?}"))?;
    }
    Ok(())
}

fn when_the_other_program_goes_the_next_update_moves_ours_to_xdp_without_a_gap() -> Result<()> {
    for road in PacketTrace::all() {
        Lab::run(|lab| {
            let peer = lab.peer("manager")?;
            let theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
            road.install("xdp", &[])?;
            drop(theirs);
            while attached("manager0")?.is_some() {
                std::thread::sleep(Duration::from_millis(2));
            }
            ensure!(status()?.1 == Some(0), "the policy is enforced as before");
            under_traffic(&peer, || road.install("xdp", &[]).map(drop))?;
            ensure!(attached("manager0")?.is_some_and(|(mode, _)| mode == "native"));
            let (seen, code) = status()?;
            let all = seen["xdp"]["interfaces"].as_array().map(Vec::len);
            ensure!(code == Some(0) && all == Some(1), "{seen:#}");
            let disciplines = run(["tc", "qdisc", "show", "dev", "manager0"])?;
            ensure!(!disciplines.contains("clsact"), "{disciplines}");
            agent_fw(["uninstall"])?.success()?;
            is_clean("manager0")
        })
        .with_context(|| format!("{road:?}"))?;
    }
    Ok(())
}

fn anothers_tc_programs_stay_and_one_in_front_of_ours_is_named() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        let _before = foreign::at_tc("manager0", LinkOrder::first())?;
        install(&flags("xdp", "manager0", &[]))?;
        let ahead = || -> Result<_> { Ok(status()?.0["xdp"]["interfaces"][0]["ahead"].as_u64()) };
        ensure!(ahead()? == Some(0), "one that was there before is in front");
        let front = foreign::at_tc("manager0", LinkOrder::first())?;
        ensure!(ahead()? == Some(1), "{:#}", status()?.0);
        let said = agent_fw(["status"])?.success()?;
        ensure!(said.contains("come before it"), "{said}");
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        install(&flags("xdp", "manager0", &["--allow-from", "192.0.2.0/24"]))?;
        agent_fw(["uninstall"])?.success()?;
        let (_, left) = SchedClassifier::query_tcx("manager0", TcAttachType::Ingress)?;
        ensure!(left.len() == 2, "{} programs are left, two were another's", left.len());
        drop(front);
        Ok(())
    })
}

fn anothers_clsact_and_its_filters_stay() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        run(["tc", "qdisc", "add", "dev", "manager0", "clsact"])?;
        let filter = "tc filter add dev manager0 ingress prio 9 protocol ip u32 \
                      match ip dst 192.0.2.99/32 flowid 1:1";
        run(filter.split_whitespace())?;
        let shown = || run("tc filter show dev manager0 ingress".split(' '));
        let before = shown()?;
        PacketTrace::Clsact.install("xdp", &[])?;
        ensure!(shown()?.contains("agent_fw_tc"), "{}", shown()?);
        expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(shown()? == before, "{before} became {}", shown()?);
        // One that is there and empty is somebody's, too.
        run(["tc", "filter", "del", "dev", "manager0", "ingress"])?;
        PacketTrace::Clsact.install("xdp", &[])?;
        agent_fw(["uninstall"])?.success()?;
        let disciplines = run(["tc", "qdisc", "show", "dev", "manager0"])?;
        ensure!(disciplines.contains("clsact"), "{disciplines}");
        Ok(())
    })
}

fn explain_names_the_tc_program_that_drops_and_no_other() -> Result<()> {
    for road in PacketTrace::all() {
        Lab::run(|lab| {
            let manager = lab.peer("manager")?;
            for source in [LISTED[0], UNLISTED[0]] {
                manager.add_address(source.parse()?)?;
            }
            let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
            run(["tc", "qdisc", "add", "dev", "manager0", "clsact"])?;
            let filter = "tc filter add dev manager0 ingress prio 9 protocol ip u32 \
                          match ip dst 192.0.2.99/32 flowid 1:1";
            run(filter.split_whitespace())?;
            road.install("xdp", &[])?;
            let explain = |source: &str| agent_fw(["explain", "--from", source]);
            let passed = explain(LISTED[0])?;
            ensure!(passed.code == Some(0), "{passed}");
            let dropped = explain(UNLISTED[0])?;
            let words = dropped.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            let named = match road {
                PacketTrace::Tcx => "before nf_tables: by tc program agent_fw_tc (number",
                PacketTrace::Clsact => {
                    "before nf_tables: by tc filter bpf agent_fw_tc of priority 1"
                }
            };
            ensure!(dropped.code == Some(1) && words.contains(named), "{dropped}");
            ensure!(!words.contains("u32"), "{dropped}");
            Ok(())
        })
        .context(road.name())?;
    }
    Ok(())
}

fn when_a_later_step_fails_nothing_is_left_at_the_tc_hook() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        let refused = |flags: &[&str]| -> Result<()> {
            // A directory where the new file should be prepared.
            std::fs::create_dir_all("/etc/agent-fw/policy.toml.new")?;
            let tried = try_install(flags)?;
            ensure!(tried.code == Some(3), "{tried}");
            Ok(std::fs::remove_dir("/etc/agent-fw/policy.toml.new")?)
        };
        refused(&flags("xdp", "manager0", &[]))?;
        is_clean("manager0")?;
        // Loopback has no native XDP: it fails after manager0 was served.
        let tried = try_install(&flags("xdp", "manager0", &["--interface", "lo"]))?;
        ensure!(tried.code == Some(3), "{tried}");
        is_clean("manager0")?;
        for road in PacketTrace::all() {
            road.install("xdp", &[])?;
            let tried = try_install(&flags("xdp", "manager0", &["--interface", "lo"]))?;
            ensure!(tried.code == Some(3), "{tried}");
            let (seen, code) = status()?;
            let hook = &seen["xdp"]["interfaces"][0]["hook"];
            ensure!(code == Some(0) && hook == road.name(), "{seen:#}");
            expect(&manager, Outcome::Silent, &UNLISTED[..1])?;
            agent_fw(["uninstall"])?.success()?;
        }
        Ok(())
    })
}

fn after_kill_9_at_any_moment_uninstall_leaves_the_tc_hook_clean_and_the_other_program_there()
-> Result<()> {
    Lab::run(|lab| {
        let _manager = lab.peer("manager")?;
        let _theirs = foreign::at_xdp("manager0", XdpMode::Driver)?;
        let before = attached("manager0")?;
        for delay in (0..60).step_by(4) {
            let argv = [&["install", "--no-boot"], &flags("xdp", "manager0", &[])[..]].concat();
            kill_agent_fw_after(Duration::from_millis(delay), argv)?;
            agent_fw(["uninstall", "--yes"])?.success()?;
            is_clean("manager0").with_context(|| format!("killed after {delay} ms"))?;
            ensure!(attached("manager0")? == before, "the other program was touched");
        }
        Ok(())
    })
}
