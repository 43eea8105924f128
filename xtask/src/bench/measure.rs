//! What one process costs, from its start to its end.
//!
//! The kernel keeps the peak memory of a process's children as one number, the largest, and a
//! child that was started but has not yet become the other program counts with its parent's
//! memory. So every command gets a small parent of its own, a second run of this program
//! (`cargo xtask measure`), which prints what its only child has cost. That parent's memory, a
//! few megabytes, is the least that can be told apart.

use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};

/// What one process has cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    /// From before its start to after its end.
    pub(super) wall: Duration,
    /// On the processors, in its own code and in the kernel's on its behalf.
    pub(super) cpu: Duration,
    /// The most memory that it held at once, in units of 1024 bytes.
    pub(super) peak_kib: u32,
}

impl Figures {
    /// Runs a command and tells what it cost. Its standard output goes nowhere; an exit code
    /// other than 0 is an error.
    pub(super) fn of<S: AsRef<OsStr>>(argv: &[S]) -> Result<Self> {
        let xtask = std::env::current_exe().context("cannot tell where this program is")?;
        let parent = [xtask.as_os_str(), "measure".as_ref(), "--".as_ref()];
        let printed = agent_fw_lab::run(parent.into_iter().chain(argv.iter().map(AsRef::as_ref)))?;
        let json = serde_json::from_str(&printed).context("cannot read what was measured")?;
        Self::from_json(&json).with_context(|| format!("these are no figures: {printed}"))
    }

    fn from_json(json: &Value) -> Option<Self> {
        Some(Self {
            wall: Duration::from_micros(json["wall_us"].as_u64()?),
            cpu: Duration::from_micros(json["cpu_us"].as_u64()?),
            peak_kib: json["peak_kib"].as_u64()?.try_into().ok()?,
        })
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "wall_us": micros(self.wall),
            "cpu_us": micros(self.cpu),
            "peak_kib": self.peak_kib,
        })
    }
}

/// Runs one command as the only child of this process, and prints what it cost.
pub(crate) fn measure(argv: &[OsString]) -> Result<ExitCode> {
    let (program, words) = argv.split_first().context("there is no command to measure")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    let wall = start.elapsed();
    ensure!(status.success(), "`{}` failed ({status})", argv.join(" ".as_ref()).display());
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the kernel tells no usage")?;
    let figures = Figures {
        wall,
        cpu: duration(usage.user_time())? + duration(usage.system_time())?,
        peak_kib: u32::try_from(usage.max_rss()).context("a peak below 4 TiB was expected")?,
    };
    println!("{}", figures.to_json());
    Ok(ExitCode::SUCCESS)
}

fn duration(time: TimeVal) -> Result<Duration> {
    let micros = u64::try_from(time.num_microseconds()).context("time spent is not negative")?;
    Ok(Duration::from_micros(micros))
}

/// A u64 holds half a million years.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Figures;

    #[test]
    fn figures_come_back_as_they_were_printed() {
        let (wall, cpu) = (Duration::from_micros(5_700_123), Duration::from_millis(12));
        let figures = Figures { wall, cpu, peak_kib: 763_000 };
        assert_eq!(Figures::from_json(&figures.to_json()), Some(figures));
    }

    #[test]
    fn other_output_is_no_figures() {
        assert_eq!(Figures::from_json(&serde_json::json!({ "wall_us": 1 })), None);
    }
}
