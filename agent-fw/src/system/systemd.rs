//! What applies the policy at boot, after other firewalls, and when an interface comes: units of
//! systemd, and a rule of udev.

use crate::system::{awaited_interfaces, file, program};
use anyhow::{Context as _, bail};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The unit's name.
pub const UNIT: &str = "agent-fw.service";

/// The guard's.
pub const GUARD: &str = "agent-fw-guard.service";

/// The template of the timers that have metrics written, each to a directory.
const METRICS: &str = "agent-fw-metrics@.timer";
/// What they write there.
const METRICS_FILE: &str = "agent-fw.prom";

/// Where packages put units. What is there is theirs.
const PACKAGED: [&str; 3] =
    ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where administrators put units, and `agent-fw install` where no package has.
const UNITS: &str = "/etc/systemd/system";
/// Where administrators put rules of udev, and `agent-fw install` where no package has.
const RULES: &str = "/etc/udev/rules.d";
/// The rule's name.
pub const RULE: &str = "99-agent-fw.rules";
/// Where administrators name modules that are loaded early, and `agent-fw install` where no package
/// has.
const MODULES_LOAD: &str = "/etc/modules-load.d";
/// Where they say what is loaded with a module.
const MODPROBE: &str = "/etc/modprobe.d";
/// The name of the files there, and below `/usr/lib`.
pub const MODULES: &str = "agent-fw.conf";
/// The first line of what agent-fw has written.
const OURS: &str = "# Written by agent-fw";

/// Who has put a unit there, as its first line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// `agent-fw install`.
    Command,
    /// A package of the distribution's manager.
    Package,
}

impl Origin {
    fn line(self) -> &'static str {
        match self {
            Self::Command => "Written by agent-fw, and removed by `agent-fw uninstall`.",
            Self::Package => "Of the package agent-fw. `systemctl edit` keeps changes apart.",
        }
    }
}

/// The files of `data/`, with places for their origin and the path of agent-fw.
const UDEV: &str = include_str!("../../data/99-agent-fw.rules");
const MODULES_TEMPLATE: &str = include_str!("../../data/modules-load.conf");
const MODPROBE_TEMPLATE: &str = include_str!("../../data/modprobe.conf");
const SANDBOX: &str = include_str!("../../data/sandbox.conf");
const IPTABLES: &str = include_str!("../../data/iptables-drop-in.conf");
const TEMPLATES: [(&str, &str); 9] = [
    (UNIT, include_str!("../../data/agent-fw.service")),
    ("agent-fw-fallback.service", include_str!("../../data/agent-fw-fallback.service")),
    ("agent-fw-interface@.service", include_str!("../../data/agent-fw-interface@.service")),
    (GUARD, include_str!("../../data/agent-fw-guard.service")),
    ("agent-fw-metrics@.service", include_str!("../../data/agent-fw-metrics@.service")),
    (METRICS, include_str!("../../data/agent-fw-metrics@.timer")),
    ("nftables.service.d/agent-fw.conf", include_str!("../../data/nftables-drop-in.conf")),
    ("netfilter-persistent.service.d/agent-fw.conf", IPTABLES),
    ("iptables.service.d/agent-fw.conf", IPTABLES),
];

/// The units, as they are below `/etc/systemd/system` or in a package: name and text.
pub fn units(origin: Origin, agent_fw: &str) -> impl Iterator<Item = (&'static str, String)> {
    TEMPLATES.into_iter().map(move |(name, template)| {
        let text = template.replace("@ORIGIN@", origin.line());
        (name, text.replace("@SANDBOX@", SANDBOX).replace("@AGENT_FW@", agent_fw))
    })
}

/// The rule by which udev has an interface that comes given its program.
pub fn udev_rule(origin: Origin) -> String {
    UDEV.replace("@ORIGIN@", origin.line()).replace("@AWAITED@", awaited_interfaces::DIRECTORY)
}

/// The modules that are loaded before the kernel may be forbidden to load any.
pub fn modules(origin: Origin) -> String {
    MODULES_TEMPLATE.replace("@ORIGIN@", origin.line())
}

/// The modules that are loaded with these.
pub fn modules_besides(origin: Origin) -> String {
    MODPROBE_TEMPLATE.replace("@ORIGIN@", origin.line())
}

/// Whether these modules are loaded at boot.
pub fn loads_modules() -> bool {
    let is_there = |directories: [&str; 3]| {
        directories.iter().any(|directory| Path::new(directory).join(MODULES).exists())
    };
    is_there([MODULES_LOAD, "/usr/lib/modules-load.d", "/lib/modules-load.d"])
        && is_there([MODPROBE, "/usr/lib/modprobe.d", "/lib/modprobe.d"])
}

/// What outlives a reboot, as far as systemd's links tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Persistence {
    /// The policy is applied at boot.
    pub unit: bool,
    /// The guard is started.
    pub guard: bool,
    /// Metrics are written every minute.
    pub metrics: bool,
}

