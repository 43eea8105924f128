//! All files together: whose rules there are, which lists they name, and which rules are assigned.

use super::assignment::{self, Assignment};
use super::document::Document;
use super::format::{foreign_table, has_snake_case};
use super::lists::Lists;
use super::reader::Fields;
use super::syntax::{Node, Path};
use super::{Options, RULES, RuleFiles, Scope, Unassigned, Written, rule};
use crate::model::Origin;
use crate::model::rule::{Addresses, Match, Rule};
use std::collections::BTreeMap;

/// What files say, with rules that are not read yet: their lists may come later.
#[derive(Default)]
pub(super) struct Namespace {
    lists: Lists,
    assignments: Vec<Assignment>,
    rules: Vec<Unread>,
}

/// A fault was said.
struct Said;

/// A rule that is not read yet.
struct Unread {
    file: usize,
    at: Path,
    fields: Fields,
}

impl Unread {
    /// The number that the manager has given it.
    fn id(&self) -> Option<u32> {
        match self.fields.get("ID") {
            Some(Node::Number(number)) => (*number).try_into().ok().filter(|id| *id != 0),
            _ => None,
        }
    }

    fn name(&self) -> String {
        match self.fields.get("name") {
            Some(Node::Text(name)) => name.escape_debug().to_string(),
            _ => String::new(),
        }
    }
}

/// Answers of the API by the field that they are in, beside rules and lists.
pub(super) const POLICIES: [&str; 2] = ["policies", "computers"];
pub(super) const ASSIGNED: [&str; 2] = ["assignedRuleIDs", "ruleIDs"];
/// Answers that a directory of saved ones may have, too, and that have no meaning here.
pub(super) const WITHOUT_MEANING: [&str; 4] =
    ["schedules", "contexts", "statefulConfigurations", "interfaceTypes"];
const LISTS: [&str; 3] = ["ipLists", "macLists", "portLists"];

/// What a table is.
enum Shape {
    /// An answer with rules, lists, policies or assignments.
    Answer,
    Rule,
    List,
    Policy,
    /// None of them, with what it is instead, where that is known.
    Foreign(Option<String>),
}

impl Shape {
    fn of(fields: &Fields) -> Self {
        let has = |names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
        let answers = [&[RULES][..], &LISTS, &POLICIES, &ASSIGNED].concat();
        if fields.is_empty() || has(&answers) {
            Self::Answer
        } else if assignment::is_policy(fields) {
            Self::Policy
        } else if has(&WITHOUT_MEANING) {
            Self::Answer
        } else if has(&["items"]) {
            Self::List
        } else if has_snake_case(fields) {
            Self::Foreign(foreign_table(fields))
        } else if has(&["action", "direction", "frameType", "priority"]) {
            Self::Rule
        } else {
            Self::Foreign(foreign_table(fields))
        }
    }
}

impl Namespace {
    /// Takes what a file says.
    pub(super) fn take(&mut self, file: usize, document: &mut Document<'_>) {
        match document.take_root() {
            None => {}
            Some(Node::List(list)) => {
                for (at, fields) in document.tables(&Path::default(), list) {
                    self.take_value(file, document, at, fields);
                }
            }
            Some(Node::Table(fields)) => self.take_root(file, document, fields),
            Some(other) => {
                let said = format!("expected a table or a list, found {}", other.kind());
                document.fault(Path::default(), said);
            }
        }
    }

    fn take_root(&mut self, file: usize, document: &mut Document<'_>, fields: Fields) {
        let at = Path::default();
        match Shape::of(&fields) {
            Shape::Foreign(None) => {
                let shown: Vec<String> = fields
                    .keys()
                    .take(4)
                    .map(|name| format!("`{}`", name.escape_debug()))
                    .collect();
                let said = format!(
                    "expected rules, lists, a policy or an assignment ({RULES}, {}, {}, {}), \
                     found fields such as {}",
                    LISTS.join(", "),
                    POLICIES.join(", "),
                    ASSIGNED[0],
                    shown.join(", ")
                );
                document.fault(at, said);
            }
            _ => self.take_value(file, document, at, fields),
        }
    }

    /// A rule, a list or a policy that stands alone, or in a bare list.
    fn take_value(&mut self, file: usize, document: &mut Document<'_>, at: Path, fields: Fields) {
        match Shape::of(&fields) {
            Shape::Foreign(Some(said)) => document.fault(at, said),
            Shape::List => {
                let reader = document.reader(at, fields.clone());
                self.lists.take_bare(reader, &fields, file);
            }
            Shape::Policy => {
                let is_alone = at == Path::default();
                let policy = assignment::policy(document.reader(at, fields), file, is_alone);
                self.assignments.extend(policy);
            }
            // Several answers in one list, too.
            Shape::Answer if at == Path::default() || !fields.is_empty() => {
                self.take_answer(file, document, at, fields);
            }
            // What lacks everything that a rule has is told as a rule.
            Shape::Rule | Shape::Answer | Shape::Foreign(None) => {
                self.rules.push(Unread { file, at, fields });
            }
        }
    }

    fn take_answer(&mut self, file: usize, document: &mut Document<'_>, at: Path, fields: Fields) {
        let mut answer = document.reader(at, fields);
        answer.skip(&WITHOUT_MEANING);
        self.lists.take(&mut answer, file);
        let rules = answer.tables(RULES);
        for name in POLICIES {
            answer.each(name, |policy| {
                self.assignments.extend(assignment::policy(policy, file, false));
            });
        }
        for name in ASSIGNED {
            self.assignments.extend(assignment::listed(&mut answer, name, file));
        }
        answer.finish();
        let is_snake = |fields: &Fields| has_snake_case(fields).then(|| foreign_table(fields));
        for (at, fields) in rules {
            match is_snake(&fields).flatten() {
                Some(said) => document.fault(at, said),
                None => self.rules.push(Unread { file, at, fields }),
            }
        }
    }

