//! Which rules are assigned to a host: what a policy, a computer or an answer about either says.

use super::reader::Reader;
use super::syntax::{Node, Path};
use crate::input::options::Mode;
use std::collections::{BTreeMap, BTreeSet};

/// Which rules are assigned, and what else a policy says about its firewall.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// Who says so: a policy's or computer's name, or the field.
    pub by: String,
    /// Whether it was asked for alone, and is not one of all that there are.
    pub(super) is_alone: bool,
    /// Its number, if it has one.
    pub(super) number: Option<u32>,
    /// The rules' numbers.
    pub rules: BTreeSet<u32>,
    /// Whether the firewall is switched off there.
    pub is_off: bool,
    /// Whether a stateful configuration is named; `None` where nothing is said about it.
    pub is_stateful: Option<bool>,
    /// Who opens connections.
    pub direction: Option<Mode>,
    pub(super) file: usize,
    pub(super) at: Path,
}

impl Assignment {
    /// Whether a person would call it so: by its name or its number.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let number = self.number.map(|number| number.to_string());
        self.by == name || number.as_deref() == Some(name)
    }

    /// What it is, for messages.
    pub fn words(&self) -> String {
        match self.number {
            Some(number) => format!("`{}` (ID {number})", self.by),
            None => format!("`{}`", self.by),
        }
    }
}

/// Reads a policy or a computer. What it says about other than its firewall has no meaning here.
pub(super) fn policy(mut reader: Reader<'_>, file: usize, is_alone: bool) -> Option<Assignment> {
    let name = reader.text("name").or_else(|| reader.text("hostName"));
    let number = reader.reference("ID");
    let mut assignment = Assignment {
        by: name.unwrap_or_else(|| "firewall.ruleIDs".to_owned()),
        is_alone,
        number,
        rules: BTreeSet::new(),
        is_off: false,
        is_stateful: None,
        direction: None,
        file,
        at: reader.at().clone(),
    };
    let mut is_read = false;
    reader.table("firewall", |mut firewall| {
        assignment.is_off = firewall.text("state").is_some_and(|state| state == "off");
        let stateful = firewall.reference("globalStatefulConfigurationID");
        assignment.is_stateful = Some(stateful.is_some());
        if let Some(rules) = firewall.numbers("ruleIDs") {
            assignment.rules = rules;
        }
        is_read = true;
    });
    reader.table("policySettings", |mut settings| {
        settings.table("platformSettingAgentCommunicationsDirection", |mut setting| {
            assignment.direction = setting.text("value").as_deref().and_then(direction);
        });
    });
    is_read.then_some(assignment)
}

fn direction(words: &str) -> Option<Mode> {
    match words {
        "Bidirectional" => Some(Mode::Bidirectional),
        "Manager Initiated" => Some(Mode::ManagerInitiated),
        "Agent/Appliance Initiated" => Some(Mode::AgentInitiated),
        _ => None,
    }
}

/// Reads the numbers that an answer about a policy's or a computer's rules lists.
pub(super) fn listed(reader: &mut Reader<'_>, name: &str, file: usize) -> Option<Assignment> {
    let rules = reader.numbers(name)?;
    let at = reader.at().field(name);
    Some(Assignment {
        by: name.to_owned(),
        is_alone: true,
        number: None,
        rules,
        is_off: false,
        is_stateful: None,
        direction: None,
        file,
        at,
    })
}

/// Of several, the one that is meant: by its name, or because they agree. What was asked for alone
/// comes before a list of all policies. `Err` says why there is none.
pub(super) fn choose<'a>(
    all: &[&'a Assignment],
    named: Option<&str>,
    file: impl Fn(usize) -> String,
) -> Result<Option<&'a Assignment>, String> {
    let words = || {
        let one = |one: &&Assignment| format!("{} in {}", one.words(), file(one.file));
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    if let Some(name) = named {
        let found = all.iter().find(|assignment| assignment.is_called(name));
        return match found {
            Some(found) => Ok(Some(found)),
            None if all.is_empty() => Err(format!("no file has a policy `{name}`")),
            None => Err(format!("no file has a policy `{name}`; there are {}", words())),
        };
    }
    let mut likely: Vec<&Assignment> = all.iter().copied().filter(|of| of.is_alone).collect();
    if likely.is_empty() {
        likely = all.to_vec();
    }
    let Some((first, others)) = likely.split_first() else { return Ok(None) };
    if others.iter().all(|other| other.rules == first.rules) {
        return Ok(Some(first));
    }
    Err(format!(
        "{} assign different rules, and one of them is this host's: name it with \
         --assigned-policy NAME, or give its file alone with --assigned",
        words()
    ))
}

/// Whether a table is a policy, or a computer.
pub(super) fn is_policy(fields: &BTreeMap<String, Node>) -> bool {
    ["firewall", "policySettings", "hostName"].iter().any(|name| fields.contains_key(*name))
}
