//! `agent-fw rules`: what rules in the vendor's vocabulary mean for the agent's port.

use super::outcome::{Failure, Outcome, Result};
use super::report::{self, say, wrapped};
use crate::input::rule_file::{
    FieldPath, RuleFile, SchemaForm, Written, read_rules, rule_file_schema,
};
use crate::input::{ListFile, Warning};
use crate::model::firewall::{Firewall, ShadowedRule};
use crate::model::rule::{HiddenRuleMatch, Rule, engine_rules};
use crate::model::{Port, firewall};
use serde_json::{Value, json};

/// Reads firewall rules in the vendor's vocabulary
#[derive(clap::Subcommand, Debug)]
pub(super) enum Rules {
    Check(Check),
    Schema(Schema),
}

/// Prints a JSON Schema of rule files, for editors and validators
///
/// It knows every field and every word. Whether a rule names the value that its form asks for, and
/// what addresses are, `rules check` tells.
#[derive(clap::Args, Debug)]
pub(super) struct Schema {
    /// The form of the files
    #[arg(long, value_enum, default_value_t = SchemaForm::Json)]
    format: SchemaForm,
}

/// Tells of each rule of a file whether it replaces the agent's hidden rule, and if not, why
///
/// The file is JSON in the vendor's API form, with firewallRules, ipLists, macLists and portLists,
/// or a bare list of rules; or TOML with the same words. Nothing is changed, and no root is needed.
/// Exit code 1 if no rule replaces the hidden rule, or one that does cannot be kept.
#[derive(clap::Args, Debug)]
pub(super) struct Check {
    /// The file; `-` is standard input
    file: String,
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
struct Judged {
    line: usize,
    rule: Rule,
    meaning: HiddenRuleMatch,
}

impl Rules {
    pub(super) fn run(self) -> Result<Outcome> {
        match self {
            Self::Check(check) => check.run(),
            Self::Schema(Schema { format }) => {
                say!("{:#}", rule_file_schema(format));
                Ok(Outcome::Done)
            }
        }
    }
}

impl Check {
    fn run(self) -> Result<Outcome> {
        let file = ListFile::from(self.file.clone());
        let text = file.read_once().map_err(Failure::Input)?;
        let name = file.to_string();
        let read = read_rules(&name, &text, &file.label(), self.lenient);
        let RuleFile { rules, ignored } = read.map_err(Failure::Input)?;
        let port = Port(self.port);
        let judged: Vec<Judged> = rules
            .into_iter()
            .map(|Written { rule, line }| {
                let meaning = HiddenRuleMatch::of(&rule, port);
                Judged { line, rule, meaning }
            })
            .collect();
        let firewall = whole(&judged);
        let mut idle = firewall.idle_rules();
        // Of the file's rules, not of the engine's.
        idle.retain(|idle| judged.iter().any(|judged| judged.rule.name == idle.rule.name));
        if self.json {
            say!("{:#}", as_json(port, &judged, &ignored, &idle));
        } else {
            for place in &ignored {
                report::notice(&Warning::IgnoredField { place: place.to_string() });
            }
            print(&judged);
            for idle in &idle {
                report::notice(&Warning::FirewallRule { said: format!("with --policy, {idle}") });
            }
            let engine = engine_rules().map(|rule| format!("`{}`", rule.name)).join(", ");
            report::remark(&format!(
                "With --policy, the rules of the vendor's engine are enforced, too, all of them \
                 Force Allow with priority 4: {engine}. --no-engine-rules leaves them out."
            ));
            conclude(port, &judged);
        }
        Ok(if is_replaced(&judged) { Outcome::Done } else { Outcome::False })
    }
}

/// The rules as a whole policy, as far as they can be part of one.
fn whole(judged: &[Judged]) -> Firewall {
    let rules = judged.iter().map(|judged| &judged.rule);
    let expressible = rules.filter(|rule| firewall::Rule::new(rule).is_ok());
    Firewall::new(expressible.chain(&engine_rules())).unwrap_or_default()
}

fn count(judged: &[Judged], word: &str) -> usize {
    judged.iter().filter(|judged| judged.meaning.word() == word).count()
}

/// Whether the hidden rule is replaced, by rules that can all be kept.
fn is_replaced(judged: &[Judged]) -> bool {
    count(judged, "replaces") > 0 && count(judged, "refused") == 0
}

fn print(judged: &[Judged]) {
    say!("{:>5}  {:<11} {:>8}  rule", "line", "action", "priority");
    for Judged { line, rule, meaning } in judged {
        let (action, priority) = (rule.action.to_string(), rule.priority);
        let name = &rule.name;
        say!("{line:>5}  {action:<11} {priority:>8}  {name}");
        match meaning {
            HiddenRuleMatch::Differs(misses) => {
                say!("{}", wrapped("       ", "         ", "does not replace the hidden rule:"));
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

/// Whether the hidden rule is replaced, in a line.
fn conclude(port: Port, judged: &[Judged]) {
    match count(judged, "replaces") {
        _ if count(judged, "refused") > 0 => {
            report::bad("refused:", "a rule that cannot be kept; see above");
        }
        0 => report::bad(
            "not replaced:",
            format_args!("the hidden rule leaves TCP port {port} open to every source"),
        ),
        number => report::good(
            "replaced:",
            format_args!("the hidden rule for TCP port {port}, by {number} rule(s)"),
        ),
    }
}

/// Who a rule admits, the first of them, in words.
fn sources(rule: &Rule) -> String {
    let source = &rule.source;
    let addresses = shortened(&report::addresses_in_words(&source.addresses));
    let macs = shortened(&source.macs.to_string());
    let to = shortened(&report::addresses_in_words(&rule.destination.addresses));
    let limits = [
        ("from MAC address", macs),
        ("from port", shortened(&source.ports.to_string())),
        ("to", to),
        ("to MAC address", shortened(&rule.destination.macs.to_string())),
    ];
    let limits = limits.into_iter().filter(|(_, value)| value != "any");
    let words = limits.map(|(what, value)| format!(", {what} {value}"));
    let flags = rule.tcp_flags.map(|_| ", with some TCP flags".to_owned());
    std::iter::once(addresses).chain(words).chain(flags).collect()
}

/// The first items of a long list.
fn shortened(list: &str) -> String {
    let items: Vec<&str> = list.split(", ").collect();
    match items.len() {
        ..=8 => list.to_owned(),
        many => format!("{}, and {} more", items[..8].join(", "), many - 8),
    }
}

fn as_json(
    port: Port,
    judged: &[Judged],
    ignored: &[FieldPath],
    idle: &[ShadowedRule<'_>],
) -> Value {
    let idle =
        idle.iter().map(|idle| json!({ "name": idle.rule.name, "shadowed_by": idle.names() }));
    let rules: Vec<Value> = judged
        .iter()
        .map(|Judged { line, rule, meaning }| {
            let reasons: Vec<Value> = match meaning {
                HiddenRuleMatch::Differs(misses) => misses
                    .iter()
                    .map(|miss| {
                        json!({
                            "field": miss.field, "found": miss.found, "required": miss.required
                        })
                    })
                    .collect(),
                _ => vec![],
            };
            json!({
                "name": rule.name,
                "line": line,
                "action": rule.action.to_string(),
                "priority": rule.priority.to_string(),
                "meaning": meaning.word(),
                "said": meaning.to_string(),
                "reasons": reasons,
                "source_addresses": report::addresses_in_words(&rule.source.addresses),
                "source_macs": rule.source.macs.to_string(),
            })
        })
        .collect();
    let engine = engine_rules().into_iter().map(|rule| {
        let Rule { name, action, priority, direction, .. } = rule;
        json!({
            "name": name,
            "action": action.to_string(),
            "priority": priority.to_string(),
            "direction": direction.to_string(),
        })
    });
    json!({
        "port": port.0,
        "replaced": is_replaced(judged),
        "rules": rules,
        "never_decide": idle.collect::<Vec<_>>(),
        "engine_rules": engine.collect::<Vec<_>>(),
        "ignored": ignored.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
