//! A host in memory, on which plans and undo are tried: each of its steps can fail, before it has
//! changed anything or after. The real ones are tested on a real kernel.

use super::enforce::{EnforceError, Plan, enforce};
use super::host::{Host, ProgramSpec, policy_path};
use crate::input::options::XdpMode;
use crate::model::rule::{AgentPolicy, hidden_rule, lower};
use crate::model::{DefaultAction, PolicyHash, Port};
use crate::netlink::link::Interface;
use crate::nft::{Extras, Image, Ruleset};
use anyhow::bail;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The programs in force: which policy's, and whether they count on a table.
type Programs = Option<(PolicyHash, bool)>;

/// All that is in force, and on disk.
#[derive(Clone, PartialEq, Debug, Default)]
struct State {
    tables: Vec<Image>,
    programs: Programs,
    files: BTreeMap<PathBuf, String>,
    is_enabled: bool,
}

/// When a step fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    Before,
    /// Its outcome is lost, though it was taken.
    After,
}

#[derive(Default)]
struct Fake {
    state: State,
    /// What was in force after each step.
    history: Vec<State>,
    /// The step that fails, counted from the first.
    fails: Option<(usize, Moment)>,
    steps: usize,
    /// Whether the mode of programs changes, for which they have to go first.
    has_gap: bool,
}

impl Fake {
    fn step(&mut self, take: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let step = self.steps;
        self.steps += 1;
        if self.fails == Some((step, Moment::Before)) {
            bail!("step {step} fails");
        }
        take(&mut self.state);
        self.history.push(self.state.clone());
        if self.fails == Some((step, Moment::After)) {
            bail!("step {step} fails, having been taken");
        }
        Ok(())
    }
}

impl Host for Fake {
    type Staged = String;
    type Prepared = Programs;
    type Attached = Programs;

    fn tables(&mut self) -> anyhow::Result<Vec<Image>> {
        Ok(self.state.tables.clone())
    }

    fn replace_tables(&mut self, tables: &[Image]) -> anyhow::Result<()> {
        self.step(|state| state.tables = tables.to_vec())
    }

    fn table_differences(&mut self, tables: &[Image]) -> anyhow::Result<Vec<String>> {
        let same = self.state.tables == tables;
        Ok(if same { Vec::new() } else { vec!["another table".to_owned()] })
    }

    fn prepare(&mut self, programs: &ProgramSpec<'_>) -> anyhow::Result<Programs> {
        self.step(|_| ())?;
        Ok(Some((programs.lowered.policy.hash(), programs.gate)))
    }

    fn leaves_a_gap(&self, _: &Programs) -> bool {
        self.has_gap
    }

    fn abandon(&mut self, _: Programs) -> anyhow::Result<()> {
        Ok(())
    }

    fn attach(&mut self, prepared: Programs) -> anyhow::Result<Programs> {
        let before = self.state.programs;
        if self.has_gap {
            self.state.programs = None;
            self.history.push(self.state.clone());
        }
        let attached = self.step(|state| state.programs = prepared);
        // What fails here is taken back here.
        attached.inspect_err(|_| self.state.programs = before).map(|()| before)
    }

    fn take_back(&mut self, before: Programs) -> anyhow::Result<()> {
        self.state.programs = before;
        Ok(())
    }

    fn settle(&mut self, _: Programs) -> anyhow::Result<()> {
        self.step(|_| ())
    }

    fn detach(&mut self) -> anyhow::Result<()> {
        self.step(|state| state.programs = None)
    }

    fn read_file(&mut self, path: &Path) -> anyhow::Result<Option<String>> {
        Ok(self.state.files.get(path).cloned())
    }

    fn write_file(&mut self, path: &Path, text: Option<&str>) -> anyhow::Result<()> {
        self.step(|state| match text {
            Some(text) => drop(state.files.insert(path.to_owned(), text.to_owned())),
            None => drop(state.files.remove(path)),
        })
    }

    fn stage_policy(&mut self, text: &str) -> anyhow::Result<String> {
        self.step(|_| ())?;
        Ok(text.to_owned())
    }

    fn commit_policy(&mut self, staged: String) -> anyhow::Result<()> {
        self.step(|state| drop(state.files.insert(policy_path(), staged)))
    }

    fn enable_boot_unit(&mut self) -> anyhow::Result<()> {
        let step = self.steps;
        if self.fails == Some((step, Moment::After)) {
            self.fails = Some((step, Moment::Before));
        }
        self.step(|state| state.is_enabled = true)
    }
}

