//! A machine's life: packages, reboots, other firewalls, faults, crashes, power cuts.

use crate::host::{BOOT, Build, Host, NEWER, OLDER, disk};
use crate::neighbour::{Neighbour, Seen};
use crate::{installed_before, interface};
use agent_fw_lab::vm::{Kernel, Parts};
use agent_fw_lab::{Lab, is_whole};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant, SystemTime};

/// A test on a kernel.
type Test = fn(&Parts, Kernel) -> Result<()>;

/// The tests of this module.
pub(crate) const TESTS: &[(&str, Test)] = &[(
    "from_the_first_packet_to_the_last_no_unlisted_source_is_answered",
    from_the_first_packet_to_the_last_no_unlisted_source_is_answered,
)];

const INSTALL: [&str; 5] = ["agent-fw", "install", "--replace", "--allow-from", "region:us-1"];
const NFTABLES_RESTARTED: [&str; 3] = ["systemctl", "restart", "nftables"];
const NFTABLES_STOPPED: [&str; 3] = ["systemctl", "stop", "nftables"];
/// What forbids to load modules.
const HARDENING: &str = "/etc/sysctl.d/90-hardening.conf";
/// Where metrics are written.
const METRICS: &str = "/srv/metrics";
/// How often the power is cut in the middle of an installation, on each kernel; and where
/// everything is asked for.
const CUTS: [u64; 2] = [3, 10];

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

        host.run(&["dpkg", "--install", OLDER])?;
        host.run(&["mkdir", METRICS])?;
        host.run(&[&INSTALL[..], &["--metrics", METRICS]].concat())?;
        let unlisted = neighbour.unlisted_so_far();
        host.is_closed(&neighbour, unlisted)?;
        let shown = host.run(&["systemctl", "status", "--no-pager", "agent-fw"])?;
        ensure!(shown.contains("Status: \"closed: TCP port 4118"), "{shown}");

        installed_before::upgrade(&mut host, &neighbour, unlisted).context("an upgrade")?;
        let mut host = host.restart(&["systemctl", "reboot"]).context("a reboot")?;
        installed_before::is_in_force_with_a_warning(&mut host, &neighbour, unlisted)
            .context("after a reboot")?;
        metrics(&mut host).context("metrics")?;
        host.run(&INSTALL)?;
        on_trial(&mut host, &neighbour).context("a change on trial")?;
        other_firewalls(&mut host, &neighbour)?;
        host.run(&[&INSTALL[..], &["--backend", "both", "--interface", "eth0"]].concat())?;
        interface::goes_and_comes(&mut host, &neighbour)?;
        interface::gets_another_name(&mut host, &neighbour)?;
        host.run(&[&INSTALL[..], &["--backend", "xdp", "--interface", "eth0"]].concat())?;
        interface::goes_and_comes_alone(&mut host, &neighbour)?;
        on_guard(&mut host, &neighbour)?;
        let mut host = faults(host, &neighbour)?;
        harden(&mut host)?;
        let unlisted = neighbour.seen().unlisted;
        let mut host = host.restart(&["sh", "-c", "echo c > /proc/sysrq-trigger"])?;
        host.is_closed(&neighbour, unlisted).context("after a crash")?;
        without_modules(&mut host).context("with kernel.modules_disabled=1")?;
        let mut host = power_cuts(host, &neighbour)?;
        without_counters(&mut host, &neighbour).context("without nft_objref")?;
        println!("{name}: {} SYNs, {:?}", neighbour.sent(), neighbour.seen());
        Ok(())
    })
}

/// A timer has them written every minute, since the boot.
fn metrics(host: &mut Host) -> Result<()> {
    let file = format!("{METRICS}/agent-fw.prom");
    host.run(&["rm", "--force", &file])?;
    let deadline = Instant::now() + Duration::from_mins(3);
    while host.run(&["test", "-s", &file]).is_err() {
        ensure!(Instant::now() < deadline, "none for three minutes");
        std::thread::sleep(Duration::from_secs(1));
    }
    let text = host.run(&["cat", &file])?;
    ensure!(text.contains("agent_fw_closed 1"), "{text}");
    Ok(())
}

/// A newer package over the one that is there. dpkg restarts what runs.
fn upgrade(host: &mut Host, neighbour: &Neighbour, unlisted: u64) -> Result<()> {
    host.run(&["dpkg", "--install", NEWER])?;
    host.is_closed(neighbour, unlisted)?;
    host.run(&["systemctl", "is-active", "agent-fw"])?;
    host.run(&["agent-fw", "verify"]).map(drop)
}

