//! `cargo xtask install`: agent-fw on this host, in one command.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::process::{as_root, exit_code, run, status};
use crate::product;

/// Where the binary goes: before /usr/bin in every usual PATH, and not the package manager's.
const INSTALLED: &str = "/usr/local/bin/agent-fw";

/// Beside it, so that moving it there is one step.
const INCOMING: &str = "/usr/local/bin/.agent-fw.incoming";

/// Builds and places the binary, runs `agent-fw install` with `args` and passes on its exit
/// code.
pub(crate) fn install(args: &[OsString]) -> Result<ExitCode> {
    place(&product::build()?)?;
    let mut agent_fw = as_root(INSTALLED, "`agent-fw install`")?;
    Ok(exit_code(status(agent_fw.arg("install").args(args))?))
}

/// Puts the binary where it belongs, whole or not at all: a unit may start it at any moment.
fn place(binary: &Path) -> Result<()> {
    let purpose = format!("writing {INSTALLED}");
    run(as_root("install", &purpose)?
        .args(["-D", "-o", "root", "-g", "root", "-m", "0755"])
        .arg(binary)
        .arg(INCOMING))?;
    run(as_root("mv", &purpose)?.args(["-f", INCOMING, INSTALLED]))
}
