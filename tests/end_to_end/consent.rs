//! Who can be asked is asked: a bare `install` on a terminal, and nowhere else.

use crate::scene::{AGENT, expect};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, command, run};
use anyhow::{Context as _, Result, ensure};
use nix::pty::openpty;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

tests![
    a_bare_install_asks_on_a_terminal_and_takes_the_answer,
    every_unit_that_starts_something_has_a_deadline,
];

/// A bare `install` on a terminal.
fn install_on_a_terminal(typed: &str) -> Result<(Option<i32>, String)> {
    on_a_terminal(&["install", "--no-boot", "--untested", "--replace"], typed)
}

/// A command of agent-fw's whose input is a terminal on which this is typed; its exit code, and what
/// is shown and said.
pub(crate) fn on_a_terminal(words: &[&str], typed: &str) -> Result<(Option<i32>, String)> {
    let mut command = command([agent_fw_path()]);
    with_typed(command.args(words), typed)
}

/// The same of any command.
pub(crate) fn with_typed(command: &mut Command, typed: &str) -> Result<(Option<i32>, String)> {
    let terminal = openpty(None, None)?;
    let mut person = File::from(terminal.master);
    let command = command.stdin(Stdio::from(terminal.slave));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    person.write_all(typed.as_bytes())?;
    let finished = child.wait()?;
    let mut said = String::new();
    child.stdout.take().context("output")?.read_to_string(&mut said)?;
    child.stderr.take().context("errors")?.read_to_string(&mut said)?;
    Ok((finished.code(), said))
}

fn a_bare_install_asks_on_a_terminal_and_takes_the_answer() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        // Elsewhere it is refused.
        ensure!(agent_fw(["install", "--no-boot"])?.code == Some(2));
        for (typed, code) in [("\n", 2), ("nonsense\n", 2), ("0.0.0.0/0\n", 2)] {
            let (ended, said) = install_on_a_terminal(typed)?;
            ensure!(ended == Some(code) && said.contains("Who may reach TCP port 4118?"), "{said}");
            ensure!(run(["nft", "list", "ruleset"])?.is_empty(), "{typed:?}: {said}");
        }
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let (ended, said) = install_on_a_terminal("region:us-1 192.0.2.0/24\n")?;
        ensure!(ended == Some(0), "{said}");
        expect(&manager, Outcome::Talked, &["34.205.5.1", "192.0.2.7"])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        let (ended, said) = install_on_a_terminal("any\n")?;
        ensure!(ended == Some(0) && said.contains("every source"), "{ended:?}: {said}");
        expect(&manager, Outcome::Talked, &["198.51.100.7"])
    })
}

fn every_unit_that_starts_something_has_a_deadline() -> Result<()> {
    let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent-fw/data");
    let mut seen = 0;
    for entry in fs::read_dir(units)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "service") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let deadline = text.lines().find_map(|line| line.strip_prefix("TimeoutStartSec="));
        let seconds: Option<u32> = deadline.and_then(|seconds| seconds.parse().ok());
        ensure!(seconds.is_some_and(|seconds| (1..=300).contains(&seconds)), "{}", path.display());
        seen += 1;
    }
    ensure!(seen >= 4, "{seen} units");
    Ok(())
}
