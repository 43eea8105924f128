//! A run of another firewall's own program.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write as _;
use std::process::{Output, Stdio};

/// A program with its arguments, as they are handed to it: no shell reads them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Call {
    argv: Vec<String>,
    /// What it reads from its standard input.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    input: String,
}

impl Call {
    /// A program with its arguments, the program first.
    pub(super) fn new<T: Into<String>>(argv: impl IntoIterator<Item = T>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), input: String::new() }
    }

    /// The same, with something to read.
    pub(super) fn with_input(self, input: String) -> Self {
        Self { input, ..self }
    }

    /// Runs it, and gives what it wrote. Any exit code but 0 is an error with what it said.
    pub(super) fn run(&self) -> anyhow::Result<String> {
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{self}` failed: {}", said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it as a question: exit code 0 is yes, 1 is no, anything else no answer.
    pub(super) fn ask(&self) -> anyhow::Result<bool> {
        let output = self.output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("`{self}` failed: {}", said(&output)),
        }
    }

    fn output(&self) -> anyhow::Result<Output> {
        let program = self.argv.first().context("a call without a program")?;
        let mut child = crate::system::program::call(program)
            .args(&self.argv[1..])
            .stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it to the end says why by its exit code.
            drop(stdin.write_all(self.input.as_bytes()));
        }
        child.wait_with_output().with_context(|| format!("cannot wait for {program}"))
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { format!("it said nothing ({})", output.status) } else { lines.join("; ") }
}

impl fmt::Display for Call {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+{}".contains(c);
        for (index, word) in self.argv.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            if !word.is_empty() && word.chars().all(is_plain) {
                write!(f, "{blank}{word}")?;
            } else {
                write!(f, "{blank}'{}'", word.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Call;

    #[test]
    fn a_call_is_shown_as_it_would_be_typed() {
        let call = Call::new(["firewall-cmd", "--add-rich-rule=rule family=\"ipv4\" accept"]);
        assert_eq!(call.to_string(), "firewall-cmd '--add-rich-rule=rule family=\"ipv4\" accept'");
        assert_eq!(Call::new(["echo", "it's"]).to_string(), "echo 'it'\\''s'");
    }

    #[test]
    fn exit_codes_are_answers_and_failures_say_what_was_said() {
        assert!(Call::new(["true"]).ask().expect("runs"));
        assert!(!Call::new(["false"]).ask().expect("runs"));
        let failed = Call::new(["ls", "/nowhere"]);
        assert!(failed.ask().is_err());
        assert!(format!("{:#}", failed.run().unwrap_err()).contains("No such file"));
        assert_eq!(Call::new(["cat"]).with_input("x".into()).run().expect("runs"), "x");
        assert!(Call::new(["no-such-program"]).run().is_err());
    }
}
