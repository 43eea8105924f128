//! Help: its examples do what they say, and what was meant by a slip is told.

use crate::scene::install;
use crate::tests;
use agent_fw::cli::examples::EXAMPLES;
use agent_fw_lab::{Finished, Lab, agent_fw, agent_fw_path, command};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

tests![
    every_example_of_the_help_does_what_it_says,
    a_slip_is_told_from_nonsense,
    a_policy_is_edited_as_by_visudo,
    bash_completes_options_and_this_hosts_regions_and_interfaces,
    zsh_completes_them,
    fish_completes_them,
];

/// What a person types, each word by itself: the examples quote nothing.
fn typed(line: &str) -> Result<Finished> {
    let words = line.strip_prefix("agent-fw ").context("an example of another program")?;
    agent_fw(words.split(' '))
}

fn every_example_of_the_help_does_what_it_says() -> Result<()> {
    // What a dry run, a first look, or a host without systemd ends with.
    let may_end_with = |line: &str| match line {
        _ if line.contains("--confirm") => Some(2),
        "agent-fw confirm" => Some(1),
        _ if line.contains("--dry-run") => Some(1),
        // No interface of the lab leads to the manager.
        _ if line.contains("explain") || line.contains("doctor") => Some(1),
        _ => None,
    };
    let commands: Vec<_> = EXAMPLES.iter().collect();
    ensure!(commands.len() > 15);
    for (command, examples) in commands {
        Lab::run(|lab| {
            lab.peer("manager")?;
            install(&["--allow-from", "region:us-1", "--allow-from", "203.0.113.7"])?;
            install(&["--allow-from", "region:us-1", "--allow-from", "192.0.2.7"])?;
            if *command == ["install"] {
                agent_fw(["uninstall"])?.success()?;
            }
            let help = agent_fw(command.iter().chain(&["--help"]))?.success()?;
            for (line, what) in *examples {
                ensure!(help.contains(line) && help.contains(what), "{command:?}: {help}");
                let Some(line) = line.strip_prefix("EDITOR=nano ") else {
                    let ended =
                        typed(&line.replace("agent-fw install ", "agent-fw install --no-boot "))?;
                    let is_good = ended.code == Some(0) || ended.code == may_end_with(line);
                    ensure!(is_good, "{line}: {ended}");
                    continue;
                };
                let mut edit = self::command([agent_fw_path()]);
                let edit = edit.args(line.split(' ').skip(1)).env("EDITOR", "true").status()?;
                ensure!(edit.success(), "{line}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn a_slip_is_told_from_nonsense() -> Result<()> {
    Lab::run(|lab| {
        lab.peer("manager")?;
        for (source, meant) in [
            ("us1", "did you mean `region:us-1`?"),
            ("US-1", "did you mean `region:us-1`?"),
            ("Region:us-1", "did you mean `region:us-1`?"),
            ("region:us-1,region:jp-1", "name them one by one"),
            ("[2001:db8::1]", "did you mean `2001:db8::1`?"),
            ("192.0.2.1:4118", "did you mean `192.0.2.1`?"),
            ("１９２.0.2.1", "did you mean `192.0.2.1`?"),
            ("192.0.2.*", "did you mean `192.0.2.0/24`?"),
            ("localhost", "this host itself"),
        ] {
            let refused = agent_fw(["install", "--no-boot", "--allow-from", source])?;
            ensure!(refused.code == Some(2), "{refused}");
            let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(said.contains(meant) && said.contains(source), "{source}: {said}");
        }
        let words = ["--backend", "xdp", "--interface", "eth9", "--allow-from", "region:us-1"];
        let refused = agent_fw([&["install", "--no-boot"], &words[..]].concat())?;
        ensure!(refused.code == Some(2), "{refused}");
        ensure!(
            refused.stderr.contains("eth9") && refused.stderr.contains("manager0"),
            "{refused}"
        );
        install(&["--allow-from", "region:us-1"])?;
        let [short, long] =
            [&["explain", "34.205.5.1"][..], &["explain", "--from", "34.205.5.1"]].map(agent_fw);
        ensure!(short?.stdout.lines().next() == long?.stdout.lines().next());
        Ok(())
    })
}

/// What a shell shows on a terminal in which this is typed, a piece after the other. The directory of
/// agent-fw is the first of its PATH.
fn in_shell(shell: &str, pieces: &[&str]) -> Result<String> {
    let program = agent_fw_path();
    let directory = program.parent().and_then(|path| path.to_str()).context("a directory")?;
    let path = format!("{directory}:{}", std::env::var("PATH")?);
    let mut terminal = command(["script", "--quiet", "--return", "--flush", "--command", shell]);
    let terminal = terminal.arg("/dev/null").env("PATH", path).env("TERM", "dumb");
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut typed = child.stdin.take().context("a keyboard")?;
    let start = Duration::from_secs(2);
    std::thread::sleep(start);
    for piece in pieces {
        typed.write_all(piece.as_bytes())?;
        std::thread::sleep(start);
    }
    typed.write_all(b"\nexit\n")?;
    drop(typed);
    let mut shown = String::new();
    child.stdout.take().context("a screen")?.read_to_string(&mut shown)?;
    child.wait()?;
    Ok(shown)
}

/// What is typed before a tabulator, and what is to be shown behind it. Control and U empties the line.
const COMPLETED: [(&str, &str); 4] = [
    ("agent-fw ver", "agent-fw verify"),
    ("agent-fw install --back", "agent-fw install --backend"),
    ("agent-fw install --allow-from region:us", "agent-fw install --allow-from region:us-1"),
    ("agent-fw regions show gb", "agent-fw regions show gb-1"),
];

fn completes(shell: &str, begin: &[&str], more: &[(&str, &str)]) -> Result<()> {
    let all: Vec<_> = COMPLETED.iter().chain(more).collect();
    let typed: Vec<String> = all.iter().map(|(begun, _)| format!("{begun}\t\x15")).collect();
    let typed: Vec<&str> = begin.iter().copied().chain(typed.iter().map(String::as_str)).collect();
    let shown = in_shell(shell, &typed)?;
    for (begun, completed) in all {
        ensure!(shown.contains(completed), "{begun}: {shown}");
    }
    Ok(())
}

fn bash_completes_options_and_this_hosts_regions_and_interfaces() -> Result<()> {
    Lab::run(|lab| {
        lab.peer("manager")?;
        let begin = ["source <(agent-fw completions bash)\n"];
        let more = [
            ("agent-fw install --backend=b", "agent-fw install --backend=both"),
            ("agent-fw install --interface man", "agent-fw install --interface manager0"),
            ("agent-fw allow file:/etc/hostnam", "agent-fw allow file:/etc/hostname"),
        ];
        completes("bash --norc --noprofile -i", &begin, &more)
    })
}

fn zsh_completes_them() -> Result<()> {
    Lab::run(|_| {
        let begin = ["autoload -U compinit; compinit -u\n", "source <(agent-fw completions zsh)\n"];
        completes("zsh -f -i", &begin, &[])
    })
}

fn fish_completes_them() -> Result<()> {
    Lab::run(|_| {
        let program = agent_fw_path();
        let directory = program.parent().and_then(|path| path.to_str()).context("a directory")?;
        for (begun, completed) in COMPLETED {
            let ask = format!(
                "set PATH {directory} $PATH; agent-fw completions fish | source; complete -C '{begun}'"
            );
            let shown = agent_fw_lab::run(["fish", "--no-config", "-c", &ask])?;
            let word = completed.rsplit(' ').next().context("a word")?;
            ensure!(shown.lines().any(|line| line.starts_with(word)), "{begun}: {shown}");
        }
        Ok(())
    })
}

fn a_policy_is_edited_as_by_visudo() -> Result<()> {
    Lab::run(|_| {
        const POLICY: &str = "/etc/agent-fw/policy.toml";
        ensure!(agent_fw(["policy", "edit"])?.code == Some(2));
        install(&["--allow-from", "region:us-1"])?;
        let before = fs::read_to_string(POLICY)?;
        ensure!(agent_fw(["policy", "show"])?.success()?.trim() == before.trim());
        let edit = |editor: &str, typed: &str| -> Result<(Option<i32>, String)> {
            fs::write("/run/editor", format!("#!/bin/sh\n{editor}\n"))?;
            let mut edit = command([agent_fw_path()]);
            let edit = edit.args(["policy", "edit"]).env("EDITOR", "sh /run/editor");
            crate::consent::with_typed(edit, typed)
        };
        let add = "sed -i 's/\"region:us-1\"/\"region:us-1\", \"203.0.113.9\"/' \"$1\"";
        let (code, said) = edit(add, "y\n")?;
        ensure!(code == Some(0) && said.contains("203.0.113.9 would be admitted"), "{said}");
        let after = fs::read_to_string(POLICY)?;
        ensure!(after != before && after.contains("203.0.113.9"), "{after}");
        agent_fw(["verify"])?.success()?;
        for (editor, typed) in [
            // Faulty, and given up; an editor that fails; nothing done; second thoughts.
            ("sed -i 's/port = 4118/port = 411800/' \"$1\"", "n\n"),
            ("sed -i 's/4118/4119/' \"$1\"; exit 1", ""),
            ("true", ""),
            ("sed -i 's/port = 4118/port = 4119/' \"$1\"", "n\nn\n"),
        ] {
            let (_, said) = edit(editor, typed)?;
            ensure!(fs::read_to_string(POLICY)? == after, "{editor}: {said}");
            let left = fs::read_dir("/etc/agent-fw")?.count();
            ensure!(left == 1, "{editor} left {left} files: {said}");
        }
        // Edited again, the second time well.
        let twice = "if grep -q 411800 \"$1\"; then sed -i 's/411800/4119/' \"$1\"; \
                     else sed -i 's/port = 4118/port = 411800/' \"$1\"; fi";
        let (code, said) = edit(twice, "y\ny\n")?;
        ensure!(code == Some(0) && fs::read_to_string(POLICY)?.contains("port = 4119"), "{said}");
        ensure!(agent_fw(["history"])?.success()?.contains("policy edit"));
        // Nobody's edit is written over, nor is one left behind that was broken off.
        let copy = "/etc/agent-fw/policy.toml.edit";
        fs::write(copy, "another's\n")?;
        let (code, said) = edit("exit 7", "")?;
        ensure!(code == Some(2) && said.contains(copy), "{said}");
        ensure!(fs::read_to_string(copy)? == "another's\n");
        agent_fw(["verify"])?.success()?;
        agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(!fs::exists(copy)?, "it is left");
        Ok(())
    })
}
