//! Other programs, by explicit arguments and with an end in sight.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ample for the slowest command of a test (loading a million prefixes on a busy machine),
/// and an end for one that hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// A command that has ended, whichever way.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for people to read.
    pub command: String,
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a command that exited with 0; for any other, an error with the
    /// command line and what it said.
    pub fn success(self) -> Result<String> {
        if self.code == Some(0) { Ok(self.stdout) } else { bail!("{self}") }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "`{}` exited with {code}", self.command)?,
            None => write!(f, "`{}` was ended by a signal", self.command)?,
        }
        for said in [&self.stdout, &self.stderr] {
            if !said.trim().is_empty() {
                write!(f, "\n{}", said.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs a program to its end and returns its standard output; anything but exit code 0 is an
/// error.
pub fn run<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Result<String> {
    output(argv)?.success()
}

/// Runs a program to its end, whichever end that is. An error means that it could not be
/// started or did not end in time.
pub fn output<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Result<Finished> {
    finish(command(argv), "")
}

/// Like [`run`], with `input` on the program's standard input: `feed(["nft", "-f", "-"], rules)`.
pub fn feed<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>, input: &str) -> Result<String> {
    finish(command(argv), input)?.success()
}

/// Runs `agent-fw` with these arguments to its end, whichever end that is.
pub fn agent_fw<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Finished> {
    let mut command = command([agent_fw_path()]);
    command.args(args);
    finish(command, "")
}

/// Starts `agent-fw` with these arguments, and kills it after `delay`, unless it has ended by then.
pub fn kill_agent_fw_after<S: AsRef<OsStr>>(
    delay: Duration,
    args: impl IntoIterator<Item = S>,
) -> Result<()> {
    let mut command = command([agent_fw_path()]);
    let quiet = command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = quiet.stderr(Stdio::null()).spawn().context("cannot start agent-fw")?;
    thread::sleep(delay);
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The binary under test: `$AGENT_FW`, or the workspace's release build.
#[must_use]
pub fn agent_fw_path() -> PathBuf {
    std::env::var_os("AGENT_FW").map_or_else(built_agent_fw_path, PathBuf::from)
}

/// Where `cargo build --release` leaves agent-fw.
#[must_use]
pub fn built_agent_fw_path() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    tests.parent().unwrap_or(tests).join(target).join("release/agent-fw")
}

/// A command that is not yet started, for callers with plans of their own (to kill it, to
/// start many at once).
///
/// # Panics
///
/// If `argv` is empty.
#[must_use]
pub fn command<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Command {
    let mut argv = argv.into_iter();
    let mut command = Command::new(argv.next().expect("a command has a program"));
    command.args(argv).env("PATH", search_path());
    // What programs print is compared and parsed.
    command.env("LC_ALL", "C").env("NO_COLOR", "1");
    command
}

/// PATH with the directories of system programs, which `su` without `-` leaves out.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn finish(mut command: Command, input: &str) -> Result<Finished> {
    let line = command_line(&command);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let output =
        exchange(child, input, PATIENCE).with_context(|| format!("`{line}` went wrong"))?;
    Ok(Finished {
        command: line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Feeds a started child, collects what it says and waits for its end; kills it when that
/// does not come in time.
fn exchange(mut child: Child, input: &str, patience: Duration) -> Result<Output> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("process ids fit in an i32")?);
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input tells why by its exit code.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
        }
        let (ended, end) = mpsc::channel();
        scope.spawn(move || ended.send(child.wait_with_output()));
        if let Ok(output) = end.recv_timeout(patience) {
            return output.context("cannot collect its output");
        }
        kill(pid, Signal::SIGKILL).context("it hangs, and cannot be killed")?;
        bail!("it did not end within {} s and was killed", patience.as_secs());
    })
}

fn command_line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{built_agent_fw_path, command, exchange, feed, output, run};

    #[test]
    fn a_failure_carries_the_command_line_and_what_was_said() {
        let error = run(["ls", "/nowhere-at-all"]).unwrap_err().to_string();
        assert!(error.contains("`ls /nowhere-at-all` exited with 2"), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = format!("{:#}", output(["no-such-program", "-x"]).unwrap_err());
        assert!(error.contains("cannot start `no-such-program -x`"), "{error}");
    }

    #[test]
    fn input_larger_than_a_pipe_goes_through() {
        let input = "agent\n".repeat(100_000);
        assert_eq!(feed(["cat"], &input).unwrap(), input);
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let started = Instant::now();
        let child = command(["sleep", "60"]).spawn().unwrap();
        let error = exchange(child, "", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("was killed"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_binary_under_test_is_the_release_build() {
        assert!(built_agent_fw_path().is_absolute());
        assert!(built_agent_fw_path().ends_with("release/agent-fw"));
    }
}
