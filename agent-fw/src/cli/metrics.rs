//! `agent-fw metrics`: the status for Prometheus.

use super::LockWait;
use super::openness::{self, Tried};
use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say};
use super::status::Findings;
use crate::engine::last_test::LastTest;
use crate::engine::pending;
use crate::input::options::Mode;
use crate::model::firewall::Rule;
use crate::nft::{Count, LEFT, LiveTable, REFUSED, REFUSED_EARLY};
use crate::system;
use crate::system::systemd::Persistence;
use crate::system::{file, guard_socket, lock, privilege};
use anyhow::{Context as _, anyhow};
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Prints the status as metrics for Prometheus, for node_exporter's textfile collector
///
/// Counters go on from the first installation. When the last packet of a source came, XDP programs
/// know; nf_tables does not, and the time is then that of the first status or metrics after it. What
/// is in force is said by the metrics, not by the exit code.
#[derive(clap::Args, Debug)]
pub(super) struct Metrics {
    /// Write them to this file, which at every moment has the old ones or the new ones
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ask the kernel, too, whether admitted sources get through: agent_fw_open
    ///
    /// As `explain` does, with a source of each admitted range, of the first four of each version
    /// of IP. What it takes to ask is counted as theirs, and not taken for a contact. Where rules of
    /// this host would remember the packet, nothing is asked: agent_fw_open_not_asked.
    #[arg(long)]
    probe: bool,
    /// Print a dashboard for Grafana that shows them instead
    #[arg(long, conflicts_with_all = ["output", "probe"])]
    dashboard: bool,
    /// Print alerts for Prometheus on them instead, as a file of rules
    #[arg(long, conflicts_with_all = ["output", "probe", "dashboard"])]
    alerts: bool,
    #[command(flatten)]
    patience: LockWait,
}

/// The dashboard, as Grafana imports it.
const DASHBOARD: &str = include_str!("../../data/grafana-dashboard.json");

/// The alerts, as Prometheus reads them.
const ALERTS: &str = include_str!("../../data/prometheus-alerts.yml");

impl Metrics {
    pub(super) fn run(self) -> Result<Outcome> {
        if self.alerts {
            say!("{}", ALERTS.trim_end());
            return Ok(Outcome::Done);
        }
        if self.dashboard {
            say!("{}", DASHBOARD.trim_end());
            return Ok(Outcome::Done);
        }
        privilege::require_net_admin("metrics")?;
        let findings = Findings::gather("metrics")?;
        if let Some(fault) = findings.fault() {
            // Beside the metrics, which say that the kernel differs.
            report::failure(&anyhow!("{fault}").context("the policy cannot be read"));
        }
        let tried = if self.probe { self.tried(&findings)? } else { Vec::new() };
        let not_asked =
            tried.iter().filter_map(|tried| Some((tried, tried.reaches.as_ref().err()?)));
        for (Tried { source, .. }, why) in not_asked {
            // Beside the metrics, which have no word of the rule.
            report::aside(&format!("{source}: {why}"));
        }
        let text = text(&findings, &tried).context("the metrics contradict each other")?;
        match &self.output {
            Some(path) => write(path, &text)?,
            None => say!("{}", text.trim_end()),
        }
        Ok(Outcome::Done)
    }

    fn tried(&self, findings: &Findings) -> Result<Vec<Tried>> {
        // Not in the middle of another agent-fw's work.
        let _lock = lock::acquire("metrics", self.patience.duration())?;
        Ok(openness::tried(findings)?)
    }
}