    /// Reads the rules that are meant.
    pub(super) fn resolve(self, documents: &mut [Document<'_>], options: Options<'_>) -> RuleFiles {
        let assignment = match options.scope {
            Scope::All => Ok(None),
            Scope::Assigned | Scope::Told => self.assignment(documents, options.policy),
        };
        // Where several contradict each other, that is the fault, and not that there is none.
        let is_silent = assignment.as_ref().is_ok_and(Option::is_none);
        let assignment = assignment.unwrap_or_default();
        let Self { lists, rules, .. } = self;
        let mut found = RuleFiles::default();
        if let Some(assignment) = &assignment {
            demand_defined(assignment, &rules, documents);
            let place = documents[assignment.file].place(&assignment.at);
            found.assignment = Some((assignment.clone(), place));
        } else if options.scope == Scope::Assigned && is_silent {
            refuse_numbered(&rules, documents);
        }
        let mut known: BTreeMap<u32, usize> = BTreeMap::new();
        for unread in rules {
            let (id, name) = (unread.id(), unread.name());
            let Unread { file, at, fields } = unread;
            let document = &mut documents[file];
            let is_meant = |id| assignment.as_ref().is_none_or(|of| of.rules.contains(&id));
            if let Some(id) = id.filter(|id| !is_meant(*id)) {
                let (file, line) = (document.name.to_owned(), document.line(&at));
                found.unassigned.push(Unassigned { name, id, file, line });
                continue;
            }
            let label = document.label;
            let mut reader = document.reader(at.clone(), fields);
            let rule = rule::read(&mut reader, &lists, label);
            reader.finish();
            let Some(rule) = rule else { continue };
            // A rule that is saved twice is one rule.
            let before = id.and_then(|id| known.get(&id));
            if let (Some(id), Some(before)) = (id, before) {
                let Written { rule: other, file, line, .. } = &found.rules[*before];
                if !is_same(other, &rule) {
                    let said = format!("another rule has ID {id}, too: {file}:{line}");
                    document.fault(at.field("ID"), said);
                }
                continue;
            }
            if let Some(id) = id {
                known.insert(id, found.rules.len());
            }
            let (file, line) = (document.name.to_owned(), document.line(&at));
            found.rules.push(Written { rule, file, line, id });
        }
        found
    }

    /// Who says which rules are assigned: the files that were named for it, or else any. If it is
    /// not to be told, a fault was said.
    fn assignment(
        &self,
        documents: &mut [Document<'_>],
        policy: Option<&str>,
    ) -> Result<Option<Assignment>, Said> {
        let named = |of: &Assignment| documents[of.file].assigns;
        let asked = documents.iter().any(|document| document.assigns);
        let all: Vec<&Assignment> =
            self.assignments.iter().filter(|of| !asked || named(of)).collect();
        let silent = documents.iter().position(|document| {
            document.assigns
                && document.is_readable()
                && !self.assignments.iter().any(|of| documents[of.file].name == document.name)
        });
        if let Some(silent) = silent {
            let said = "expected an assignment: assignedRuleIDs, or firewall.ruleIDs of a policy";
            documents[silent].fault(Path::default(), said);
            return Err(Said);
        }
        let chosen = assignment::choose(&all, policy, |file| documents[file].name.to_owned());
        match chosen {
            Ok(chosen) => Ok(chosen.cloned()),
            Err(said) => {
                let (file, at) = all
                    .first()
                    .map_or_else(|| (0, Path::default()), |first| (first.file, first.at.clone()));
                if let Some(document) = documents.get_mut(file) {
                    document.fault(at, said);
                }
                Err(Said)
            }
        }
    }
}

/// Whether two rules say the same, whatever files their addresses are counted under.
fn is_same(one: &Rule, other: &Rule) -> bool {
    let plain = |rule: &Rule| {
        let mut rule = rule.clone();
        for end in [&mut rule.source, &mut rule.destination] {
            if let Match::Is(Addresses(parts)) | Match::Not(Addresses(parts)) = &mut end.addresses {
                for (origin, _) in parts {
                    *origin = Origin::Address;
                }
            }
        }
        rule
    };
    plain(one) == plain(other)
}

/// Demands that every assigned rule is there: one that is not may be a Deny.
fn demand_defined(assignment: &Assignment, rules: &[Unread], documents: &mut [Document<'_>]) {
    let is_there = |id: &u32| rules.iter().any(|rule| rule.id() == Some(*id));
    let missing: Vec<String> =
        assignment.rules.iter().filter(|id| !is_there(id)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        let said = format!(
            "{} assigns rules that no file defines, and that may deny something: {}; save them, \
             too (GET /api/firewallrules)",
            assignment.words(),
            missing.join(", ")
        );
        documents[assignment.file].fault(assignment.at.clone(), said);
    }
}

/// Refuses rules of a manager of which nobody says that they are this host's.
fn refuse_numbered(rules: &[Unread], documents: &mut [Document<'_>]) {
    for (file, document) in documents.iter_mut().enumerate() {
        let mut numbered = rules.iter().filter(|rule| rule.file == file && rule.id().is_some());
        let Some(first) = numbered.next() else { continue };
        let said = format!(
            "rules of this file have an ID of a manager ({} of them), and nothing says which are \
             assigned to this host: rules for other computers would hold here. Add what GET \
             /api/policies/ID or /api/computers/ID/firewall/rules answers, with --assigned FILE \
             or --rules FILE, or say --all-rules if all are meant",
            1 + numbered.count()
        );
        document.fault(first.at.clone(), said);
    }
}
