//! Writes what a package holds besides the program and is made from it: manual pages, completions,
//! units, the rule of udev and a policy to begin with. `cargo xtask dist` runs this, with the
//! directory to fill.

mod manual;

use agent_fw::cli::completions::{Shell, script};
use agent_fw::configuration::Configuration;
use agent_fw::system::systemd::{
    MODULES, Origin, RULE, modules, modules_besides, udev_rule, units,
};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Where packages put the program.
const PROGRAM: &str = "/usr/bin/agent-fw";

fn main() -> Result<()> {
    let root = std::env::args_os().nth(1).map(PathBuf::from);
    let root = root.context("usage: package_files DIRECTORY")?;
    write_units(&root)?;
    manual::write_pages(&root.join("usr/share/man"))?;
    write_completions(&root)?;
    let (allow_from, engine_rules) = (vec!["region:us-1".parse()?], Some(true));
    let policy = Configuration { allow_from, engine_rules, ..Default::default() };
    write(&root.join("usr/share/doc/agent-fw/examples/policy.toml"), policy.to_toml())
}

fn write_units(root: &Path) -> Result<()> {
    let directory = root.join("usr/lib/systemd/system");
    for (name, text) in units(Origin::Package, PROGRAM) {
        write(&directory.join(name), text)?;
    }
    write(&root.join("usr/lib/modules-load.d").join(MODULES), modules(Origin::Package))?;
    write(&root.join("usr/lib/modprobe.d").join(MODULES), modules_besides(Origin::Package))?;
    write(&root.join("usr/lib/udev/rules.d").join(RULE), udev_rule(Origin::Package))
}

fn write_completions(root: &Path) -> Result<()> {
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions/agent-fw"),
        (Shell::Fish, "fish/vendor_completions.d/agent-fw.fish"),
        (Shell::Zsh, "zsh/site-functions/_agent-fw"),
    ] {
        write(&root.join("usr/share").join(place), script(shell)?)?;
    }
    Ok(())
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}