/// The collector's directory is another's: it is not made.
fn write(path: &Path, text: &str) -> Result<()> {
    match path.symlink_metadata() {
        // A file there is replaced by another; a link or a device is somebody's.
        Ok(found) if !found.is_file() => return Err(no_file(path)),
        _ => {}
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if directory.is_none_or(Path::is_dir) {
        return Ok(file::write(&std::path::absolute(path).context("no directory")?, text)?);
    }
    Err(no_directory(directory.unwrap_or(path)))
}

fn no_file(path: &Path) -> Failure {
    let path = path.display();
    Failure::Input(anyhow!(
        "{path} is no regular file, and would be replaced; without --output, the metrics go to \
         standard output"
    ))
}

pub(super) fn no_directory(directory: &Path) -> Failure {
    let directory = directory.display();
    Failure::Input(anyhow!(
        "there is no directory {directory}: it is the one that node_exporter's \
         --collector.textfile.directory names"
    ))
}

fn text(findings: &Findings, tried: &[Tried]) -> anyhow::Result<String> {
    let registry = Registry::new();
    state(findings, &registry)?;
    surroundings(findings, &registry)?;
    packets(findings, &registry)?;
    rules(findings, &registry)?;
    last_contact(findings, &registry)?;
    open(tried, &registry)?;
    Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
}

fn truth(registry: &Registry, name: &str, help: &str, value: bool) -> prometheus::Result<()> {
    let gauge = IntGauge::new(name, help)?;
    gauge.set(value.into());
    registry.register(Box::new(gauge))
}

/// What is wanted and what is in force.
fn state(findings: &Findings, registry: &Registry) -> anyhow::Result<()> {
    let policy = findings.wanted.as_ref().map(|(_, compiled)| &compiled.lowered.policy);
    let closed = findings.is_closed();
    let drift = findings.is_wanted() && !findings.agree();
    truth(registry, "agent_fw_installed", "Whether a policy is installed.", findings.is_wanted())?;
    let help = "Whether the agent's port is closed to all but the admitted sources.";
    truth(registry, "agent_fw_closed", help, closed)?;
    for (name, reasons, help) in [
        (
            "agent_fw_relay_closed",
            &findings.beyond.relay,
            "Whether the relay's port is closed to all but its sources.",
        ),
        (
            "agent_fw_outbound_closed",
            &findings.beyond.outbound,
            "Whether other outgoing connections than those that the agent needs are dropped.",
        ),
    ] {
        // Where nothing is promised, there is no answer.
        if let Some(reasons) = reasons {
            truth(registry, name, help, reasons.is_empty())?;
        }
    }
    let help = "Whether the kernel does not enforce the installed policy.";
    truth(registry, "agent_fw_drift", help, drift)?;
    let labels = ["version", "policy", "kernel_policy", "backend"];
    let opts = Opts::new("agent_fw_policy_info", "The hashes of the policies; always 1.");
    let info = IntGaugeVec::new(opts, &labels)?;
    let hash = policy.map_or_else(String::new, |policy| policy.hash().to_string());
    let enforced = findings.kernel_policy().map_or_else(String::new, |hash| hash.to_string());
    let backend = findings.wanted.as_ref().map(|(configuration, _)| configuration.backend);
    let backend = backend.map_or_else(String::new, |backend| backend.to_string());
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), &hash, &enforced, &backend]).set(1);
    registry.register(Box::new(info))?;
    if let Ok(written) = std::fs::metadata(system::POLICY).and_then(|file| file.modified()) {
        let (name, help) = ("agent_fw_policy_written_seconds", "When the policy was written.");
        registry.register(Box::new(time(name, help, written)?))?;
    }
    Ok(())
}

/// What the policy asks for, what keeps it, and what was found out about it.
fn surroundings(findings: &Findings, registry: &Registry) -> anyhow::Result<()> {
    let wanted = findings.wanted.as_ref();
    let closes = wanted.is_some_and(|(_, compiled)| compiled.lowered.policy.closes());
    let help = "Whether the policy closes the agent's port to all but the admitted sources.";
    truth(registry, "agent_fw_closed_wanted", help, closes)?;
    let mode = wanted.map(|(configuration, _)| configuration.direction);
    let help = "Whether the manager alone opens connections, so that its heartbeats come in.";
    let is_wanted = mode == Some(Mode::ManagerInitiated);
    truth(registry, "agent_fw_heartbeat_wanted", help, is_wanted)?;
    let Persistence { unit, guard, .. } = Persistence::look();
    truth(registry, "agent_fw_boot_unit", "Whether the policy is applied at boot.", unit)?;
    truth(registry, "agent_fw_guard_enabled", "Whether the guard is started at boot.", guard)?;
    let help = "Whether a guard stands.";
    truth(registry, "agent_fw_guard_standing", help, guard_socket::is_open())?;
    let on_trial = pending::current();
    let help = "Whether a change waits for somebody to confirm it.";
    truth(registry, "agent_fw_on_trial", help, on_trial.is_some())?;
    let test = wanted.and_then(|(_, compiled)| LastTest::of(compiled.lowered.policy.hash()));
    if let Some(test) = test {
        let at = SystemTime::now().checked_sub(test.age()).unwrap_or(UNIX_EPOCH);
        let help = "When admitted sources were last tried.";
        registry.register(Box::new(time("agent_fw_last_test_seconds", help, at)?))?;
        for (name, sources, help) in [
            ("agent_fw_last_test_sources", test.all, "Admitted sources that were to be tried."),
            ("agent_fw_last_test_stopped_sources", test.stopped, "Those that were stopped."),
        ] {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(i64::try_from(sources).unwrap_or(i64::MAX));
            registry.register(Box::new(gauge))?;
        }
    }
    let help = "When these metrics were written.";
    registry.register(Box::new(time("agent_fw_written_seconds", help, SystemTime::now())?))?;
    Ok(())
}

