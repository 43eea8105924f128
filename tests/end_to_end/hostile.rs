//! A local user, a file, a lock, a half-written policy never open the port.

use crate::scene::{AGENT, expect, install, status, stays_closed};
use crate::tests;
use agent_fw_lab::{
    Finished, Lab, Listener, Outcome, Peer, agent_fw, agent_fw_path, command, output, run,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

tests![
    a_local_user_cannot_take_the_lock,
    with_the_lock_held_the_port_is_closed_at_boot_all_the_same,
    a_file_that_would_never_end_does_not_keep_the_port_open_at_boot,
    records_of_its_own_that_are_no_files_do_not_keep_the_port_open_at_boot,
    a_policy_that_opens_more_is_taken_over_when_that_is_said,
    files_that_others_can_change_are_refused_unless_they_are_trusted,
    rules_and_regions_that_others_can_change_are_refused_unless_they_are_trusted,
    no_word_of_a_file_reaches_the_terminal_as_a_command,
    an_older_versions_policy_stays_in_force_whoever_owns_its_lists,
    metrics_replace_no_link_and_no_device,
    what_a_list_contains_is_not_shown_to_everybody,
    programs_are_those_of_the_system_whatever_the_path,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";
const LAST_GOOD: &str = "/var/lib/agent-fw/last-good.json";
/// A user who is nobody in particular.
const USER: u32 = 65_534;

fn is_closed(peer: &Peer) -> Result<()> {
    expect(peer, Outcome::Silent, &["198.51.100.7"])?;
    expect(peer, Outcome::Talked, &["34.205.5.1"])
}

/// As after a boot: nothing of agent-fw's is in the kernel.
fn forget() -> Result<()> {
    run(["nft", "flush", "ruleset"]).map(drop)
}

/// A message, however it was wrapped.
fn words_of(said: &str) -> String {
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn make_fifo(path: &str) -> Result<()> {
    run(["mkfifo", path]).map(drop)
}

/// What ends soon, whichever way.
fn soon(arguments: &[&str]) -> Result<Finished> {
    let start = Instant::now();
    let finished = agent_fw(arguments)?;
    ensure!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
    Ok(finished)
}

fn a_local_user_cannot_take_the_lock() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let lock = "/run/agent-fw/lock";
        let mode = fs::metadata(lock)?.mode() & 0o7777;
        ensure!(mode == 0o600, "anybody may open it: {mode:o}");
        // As an older version has left it, and a user has taken it: to read it is enough.
        for (mode, shared) in [(0o644, "--shared"), (0o666, "--exclusive")] {
            fs::remove_file(lock)?;
            fs::write(lock, "agent-fw apply, process 1")?;
            fs::set_permissions(lock, fs::Permissions::from_mode(mode))?;
            let mut held = command(["setpriv"])
                .args([&format!("--reuid={USER}"), "--clear-groups", "flock", shared, lock])
                .args(["sleep", "60"])
                .stdin(Stdio::null())
                .spawn()?;
            std::thread::sleep(Duration::from_millis(300));
            ensure!(held.try_wait()?.is_none(), "the user did not get the lock");
            forget()?;
            let applied = agent_fw(["apply", "--boot", "--wait", "2"]);
            held.kill()?;
            held.wait()?;
            applied?.success()?;
            is_closed(&manager)?;
            ensure!(fs::metadata(lock)?.mode() & 0o7777 == 0o600);
        }
        Ok(())
    })
}

fn with_the_lock_held_the_port_is_closed_at_boot_all_the_same() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let holder = fs::OpenOptions::new().read(true).write(true).open("/run/agent-fw/lock")?;
        holder.lock()?;
        forget()?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let applied = agent_fw(["apply", "--boot", "--wait", "1"])?;
        ensure!(applied.code == Some(0), "{applied}");
        ensure!(applied.stdout.contains("without the lock"), "{applied}");
        // The process that signed it last has ended, and does not hold it.
        ensure!(!applied.to_string().contains("agent-fw install"), "{applied}");
        is_closed(&manager)?;
        // Without a last good policy, it is closed to everybody, on every port that is known.
        forget()?;
        fs::remove_file(LAST_GOOD)?;
        let text = fs::read_to_string(POLICY)?;
        fs::write(POLICY, text.replace("port = 4118", "port = 4119"))?;
        let _other = Listener::bind(4119)?;
        agent_fw(["apply", "--boot", "--wait", "0"])?;
        stays_closed(&manager, &[4119])?;
        forget()?;
        fs::write(POLICY, text)?;
        agent_fw(["apply", "--boot", "--wait", "0"])?;
        is_closed(&manager)
    })
}

