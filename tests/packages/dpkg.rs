//! What dpkg makes of a host: this machine's own Debian, of which the lab sees changes alone.

use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, Peer, connect, output, package, run, while_knocking};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

tests![
    installed_by_debian_alone_nothing_is_opened_or_closed,
    while_debian_upgrades_no_unlisted_source_is_answered,
    removed_by_debian_it_lets_go_of_the_port_and_comes_back_with_its_policy,
    purged_by_debian_it_leaves_no_trace,
    what_was_installed_from_the_sources_gives_way_to_debians_package,
];

pub(crate) const AGENT: u16 = 4118;
pub(crate) const LISTED: Ipv4Addr = Ipv4Addr::new(34, 205, 5, 1);
pub(crate) const UNLISTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// The program of the package, whatever else PATH has.
pub(crate) const AGENT_FW: &str = "/usr/bin/agent-fw";

/// A host of which everything that dpkg writes to is the lab's own, with somebody outside.
pub(crate) fn host<T: Send>(experiment: impl FnOnce(&Lab, &Peer) -> Result<T> + Send) -> Result<T> {
    Lab::run(|lab| {
        for directory in ["/usr", "/var/log", "/var/cache"] {
            lab.overlay(directory)?;
        }
        let peer = lab.peer("outside")?;
        for source in [LISTED, UNLISTED] {
            peer.add_address(source.into())?;
        }
        let _agent = Listener::bind(AGENT)?;
        experiment(lab, &peer)
    })
}

fn dpkg(words: &[&str]) -> Result<String> {
    run([&["dpkg"], words].concat())
}

fn install(of: &str) -> Result<String> {
    dpkg(&["--install", &package(of, ".deb")?.to_string_lossy()])
}

pub(crate) fn install_policy() -> Result<String> {
    run([AGENT_FW, "install", "--untested", "--allow-from", "region:us-1"])
}

pub(crate) fn outcome(peer: &Peer, source: Ipv4Addr) -> Result<Outcome> {
    let agent = peer.host_address(source.into(), AGENT);
    peer.enter(|| connect(source.into(), agent, Duration::from_millis(700)))?
}

pub(crate) fn ensure_open(peer: &Peer) -> Result<()> {
    for source in [LISTED, UNLISTED] {
        let seen = outcome(peer, source)?;
        ensure!(seen == Outcome::Talked, "{source}: {seen}");
    }
    Ok(())
}

pub(crate) fn ensure_closed(peer: &Peer) -> Result<()> {
    let (listed, unlisted) = (outcome(peer, LISTED)?, outcome(peer, UNLISTED)?);
    ensure!(listed == Outcome::Talked, "{LISTED}: {listed}");
    ensure!(unlisted == Outcome::Silent, "{UNLISTED}: {unlisted}");
    Ok(())
}

/// Every file about agent-fw that is no part of these sources.
fn traces() -> Result<String> {
    let places = ["/etc", "/run", "/usr/bin", "/usr/lib", "/usr/share", "/var/lib"];
    let beside = ["-name", "*agent-fw*", "-not", "-path", "/run/lab/*"];
    Ok(output([&["find"], &places[..], &beside[..]].concat())?.stdout)
}

fn installed_by_debian_alone_nothing_is_opened_or_closed() -> Result<()> {
    host(|_, peer| {
        install("newer")?;
        ensure!(!Path::new("/etc/agent-fw").exists(), "it has written a policy");
        let link = "/etc/systemd/system/sysinit.target.wants/agent-fw.service";
        ensure!(fs::symlink_metadata(link).is_ok(), "a later policy would be gone after a boot");
        // What the unit does at boot, and the drop-in behind nftables.service.
        let said = run([AGENT_FW, "apply", "--boot"])?;
        ensure!(said.contains("no policy is installed"), "{said}");
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        ensure_open(peer)?;
        install_policy()?;
        let ours = "/etc/systemd/system/agent-fw.service";
        ensure!(fs::symlink_metadata(ours).is_err(), "the package's own unit is there");
        ensure_closed(peer)
    })
}

