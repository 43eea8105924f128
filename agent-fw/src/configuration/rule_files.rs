//! The rules of a configuration's files, and which of them are meant.

use crate::configuration::Configuration;
use crate::input::rule_file::{Assignment, Options, RuleFiles, RuleText, Scope, read_rules};
use crate::input::{ListFile, Lists, Warning};
use crate::model::Port;
use crate::model::firewall::{Firewall, Stateful};
use crate::model::rule::{HiddenRuleMatch, Rule};
use anyhow::{Context as _, bail};

impl Configuration {
    /// The protocols of which an incoming Allow admits replies alone.
    pub fn stateful(&self) -> Stateful {
        let udp = self.policy && self.udp_stateful.unwrap_or(false);
        Stateful { udp, icmp: self.policy && self.icmp_stateful }
    }

    /// Whether it is of a version that had no stateful UDP, and has rules that are another's for it.
    pub(super) fn lacks_stateful(&self, firewall: &Firewall) -> bool {
        let udp = Stateful { udp: true, icmp: false };
        let is_concerned = |rule| udp.of(rule).next().is_some();
        self.policy && self.udp_stateful.is_none() && firewall.rules().iter().any(is_concerned)
    }

    /// How the files are read.
    fn reading(&self) -> Options<'_> {
        Options {
            lenient: self.lenient,
            // A file of a version that knew no assignments means all.
            scope: if self.all_rules == Some(false) { Scope::Assigned } else { Scope::All },
            policy: Some(self.assigned_policy.as_str()).filter(|name| !name.is_empty()),
            whole: self.policy,
            port: Port(self.port),
            skip_unsupported: self.skip_unsupported,
        }
    }

    /// The rules of its files. With `alone`, nothing else says who is admitted, so that one of them
    /// must.
    pub(super) fn rules_of_files(
        &self,
        alone: bool,
        lists: &Lists,
        notices: &mut Vec<Warning>,
    ) -> anyhow::Result<Vec<Rule>> {
        let text = |flag: &str, file: &ListFile, assigns| -> anyhow::Result<RuleText<'_>> {
            let text = lists.read(file).with_context(|| format!("{flag} {file}"))?;
            Ok(RuleText { name: file.to_string(), text, label: file.label(), assigns })
        };
        let rules = self.rules.iter().map(|file| text("--rules", file, false));
        let assigned = self.assigned.iter().map(|file| text("--assigned", file, true));
        let texts: Vec<_> = rules.chain(assigned).collect::<anyhow::Result<_>>()?;
        let files = read_rules(&texts, self.reading())?;
        notices.extend(self.remarks_about(&files));
        let port = Port(self.port);
        let mut meanings = Vec::new();
        for written in &files.rules {
            let meaning = HiddenRuleMatch::of(&written.rule, port);
            if meaning != HiddenRuleMatch::Replaces {
                let (file, line, name) = (&written.file, written.line, &written.rule.name);
                meanings.push(format!("{file}:{line}: rule `{name}` {meaning}"));
            }
        }
        if alone && !self.rules.is_empty() && meanings.len() == files.rules.len() {
            bail!(
                "none of the rules replaces the agent's hidden rule, so that the port would stay \
                 open to every source\n{}",
                meanings.join("\n")
            );
        }
        if !self.policy {
            notices.extend(meanings.into_iter().map(|meaning| Warning::OtherRule { meaning }));
        }
        Ok(files.rules.into_iter().map(|written| written.rule).collect())
    }

    /// What the user should know of the files.
    fn remarks_about(&self, files: &RuleFiles) -> Vec<Warning> {
        let RuleFiles { unassigned, assignment, left_out, ignored, idle, .. } = files;
        let ignored =
            ignored.iter().map(|place| Warning::IgnoredField { place: place.to_string() });
        let idle = idle
            .iter()
            .map(|(place, why)| Warning::IdleField { place: place.to_string(), why: why.clone() });
        let said = |said| Warning::FirewallRule { said };
        let left_out = left_out.iter().map(|left_out| said(left_out.to_string()));
        let count = unassigned.len();
        let others = (count > 0).then(|| {
            said(format!("{count} rules of the files are not assigned to this host: left out"))
        });
        let assignment = assignment.iter().flat_map(|(assignment, place)| {
            let remarks = self.remarks_about_policy(assignment);
            remarks.into_iter().map(move |remark| said(format!("{place}: {remark}")))
        });
        let has_ids = files.rules.iter().any(|written| written.id.is_some());
        let unsaid = (self.all_rules.is_none() && has_ids).then_some(Warning::AllRules);
        ignored.chain(idle).chain(left_out).chain(others).chain(assignment).chain(unsaid).collect()
    }

    /// Where a policy of the manager says something else than this one.
    fn remarks_about_policy(&self, assignment: &Assignment) -> Vec<String> {
        let Assignment { is_off, is_stateful, direction, .. } = assignment;
        let of = assignment.words();
        let off = (*is_off && self.policy).then(|| {
            format!("in {of}, the firewall is off: the vendor's engine enforces none of its rules")
        });
        let stateless = (*is_stateful == Some(false) && self.stateful().udp).then(|| {
            format!(
                "{of} names no stateful configuration, so that the vendor's engine admits \
                 unsolicited UDP by Allow; --no-stateful-udp does so"
            )
        });
        let other = direction.filter(|direction| *direction != self.direction).map(|direction| {
            format!("in {of}, communication is {direction}; this policy says {}", self.direction)
        });
        [off, stateless, other].into_iter().flatten().collect()
    }
}
