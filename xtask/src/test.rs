//! `cargo xtask test`: every test, and one count of them all.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, find, is_root};
use crate::product;
use crate::setup::{self, Group};

/// The packages whose tests need root: they build network namespaces and load BPF programs.
const ROOTS: [&str; 2] = ["agent-fw-lab", "agent-fw-ebpf"];
/// Without it, the tests that load the object are left out.
const LOADER: &str = "agent-fw-ebpf/aya";

/// Runs all tests, or those whose names contain `filter`. Fails if one failed and, where CI
/// is `true`, if one was skipped.
pub(crate) fn test(filter: Option<&str>) -> Result<ExitCode> {
    setup::ensure(&[Group::Test])?;
    let binary = product::build()?;

    let mut count = Count::default();
    let mut succeeded = true;
    if is_root() {
        succeeded &=
            run_tests(cargo_test(&["--workspace", "--features", LOADER], filter), &mut count)?;
    } else {
        let [lab, ebpf] = ROOTS;
        let others = cargo_test(&["--workspace", "--exclude", lab, "--exclude", ebpf], filter);
        succeeded &= run_tests(others, &mut count)?;
        if find("sudo").is_some() {
            eprintln!("xtask: the tests of {lab} and {ebpf} need root: using sudo for them");
            let agent_fw = format!("AGENT_FW={}", binary.display());
            let runner = format!("target.'cfg(unix)'.runner=['sudo', 'env', '{agent_fw}']");
            let selection = ["--config", &runner, "--package", lab, "--package", ebpf];
            let rooted = cargo_test(&[&selection[..], &["--features", LOADER]].concat(), filter);
            succeeded &= run_tests(rooted, &mut count)?;
        } else {
            for package in ROOTS {
                count.skip(format!("all tests of {package}: they need root, and there is no sudo"));
            }
        }
    }

    let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
    println!();
    for reason in &count.reasons {
        println!("skipped: {reason}");
    }
    if strict && count.skipped > 0 {
        println!("CI=true: what is skipped counts as failed");
    }
    if !succeeded && count.failed == 0 {
        println!("cargo test failed for another reason than a failed test: see above");
    }
    println!("{count}");
    let good = succeeded && count.failed == 0 && !(strict && count.skipped > 0);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo_test(selection: &[&str], filter: Option<&str>) -> Command {
    let mut command = cargo();
    // All binaries, whatever fails before them: the count is to be whole.
    command.args(["test", "--release", "--no-fail-fast"]).args(selection);
    command.arg("--").args(filter);
    command
}

/// Runs `cargo test`, shows what it says and adds up its results. Tells whether it succeeded.
fn run_tests(mut command: Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo's output is not connected")?;
    let mut screen = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo says")?;
        screen.write_all(&line).and_then(|()| screen.write_all(b"\n")).context("cannot print")?;
        count.read(&String::from_utf8_lossy(&line));
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}

/// How many tests did what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Which were skipped, with their reasons where they gave one.
    reasons: Vec<String>,
}

impl Count {
    /// Takes in one line of a test binary's output.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            // "ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in …"
            self.passed += number_before(result, "passed");
            self.failed += number_before(result, "failed");
            self.skipped += number_before(result, "ignored");
        } else if let Some((name, reason)) = ignored(line) {
            self.reasons.push(format!("{name}{reason}"));
        }
    }

    fn skip(&mut self, reason: String) {
        self.skipped += 1;
        self.reasons.push(reason);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The number that stands before a word; 0 if the word is not there.
fn number_before(text: &str, word: &str) -> usize {
    let words: Vec<_> = text.split([' ', ';', '.']).filter(|part| !part.is_empty()).collect();
    let pair = words.windows(2).find(|pair| pair[1] == word);
    pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

/// The name of a test that was skipped, and what follows: `test NAME ... ignored, REASON`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, reason) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name.trim_end(), reason))
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn the_results_of_several_binaries_add_up() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test b ... ignored, needs a kernel with XDP",
            "test c ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test d     ... ignored",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "say: test result: ok. 99 passed",
        ] {
            count.read(line);
        }
        assert_eq!(count.to_string(), "13 passed, 1 failed, 2 skipped");
        assert_eq!(count.reasons, ["b, needs a kernel with XDP", "d"]);
    }
}