fn a_file_that_would_never_end_does_not_keep_the_port_open_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let list = "/run/manager.list";
        fs::write(list, "34.205.5.0/27\n")?;
        install(&["--allow-from", &format!("file:{list}")])?;
        let kinds: [&dyn Fn() -> Result<()>; 4] = [
            &|| make_fifo(list),
            &|| Ok(symlink("/proc/kmsg", list)?),
            &|| Ok(symlink("/dev/zero", list)?),
            &|| Ok(fs::File::create(list)?.set_len(100 << 20)?),
        ];
        for (number, make) in kinds.into_iter().enumerate() {
            fs::remove_file(list)?;
            make()?;
            forget()?;
            let fallen = soon(&["apply", "--boot"])?;
            ensure!(fallen.code == Some(1), "{number}: {fallen}");
            ensure!(fallen.stdout.contains("last good"), "{number}: {fallen}");
            is_closed(&manager).with_context(|| format!("kind {number}"))?;
            for asked in ["apply", "status", "verify", "doctor"] {
                let refused = soon(&[asked])?;
                ensure!(refused.code != Some(0), "{number}, {asked}: {refused}");
            }
        }
        Ok(())
    })
}

fn records_of_its_own_that_are_no_files_do_not_keep_the_port_open_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        status()?;
        for record in [LAST_GOOD, "/var/lib/agent-fw/interfaces.json", "/run/agent-fw/contact.json"]
        {
            for is_fifo in [true, false] {
                drop(fs::remove_file(record));
                if is_fifo {
                    make_fifo(record)?;
                } else {
                    symlink("/proc/kmsg", record)?;
                }
                forget()?;
                soon(&["apply", "--boot"])?.success().with_context(|| record.to_owned())?;
                is_closed(&manager)?;
                soon(&["status"])?.success().with_context(|| record.to_owned())?;
            }
            drop(fs::remove_file(record));
        }
        // The policy itself.
        fs::remove_file(POLICY)?;
        agent_fw(["apply", "--boot"])?;
        make_fifo(POLICY)?;
        forget()?;
        let fallen = soon(&["apply", "--boot"])?;
        ensure!(fallen.code == Some(1), "{fallen}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn a_policy_that_opens_more_is_taken_over_when_that_is_said() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        fs::write(POLICY, "allow_from = [\"any\"]\n")?;
        let refused = agent_fw(["apply"])?;
        ensure!(refused.code == Some(1), "{refused}");
        for part in ["TCP port 4118", "--accept-opening"] {
            ensure!(refused.stderr.contains(part), "{refused}");
        }
        ensure!(run(["nft", "--handle", "list", "ruleset"])? == before);
        let fallen = agent_fw(["apply", "--boot"])?;
        ensure!(fallen.code == Some(1), "{fallen}");
        is_closed(&manager)?;
        agent_fw(["apply", "--accept-opening"])?.success()?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        // From then on it is the policy.
        forget()?;
        agent_fw(["apply", "--boot"])?.success()?;
        // Other addresses are no opening, nor is a second port that is closed besides.
        fs::write(POLICY, "allow_from = [\"region:us-1\"]\n")?;
        agent_fw(["apply"])?.success()?;
        fs::write(POLICY, "allow_from = [\"198.51.100.0/24\"]\nrelay = [\"10.0.0.0/8\"]\n")?;
        agent_fw(["apply"])?.success()?;
        Ok(())
    })
}

