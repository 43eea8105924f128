//! A machine's life: installation, reboots, other firewalls, faults, crashes, power cuts.

use crate::host::{BOOT, Build, Host, disk};
use crate::neighbour::{Neighbour, Seen};
use agent_fw_lab::Lab;
use agent_fw_lab::vm::{Kernel, Parts};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant, SystemTime};

/// A test on a kernel.
type Test = fn(&Parts, Kernel) -> Result<()>;

/// The tests of this module.
pub(crate) const TESTS: &[(&str, Test)] = &[(
    "from_the_first_packet_to_the_last_no_unlisted_source_is_answered",
    from_the_first_packet_to_the_last_no_unlisted_source_is_answered,
)];

const INSTALL: [&str; 4] = ["agent-fw", "install", "--allow-from", "region:us-1"];
/// How often the power is cut in the middle of an installation.
const CUTS: u64 = 3;

fn from_the_first_packet_to_the_last_no_unlisted_source_is_answered(
    parts: &Parts,
    kernel: Kernel,
) -> Result<()> {
    Lab::run(|lab| {
        let name = format!("life-{kernel}");
        let image = disk(parts, &name)?;
        let neighbour = Neighbour::settle(lab)?;
        let mut host = Host::start(Build { parts, kernel, image: &image, name: &name })?;
        let both = |seen: Seen| seen.listed > 5 && seen.unlisted > 5;
        neighbour.wait("without agent-fw both sources are answered", BOOT, both)?;

        host.run(&INSTALL)?;
        let unlisted = neighbour.unlisted_so_far();
        host.is_closed(&neighbour, unlisted)?;
        let shown = host.run(&["systemctl", "status", "--no-pager", "agent-fw"])?;
        ensure!(shown.contains("Status: \"closed: TCP port 4118"), "{shown}");

        let mut host = host.restart(&["systemctl", "reboot"]).context("a reboot")?;
        host.is_closed(&neighbour, unlisted).context("after a reboot")?;
        host.run(&["agent-fw", "status"])?;
        other_firewalls(&mut host, &neighbour)?;
        let host = faults(host, &neighbour)?;
        let unlisted = neighbour.seen().unlisted;
        let mut host = host.restart(&["sh", "-c", "echo c > /proc/sysrq-trigger"])?;
        host.is_closed(&neighbour, unlisted).context("after a crash")?;
        power_cuts(host, &neighbour)?;
        println!("{name}: {} SYNs, {:?}", neighbour.sent(), neighbour.seen());
        Ok(())
    })
}

/// nftables.service flushes every table when it starts, reloads and stops. When systemctl is back,
/// the policy is in force again.
fn other_firewalls(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    for verb in ["start", "restart", "reload", "stop"] {
        let before = Instant::now();
        host.run(&["systemctl", verb, "nftables"])?;
        let took = before.elapsed();
        let unlisted = neighbour.unlisted_so_far();
        host.is_closed(neighbour, unlisted).with_context(|| format!("after {verb} nftables"))?;
        host.run(&["agent-fw", "status"])?;
        println!("systemctl {verb} nftables: {} ms under emulation", took.as_millis());
    }
    Ok(())
}

/// A policy file that cannot be read, and one whose last good policy is gone, too.
fn faults<'a>(mut host: Host<'a>, neighbour: &Neighbour) -> Result<Host<'a>> {
    host.run(&["cp", "/etc/agent-fw/policy.toml", "/root/policy.toml"])?;
    host.run(&["sh", "-c", "echo nonsense > /etc/agent-fw/policy.toml"])?;
    let unlisted = neighbour.seen().unlisted;
    let mut host = host.restart(&["systemctl", "reboot"]).context("with a faulty policy")?;
    host.is_closed(neighbour, unlisted).context("with a faulty policy")?;
    let journal = host.run(&["journalctl", "--boot", "--no-pager", "--unit", "agent-fw"])?;
    let line = journal.lines().find(|line| line.contains("the last good policy"));
    let line = line.with_context(|| format!("the journal does not say why: {journal}"))?;
    ensure!(line.contains("policy.toml:1:"), "the journal's line: {line}");

    host.run(&["rm", "/var/lib/agent-fw/last-good.json"])?;
    let mut host = host.restart(&["systemctl", "reboot"]).context("with no good policy")?;
    let (listed, unlisted_now) = (neighbour.seen().listed, neighbour.seen().unlisted);
    let sent = neighbour.sent();
    let deadline = Instant::now() + Duration::from_mins(1);
    while neighbour.sent() < sent + 500 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = neighbour.seen();
    ensure!(seen.listed == listed && unlisted_now == unlisted, "with no good policy: {seen:?}");
    ensure!(seen.unlisted == unlisted, "with no good policy: {seen:?}");

    host.run(&["cp", "/root/policy.toml", "/etc/agent-fw/policy.toml"])?;
    host.run(&["sync"])?;
    host.run(&["systemctl", "restart", "agent-fw"])?;
    host.is_closed(neighbour, unlisted).context("after the policy was put right")?;
    Ok(host)
}

/// Power is cut at moments drawn at random while policies are exchanged. The machine comes up with
/// one of them, whole.
fn power_cuts(mut host: Host, neighbour: &Neighbour) -> Result<()> {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos();
    let unlisted = neighbour.seen().unlisted;
    for cut in 0..CUTS {
        let delay = u64::from(seed).wrapping_mul(cut * 2 + 1) % 400;
        println!("the power is cut {delay} ms into an installation");
        let other = if cut % 2 == 0 { "192.0.2.0/24" } else { "203.0.113.0/24" };
        let install = [&INSTALL[..], &["--allow-from", other]].concat();
        host = host.cut(&install, Duration::from_millis(delay)).context("after a power cut")?;
        host.is_closed(neighbour, unlisted).context("after a power cut")?;
        let status = host.try_run(&["agent-fw", "status"])?;
        ensure!(status.code == Some(0), "after a power cut: {status:?}");
    }
    Ok(())
}