fn policy(port: u16) -> AgentPolicy {
    let mut rule = hidden_rule(Port(port));
    let addresses = crate::input::resolve(
        "--allow-from",
        &["192.0.2.0/24".parse().expect("a source")],
        &crate::input::Catalogue::published().expect("valid"),
        &crate::input::Lists::default(),
    );
    let addresses = crate::model::rule::Addresses(addresses.expect("resolved").addresses);
    rule.source.addresses = crate::model::rule::Match::Is(addresses);
    lower(vec![rule], Port(port), DefaultAction::Drop).expect("compiled")
}

fn table(lowered: &AgentPolicy) -> Image {
    Ruleset::compile(lowered, Extras::default()).into_image()
}

/// A backend, as what it has in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backend {
    Nft,
    Xdp,
    Both,
}

const BACKENDS: [Backend; 3] = [Backend::Nft, Backend::Xdp, Backend::Both];

fn in_force(backend: Backend, lowered: &AgentPolicy) -> (Vec<Image>, Programs) {
    let tables = if backend == Backend::Xdp { vec![] } else { vec![table(lowered)] };
    let hash = lowered.policy.hash();
    let programs = (backend != Backend::Nft).then_some((hash, backend == Backend::Both));
    (tables, programs)
}

fn plan_of(backend: Backend, lowered: &AgentPolicy) -> Plan<'_> {
    let (tables, programs) = in_force(backend, lowered);
    let interfaces = vec![Interface::default()];
    let programs = programs.map(|(_, gate)| {
        let mode = XdpMode::default();
        ProgramSpec { lowered, gate, interfaces, mode }
    });
    let files = vec![(PathBuf::from("/list"), "192.0.2.0/24".to_owned())];
    Plan {
        tables,
        meanwhile: vec![table(lowered)],
        programs,
        files,
        policy: Some("new".to_owned()),
        enable_boot_unit: true,
        read_back: true,
    }
}

/// Whether something refuses strangers: a table, or a program that stands alone.
fn is_closed(state: &State) -> bool {
    !state.tables.is_empty() || state.programs.is_some_and(|(_, gate)| !gate)
}

/// Every way from one backend to another, with a change of mode where programs stay.
fn ways() -> impl Iterator<Item = (Backend, Backend, bool)> {
    let pairs = BACKENDS.into_iter().flat_map(|from| BACKENDS.map(|to| (from, to)));
    pairs.flat_map(|(from, to)| {
        let stays = from != Backend::Nft && to != Backend::Nft;
        std::iter::once(false).chain(stays.then_some(true)).map(move |gap| (from, to, gap))
    })
}

fn fake(from: Backend, old: &AgentPolicy, has_gap: bool) -> Fake {
    let (tables, programs) = in_force(from, old);
    let files = BTreeMap::from([(policy_path(), "old".to_owned())]);
    let state = State { tables, programs, files, is_enabled: false };
    Fake { state, has_gap, ..Fake::default() }
}

#[test]
fn every_change_of_backend_is_made_and_leaves_the_port_closed_throughout() {
    let (old, new) = (policy(4118), policy(4119));
    for (from, to, has_gap) in ways() {
        let mut host = fake(from, &old, has_gap);
        enforce(&mut host, &plan_of(to, &new)).expect("nothing fails");
        let (tables, programs) = in_force(to, &new);
        assert_eq!(
            (&host.state.tables, host.state.programs),
            (&tables, programs),
            "{from:?} {to:?}"
        );
        assert_eq!(host.state.files[&policy_path()], "new");
        assert!(host.history.iter().all(is_closed), "{from:?} to {to:?}, {has_gap}");
    }
}

#[test]
fn a_failure_at_each_step_of_each_plan_leaves_the_old_state_or_the_whole_new_one() {
    let (old, new) = (policy(4118), policy(4119));
    for (from, to, has_gap) in ways() {
        let plan = plan_of(to, &new);
        let mut whole = fake(from, &old, has_gap);
        let before = whole.state.clone();
        enforce(&mut whole, &plan).expect("nothing fails");
        for step in 0..whole.steps {
            for moment in [Moment::Before, Moment::After] {
                let mut host = fake(from, &old, has_gap);
                host.fails = Some((step, moment));
                let error = enforce(&mut host, &plan).expect_err("a step fails");
                let what = format!("{from:?} to {to:?}, gap {has_gap}, {moment:?} step {step}");
                assert!(host.history.iter().all(is_closed), "{what}: open");
                match error {
                    EnforceError::Refused(_) | EnforceError::TakenBack(_) => {
                        assert_eq!(host.state, before, "{what}: {error}");
                    }
                    EnforceError::NotRemoved(_) => {
                        assert_eq!(host.state.files, whole.state.files, "{what}");
                        assert!(is_closed(&host.state), "{what}");
                    }
                    EnforceError::NotTakenBack(..) => panic!("{what}: {error}"),
                }
            }
        }
    }
}