fn time(name: &str, help: &str, time: SystemTime) -> prometheus::Result<Gauge> {
    let gauge = Gauge::new(name, help)?;
    gauge.set(since_epoch(time));
    Ok(gauge)
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Counters that have the same labels.
struct Counted {
    packets: IntCounterVec,
    bytes: IntCounterVec,
}

impl Counted {
    fn new(registry: &Registry, what: &str, of: &str, labels: &[&str]) -> prometheus::Result<Self> {
        let vec = |unit: &str| {
            let opts = Opts::new(format!("agent_fw_{what}_{unit}_total"), format!("{unit} {of}."));
            let vec = IntCounterVec::new(opts, labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        Ok(Self { packets: vec("packets")?, bytes: vec("bytes")? })
    }

    fn add(&self, labels: &[&str], Count { packets, bytes }: Count) {
        self.packets.with_label_values(labels).inc_by(packets);
        self.bytes.with_label_values(labels).inc_by(bytes);
    }

    /// XDP programs count packets alone.
    fn add_packets(&self, labels: &[&str], packets: u64) {
        self.packets.with_label_values(labels).inc_by(packets);
    }
}

fn packets(findings: &Findings, registry: &Registry) -> anyhow::Result<()> {
    let counted = |what: &str, labels: &[&str]| {
        Counted::new(registry, what, &format!("to the agent's port: {what}"), labels)
    };
    let admitted = counted("admitted", &["by", "backend"])?;
    let refused = counted("refused", &["at", "backend"])?;
    let left = counted("left", &["backend"])?;
    let table = findings.held.table.as_ref();
    for counter in table.map_or(&[][..], |live| &live.image.counters) {
        match counter.name.as_str() {
            REFUSED => refused.add(&["input", "nft"], counter.count),
            REFUSED_EARLY => refused.add(&["prerouting", "nft"], counter.count),
            LEFT => left.add(&["nft"], counter.count),
            _ => admitted.add(&[&counter.comment, "nft"], counter.count),
        }
    }
    if let Some(counters) = &findings.counters {
        refused.add_packets(&["xdp", "xdp"], counters.refused);
        left.add_packets(&["xdp"], counters.left);
        for by in &counters.admitted {
            admitted.add_packets(&[by.by.as_str(), "xdp"], by.packets);
        }
    }
    Ok(())
}

/// What the rules of a firewall policy have met, those of --relay and the like among them.
fn rules(findings: &Findings, registry: &Registry) -> anyhow::Result<()> {
    let labels = ["table", "counter", "rule", "direction", "action"];
    let met = Counted::new(registry, "rule", "that a rule beyond the agent's port met", &labels)?;
    for LiveTable { image, .. } in &findings.held.firewall {
        let table = image.name.to_string();
        for counter in &image.counters {
            let rule = findings.rule_of(counter);
            let text = |of: fn(&Rule) -> String| rule.map(of).unwrap_or_default();
            let [name, direction, action] = [
                text(|rule| rule.name.clone()),
                text(|rule| rule.direction.to_string()),
                text(|rule| rule.action.to_string()),
            ];
            let labels = [&table, &counter.name, &name, &direction, &action];
            met.add(&labels.map(String::as_str), counter.count);
        }
    }
    Ok(())
}

/// Whether admitted sources get through all of this host's rules.
fn open(tried: &[Tried], registry: &Registry) -> anyhow::Result<()> {
    let gauge = |name: &str, help: &str, labels: &[&str]| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let of_source = ["by", "source"];
    let help = "Whether this admitted source reaches the agent's port.";
    let open = gauge("agent_fw_open", help, &of_source)?;
    let help = "Whether that was not asked, because rules would remember the packet.";
    let not_asked = gauge("agent_fw_open_not_asked", help, &of_source)?;
    let help = "Packets that it took to ask: other firewalls' counters count them.";
    let packets = gauge("agent_fw_open_packets_sent", help, &["by", "source", "way"])?;
    for Tried { by, source, reaches, sent } in tried {
        for (way, count) in sent.by_way() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            packets.with_label_values(&[by, &source.to_string(), way]).set(count);
        }
        let labels = [by, &source.to_string()];
        match reaches {
            Ok(reaches) => open.with_label_values(&labels).set((*reaches).into()),
            Err(_) => not_asked.with_label_values(&labels).set(1),
        }
    }
    Ok(())
}

/// When the last admitted packet of each source came.
fn last_contact(findings: &Findings, registry: &Registry) -> anyhow::Result<()> {
    let opts = Opts::new(
        "agent_fw_last_admitted_seconds",
        "When the last admitted packet came; without an XDP program, when it was noticed.",
    );
    let last = prometheus::GaugeVec::new(opts, &["by"])?;
    let contact = findings.contact.iter();
    for (by, seen, looked) in contact
        .flat_map(|contact| contact.admitted.iter().map(|(by, seen)| (by, seen, contact.looked)))
    {
        let ago = seen.last.map(|stretch| stretch.to.before(looked));
        if let Some(time) = ago.and_then(|ago| SystemTime::now().checked_sub(ago)) {
            last.with_label_values(&[by.as_str()]).set(since_epoch(time));
        }
    }
    registry.register(Box::new(last))?;
    Ok(())
}
