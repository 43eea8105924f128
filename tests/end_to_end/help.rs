//! Help: its examples do what they say, and what was meant by a slip is told.

use crate::scene::install;
use crate::tests;
use agent_fw::cli::examples::EXAMPLES;
use agent_fw_lab::{Finished, Lab, agent_fw, agent_fw_path, command};
use anyhow::{Context as _, Result, ensure};
use std::fs;

tests![
    every_example_of_the_help_does_what_it_says,
    a_slip_is_told_from_nonsense,
    a_policy_is_edited_as_by_visudo,
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
                    let ended = typed(&line.replace("install ", "install --no-boot "))?;
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
        let [short, long] = [&["explain", "34.205.5.1"][..], &["explain", "--from", "34.205.5.1"]]
            .map(|words| agent_fw(words));
        ensure!(short?.stdout.lines().next() == long?.stdout.lines().next());
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
        agent_fw(["verify"])?.success().map(drop)
    })
}