/// A change that shuts the listed source out is taken back by systemd's timer, or is kept.
fn on_trial(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    const SHUT_OUT: [&str; 3] = ["agent-fw", "deny", "34.205.5.0/27"];
    let unlisted = neighbour.unlisted_so_far();
    let policy = host.run(&["cat", "/etc/agent-fw/policy.toml"])?;
    host.run(&[&SHUT_OUT[..], &["--untested", "--confirm", "20"]].concat())?;
    let shut_out = neighbour.seen().listed;
    std::thread::sleep(Duration::from_secs(2));
    // Answers that were on their way.
    ensure!(neighbour.seen().listed <= shut_out + 5, "{shut_out}: {:?}", neighbour.seen());
    host.is_closed(neighbour, unlisted).context("it was not taken back")?;
    host.run_until_true(&["agent-fw", "verify"])?;
    ensure!(host.run(&["cat", "/etc/agent-fw/policy.toml"])? == policy);
    host.script("agent-fw confirm || test $? = 1")?;

    host.run(&["agent-fw", "allow", "203.0.113.9", "--untested", "--confirm", "60"])?;
    host.run(&["agent-fw", "confirm"])?;
    let timers = host.run(&["systemctl", "list-timers", "--all", "--no-pager"])?;
    ensure!(!timers.contains("taking-back"), "{timers}");
    host.run(&["agent-fw", "undo", "--untested"])?;
    host.run(&["agent-fw", "verify"])?;
    host.is_closed(neighbour, unlisted)
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
    // Both let everybody in, as the agent's own rules do: the table alone keeps the port closed.
    let unlisted = neighbour.unlisted_so_far();
    for command in [
        "firewall-offline-cmd --quiet --add-port=4118/tcp",
        "systemctl start firewalld",
        "systemctl reload firewalld",
        "ufw allow 4118/tcp",
        "ufw --force enable",
        "ufw reload",
        "systemctl stop firewalld",
        "ufw disable",
    ] {
        host.run(&command.split(' ').collect::<Vec<_>>())?;
        host.is_closed(neighbour, unlisted).with_context(|| format!("after {command}"))?;
        host.run(&["agent-fw", "status"])?;
    }
    Ok(())
}

/// Somebody flushes every table while the guard stands, and the package is exchanged under it.
fn on_guard(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    host.run(&[&INSTALL[..], &["--guard"]].concat())?;
    host.run(&["systemctl", "is-active", "agent-fw-guard"])?;
    let unlisted = neighbour.unlisted_so_far();
    let flushes = [&["nft", "flush", "ruleset"][..], &NFTABLES_RESTARTED, &NFTABLES_STOPPED];
    for flush in flushes {
        host.run(flush)?;
        // On 6.1, where a twin stands in for the table, until it is put back.
        host.run_until_true(&["agent-fw", "verify"])?;
        host.is_closed(neighbour, unlisted).with_context(|| flush.join(" "))?;
        host.run(&["agent-fw", "status"])?;
    }
    host.run(&["dpkg", "--install", OLDER])?;
    upgrade(host, neighbour, unlisted).context("an upgrade under guard")?;
    host.run(&["systemctl", "is-active", "agent-fw-guard"])?;
    host.run(&["systemctl", "stop", "agent-fw-guard"])?;
    host.is_closed(neighbour, unlisted).context("without the guard")
}

/// A policy file that cannot be read, and one whose last good policy is gone, too.
fn faults<'a>(mut host: Host<'a>, neighbour: &Neighbour) -> Result<Host<'a>> {
    host.run(&["cp", "/etc/agent-fw/policy.toml", "/root/policy.toml"])?;
    host.run(&["sh", "-c", "echo nonsense > /etc/agent-fw/policy.toml"])?;
    let unlisted = neighbour.seen().unlisted;
    let mut host = host.restart(&["systemctl", "reboot"]).context("with a faulty policy")?;
    host.is_closed(neighbour, unlisted).context("with a faulty policy")?;
    let journal = host.run(&["journalctl", "--boot", "--no-pager", "--unit", "agent-fw"])?;
    // It closes the port before it looks at the policy, and says that first.
    let line = journal.lines().find(|line| line.contains("cannot be enforced"));
    let line = line.with_context(|| format!("the journal does not say why: {journal}"))?;
    let says = |part: &str| line.contains(part);
    ensure!(says("policy.toml:1:") && says("the last good policy"), "the journal's line: {line}");

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

