//! `agent-fw rules check`: what rules mean for the agent's port, and as a whole policy.

use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say, wrapped};
use super::rules_report::{as_json, sources};
use crate::input::rule_file::{
    Options, RuleFiles, RuleText, Scope, Unassigned, Written, read_rules,
};
use crate::input::{ListFile, Warning};
use crate::model::firewall::{Firewall, Stateful};
use crate::model::rule::{Direction, HiddenRuleMatch, Rule, engine_rules};
use crate::model::{Port, firewall};
use crate::system::connection_tracking;
use anyhow::anyhow;

/// Tells of each rule of these files whether it replaces the agent's hidden rule, and if not, why
///
/// The files are JSON in the vendor's API form, each as the API answers it: firewallRules, ipLists,
/// macLists and portLists, policies, assignments, a rule, a list or a policy alone, or a bare list;
/// or TOML with the same words. All of them are one namespace. Nothing is changed, and no root is
/// needed. Exit code 1 if no rule replaces the hidden rule, or one that does cannot be kept; with
/// --policy, if some rule cannot be enforced.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Check {
    /// The files; `-` is standard input
    #[arg(required = true)]
    files: Vec<String>,
    /// A file that says which rules are assigned to this host; repeatable
    #[arg(long, value_name = "FILE")]
    assigned: Vec<String>,
    /// Of several policies or computers in these files, the one that is meant: its name or ID
    #[arg(long, value_name = "NAME")]
    assigned_policy: Option<String>,
    /// Judge all rules, whatever is assigned
    #[arg(long, conflicts_with_all = ["assigned", "assigned_policy"])]
    all_rules: bool,
    /// Judge the rules as a whole firewall policy, with those of the vendor's engine
    #[arg(long)]
    policy: bool,
    /// Leave out rules that agent-fw cannot enforce, where that cannot open anything
    #[arg(long)]
    skip_unsupported: bool,
    /// Ignore fields that agent-fw does not know
    #[arg(long)]
    lenient: bool,
    /// The TCP port that the agent listens on
    #[arg(long, value_name = "PORT", default_value_t = Port::AGENT.0, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A rule, and what it means.
pub(super) struct Judged {
    pub(super) written: Written,
    pub(super) meaning: HiddenRuleMatch,
}

/// What was found in the files.
pub(super) struct Findings {
    pub(super) port: Port,
    pub(super) judged: Vec<Judged>,
    pub(super) files: RuleFiles,
    /// The rules as a whole policy, as far as they can be part of one.
    pub(super) firewall: Firewall,
    /// Whether they are judged as such.
    pub(super) is_policy: bool,
    /// Whether rules of a manager are there, and nothing says which are assigned.
    pub(super) lacks_assignment: bool,
}

impl Check {
    pub(super) fn run(self) -> Result<Outcome> {
        let found = self.find()?;
        if self.json {
            say!("{:#}", as_json(&found));
        } else {
            found.print();
        }
        Ok(if found.is_well() { Outcome::Done } else { Outcome::False })
    }

    fn find(&self) -> Result<Findings> {
        let port = Port(self.port);
        let mut files = self.read()?;
        let judged: Vec<Judged> = std::mem::take(&mut files.rules)
            .into_iter()
            .map(|written| {
                let meaning = HiddenRuleMatch::of(&written.rule, port);
                Judged { written, meaning }
            })
            .collect();
        let lacks_assignment = !self.all_rules
            && files.assignment.is_none()
            && judged.iter().any(|judged| judged.written.id.is_some());
        let firewall = whole(&judged);
        Ok(Findings { port, judged, files, firewall, is_policy: self.policy, lacks_assignment })
    }

