//! `agent-fw watch`: refused packets as they come.

use super::outcome::{Failure, Outcome, Result};
use super::report;
use crate::system::privilege;
use crate::xdp::{self, RefusedPacket};
use anyhow::anyhow;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant, SystemTime};

/// Prints packets that the XDP programs refuse, as they come, until Ctrl-C
///
/// Under a flood not all of them, but at most ten a second of each CPU. Times are UTC. What the
/// nftables table refuses is not told here: `agent-fw status` counts it.
#[derive(clap::Args, Debug)]
pub(super) struct Watch {
    /// Print JSON, an object a line; times in seconds since 1970
    #[arg(long)]
    json: bool,
    /// Stop after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    seconds: Option<u64>,
}

impl Watch {
    pub(super) fn run(self) -> Result<Outcome> {
        privilege::require_net_admin("watch")?;
        let Some(mut watch) = xdp::Watch::open()? else {
            return Err(Failure::Input(anyhow!(
                "there is no XDP program to watch; `agent-fw install --backend both` has one"
            )));
        };
        let stop = stop_signals()?;
        let before = refused()?;
        // Beside the output, so that `--json` is JSON alone.
        drop(writeln!(std::io::stderr(), "watching for refused packets; Ctrl-C ends"));
        let told = self.tell(&mut watch, &stop)?;
        let all = refused()?.saturating_sub(before);
        let text = format!("{} told of {} refused", report::grouped(told), report::grouped(all));
        drop(writeln!(std::io::stderr(), "{text}"));
        Ok(Outcome::Done)
    }

    /// Prints what comes, and tells how much that was.
    fn tell(&self, watch: &mut xdp::Watch, stop: &SignalFd) -> Result<u64> {
        let deadline = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut told = 0;
        loop {
            while let Some(refusal) = watch.take() {
                // Nobody reads any more.
                if writeln!(std::io::stdout(), "{}", self.line(&refusal)).is_err() {
                    return Ok(told);
                }
                told += 1;
                if self.count == Some(told) {
                    return Ok(told);
                }
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || is_stopped(watch, stop, left)? {
                return Ok(told);
            }
        }
    }

    fn line(&self, refusal: &RefusedPacket) -> String {
        let RefusedPacket { time, source, destination, source_mac, interface, hidden_port } =
            refusal;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.json {
            let line = json!({
                "time": since.as_secs_f64(),
                "interface": interface,
                "source": source,
                "destination": destination,
                "source_mac": source_mac,
                "hidden_port": hidden_port,
            });
            return line.to_string();
        }
        let why = if *hidden_port { " (its port is hidden)" } else { "" };
        let time = clock(since);
        format!("{time} {interface} {source} -> {destination} from {source_mac}{why}")
    }
}

/// The time of day, in UTC.
fn clock(since_1970: Duration) -> String {
    let (seconds, millis) = (since_1970.as_secs(), since_1970.subsec_millis());
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{millis:03}")
}

fn refused() -> Result<u64> {
    Ok(xdp::counters()?.map_or(0, |counters| counters.refused))
}

/// Ctrl-C and its like, to be read instead of ending the process at once.
fn stop_signals() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Waits for a refusal, at most so long; true if a signal came first.
fn is_stopped(watch: &xdp::Watch, stop: &SignalFd, left: Option<Duration>) -> Result<bool> {
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    });
    let mut both = [watch.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut both, timeout) {
        Ok(_) => Ok(both[1].any() == Some(true)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(clock(Duration::from_millis(1_700_000_000_042)), "22:13:20.042");
    }
}