/// A common hardening: once systemd-sysctl has run, nothing may load a module. What else the machine
/// needs by then is loaded as an administrator would have it. The policy needs more than usual.
fn harden(host: &mut Host) -> Result<()> {
    host.run(&[&INSTALL[..], &["--log"]].concat())?;
    host.script(&format!(
        "echo kernel.modules_disabled=1 > {HARDENING}
         echo virtio_net > /etc/modules-load.d/card.conf
         sync"
    ))?;
    Ok(())
}

/// The next boot has them again.
fn without_modules(host: &mut Host) -> Result<()> {
    let value = host.run(&["cat", "/proc/sys/kernel/modules_disabled"])?;
    ensure!(value.trim() == "1", "the kernel loads modules: {value}");
    let refused = host.script("! modprobe dummy");
    refused.context("the kernel loads a module")?;
    host.run(&["agent-fw", "status"])?;
    host.run(&["agent-fw", "verify"])?;
    let doctor = host.script("agent-fw doctor || test $? = 1")?;
    ensure!(doctor.contains("good modules at boot"), "{doctor}");
    host.script(&format!("rm {HARDENING}; sync"))?;
    Ok(())
}

/// Where the kernel cannot load what counts (a module before Linux 6.2), a table without counters holds.
fn without_counters(host: &mut Host, neighbour: &Neighbour) -> Result<()> {
    const FORBIDDEN: &str = "/etc/modprobe.d/no-counters.conf";
    host.script(&format!("echo install nft_objref /bin/false > {FORBIDDEN}; sync"))?;
    if host.script("modinfo nft_objref").is_err() {
        return host.script(&format!("rm {FORBIDDEN}; sync")).map(drop);
    }
    // It goes with the last table that counts, in a moment.
    host.script(
        "systemctl stop agent-fw-guard; nft flush ruleset
         for _ in $(seq 50); do
             lsmod | grep -q nft_objref || break
             rmmod nft_objref || sleep 0.2
         done
         ! lsmod | grep -q nft_objref",
    )?;
    let unlisted = neighbour.unlisted_so_far();
    host.script("agent-fw apply --boot || test $? = 1")?;
    let table = host.run(&["nft", "list", "ruleset"])?;
    ensure!(table.contains("agent_fw") && !table.contains("counter"), "{table}");
    let unlisted_then = neighbour.unlisted_so_far();
    host.is_closed(neighbour, unlisted_then)?;
    println!("{} unlisted SYNs were answered before", unlisted_then - unlisted);
    host.script(&format!("rm {FORBIDDEN}; sync"))?;
    host.run(&["agent-fw", "apply", "--boot"])?;
    host.is_closed(neighbour, unlisted_then)?;
    host.run(&["agent-fw", "verify"]).map(drop)
}

/// A setting of the unit's that systemd cannot give, as it could not start it at all on some hosts.
const IMPOSSIBLE: &str = "[Service]\\nBindReadOnlyPaths=/nowhere/at/all\\n";

/// Power is cut at moments drawn at random while policies are exchanged. The machine comes up with
/// one of them, whole; the first time though systemd cannot start the boot unit.
fn power_cuts<'a>(mut host: Host<'a>, neighbour: &Neighbour) -> Result<Host<'a>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos();
    let seed = std::env::var("AGENT_FW_SEED").ok().map_or(Ok(now.into()), |said| said.parse())?;
    println!("power cuts from AGENT_FW_SEED={seed}");
    let unlisted = neighbour.seen().unlisted;
    let drop_ins = "/etc/systemd/system/agent-fw.service.d";
    let spoil =
        format!("mkdir {drop_ins}; printf '{IMPOSSIBLE}' > {drop_ins}/impossible.conf; sync");
    host.run(&["sh", "-c", &spoil])?;
    for cut in 0..CUTS[usize::from(is_whole())] {
        let delay = u64::wrapping_mul(seed, cut * 2 + 1) % 400;
        println!("the power is cut {delay} ms into an installation");
        let other = if cut % 2 == 0 { "192.0.2.0/24" } else { "203.0.113.0/24" };
        let install = [&INSTALL[..], &["--allow-from", other]].concat();
        host = host.cut(&install, Duration::from_millis(delay)).context("after a power cut")?;
        host.is_closed(neighbour, unlisted).context("after a power cut")?;
        host.run(&["agent-fw", "status"]).context("after a power cut")?;
        if cut == 0 {
            host.run(&["systemctl", "is-failed", "agent-fw"]).context("the unit was started")?;
            host.run(&["rm", "-r", drop_ins])?;
            host.run(&["systemctl", "daemon-reload"])?;
        }
    }
    Ok(host)
}