impl Persistence {
    /// Looks at the links.
    pub fn look() -> Self {
        let is_linked = |directory: &Path, unit: &str| {
            std::fs::read_dir(directory).into_iter().flatten().flatten().any(|target| {
                let is_wanted = target.file_name().to_string_lossy().ends_with(".wants");
                is_wanted && target.path().join(unit).symlink_metadata().is_ok()
            })
        };
        let is_enabled = |unit| is_linked(Path::new(UNITS), unit);
        Self {
            unit: is_enabled(UNIT),
            guard: is_enabled(GUARD),
            metrics: metrics().is_ok_and(|timers| !timers.is_empty()),
        }
    }
}

impl std::fmt::Display for Persistence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unit, guard, metrics } = self;
        f.write_str(if *unit {
            "the policy is applied at boot"
        } else {
            "the policy is NOT applied at boot"
        })?;
        let word = |on: &bool| if *on { "on" } else { "off" };
        write!(f, "; guard {}, metrics timer {}", word(guard), word(metrics))
    }
}

/// Whether this host has systemd, so that a unit can apply the policy at boot.
pub fn has_systemd() -> bool {
    program::exists("systemctl")
}

/// What is to be on disk so that the policy is applied at boot, each file with its text.
pub fn files() -> anyhow::Result<Vec<(PathBuf, String)>> {
    if is_provided() {
        return Ok(Vec::new());
    }
    let agent_fw = lasting_program()?;
    let units = units(Origin::Command, &agent_fw);
    let mut files: Vec<_> = units.map(|(name, text)| (Path::new(UNITS).join(name), text)).collect();
    files.push((Path::new(RULES).join(RULE), udev_rule(Origin::Command)));
    files.push((Path::new(MODULES_LOAD).join(MODULES), modules(Origin::Command)));
    files.push((Path::new(MODPROBE).join(MODULES), modules_besides(Origin::Command)));
    Ok(files)
}

/// Whether a package has brought the units, or the administrator one.
fn is_provided() -> bool {
    let theirs = Path::new(UNITS).join(UNIT);
    PACKAGED.iter().any(|directory| Path::new(directory).join(UNIT).exists())
        || theirs.symlink_metadata().is_ok() && !is_ours(&theirs)
}

fn is_ours(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
        && file::read(path).is_ok_and(|text| text.is_some_and(|text| text.starts_with(OURS)))
}

/// The path of this program, if it is there at boot and nobody but root can change it.
fn lasting_program() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot tell where agent-fw is")?;
    let path = program.to_str().filter(|path| !path.contains(|c: char| c.is_whitespace()));
    let Some(path) = path else { bail!("a unit cannot name {}", program.display()) };
    let advice = "put it at /usr/local/bin, as `cargo xtask install` does, or say --no-boot";
    let passing = ["/home", "/root", "/run", "/tmp", "/var/tmp", "/dev"];
    if passing.iter().any(|directory| program.starts_with(directory)) {
        bail!("the boot unit would run {path}, which may not be there at boot; {advice}");
    }
    for part in program.ancestors() {
        let metadata = part.metadata().with_context(|| format!("cannot look at {path}"))?;
        if metadata.uid() != 0 || metadata.mode() & 0o002 != 0 {
            let part = part.display();
            bail!(
                "the boot unit would run {path}, but others than root can change {part}; {advice}"
            );
        }
    }
    Ok(path.to_owned())
}

/// Lets the policy be applied at every boot.
pub fn enable() -> anyhow::Result<()> {
    systemctl(&["enable", "--quiet", UNIT])
}

/// Lets the guard stand from now on.
pub fn set_guard() -> anyhow::Result<()> {
    systemctl(&["enable", "--quiet", GUARD])?;
    if is_running() { systemctl(&["restart", GUARD]) } else { Ok(()) }
}

/// Has metrics written to this directory from now on, every minute.
pub fn set_metrics(directory: &Path) -> anyhow::Result<()> {
    let directory = std::path::absolute(directory)?;
    let directory = directory.to_str().context("its name is not UTF-8")?;
    let template = format!("--template={METRICS}");
    let timer = output("systemd-escape", &["--path", &template, directory])?;
    systemctl(&["enable", "--quiet", timer.trim()])?;
    if is_running() { systemctl(&["restart", timer.trim()]) } else { Ok(()) }
}

/// The timers that have metrics written, with the directories.
fn metrics() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let wanted = Path::new(UNITS).join("timers.target.wants");
    let names = std::fs::read_dir(wanted).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let (before, after) = METRICS.split_once('@').unwrap_or((METRICS, ""));
    let timers = names.filter(|name| {
        name.split_once('@').is_some_and(|(name, rest)| name == before && rest.ends_with(after))
    });
    let directory = |timer: String| {
        let words = ["--unescape", "--path", "--instance", &timer];
        let directory = output("systemd-escape", &words)?;
        Ok((timer, PathBuf::from(directory.trim_end_matches('\n'))))
    };
    timers.map(directory).collect()
}

