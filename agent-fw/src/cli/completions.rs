//! `agent-fw completions`: what a shell needs to complete words of agent-fw. The words themselves come
//! from the program, each time: the regions and the interfaces of this host are among them.

use super::outcome::{Outcome, Result};
use crate::engine::policy::catalogue;
use crate::netlink::link;
use anyhow::Context as _;
use clap::ValueEnum;
use clap_complete::engine::ValueCompleter as _;
use clap_complete::env::Shells;
use clap_complete::{ArgValueCandidates, CompletionCandidate, PathCompleter};
use std::ffi::OsStr;
use std::io::Write as _;

/// The variable by which a shell asks.
pub const VARIABLE: &str = "AGENT_FW_COMPLETE";

/// Prints what a shell runs to complete words of agent-fw
///
/// For bash, `source <(agent-fw completions bash)` in ~/.bashrc; for zsh, the same in ~/.zshrc behind
/// `compinit`; for fish, `agent-fw completions fish | source`. Packages bring it.
#[derive(clap::Args, Debug)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// A shell.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// The friendly interactive shell.
    Fish,
    /// The Z shell.
    Zsh,
}

/// For bash, words are taken from the line: bash itself parts them at `:` and `=`, as in
/// `region:us-1`, and wants what follows the last of these.
const BASH: &str = r#"_agent_fw() {
    local IFS=$' \t\n' words current prefix
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    IFS=$'\n'
    COMPREPLY=($(_CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
        _CLAP_COMPLETE_COMP_TYPE=$COMP_TYPE _CLAP_COMPLETE_SPACE=false \
        @VARIABLE@=bash "${words[0]}" -- "${words[@]}" 2>/dev/null)) || return
    if [[ ${COMPREPLY[*]} =~ [=/:]$ ]]; then
        compopt -o nospace 2>/dev/null
    fi
    prefix=${current%"${current##*[:=]}"}
    if [[ -n $prefix && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}
complete -o nosort -o bashdefault -F _agent_fw agent-fw 2>/dev/null || complete -F _agent_fw agent-fw
"#;

/// What a shell runs to complete words of agent-fw.
pub fn script(shell: Shell) -> anyhow::Result<Vec<u8>> {
    let name = match shell {
        Shell::Bash => return Ok(BASH.replace("@VARIABLE@", VARIABLE).into_bytes()),
        Shell::Fish => "fish",
        Shell::Zsh => "zsh",
    };
    let shells = Shells::builtins();
    let completer = shells.completer(name).context("the library does not know this shell")?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "agent-fw", "agent-fw", "agent-fw", &mut script)?;
    Ok(script)
}

impl Completions {
    pub(super) fn run(self) -> Result<Outcome> {
        let written = std::io::stdout().write_all(&script(self.shell)?);
        written.context("cannot write the output")?;
        Ok(Outcome::Done)
    }
}

/// Words of this host's, by the name of the flag's value.
pub(super) fn with_words(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        match arg.get_value_names().and_then(|names| names.first()).map(clap::builder::Str::as_str)
        {
            Some("SOURCE") => arg.add(clap_complete::ArgValueCompleter::new(sources)),
            Some("FILE") => arg.add(clap_complete::ArgValueCompleter::new(PathCompleter::file())),
            Some("DIRECTORY") => {
                arg.add(clap_complete::ArgValueCompleter::new(PathCompleter::dir()))
            }
            Some("NAME") if matches!(arg.get_id().as_str(), "name" | "region") => {
                arg.add(ArgValueCandidates::new(regions))
            }
            Some("NAME") if arg.get_id() == "interface" => {
                arg.add(ArgValueCandidates::new(interfaces))
            }
            _ => arg,
        }
    });
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, with_words))
}

fn regions() -> Vec<CompletionCandidate> {
    let Ok(catalogue) = catalogue() else { return Vec::new() };
    let candidate = |(name, region): (&str, &crate::input::Region)| {
        CompletionCandidate::new(name).help(Some(region.place.clone().into()))
    };
    catalogue.iter().map(candidate).collect()
}

/// Regions, `any`, and files behind `file:`.
fn sources(begun: &OsStr) -> Vec<CompletionCandidate> {
    const FILE: &str = "file:";
    let begun = begun.to_string_lossy();
    if let Some(path) = begun.strip_prefix(FILE) {
        let files = PathCompleter::file().complete(OsStr::new(path));
        return files.into_iter().map(|file| file.add_prefix(FILE)).collect();
    }
    let regions = regions().into_iter().map(|region| region.add_prefix("region:"));
    let words = ["any", FILE].map(CompletionCandidate::new);
    let all = regions.chain(words);
    all.filter(|word| word.get_value().to_string_lossy().starts_with(&*begun)).collect()
}

fn interfaces() -> Vec<CompletionCandidate> {
    let found = link::list().unwrap_or_default().into_iter();
    found.map(|interface| CompletionCandidate::new(interface.name)).collect()
}
