//! A machine that is a program: a Linux in user mode, on this machine's own file system.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Console;

/// Memory, in MiB. It is a file that has no name, of which only what is used takes room.
const MEMORY: &str = "mem=1024M";

/// The root file system is this machine's, which the machine inside cannot change. Waits cost
/// nothing: its clock leaps to the next timer when all of it sleeps.
const ARGUMENTS: [&str; 9] = [
    "root=/dev/root",
    "rootfstype=hostfs",
    "rootflags=/",
    "ro",
    "con=null",
    "con0=null,fd:1",
    "ssl=null",
    "seccomp=on",
    "time-travel",
];

/// A machine that has not been started.
#[derive(Clone, Copy, Debug)]
pub struct UserMode<'a> {
    /// The kernel, which is an ordinary program.
    pub kernel: &'a Path,
    /// Where its console is kept.
    pub logs: &'a Path,
    /// Its name.
    pub name: &'a str,
}

impl UserMode<'_> {
    /// Switches it on, with this program in the place of init.
    pub fn start(self, init: &Path, arguments: &[&str]) -> Result<Console> {
        std::fs::create_dir_all(self.logs)
            .with_context(|| format!("cannot make {}", self.logs.display()))?;
        let log = self.logs.join(format!("{}.log", self.name));
        let errors = std::fs::File::create(log.with_extension("errors"))
            .with_context(|| format!("cannot make a log beside {}", log.display()))?;
        // It ends with the test, also with one that is killed.
        let mut machine = Command::new("setpriv");
        machine.args(["--pdeathsig", "KILL", "--"]).arg(self.kernel).arg(MEMORY).args(ARGUMENTS);
        machine.arg(format!("init={}", init.display())).arg("--").args(arguments);
        Console::of(machine.stdin(Stdio::null()).stderr(errors), &log)
    }
}
