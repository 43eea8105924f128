//! `agent-fw status`: what is wanted, what the kernel has, and what it has counted.

use super::heartbeat::{self, Check, ago};
use super::outcome::{Outcome, Result};
use super::report::{self, say};
use crate::configuration::{Compiled, Configuration};
use crate::engine::apply::Read;
use crate::engine::judge::{Beyond, NotClosed, judge, judge_beyond};
use crate::engine::kernel_state::KernelState;
use crate::engine::last_seen::Contact;
use crate::engine::last_test::LastTest;
use crate::engine::own_counts::OwnCounts;
use crate::engine::{pending, proof};
use crate::model::PolicyHash;
use crate::model::firewall::Rule;
use crate::model::rule::AgentPolicy;
use crate::nft::{Count, Counter, LEFT, Nftables, REFUSED, REFUSED_EARLY, Stamp};
use crate::system;
use crate::system::{privilege, systemd};
use crate::xdp::{self, Admitted, Counters};
use serde_json::{Map, Value, json};
use std::fmt;
use std::time::Duration;

/// How long another agent-fw's work is waited for. What takes longer is shown as it stands.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows the policy, whether the kernel enforces it, and what was admitted and refused
///
/// It sends no packets: whether admitted sources get through is what `install` or `explain --all` last
/// found out. Exit code 1 if nothing is installed, or if kernel and policy differ. nf_tables does not know when
/// a packet came: it came since somebody last asked for the status or the metrics.
#[derive(clap::Args, Debug)]
pub(super) struct Status {
    /// For monitoring: exit code 1 also when no heartbeat of the manager came for 20 minutes
    ///
    /// To be run every few minutes: what comes is noticed by comparing counters.
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Name every part of tables and programs that differs
    #[arg(long)]
    verbose: bool,
}

/// All that there is to say.
pub(super) struct Findings {
    pub(super) wanted: Option<(Configuration, Compiled)>,
    /// Why the wanted policy could not be read or compiled.
    fault: Option<String>,
    pub(super) held: KernelState,
    pub(super) counters: Option<Counters>,
    differences: Vec<String>,
    /// Why the port is not closed; nothing, where it is.
    pub(super) not_closed: Vec<NotClosed>,
    /// The same of what is promised beyond it.
    pub(super) beyond: Beyond,
    /// When admitted sources were heard of, where something counts them.
    pub(super) contact: Option<Contact>,
}

impl Status {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("status")?;
        let findings = Findings::gather("status")?;
        let check = self.check.then(|| Check::of(&findings));
        if self.json {
            let mut json = findings.to_json();
            if let Some(check) = &check {
                json["heartbeat"] = check.to_json();
            }
            say!("{json:#}");
        } else {
            findings.print(self.verbose)?;
            check.iter().for_each(Check::print);
        }
        let good =
            findings.agree() && check.is_none_or(|check| check.is_good() && findings.is_as_meant());
        Ok(if good { Outcome::Done } else { Outcome::False })
    }
}

impl Findings {
    /// Looks at everything. What differs may be the half of another agent-fw's work: then it looks
    /// again when that is done.
    pub(super) fn gather(command: &str) -> Result<Self> {
        let mut findings = Self::look(&Read::now())?;
        if !findings.agree()
            && findings.is_something()
            && let Ok((read, _lock)) = Read::with_lock(command, PATIENCE)
        {
            findings = Self::look(&read)?;
        }
        if findings.held.is_something() {
            // What cannot be written down is not known the next time: no reason to say nothing now.
            let counted = heartbeat::counted(&findings.held, findings.counters.as_ref());
            findings.contact = Contact::note(&counted).ok();
            OwnCounts::read().take_off(&mut findings.held, findings.counters.as_mut());
        }
        Ok(findings)
    }

    fn look(read: &Read) -> Result<Self> {
        let (wanted, fault) = match read.compile_any() {
            Ok(wanted) => (wanted, None),
            Err(failure) => (None, Some(format!("{:#}", failure.error()))),
        };
        let held = KernelState::read(&mut Nftables::open()?)?;
        let differences = wanted
            .as_ref()
            .map_or(Ok(Vec::new()), |(wanted, compiled)| held.differences(wanted, compiled))?;
        let counters = xdp::counters()?;
        let differs = !differences.is_empty();
        let not_closed = match &wanted {
            Some((wanted, compiled)) => judge(wanted, compiled, &held, differs)?,
            None => vec![NotClosed::NotEnforced],
        };
        let beyond = match &wanted {
            Some((wanted, compiled)) => judge_beyond(wanted, compiled, &held, differs)?,
            None => Beyond::default(),
        };
        Ok(Self { wanted, fault, held, counters, differences, not_closed, beyond, contact: None })
    }

