//! The manual pages: one for the command and each subcommand, one for `policy.toml`, and one that tells
//! what all of it is about.

use crate::write;
use agent_fw::cli;
use agent_fw::cli::examples::EXAMPLES;
use agent_fw::configuration::Configuration;
use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

const SOURCE: &str = concat!("agent-fw ", env!("CARGO_PKG_VERSION"));

/// What every page ends with.
const EXIT_STATUS: &str = ".SH \"EXIT STATUS\"
.TP
0
Done, or true.
.TP
1
False: kernel and policy differ, something would change, or what was asked for was refused, for want
of a consent that the message names.
.TP
2
Wrong use, or faulty input.
.TP
3
The system failed.
.TP
5
Not known, or not asked: see
.BR agent\\-fw\\-explain (8).
";
const FILES: &str = ".SH FILES
.TP
.I /etc/agent\\-fw/policy.toml
The policy; see
.BR agent\\-fw.toml (5).
.TP
.I /etc/agent\\-fw/regions.toml
Regions of this host's own, in the place of the built\\-in ones of the same names.
.TP
.I /var/lib/agent\\-fw
The last good policy, which is enforced at boot where policy.toml cannot be; the history; what is known
of interfaces, and of exceptions in other firewalls.
.TP
.I /run/agent\\-fw
The lock, a change on trial, and what was seen since the machine was switched on.
";
const SEE_ALSO: &str = ".SH \"SEE ALSO\"
.BR agent\\-fw (7),
.BR agent\\-fw (8),
.BR agent\\-fw.toml (5),
.BR nft (8)
";

/// What the program is about.
const OVERVIEW: &str = ".SH NAME
agent\\-fw \\- who may reach a security agent's port, enforced and proved
.SH DESCRIPTION
Trend Micro's Workload Security agent listens on TCP 4118 so that its manager can reach it, and opens that
port to every address by a hidden firewall rule: priority 4, Bypass, incoming, any source. agent\\-fw
compiles that rule with a restriction of its sources, and puts it into force as a table of nf_tables, as
an XDP program on each interface, or both.
.PP
Two promises are told apart.
.TP
.B closed
No other source reaches the port, by any interface, from the first moment of the next boot on. agent\\-fw
enforces this alone, and
.BR agent\\-fw\\-verify (8)
proves it.
.TP
.B open
An admitted source does reach the port. This depends on every other rule of the host, which agent\\-fw
cannot overrule;
.BR agent\\-fw\\-explain (8)
asks the kernel.
.SH \"FIRST STEPS\"
.nf
agent\\-fw install \\-\\-allow\\-from region:us\\-1 \\-\\-dry\\-run
agent\\-fw install \\-\\-allow\\-from region:us\\-1
agent\\-fw status
agent\\-fw verify
agent\\-fw explain \\-\\-all
.fi
.SH LIMITS
Whoever is root on the host can take the policy away. Addresses can be forged, connections from them
cannot. /usr/share/doc/agent\\-fw/docs/limits.md has all of them.
";

/// Writes them below `root`, each in its section.
pub(crate) fn write_pages(root: &Path) -> Result<()> {
    let mut command = cli::command().disable_help_subcommand(true);
    // Gives each subcommand its full name.
    command.build();
    write_commands(&root.join("man8"), &command, &[])?;
    write(&root.join("man5/agent-fw.toml.5"), policy_toml()?)?;
    let overview = format!("{}{OVERVIEW}{FILES}{SEE_ALSO}", title("agent-fw", 7));
    write(&root.join("man7/agent-fw.7"), overview)
}

fn title(name: &str, section: u8) -> String {
    format!(".TH {} {section} \"\" \"{SOURCE}\" \"agent-fw\"\n", escaped(name))
}

fn write_commands(directory: &Path, command: &Command, words: &[&str]) -> Result<()> {
    let mut page = Vec::new();
    let manual = Man::new(command.clone()).section("8").manual("agent-fw").source(SOURCE);
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        manual.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        manual.render_subcommands_section(&mut page)?;
    }
    page.write_all(examples(words).as_bytes())?;
    page.write_all([FILES, EXIT_STATUS, SEE_ALSO].concat().as_bytes())?;
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    write(&directory.join(format!("{name}.8")), page)?;
    command.get_subcommands().filter(|of| !of.is_hide_set()).try_for_each(|subcommand| {
        write_commands(directory, subcommand, &[words, &[subcommand.get_name()]].concat())
    })
}

fn examples(words: &[&str]) -> String {
    let known = EXAMPLES.iter().find(|(command, _)| *command == words);
    let Some((_, examples)) = known else { return String::new() };
    let lines = examples.iter().map(|(line, what)| {
        let capital = what[..1].to_uppercase() + &what[1..];
        format!(".TP\n.B {}\n{}.\n", escaped(line), escaped(&capital))
    });
    format!(".SH EXAMPLES\n{}", lines.collect::<String>())
}

/// The keys of `policy.toml`, with what the file that agent-fw writes says of each.
fn policy_toml() -> Result<String> {
    let mut page = title("agent-fw.toml", 5);
    page.push_str(
        ".SH NAME\nagent\\-fw.toml \\- the policy of agent\\-fw, /etc/agent\\-fw/policy.toml\n.SH DESCRIPTION\n",
    );
    page.push_str(
        "\\fBagent\\-fw install\\fR writes the file, in TOML. After a change by hand, \\fBagent\\-fw apply\\fR puts \
         it into force; \\fBagent\\-fw policy edit\\fR does both. A file that is written by hand ends with the line \
         \\(lq# End of policy\\(rq, by which a whole file is told from one that was cut off.\n.SH KEYS\n",
    );
    let policy = Configuration { allow_from: vec!["region:us-1".parse()?], ..Default::default() };
    for paragraph in policy.to_toml().split("\n\n") {
        let said = paragraph.lines().filter_map(|line| line.strip_prefix("# "));
        let said = said.collect::<Vec<_>>().join(" ");
        let Some(key) = paragraph.lines().find(|line| line.contains(" = ")) else { continue };
        let (key, value) = key.split_once(" = ").unwrap_or((key, ""));
        let value = escaped(value);
        write!(
            page,
            ".TP\n.BR {} \" = {}\"\n{}\n",
            escaped(key),
            value.replace('"', "\\(dq"),
            escaped(&said)
        )?;
    }
    page.push_str(SEE_ALSO);
    Ok(page)
}

/// A text as roff takes it.
fn escaped(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
