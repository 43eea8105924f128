//! Writes what a package holds besides the program and is made from it: manual pages, completions,
//! units, the rule of udev and a policy to begin with. `cargo xtask dist` runs this, with the
//! directory to fill.

use agent_fw::cli;
use agent_fw::configuration::Configuration;
use agent_fw::system::systemd::{
    MODULES, Origin, RULE, modules, modules_besides, udev_rule, units,
};
use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

/// Where packages put the program.
const PROGRAM: &str = "/usr/bin/agent-fw";

fn main() -> Result<()> {
    let root = std::env::args_os().nth(1).map(PathBuf::from);
    let root = root.context("usage: package_files DIRECTORY")?;
    write_units(&root)?;
    write_manual(&root)?;
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

/// One page for the command and one for each subcommand, in the section for administrators.
fn write_manual(root: &Path) -> Result<()> {
    let mut command = cli::command().disable_help_subcommand(true);
    // Gives each subcommand its full name.
    command.build();
    write_pages(&root.join("usr/share/man/man8"), &command)
}

fn write_pages(directory: &Path, command: &Command) -> Result<()> {
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(command.clone()).section("8").manual("agent-fw");
    manual.source(concat!("agent-fw ", env!("CARGO_PKG_VERSION"))).render(&mut page)?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    write(&directory.join(format!("{name}.8")), page)?;
    command.get_subcommands().try_for_each(|subcommand| write_pages(directory, subcommand))
}

fn write_completions(root: &Path) -> Result<()> {
    for (shell, place) in [
        (Shell::Bash, "bash-completion/completions/agent-fw"),
        (Shell::Fish, "fish/vendor_completions.d/agent-fw.fish"),
        (Shell::Zsh, "zsh/site-functions/_agent-fw"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut cli::command(), "agent-fw", &mut script);
        write(&root.join("usr/share").join(place), script)?;
    }
    Ok(())
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}
