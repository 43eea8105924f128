//! When admitted sources were last tried, and what came of it: `status` sends no packets itself.

use super::last_seen::Moment;
use crate::model::PolicyHash;
use crate::nft::Nftables;
use crate::system::file;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// What came of it, until the machine is switched off.
const FILE: &str = "/run/agent-fw/last-test.json";

/// What came of trying admitted sources.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastTest {
    at: Moment,
    /// The policy that admits them.
    policy: String,
    /// How many of them there were to try.
    pub all: usize,
    /// How many got through.
    pub through: usize,
    /// How many were stopped.
    pub stopped: usize,
    /// The ruleset's generation then.
    generation: Option<u32>,
}

impl LastTest {
    /// One that was made now.
    pub fn now(
        policy: PolicyHash,
        all: usize,
        through: usize,
        stopped: usize,
    ) -> nix::Result<Self> {
        let at = Moment::now()?;
        let (policy, generation) = (policy.to_string(), generation());
        Ok(Self { at, policy, all, through, stopped, generation })
    }

    /// Writes it down.
    pub fn keep(&self) -> anyhow::Result<()> {
        file::write_private(Path::new(FILE), &serde_json::to_string(self)?)
    }

    /// The last one of this policy, if there was one.
    pub fn of(policy: PolicyHash) -> Option<Self> {
        read().filter(|test| test.policy == policy.to_string())
    }

    /// How long ago it was.
    pub fn age(&self) -> Duration {
        Moment::now().map_or(Duration::ZERO, |now| self.at.before(now))
    }

    /// Whether no rule of nf_tables has changed since, agent-fw's own questions apart.
    pub fn is_of_these_rules(&self) -> bool {
        self.generation.is_some() && self.generation == generation()
    }
}

fn read() -> Option<LastTest> {
    let text = file::read_large(Path::new(FILE)).ok().flatten()?;
    serde_json::from_str(&text).ok()
}

/// The generation of the ruleset now; `None` where it cannot be told.
pub fn generation() -> Option<u32> {
    Some(Nftables::open().ok()?.generation().ok()?.number())
}

/// Forgets a change of the ruleset that was agent-fw's own: a question puts a table there and takes it
/// away. `before` is the generation before that.
pub fn disregard(before: Option<u32>) {
    let Some(test) = read().filter(|test| before.is_some() && test.generation == before) else {
        return;
    };
    // What cannot be written down reads like a change.
    drop(LastTest { generation: generation(), ..test }.keep());
}