    /// Why the wanted policy could not be read or compiled.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether somebody wants a policy, or the kernel has one.
    fn is_something(&self) -> bool {
        self.is_wanted() || self.held.is_something()
    }

    pub(super) fn agree(&self) -> bool {
        self.wanted.is_some() && self.held.is_something() && self.differences.is_empty()
    }

    /// Whether no source but those listed reaches the port.
    pub(super) fn is_closed(&self) -> bool {
        self.not_closed.is_empty()
    }

    /// Whether all is as open, or as closed, as the policy says.
    fn is_as_meant(&self) -> bool {
        self.not_closed.iter().all(NotClosed::is_meant) && self.beyond.is_as_meant()
    }

    /// Whether somebody wants a policy, readable or not.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some() || self.fault.is_some()
    }

    /// The policy of the table; without one, of the programs.
    pub(super) fn kernel_policy(&self) -> Option<PolicyHash> {
        let of_table = self.stamp().map(|stamp| stamp.policy);
        of_table.or_else(|| self.held.programs.first()?.policy)
    }

    fn stamp(&self) -> Option<Stamp> {
        self.held.table.as_ref()?.stamp()
    }

    fn print(&self, is_verbose: bool) -> anyhow::Result<()> {
        self.print_answer();
        match (&self.wanted, &self.fault) {
            (_, Some(fault)) => report::bad("policy:  ", fault),
            (None, None) => say!("policy:   none; `agent-fw install` writes one"),
            (Some((configuration, compiled)), None) => {
                let policy = &compiled.lowered.policy;
                say!("policy:   {}", policy.hash());
                let (port, direction) = (policy.ports(), configuration.direction);
                say!("          TCP port {port}, {direction}; {}", report::others(policy));
            }
        }
        if let Some(pending) = pending::current() {
            let left = pending.left().as_secs();
            report::caution(
                "on trial:",
                format_args!("`agent-fw confirm` within {left} s keeps it, or it"),
            );
            say!("          is taken back; `agent-fw undo` does so at once");
        }
        let said = self.wanted.iter().flat_map(|(_, compiled)| &compiled.notices);
        said.filter(|notice| notice.is_lasting()).for_each(report::notice);
        self.print_kernel(is_verbose)?;
        if let Some((configuration, compiled)) = &self.wanted
            && self.agree()
        {
            report::promises(compiled, &self.not_closed);
            report::promises_beyond(configuration, &self.beyond);
            if LastTest::of(compiled.lowered.policy.hash()).is_none() {
                report::open_is_not_tested(&compiled.lowered);
            }
        }
        if self.wanted.is_some() {
            report::persistence();
        }
        if let Some((configuration, _)) = &self.wanted {
            report::programs(configuration, &self.held.programs, self.counters.as_ref());
        }
        if let Some(live) = &self.held.table {
            say!("since the table was first installed:");
            for counter in &live.image.counters {
                let last = self.contact.as_ref();
                let last = last.and_then(|contact| heartbeat::last(contact, &counter.comment));
                report::count(&words(counter), counter.count, last.as_deref());
            }
        }
        for live in &self.held.firewall {
            say!("table {}, since it was first installed:", live.image.name);
            for counter in &live.image.counters {
                report::count(&self.words_of_rule(counter), counter.count, None);
            }
        }
        if let Some(counters) = &self.counters {
            report::program_counters(counters);
        }
        Ok(())
    }

    /// The rule that a counter belongs to, with every character of its name.
    pub(super) fn rule_of(&self, counter: &Counter) -> Option<&Rule> {
        let (_, compiled) = self.wanted.as_ref()?;
        compiled.firewall.as_ref()?.rule_of_counter(&counter.name)
    }

    fn words_of_rule(&self, counter: &Counter) -> String {
        let words = |rule: &Rule| {
            let Rule { direction, priority, action, name, .. } = rule;
            format!("{direction}, priority {priority}, {action}: {}", name.escape_debug())
        };
        self.rule_of(counter).map_or_else(|| counter.comment.clone(), words)
    }

    fn firewall_to_json(&self) -> Value {
        let counters = self.held.firewall.iter().flat_map(|live| {
            let table = live.image.name.to_string();
            live.image.counters.iter().map(move |counter| {
                let Count { packets, bytes } = counter.count;
                let rule = self.rule_of(counter);
                json!({
                    "table": table, "counter": counter.name, "by": self.words_of_rule(counter),
                    "rule": rule.map(|rule| &rule.name),
                    "direction": rule.map(|rule| rule.direction.to_string()),
                    "action": rule.map(|rule| rule.action.to_string()),
                    "packets": packets, "bytes": bytes,
                })
            })
        });
        counters.collect()
    }

    /// The answer, in a sentence.
    fn print_answer(&self) {
        let Some((_, compiled)) = &self.wanted else {
            let what = match (&self.fault, self.held.is_something()) {
                (Some(_), true) => {
                    "the policy cannot be read; what is in force may be an older one"
                }
                (Some(_), false) => "the policy cannot be read, and nothing is in force",
                (None, true) => "no policy is installed, and yet something is in force",
                (None, false) => "no policy is installed, and nothing is in force",
            };
            return report::bad("not closed:", what);
        };
        if !self.agree() {
            return report::bad("not as it should be:", "the kernel does not enforce the policy");
        }
        let port = compiled.lowered.policy.ports();
        // Why, and what to do, stands below.
        let what = format!("more sources than the policy admits may reach TCP port {port}");
        if self.not_closed.iter().any(|reason| !reason.is_meant()) {
            return report::bad("not closed:", what);
        }
        let open = Openness::of(compiled);
        match (self.not_closed.first(), open.is_good()) {
            (Some(_), _) => {
                report::caution("not closed:", format_args!("TCP port {port}, as the policy says"));
            }
            (None, true) => report::good("closed,", open),
            (None, false) => report::bad("closed,", open),
        }
    }

    fn print_kernel(&self, is_verbose: bool) -> anyhow::Result<()> {
        if !self.held.is_something() {
            if self.held.unexplained.is_empty() {
                let what = "has no table inet agent_fw and no XDP program: nothing is enforced";
                report::bad("kernel:  ", what);
            } else {
                let what = "has no table inet agent_fw, and programs of which nothing is known:";
                report::bad("kernel:  ", what);
                report::differences(&self.held.unexplained);
            }
            if let Some((configuration, _)) = &self.wanted {
                report::remedy(configuration)?;
            }
            return Ok(());
        }
        if self.agree() {
            report::good("kernel:  ", "enforces this policy");
            return Ok(());
        }
        let held = match self.stamp() {
            Some(stamp) => format!("has policy {}", stamp.policy),
            None if self.held.table.is_none() => "has XDP programs alone".to_owned(),
            None => "has a table inet agent_fw without agent-fw's stamp".to_owned(),
        };
        if let Some((configuration, _)) = &self.wanted {
            report::bad("kernel:  ", format_args!("{held}, and differs:"));
            report::what_differs(&self.sources_in_words()?, &self.differences, is_verbose);
            report::remedy(configuration)?;
        } else {
            report::bad("kernel:  ", held);
        }
        Ok(())
    }

    /// The sources that the kernel decides otherwise than the policy says.
    fn sources_in_words(&self) -> anyhow::Result<Vec<String>> {
        let Some((configuration, compiled)) = &self.wanted else { return Ok(Vec::new()) };
        proof::sources_in_words(configuration, compiled, &proof::kernel(&self.held)?)
    }

    fn to_json(&self) -> Value {
        let policy = self.wanted.as_ref().map(|(_, compiled)| &compiled.lowered.policy);
        let configuration = self.wanted.as_ref().map(|(configuration, _)| configuration);
        let counters = self.held.table.as_ref().map_or(&[][..], |live| &live.image.counters);
        let total = |names: &[&str]| {
            let named = counters.iter().filter(|counter| names.contains(&counter.name.as_str()));
            named.fold(Count::default(), |sum, counter| sum + counter.count)
        };
        let admitted: Vec<Value> = counters
            .iter()
            .filter(|counter| ![REFUSED, REFUSED_EARLY, LEFT].contains(&counter.name.as_str()))
            .map(|counter| {
                let Count { packets, bytes } = counter.count;
                let contact = self.contact.as_ref();
                let last = contact.and_then(|contact| contact.admitted.get(&counter.comment)?.last);
                let between = contact.zip(last).map(|(contact, stretch)| {
                    [stretch.from, stretch.to].map(|at| at.before(contact.looked).as_secs())
                });
                json!({
                    "by": counter.comment,
                    "packets": packets,
                    "bytes": bytes,
                    "last_between_seconds_ago": between,
                })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "policy_file": system::POLICY,
            "on_trial": pending::current().map(|pending| json!({
                "seconds_left": pending.left().as_secs(),
                "changes": pending.made.changes,
            })),
            "policy": policy.map(|policy| policy.hash().to_string()),
            "fault": self.fault,
            "kernel_policy": self.kernel_policy().map(|hash| hash.to_string()),
            "kernel_version": self.stamp().map(|stamp| stamp.version),
            "installed": self.held.is_something(),
            "agree": self.agree(),
            "closed": self.is_closed(),
            "not_closed": reasons_to_json(&self.not_closed),
            "relay_closed": self.beyond.relay.as_ref().map(Vec::is_empty),
            "relay_not_closed": self.beyond.relay.as_deref().map(reasons_to_json),
            "outbound_closed": self.beyond.outbound.as_ref().map(Vec::is_empty),
            "outbound_not_closed": self.beyond.outbound.as_deref().map(reasons_to_json),
            "boot": systemd::Persistence::look(),
            "port": configuration.map(|configuration| configuration.port),
            "direction": configuration.map(|configuration| configuration.direction.to_string()),
            "relay": configuration.map(|configuration| &configuration.relay),
            "engine_rules": configuration.map(Configuration::enforces_engine_rules),
            "outbound": configuration.map(|configuration| configuration.outbound),
            "outbound_to": configuration.map(|configuration| &configuration.outbound_to),
            "otherwise": policy.map(|policy| policy.others().to_string()),
            "admitted": admitted,
            "refused": total(&[REFUSED, REFUSED_EARLY]),
            "left_to_other_rules": total(&[LEFT]),
            "firewall": self.firewall_to_json(),
            "backend": configuration.map(|configuration| configuration.backend.to_string()),
            "xdp": self.programs_to_json(),
            "differences": self.differences,
        })
    }

    fn counters_of(&self, interface: &str) -> Option<Value> {
        let counters = self.counters.as_ref()?;
        let of = counters.interfaces.iter().find(|of| of.name == interface)?;
        Some(json!({
            "admitted": of.admitted,
            "refused": of.refused,
            "left_to_other_rules": of.left,
            "undecided": of.undecided,
        }))
    }

    fn programs_to_json(&self) -> Value {
        let interfaces = self.held.programs.iter().map(|at| {
            json!({
                "name": at.interface.name,
                "hook": at.hook.name(),
                "mode": at.hook.mode().map(|mode| mode.to_string()),
                "behind": at.behind,
                "ahead": at.ahead,
                "program": at.program,
                "policy": at.policy.map(|hash| hash.to_string()),
                "gate": at.gate,
                "counters": self.counters_of(&at.interface.name),
            })
        });
        let admitted = self.counters.iter().flat_map(|counters| &counters.admitted);
        let admitted = admitted.map(|Admitted { by, packets, last }| {
            json!({ "by": by, "packets": packets, "last_seconds_ago": last.map(|d| d.as_secs_f64()) })
        });
        let counters = self.counters.as_ref();
        let undecided: Map<String, Value> = counters
            .iter()
            .flat_map(|counters| &counters.undecided)
            .map(|(reason, packets)| (reason.clone(), (*packets).into()))
            .collect();
        json!({
            "interfaces": interfaces.collect::<Vec<_>>(),
            "admitted": admitted.collect::<Vec<_>>(),
            "refused": counters.map(|counters| counters.refused),
            "left_to_other_rules": counters.map(|counters| counters.left),
            "undecided": undecided,
        })
    }
}