fn files_that_others_can_change_are_refused_unless_they_are_trusted() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let list = "/run/manager.list";
        fs::write(list, "34.205.5.0/27\n")?;
        let from = format!("file:{list}");
        let spoil: [&dyn Fn() -> Result<()>; 3] = [
            &|| Ok(fs::set_permissions(list, fs::Permissions::from_mode(0o666))?),
            &|| Ok(chown(list, Some(USER), None)?),
            &|| {
                chown(list, None, Some(USER))?;
                Ok(fs::set_permissions(list, fs::Permissions::from_mode(0o664))?)
            },
        ];
        for spoil in spoil {
            chown(list, Some(0), Some(0))?;
            fs::set_permissions(list, fs::Permissions::from_mode(0o644))?;
            install(&["--allow-from", &from])?;
            spoil()?;
            let refused = crate::scene::try_install(&["--allow-from", &from, "--log"])?;
            ensure!(refused.code == Some(2), "{refused}");
            ensure!(refused.stderr.contains("--trust-file-modes"), "{refused}");
            ensure!(agent_fw(["apply"])?.code == Some(2));
            forget()?;
            ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
            is_closed(&manager)?;
            // Consent is kept, and holds at boot.
            install(&["--allow-from", &from, "--trust-file-modes"])?;
            forget()?;
            agent_fw(["apply", "--boot"])?.success()?;
            is_closed(&manager)?;
        }
        // The policy itself: whoever can write it would decide.
        install(&["--allow-from", "region:us-1"])?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o666))?;
        ensure!(agent_fw(["apply"])?.code != Some(0));
        forget()?;
        ensure!(agent_fw(["apply", "--boot"])?.code == Some(1));
        is_closed(&manager)
    })
}

fn rules_and_regions_that_others_can_change_are_refused_unless_they_are_trusted() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let (rules, regions) = ("/run/manager.json", "/etc/agent-fw/regions.toml");
        fs::write(
            rules,
            r#"[{ "name": "manager", "action": "bypass", "priority": "4",
                  "direction": "incoming", "frameType": "ip", "protocol": "tcp",
                  "sourceIPType": "single", "sourceIPValue": "34.205.5.1",
                  "destinationPortType": "multiple", "destinationPortMultiple": ["4118"] }]"#,
        )?;
        fs::create_dir_all("/etc/agent-fw")?;
        fs::write(
            regions,
            "[own-1]\nplace = \"here\"\ndomain = \"own.example\"\nas_of = \"2026-01-01\"\n\
             source = \"by hand\"\nsubnets = [\"34.205.5.0/27\"]\n",
        )?;
        for (file, flags) in
            [(rules, ["--rules", rules]), (regions, ["--allow-from", "region:own-1"])]
        {
            let spoil: [&dyn Fn() -> Result<()>; 2] =
                [&|| Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o646))?), &|| {
                    Ok(chown(file, Some(USER), None)?)
                }];
            for spoil in spoil {
                chown(file, Some(0), Some(0))?;
                fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
                install(&flags)?;
                spoil()?;
                let refused = crate::scene::try_install(&[&flags[..], &["--log"]].concat())?;
                ensure!(refused.code == Some(2), "{refused}");
                ensure!(refused.stderr.contains("--trust-file-modes"), "{refused}");
                ensure!(agent_fw(["apply"])?.code == Some(2), "{file}");
                forget()?;
                ensure!(agent_fw(["apply", "--boot"])?.code == Some(1), "{file}");
                is_closed(&manager)?;
                install(&[&flags[..], &["--trust-file-modes"]].concat())?;
                forget()?;
                agent_fw(["apply", "--boot"])?.success()?;
                is_closed(&manager)?;
            }
        }
        Ok(())
    })
}

/// What a terminal takes for a command: escapes, the bell, and other control characters. Styles that
/// agent-fw itself sets are left out: `ESC [`, digits, `m`.
fn commands_in(said: &str) -> Option<char> {
    let mut rest = said;
    let mut found = None;
    while let Some(letter) = rest.chars().next() {
        let style = rest.strip_prefix("\u{1b}[").and_then(|rest| {
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
            rest.strip_prefix('m')
        });
        if style.is_none() && letter.is_control() && !matches!(letter, '\n' | '\t') {
            found = Some(letter);
        }
        rest = style.unwrap_or(&rest[letter.len_utf8()..]);
    }
    found
}

