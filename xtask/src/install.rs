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

/// Where manual pages and completions go, as below /usr in a package.
const SHARED: &str = "/usr/local/share";

/// Builds and places the binary, its manual and its completions, runs `agent-fw install` with `args` and passes on its exit
/// code.
pub(crate) fn install(args: &[OsString]) -> Result<ExitCode> {
    let binary = product::build()?;
    place(&binary)?;
    // Without a manual, the job is done all the same.
    if let Err(error) = place_manual(&binary) {
        eprintln!("xtask: no manual pages, no completions: {error:#}");
    }
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

/// Puts manual pages and completions where man and shells look for them.
fn place_manual(binary: &Path) -> Result<()> {
    let written = product::manual(binary)?;
    for kind in ["man", "bash-completion", "fish", "zsh"] {
        let from = written.join("usr/share").join(kind);
        let mut copy = as_root("cp", &format!("writing {SHARED}"))?;
        run(copy.args(["--recursive", "--no-preserve=all"]).arg(from).arg(SHARED))?;
    }
    Ok(())
}
