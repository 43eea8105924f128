//! What was done in another firewall, on disk before it is done: so that exactly that is taken
//! back, also after a crash.

use super::detect::Firewall;
use super::{Plan, Step};
use crate::model::{Policy, Port};
use crate::system::file;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where they are kept: a file each, by number.
const DIRECTORY: &str = "/var/lib/agent-fw/exceptions";

/// An exception in one firewall.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    path: PathBuf,
    record: Record,
}

/// What the file has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    firewall: Firewall,
    steps: Vec<Taken>,
}

/// A step, and how far it has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Taken {
    step: Step,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It was about to be made.
    Begun,
    /// It was made.
    Made,
    /// It was there before: somebody else's, never taken back.
    Found,
}

/// What a person should know of what was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remark {
    /// It was made.
    Made(String),
    /// It was there before.
    Found(String),
    /// It was taken back.
    TakenBack(String),
    /// It had gone already.
    Gone(String),
    /// It could not be taken back: what, and why.
    Stays(String, String),
}

impl Exception {
    /// All that are on disk.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let entries = match std::fs::read_dir(DIRECTORY) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {DIRECTORY}"))?,
        };
        let paths: Result<Vec<PathBuf>, _> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths.with_context(|| format!("cannot read {DIRECTORY}"))?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort_unstable();
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let text = file::read(&path)?.unwrap_or_default();
        let record = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Self { path, record })
    }

    fn write(&self) -> anyhow::Result<()> {
        file::write(&self.path, &(serde_json::to_string_pretty(&self.record)? + "\n"))
    }

    fn forget(&self) -> anyhow::Result<()> {
        file::remove(&self.path)?;
        // Each stays when something is in it.
        for directory in self.path.ancestors().skip(1).take(2) {
            drop(std::fs::remove_dir(directory));
        }
        Ok(())
    }

    /// The firewall.
    pub fn firewall(&self) -> &Firewall {
        &self.record.firewall
    }

    /// Makes an exception, all of it or nothing.
    pub fn open(plan: &Plan) -> anyhow::Result<(Self, Vec<Remark>)> {
        let numbered = (0..).map(|n: u16| Path::new(DIRECTORY).join(format!("{n:02}.json")));
        let free = numbered.into_iter().find(|path| !path.exists());
        let path = free.context("too many exceptions")?;
        let record = Record { firewall: plan.firewall.clone(), steps: Vec::new() };
        let mut exception = Self { path, record };
        plan.check()?;
        let mut remarks = Vec::new();
        for step in &plan.steps {
            match exception.take(step) {
                Ok(remark) => remarks.push(remark),
                Err(error) => return Err(exception.withdraw(error)),
            }
        }
        Ok((exception, remarks))
    }

    fn take(&mut self, step: &Step) -> anyhow::Result<Remark> {
        let is_there = step.is_there()?;
        if is_there && step.is_named {
            bail!("{} is there already, and not of this installation: remove it", step.what);
        }
        let state = if is_there { State::Found } else { State::Begun };
        self.record.steps.push(Taken { step: step.clone(), state });
        self.write()?;
        if is_there {
            return Ok(Remark::Found(step.what.clone()));
        }
        step.make()?;
        if let Some(taken) = self.record.steps.last_mut() {
            taken.state = State::Made;
        }
        self.write()?;
        Ok(Remark::Made(step.what.clone()))
    }

    /// Takes back what there is of it, since the rest failed.
    fn withdraw(self, error: anyhow::Error) -> anyhow::Error {
        let stays = self.close().into_iter().filter_map(|remark| match remark {
            Remark::Stays(what, why) => Some(format!("{what}: {why}")),
            _ => None,
        });
        let stays = stays.collect::<Vec<_>>().join("\n");
        if stays.is_empty() {
            return error.context("no exception was made");
        }
        error.context(format!("no exception was made, and not all could be taken back:\n{stays}"))
    }

    /// Takes it back, the last step first. What cannot be taken back stays on disk.
    pub fn close(mut self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let mut stuck = Vec::new();
        while let Some(taken) = self.record.steps.pop() {
            match taken.close() {
                Ok(remark) => remarks.extend(remark),
                Err(error) => {
                    remarks.push(Remark::Stays(taken.step.what.clone(), format!("{error:#}")));
                    stuck.insert(0, taken);
                }
            }
            let mut left = self.clone();
            left.record.steps.extend(stuck.iter().cloned());
            let is_done = left.record.steps.iter().all(|taken| taken.state == State::Found);
            let kept = if is_done { left.forget() } else { left.write() };
            if let Err(error) = kept {
                remarks.push(Remark::Stays(left.path.display().to_string(), format!("{error:#}")));
            }
        }
        remarks
    }

    /// Makes it what the policy asks for: other sources, another port, or rules that have gone
    /// since, as when a firewall has been loaded again.
    pub fn refresh(mut self, policy: &Policy, port: Port) -> anyhow::Result<Vec<Remark>> {
        if policy.admissions().is_empty() {
            return Ok(self.close());
        }
        let plan = Plan::of(self.firewall(), policy, port)?;
        if !plan.steps.iter().eq(self.record.steps.iter().map(|taken| &taken.step)) {
            // Checked before anything is taken away.
            plan.check()?;
            let mut remarks = self.close();
            let is_stuck = remarks.iter().any(|remark| matches!(remark, Remark::Stays(..)));
            if !is_stuck {
                remarks.extend(Self::open(&plan)?.1);
            }
            return Ok(remarks);
        }
        let mut remarks = Vec::new();
        for index in 0..self.record.steps.len() {
            let step = self.record.steps[index].step.clone();
            if !step.is_there()? {
                // If it was somebody else's, it is ours from now on.
                self.record.steps[index].state = State::Begun;
                self.write()?;
                step.make()?;
                remarks.push(Remark::Made(step.what));
            }
            if self.record.steps[index].state == State::Begun {
                self.record.steps[index].state = State::Made;
                self.write()?;
            }
        }
        Ok(remarks)
    }
}

impl Taken {
    fn close(&self) -> anyhow::Result<Option<Remark>> {
        let what = || self.step.what.clone();
        if self.state == State::Found {
            return Ok(None);
        }
        if self.step.is_there()? {
            self.step.take_back()?;
            return Ok(Some(Remark::TakenBack(what())));
        }
        // What was only begun was never made.
        Ok((self.state == State::Made).then(|| Remark::Gone(what())))
    }
}

/// Takes all exceptions back, the newest first.
pub fn close_all() -> anyhow::Result<Vec<Remark>> {
    Ok(Exception::all()?.into_iter().rev().flat_map(Exception::close).collect())
}