    /// Reads all files. What is wrong with any of them is said together.
    fn read(&self) -> Result<RuleFiles> {
        let rules = self.files.iter().map(|name| (name, false));
        let named = rules.chain(self.assigned.iter().map(|name| (name, true)));
        let (mut texts, mut unread) = (Vec::new(), Vec::new());
        for (name, assigns) in named {
            let file = ListFile::from(name.clone());
            match file.read_once() {
                Ok(text) => texts.push(RuleText {
                    name: file.to_string(),
                    text: text.into(),
                    label: file.label(),
                    assigns,
                }),
                Err(error) => unread.push(format!("{error:#}")),
            }
        }
        let options = Options {
            lenient: self.lenient,
            scope: if self.all_rules { Scope::All } else { Scope::Told },
            policy: self.assigned_policy.as_deref(),
            whole: self.policy,
            port: Port(self.port),
            skip_unsupported: self.skip_unsupported,
        };
        // Under --all-rules, too, what cannot be enforced is told and not refused.
        match read_rules(&texts, options) {
            Ok(files) if unread.is_empty() => Ok(files),
            Ok(_) => Err(Failure::Input(anyhow!(unread.join("\n")))),
            Err(error) if unread.is_empty() => Err(Failure::Input(error.into())),
            Err(error) => Err(Failure::Input(anyhow!("{}\n{error}", unread.join("\n")))),
        }
    }
}

/// The rules as a whole policy, as far as they can be part of one.
fn whole(judged: &[Judged]) -> Firewall {
    let rules = judged.iter().map(|judged| &judged.written.rule);
    let expressible = rules.filter(|rule| firewall::Rule::new(rule).is_ok());
    let firewall = Firewall::new(expressible.chain(&engine_rules())).unwrap_or_default();
    firewall.stateful(Stateful { udp: true, icmp: false })
}

impl Findings {
    fn count(&self, word: &str) -> usize {
        self.judged.iter().filter(|judged| judged.meaning.word() == word).count()
    }

    /// Whether the hidden rule is replaced, by rules that can all be kept.
    pub(super) fn is_replaced(&self) -> bool {
        self.count("replaces") > 0 && self.count("refused") == 0
    }

    fn is_well(&self) -> bool {
        if self.is_policy { self.files.refused.is_empty() } else { self.is_replaced() }
    }