fn reasons_to_json(reasons: &[NotClosed]) -> Value {
    let reason = |reason: &NotClosed| json!({ "id": reason.id(), "what": reason.to_string() });
    reasons.iter().map(reason).collect()
}

fn words(counter: &Counter) -> String {
    match counter.name.as_str() {
        REFUSED => "refused".to_owned(),
        REFUSED_EARLY => "refused before routing".to_owned(),
        LEFT => "left to other rules".to_owned(),
        _ => format!("admitted by {}", counter.comment),
    }
}

/// Whether admitted sources get through, as far as that was tried.
struct Openness {
    /// The sources, in words; `None` where none is admitted.
    sources: Option<String>,
    test: Option<LastTest>,
}

impl Openness {
    fn of(compiled: &Compiled) -> Self {
        let AgentPolicy { policy, ledger } = &compiled.lowered;
        let labels: Vec<String> = ledger.labels().iter().map(ToString::to_string).collect();
        let sources = match labels.len() {
            _ if policy.admissions().is_empty() => None,
            0..=3 => Some(labels.join(", ")),
            count => Some(format!("{count} sources")),
        };
        Self { sources, test: LastTest::of(policy.hash()) }
    }

    fn is_good(&self) -> bool {
        self.test.as_ref().is_none_or(|test| test.stopped == 0)
    }
}

impl fmt::Display for Openness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(sources) = &self.sources else { return f.write_str("and open to nobody") };
        let Some(test) = &self.test else {
            return write!(f, "and open to {sources} (not tested)");
        };
        let LastTest { all, through, stopped, .. } = test;
        let (ago, changed) = (
            ago(test.age()),
            if test.is_of_these_rules() { "" } else { "; rules have changed since" },
        );
        if *stopped > 0 {
            return write!(
                f,
                "but {stopped} of {all} sources tested did not get through, {ago}{changed}"
            );
        }
        write!(f, "and open to {sources} ({through} of {all} tested, {ago}{changed})")
    }
}