fn while_debian_upgrades_no_unlisted_source_is_answered() -> Result<()> {
    host(|_, peer| {
        install("older")?;
        let version = |of: &str| -> Result<String> {
            dpkg(&["--field", &package(of, ".deb")?.to_string_lossy(), "Version"])
        };
        let installed = || run(["dpkg-query", "--show", "--showformat=${Version}\n", "agent-fw"]);
        ensure!(installed()? == version("older")?);
        install_policy()?;
        ensure_closed(peer)?;
        let tried = while_knocking(peer, UNLISTED, AGENT, || {
            for version in ["newer", "older", "newer"] {
                install(version)?;
            }
            Ok(())
        })?;
        println!("{tried} SYNs of an unlisted source during three upgrades");
        ensure!(tried > 1000, "too few SYNs: {tried}");
        ensure!(installed()? == version("newer")?);
        run([AGENT_FW, "verify"])?;
        ensure_closed(peer)?;
        // The same source is answered where no policy stands in its way.
        run([AGENT_FW, "uninstall"])?;
        let answered = while_knocking(peer, UNLISTED, AGENT, || {
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        });
        ensure!(answered.is_err(), "the SYNs would not have been answered anyhow");
        Ok(())
    })
}

fn removed_by_debian_it_lets_go_of_the_port_and_comes_back_with_its_policy() -> Result<()> {
    host(|_, peer| {
        install("newer")?;
        install_policy()?;
        ensure_closed(peer)?;
        dpkg(&["--remove", "agent-fw"])?;
        ensure_open(peer)?;
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        let policy = fs::read_to_string("/etc/agent-fw/policy.toml")?;
        ensure!(policy.contains("region:us-1"), "{policy}");
        install("newer")?;
        run([AGENT_FW, "apply"])?;
        ensure_closed(peer)
    })
}

fn purged_by_debian_it_leaves_no_trace() -> Result<()> {
    host(|_, peer| {
        let before = traces()?;
        install("newer")?;
        let interface = peer.interface();
        let both = ["--backend", "both", "--interface", &interface];
        let flags = ["--untested", "--guard", "--allow-from", "region:us-1"];
        run([&[AGENT_FW, "install"], &flags[..], &both[..]].concat())?;
        fs::write("/etc/agent-fw/regions.toml", "")?;
        let there = traces()?;
        for name in ["/etc/agent-fw", "/var/lib/agent-fw", "99-agent-fw.rules", "agent-fw.8.gz"] {
            ensure!(there.contains(name), "{name} is not there: {there}");
        }
        dpkg(&["--purge", "agent-fw"])?;
        let left = traces()?;
        ensure!(left == before, "left: {left}");
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        let link = run(["ip", "-details", "link", "show", "dev", &interface])?;
        ensure!(!link.contains("prog/xdp"), "{link}");
        ensure_open(peer)
    })
}

fn what_was_installed_from_the_sources_gives_way_to_debians_package() -> Result<()> {
    host(|_, peer| {
        let program = "/usr/local/bin/agent-fw";
        run([Path::new("cp"), &agent_fw_lab::agent_fw_path(), Path::new(program)])?;
        run([program, "install", "--untested", "--allow-from", "region:us-1"])?;
        let unit = Path::new("/etc/systemd/system/agent-fw.service");
        ensure!(fs::read_to_string(unit)?.contains("/usr/local/bin/agent-fw apply"));
        install("newer")?;
        ensure!(unit.symlink_metadata().is_err(), "it still names the other program");
        let wants = "/etc/systemd/system/sysinit.target.wants/agent-fw.service";
        let enabled = fs::read_to_string(wants).context("it is not enabled")?;
        ensure!(enabled.contains("=/usr/bin/agent-fw apply"), "{enabled}");
        run([AGENT_FW, "verify"])?;
        ensure_closed(peer)
    })
}