fn no_word_of_a_file_reaches_the_terminal_as_a_command() -> Result<()> {
    const TITLE: &str = "\u{1b}]0;hacked\u{7}\u{9b}31m";
    const ESCAPED: &str = "\\u001b]0;hacked\\u0007\\u009b31m";
    Lab::run(|_| {
        // As on a terminal: elsewhere every escape is left out, whoever's it is.
        let program = agent_fw_path().display().to_string();
        let quiet = |words: &[&str]| -> Result<Finished> {
            let on_terminal = ["env", "CLICOLOR_FORCE=1", &program];
            let finished = output(on_terminal.iter().chain(words))?;
            let found = commands_in(&format!("{}{}", finished.stdout, finished.stderr));
            ensure!(found.is_none(), "{words:?}: {found:?} in {:?}", finished.to_string());
            Ok(finished)
        };
        let install =
            |flags: [&str; 2]| quiet(&["install", "--no-boot", "--untested", flags[0], flags[1]]);
        let show = || -> Result<()> {
            for words in [
                &["status"][..],
                &["status", "--json"],
                &["verify"],
                &["doctor"],
                &["apply"],
                &["apply", "--boot"],
                &["metrics"],
                &["regions", "list"],
                &["regions", "check"],
                &["explain", "--from", "34.205.5.1"],
            ] {
                quiet(words)?;
            }
            Ok(())
        };
        // The name of a file, one that is not there, and what is in it.
        let list = format!("/run/list{TITLE}");
        fs::write(&list, "34.205.5.0/27\n")?;
        install(["--allow-from", &format!("file:{list}")])?.success()?;
        show()?;
        fs::write(&list, format!("34.205.5.0/27\nmanager{TITLE}\n"))?;
        ensure!(install(["--allow-from", &format!("file:{list}")])?.code == Some(2));
        show()?;
        ensure!(install(["--allow-from", &format!("file:/run/none{TITLE}")])?.code == Some(2));
        ensure!(install(["--allow-from", &format!("manager{TITLE}")])?.code == Some(2));
        // The fields of a region.
        for field in ["place", "domain", "source", "as_of", "own-1", "more"] {
            let region = [
                "[own-1]",
                "place = \"here\"",
                "domain = \"own.example\"",
                "source = \"by hand\"",
                "as_of = \"2026-01-01\"",
                "subnets = [\"34.205.5.0/27\"]",
            ];
            let mut text = region
                .join("\n")
                .replace(&format!("{field} = \""), &format!("{field} = \"{ESCAPED}"));
            match field {
                "own-1" => text = text.replace("[own-1]", &format!("[\"own-1{ESCAPED}\"]")),
                "more" => text = format!("{text}\n\"{ESCAPED}\" = 1\n"),
                _ => {}
            }
            fs::write("/etc/agent-fw/regions.toml", text)?;
            install(["--allow-from", "region:own-1"])?;
            quiet(&["regions", "show", "own-1"])?;
            quiet(&["regions", "import", "/etc/agent-fw/regions.toml"])?;
            quiet(&["ports", "--region", "own-1"])?;
            show()?;
        }
        fs::remove_file("/etc/agent-fw/regions.toml")?;
        // Words that nobody knows, in the policy and in rules.
        for text in [
            format!("allow_from = [\"{ESCAPED}\"]\n"),
            format!("allow_from = [\"any\"]\n\"{ESCAPED}\" = 1\n"),
            format!("allow_from = [\"any\"]\nbackend = \"{ESCAPED}\"\n"),
            format!("allow_from = [\"any\"]\n{TITLE} = 1\n"),
        ] {
            fs::write(POLICY, text)?;
            show()?;
        }
        for text in [
            format!("[{{ \"{ESCAPED}\": 1 }}]"),
            format!("[{{ \"name\": \"{ESCAPED}\" }}]"),
            format!("[{{ \"name\": \"x\", \"action\": \"{ESCAPED}\" }}]"),
            format!("[{{ \"name\": \"x\", {TITLE} }}]"),
        ] {
            fs::write("/run/rules.json", text)?;
            install(["--rules", "/run/rules.json"])?;
            quiet(&["rules", "check", "/run/rules.json"])?;
            quiet(&["rules", "check", "--lenient", "/run/rules.json"])?;
        }
        Ok(())
    })
}

