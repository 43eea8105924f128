//! What a test has a machine do: commands, over a serial line of their own.
//!
//! Each side writes a line of JSON: an [`Order`], then its [`Answer`].

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A command to be run inside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments.
    pub argv: Vec<String>,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The exit code; none if a signal ended it or it could not be started.
    pub code: Option<i32>,
    /// What it wrote, to both outputs.
    pub said: String,
}

/// The line to a machine.
#[derive(Debug)]
pub struct Orders {
    stream: BufReader<UnixStream>,
}

impl Orders {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Runs a command inside and returns what it said; any exit code but 0 is an error.
    pub fn run(&mut self, argv: &[&str], patience: Duration) -> Result<String> {
        let answer = self.try_run(argv, patience)?;
        ensure!(answer.code == Some(0), "`{}` inside: {answer:?}", argv.join(" "));
        Ok(answer.said)
    }

    /// Runs a command inside, however it ends.
    pub fn try_run(&mut self, argv: &[&str], patience: Duration) -> Result<Answer> {
        self.send(argv)?;
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .with_context(|| format!("no answer to `{}`", argv.join(" ")))?;
        if line.is_empty() {
            bail!("the machine ended before it answered `{}`", argv.join(" "));
        }
        serde_json::from_str(&line).with_context(|| format!("no answer: {line:?}"))
    }

    /// Begins a command inside, and does not wait for its end.
    pub fn send(&mut self, argv: &[&str]) -> Result<()> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let mut text = serde_json::to_string(&Order { argv })?;
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes()).context("cannot send an order")
    }
}

/// The other side: runs what comes in, until the line ends.
pub fn serve(input: impl BufRead, mut output: impl Write) -> Result<()> {
    for line in input.lines() {
        let line = line.context("cannot read an order")?;
        let Ok(Order { argv }) = serde_json::from_str(&line) else { continue };
        let mut text = serde_json::to_string(&obey(&argv))?;
        text.push('\n');
        output.write_all(text.as_bytes()).and_then(|()| output.flush())?;
    }
    Ok(())
}

fn obey(argv: &[String]) -> Answer {
    let [program, arguments @ ..] = argv else {
        return Answer { code: None, said: "an empty order".to_owned() };
    };
    match Command::new(program).args(arguments).output() {
        Ok(output) => Answer {
            code: output.status.code(),
            said: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        },
        Err(error) => Answer { code: None, said: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::serve;

    #[test]
    fn an_order_is_run_and_answered_and_nonsense_is_passed_over() {
        let orders = "nonsense\n{\"argv\":[\"echo\",\"yes\"]}\n{\"argv\":[\"no-such-program\"]}\n";
        let mut answers = Vec::new();
        serve(orders.as_bytes(), &mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        let lines: Vec<_> = answers.lines().collect();
        assert_eq!(lines.len(), 2, "{answers}");
        assert_eq!(lines[0], "{\"code\":0,\"said\":\"yes\\n\"}");
        assert!(lines[1].starts_with("{\"code\":null"), "{answers}");
    }
}