/// Ends the writing of metrics, and removes what was written: it would say for ever what is no
/// longer so. The timers come again at the next boot, unless they are forgotten.
fn end_metrics(forget: bool) -> anyhow::Result<()> {
    for (timer, directory) in metrics()? {
        if is_running() {
            systemctl(&["stop", &timer])?;
        }
        if forget {
            systemctl(&["disable", "--quiet", &timer])?;
        }
        file::remove(&directory.join(METRICS_FILE))?;
    }
    Ok(())
}

/// Tells systemd that the policy is in force, where systemd runs: the unit then shows it, and goes
/// along with other firewalls.
pub fn start() -> anyhow::Result<()> {
    if is_running() { systemctl(&["restart", UNIT]) } else { Ok(()) }
}

/// Ends the guard, the writing of metrics, and what says that the policy is in force, until the next
/// boot.
pub fn stop() -> anyhow::Result<()> {
    end_metrics(false)?;
    for unit in [GUARD, UNIT] {
        if is_running() && systemctl(&["is-active", "--quiet", unit]).is_ok() {
            systemctl(&["stop", unit])?;
        }
    }
    Ok(())
}

/// Undoes all of this.
pub fn remove() -> anyhow::Result<()> {
    let theirs_or_ours = is_provided() || is_ours(&Path::new(UNITS).join(UNIT));
    if theirs_or_ours {
        end_metrics(true)?;
        let now: &[&str] = if is_running() { &["--now"] } else { &[] };
        systemctl(&[&["disable", "--quiet"], now, &[UNIT]].concat())?;
        if Path::new(UNITS).join("sysinit.target.wants").join(GUARD).symlink_metadata().is_ok() {
            systemctl(&[&["disable", "--quiet"], now, &[GUARD]].concat())?;
        }
    }
    let units = TEMPLATES.iter().map(|(name, _)| Path::new(UNITS).join(name));
    let others = [(RULES, RULE), (MODULES_LOAD, MODULES), (MODPROBE, MODULES)];
    let others = others.map(|(directory, name)| Path::new(directory).join(name));
    for path in units.chain(others).filter(|path| is_ours(path)) {
        file::remove(&path)?;
    }
    // Stays when the administrator's own files are in it.
    for (name, _) in TEMPLATES {
        if let Some((directory, _)) = name.split_once('/') {
            drop(std::fs::remove_dir(Path::new(UNITS).join(directory)));
        }
    }
    if theirs_or_ours && is_running() { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// The units of the timer that takes back what nobody confirms.
const TAKING_BACK: &str = "agent-fw-taking-back";

/// Has this program run with these arguments when so much time has passed. What is lasting about it is
/// the process that starts it, not this one.
pub fn start_timer(after: Duration, arguments: &[&str]) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot tell where agent-fw is")?;
    let program = program.to_str().context("its name is not UTF-8")?;
    let unit = format!("--unit={TAKING_BACK}");
    let after = format!("--on-active={}s", after.as_secs());
    let options = ["--quiet", "--collect", &unit, &after, "--timer-property=AccuracySec=100ms"];
    let call = [&options[..], &["--property=Type=oneshot", "--", program], arguments].concat();
    output("systemd-run", &call).map(drop)
}

/// Ends that timer before its time. The command that it runs may be the one that ends it.
pub fn end_timer() -> anyhow::Result<()> {
    if is_running() { systemctl(&["stop", &format!("{TAKING_BACK}.timer")]) } else { Ok(()) }
}

/// Whether systemd is what runs this host.
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    output("systemctl", arguments).map(drop)
}

fn output(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = program::call(name).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name} {}` failed: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{METRICS, OURS, Origin, udev_rule, units};

    #[test]
    fn units_are_recognised_as_ours_and_name_the_program() {
        for (name, text) in units(Origin::Command, "/usr/bin/agent-fw") {
            assert!(text.starts_with(OURS), "{name}");
            let runs = text.contains("/usr/bin/agent-fw ");
            assert_eq!(runs, name != METRICS, "{name}");
            for place in ["@ORIGIN@", "@SANDBOX@", "@AGENT_FW@"] {
                assert!(!text.contains(place), "{name}: {place}");
            }
        }
        let mut packaged = units(Origin::Package, "/usr/bin/agent-fw");
        assert!(packaged.all(|(_, text)| !text.starts_with(OURS)), "a package's are its own");
    }

    #[test]
    fn the_rule_looks_where_awaited_interfaces_are_noted() {
        let rule = udev_rule(Origin::Command);
        assert!(rule.starts_with(OURS), "{rule}");
        assert!(rule.contains("TEST==\"/run/agent-fw/interfaces/$name\""), "{rule}");
    }
}