fn an_older_versions_policy_stays_in_force_whoever_owns_its_lists() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let list = "/run/manager.list";
        fs::write(list, "34.205.5.0/27\n")?;
        install(&["--allow-from", &format!("file:{list}")])?;
        // As version 0.1.0 wrote it: without the keys of consent.
        let text = fs::read_to_string(POLICY)?;
        let older = text.lines().filter(|line| !line.contains("trust_file_modes"));
        fs::write(POLICY, older.collect::<Vec<_>>().join("\n") + "\n")?;
        chown(list, Some(USER), None)?;
        fs::remove_file(LAST_GOOD)?;
        forget()?;
        agent_fw(["apply", "--boot"])?.success()?;
        is_closed(&manager)?;
        // With a warning that names the key.
        let warned = |said: String| said.contains("trust_file_modes = true") && said.contains(list);
        let shown = agent_fw(["status"])?;
        ensure!(shown.code == Some(0) && warned(words_of(&shown.stderr)), "{shown}");
        let (health, seen) = crate::scene::check("consent")?;
        ensure!(health != "good" && warned(seen.clone()), "{health}: {seen}");
        Ok(())
    })
}

fn metrics_replace_no_link_and_no_device() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        symlink("/run/elsewhere", "/run/link")?;
        make_fifo("/run/fifo")?;
        for path in ["/run/link", "/run/fifo", "/dev/null", "/dev/stdout"] {
            let before = fs::symlink_metadata(path)?;
            let refused = soon(&["metrics", "--output", path])?;
            ensure!(refused.code == Some(2), "{path}: {refused}");
            ensure!(fs::symlink_metadata(path)?.ino() == before.ino(), "{path} was replaced");
        }
        ensure!(!Path::new("/run/elsewhere").exists());
        agent_fw(["metrics", "--output", "/run/metrics.prom"])?.success()?;
        agent_fw(["metrics", "--output", "/run/metrics.prom"])?.success()?;
        Ok(())
    })
}

fn what_a_list_contains_is_not_shown_to_everybody() -> Result<()> {
    Lab::run(|_| {
        let list = "/run/private.list";
        fs::write(list, "34.205.5.0/27\n")?;
        fs::set_permissions(list, fs::Permissions::from_mode(0o600))?;
        install(&["--allow-from", &format!("file:{list}")])?;
        let mode = fs::metadata(LAST_GOOD)?.mode() & 0o7777;
        ensure!(mode == 0o600, "the copy of a private list may be read by all: {mode:o}");
        // A link to what only root may read, in a list's place, by its owner.
        fs::write("/run/secret", "root:x:secret\n")?;
        fs::set_permissions("/run/secret", fs::Permissions::from_mode(0o600))?;
        fs::remove_file(list)?;
        symlink("/run/secret", list)?;
        std::os::unix::fs::lchown(list, Some(USER), Some(USER))?;
        let fallen = agent_fw(["apply", "--boot"])?;
        ensure!(fallen.code == Some(1), "{fallen}");
        ensure!(!fallen.to_string().contains("secret\n"), "{fallen}");
        ensure!(!fallen.to_string().contains("root:x"), "{fallen}");
        Ok(())
    })
}

fn programs_are_those_of_the_system_whatever_the_path() -> Result<()> {
    Lab::run(|lab| {
        lab.overlay("/usr/local/bin")?;
        fs::create_dir_all("/run/theirs")?;
        for program in ["systemctl", "systemd-escape", "nft", "iptables-nft-save"] {
            let path = format!("/run/theirs/{program}");
            fs::write(&path, "#!/bin/sh\necho run >> /run/was-run\n")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        run(["cp", "--", &agent_fw_lab::agent_fw_path().display().to_string(), "/usr/local/bin/"])?;
        let mut hostile = command(["/usr/local/bin/agent-fw"]);
        let hostile = hostile.args(["install", "--allow-from", "region:us-1"]);
        let path = std::env::var("PATH").unwrap_or_default();
        let output = hostile.env("PATH", format!("/run/theirs:{path}")).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        agent_fw(["doctor"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(!Path::new("/run/was-run").exists(), "a program of the path's was run");
        Ok(())
    })
}