    /// The rules of the files that never decide anything in a whole policy.
    pub(super) fn idle(&self) -> Vec<firewall::ShadowedRule<'_>> {
        let mut idle = self.firewall.idle_rules();
        let is_written = |name: &str| self.judged.iter().any(|of| of.written.rule.name == name);
        idle.retain(|idle| is_written(&idle.rule.name));
        idle
    }

    fn print(&self) {
        let RuleFiles { ignored, idle, left_out, unassigned, assignment, refused, .. } =
            &self.files;
        for place in ignored {
            report::notice(&Warning::IgnoredField { place: place.to_string() });
        }
        for (place, why) in idle {
            report::notice(&Warning::IdleField { place: place.to_string(), why: why.clone() });
        }
        for left_out in left_out {
            report::notice(&Warning::FirewallRule { said: left_out.to_string() });
        }
        self.print_rules();
        if let Some((assignment, place)) = assignment {
            let count = assignment.rules.len();
            report::remark(&format!(
                "{count} rules are assigned by {}, {}:{}.",
                assignment.words(),
                place.file,
                place.line
            ));
        }
        print_unassigned(unassigned);
        for idle in self.idle() {
            let when = if self.is_policy { "" } else { "with --policy, " };
            report::notice(&Warning::FirewallRule { said: format!("{when}{idle}") });
        }
        if self.is_policy {
            self.print_policy();
            for refused in refused {
                let said = format!("{}:{}: {refused}", refused.file, refused.line);
                report::bad("refused:", said);
            }
        } else {
            let engine = engine_rules().map(|rule| format!("`{}`", rule.name)).join(", ");
            report::remark(&format!(
                "With --policy, the rules of the vendor's engine are enforced, too, all of them \
                 Force Allow with priority 4: {engine}. --no-engine-rules leaves them out."
            ));
        }
        if self.lacks_assignment {
            let said = "these rules have IDs of a manager, and nothing says which are assigned to \
                        this host: `install` asks for --assigned FILE, or --all-rules";
            report::notice(&Warning::FirewallRule { said: said.to_owned() });
        }
        self.conclude();
    }

    fn print_rules(&self) {
        say!("{:>5}  {:<11} {:>8}  rule", "line", "action", "priority");
        let mut file = self.judged.first().map(|first| first.written.file.as_str());
        let has_several = self.judged.iter().any(|judged| Some(&*judged.written.file) != file);
        if let (true, Some(first)) = (has_several, file) {
            say!("{first}:");
        }
        for Judged { written, meaning } in &self.judged {
            let Written { rule, line, .. } = written;
            if has_several && file != Some(&*written.file) {
                file = Some(&written.file);
                say!("{}:", written.file);
            }
            let (action, priority) = (rule.action.to_string(), rule.priority);
            let name = &rule.name;
            say!("{line:>5}  {action:<11} {priority:>8}  {name}");
            match meaning {
                HiddenRuleMatch::Differs(misses) => {
                    say!(
                        "{}",
                        wrapped("       ", "         ", "does not replace the hidden rule:")
                    );
                    for miss in misses {
                        say!("{}", wrapped("         ", "           ", &miss.to_string()));
                    }
                }
                meaning => say!("{}", wrapped("       ", "         ", &meaning.to_string())),
            }
            if *meaning == HiddenRuleMatch::Replaces {
                let from = format!("admits: {}", sources(rule));
                say!("{}", wrapped("         ", "           ", &from));
            }
        }
    }

    /// What the rules are as a whole policy.
    fn print_policy(&self) {
        say!("\nof the vendor's engine; --no-engine-rules leaves them out:");
        for Rule { name, action, priority, direction, .. } in engine_rules() {
            let action = action.to_string();
            say!("       {action:<11} {priority:>8}  {name}, {direction}");
        }
        say!("");
        for direction in [Direction::Incoming, Direction::Outgoing] {
            let others = if self.firewall.restricts(direction) {
                "is dropped, but answers and ICMPv6: an Allow restricts this direction"
            } else {
                "passes"
            };
            let said = format!("{direction}: what no rule admits {others}");
            say!("{}", wrapped("", "  ", &said));
        }
        let kept = connection_tracking::udp_timeout().map_or_else(
            || "30 s unless this host's settings say otherwise".to_owned(),
            |seconds| format!("{seconds} s on this host"),
        );
        report::remark(&format!(
            "UDP is stateful: what an Allow admits has to be an answer to what this host sent, \
             for as long as connection tracking knows that ({kept}); other UDP needs a Force \
             Allow. --no-stateful-udp admits it."
        ));
    }

    /// Whether the hidden rule is replaced, in a line.
    fn conclude(&self) {
        let port = self.port;
        let number = self.count("replaces");
        if self.is_policy && !self.files.refused.is_empty() {
            let refused = self.files.refused.len();
            report::bad(
                "refused:",
                format_args!("{refused} rule(s) cannot be enforced; see above"),
            );
        } else if self.count("refused") > 0 {
            report::bad("refused:", "a rule that cannot be kept; see above");
        } else if number > 0 {
            report::good(
                "replaced:",
                format_args!("the hidden rule for TCP port {port}, by {number} rule(s)"),
            );
        } else if self.is_policy {
            let said = format!(
                "no rule replaces the hidden one for TCP port {port}: name who may reach it with \
                 --allow-from"
            );
            report::notice(&Warning::FirewallRule { said });
        } else {
            report::bad(
                "not replaced:",
                format_args!("the hidden rule leaves TCP port {port} open to every source"),
            );
        }
    }
}

/// Rules of other hosts.
fn print_unassigned(unassigned: &[Unassigned]) {
    if unassigned.is_empty() {
        return;
    }
    say!("\nnot assigned to this host, and not enforced:");
    for Unassigned { name, id, file, line } in unassigned {
        say!("{}", wrapped("       ", "         ", &format!("{name} (ID {id}, {file}:{line})")));
    }
}
