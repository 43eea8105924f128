//! One thing of the policy changed, and taken back: `allow`, `deny`, `set`, `undo`, and a change that is
//! on trial.

use crate::consent::on_a_terminal;
use crate::scene::{AGENT, expect, from, install, stays_closed, try_install};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, command, run};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

tests![
    a_source_is_allowed_and_denied_and_the_rest_stays,
    a_denied_address_of_a_region_stays_out_whatever_the_region_becomes,
    an_exception_holds_with_every_backend,
    several_changes_at_once_are_all_made,
    set_changes_what_it_names_and_keeps_the_rest,
    sources_are_dropped_only_where_somebody_says_so,
    a_dry_run_speaks_of_sources_and_changes_nothing,
    undo_goes_back_step_by_step_and_history_tells_the_way,
    undo_asks_where_a_list_has_changed_since,
    a_list_from_standard_input_can_be_gone_back_to,
    a_list_that_shrinks_is_not_taken_without_a_word,
    a_change_on_trial_is_taken_back_unless_it_is_confirmed,
    a_first_policy_on_trial_leaves_nothing_behind,
    the_guard_defends_what_is_on_trial_until_its_time_is_up,
    a_change_on_trial_does_not_outlive_a_reboot,
    without_systemd_nothing_is_put_on_trial,
    require_open_fails_where_another_firewall_stops_a_source,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";
const STRANGER: &str = "198.51.100.7";
const OTHER: &str = "203.0.113.9";

/// A command of agent-fw's that must succeed.
fn done(words: &[&str]) -> Result<String> {
    agent_fw(words)?.success()
}

/// One that must not, with this exit code; what it says.
fn refused(code: i32, words: &[&str]) -> Result<String> {
    let finished = agent_fw(words)?;
    ensure!(finished.code == Some(code), "{words:?}: {finished}");
    Ok(format!("{}{}", finished.stdout, finished.stderr))
}

/// What is installed, and what the kernel has.
fn state() -> Result<(String, String)> {
    Ok((fs::read_to_string(POLICY).unwrap_or_default(), run(["nft", "list", "ruleset"])?))
}

fn history() -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&done(&["history", "--json"])?)?)
}

fn a_source_is_allowed_and_denied_and_the_rest_stays() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        ensure!(refused(2, &["allow", OTHER])?.contains("agent-fw install"));
        install(&["--allow-from", "region:us-1", "--log"])?;
        expect(&manager, Outcome::Silent, &[OTHER])?;
        let said = done(&["allow", OTHER, "192.0.2.0/255.255.255.0", "--untested"])?;
        ensure!(said.contains("203.0.113.9 is added"), "{said}");
        expect(&manager, Outcome::Talked, &[OTHER, "192.0.2.200", "34.205.5.1"])?;
        expect(&manager, Outcome::Silent, &[STRANGER])?;
        let policy = fs::read_to_string(POLICY)?;
        ensure!(policy.contains("log = true") && policy.contains("region:us-1"), "{policy}");
        ensure!(done(&["allow", OTHER, "--untested"])?.contains("no change"));

        let said = done(&["deny", OTHER, "--untested"])?;
        ensure!(said.contains("203.0.113.9 no longer admitted"), "{said}");
        // By another notation of the same.
        done(&["deny", "192.0.2.0/24", "--untested"])?;
        expect(&manager, Outcome::Silent, &[OTHER, "192.0.2.200", STRANGER])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let before = state()?;
        let said = refused(2, &["deny", "region:us-1"])?;
        ensure!(said.contains("the only source"), "{said}");
        let said = refused(2, &["allow", "02:00:00:00:00:01"])?;
        ensure!(said.contains("set --allow-mac"), "{said}");
        ensure!(refused(2, &["allow", "192.0.2.0/40"])?.contains("column 11"));
        ensure!(refused(2, &["allow", "0.0.0.0/0"])?.contains("allow-wide"));
        ensure!(state()? == before);
        done(&["verify"]).map(drop)
    })
}

fn a_denied_address_of_a_region_stays_out_whatever_the_region_becomes() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1", "34.205.5.7"])?;
        let said = done(&["deny", "34.205.5.7", "--untested"])?;
        ensure!(said.contains("excepted"), "{said}");
        expect(&manager, Outcome::Silent, &["34.205.5.7"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        // The region is given other addresses, which contain it, too.
        fs::write(
            "/etc/agent-fw/regions.toml",
            "[us-1]\nplace = \"Lab\"\ndomain = \"a.example\"\nsource = \"a test\"\nas_of = \"2026-01-01\"\n\
             subnets = [\"34.205.4.0/23\"]\n",
        )?;
        done(&["apply"])?;
        expect(&manager, Outcome::Talked, &["34.205.4.9"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.7", STRANGER])?;
        ensure!(refused(2, &["allow", "34.205.5.7/32", "192.0.2.0/40"])?.contains("column"));
        expect(&manager, Outcome::Silent, &["34.205.5.7"])?;
        let said = done(&["allow", "34.205.5.7/32", "--untested"])?;
        ensure!(said.contains("exception of 34.205.5.7/32 is removed"), "{said}");
        expect(&manager, Outcome::Talked, &["34.205.5.7"])
    })
}

fn an_exception_holds_with_every_backend() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let interface = manager.interface();
        for backend in [&["--backend", "nft"][..], &["--backend", "xdp"], &["--backend", "both"]] {
            let on: &[&str] = if backend[1] == "nft" { &[] } else { &["--interface", &interface] };
            let from = ["--allow-from", "region:us-1", "--allow-from", "2001:db8:7::/64"];
            let except = ["--except", "34.205.5.8/29", "--except", "2001:db8:7::8/125"];
            install(&[backend, on, &from, &except].concat())?;
            let inside = ["34.205.5.7", "34.205.5.16", "2001:db8:7::7", "2001:db8:7::10"];
            expect(&manager, Outcome::Talked, &inside)?;
            let excepted = ["34.205.5.8", "34.205.5.15", "2001:db8:7::8", "2001:db8:7::f"];
            expect(&manager, Outcome::Silent, &excepted).with_context(|| backend.join(" "))?;
            done(&["verify"])?;
        }
        Ok(())
    })
}

fn several_changes_at_once_are_all_made() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        let sources: Vec<String> = (1..=8).map(|last| format!("192.0.2.{last}")).collect();
        let started = sources.iter().map(|source| {
            let mut allow = command([agent_fw_path()]);
            let allow = allow.args(["allow", "--untested", "--wait", "60", source]);
            Ok(allow.stdout(Stdio::null()).spawn()?)
        });
        for child in started.collect::<Result<Vec<_>>>()? {
            let ended = child.wait_with_output()?;
            ensure!(ended.status.success(), "{ended:?}");
        }
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        expect(&manager, Outcome::Talked, &sources)?;
        ensure!(history()?.len() == 9, "{:?}", history()?);
        Ok(())
    })
}

fn set_changes_what_it_names_and_keeps_the_rest() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let _other = Listener::bind(4200)?;
        install(&["--allow-from", "region:us-1", "--early-drop"])?;
        let said = done(&["set", "--log", "--untested"])?;
        ensure!(said.contains("log true, and was false"), "{said}");
        let policy = fs::read_to_string(POLICY)?;
        ensure!(policy.contains("log = true") && policy.contains("early_drop = true"), "{policy}");
        done(&["set", "--log=no", "--early-drop=no", "--untested"])?;
        let policy = fs::read_to_string(POLICY)?;
        ensure!(policy.contains("log = false") && policy.contains("early_drop = false"));
        done(&["set", "--relay", "192.0.2.0/24", "--replace", "--untested"])?;
        done(&["set", "--port", "4200", "--untested"])?;
        ensure!(from(&manager, STRANGER, 4200)? == Outcome::Silent);
        ensure!(from(&manager, "34.205.5.1", 4200)? == Outcome::Talked);
        // The old one is nobody's business any more.
        ensure!(from(&manager, STRANGER, AGENT)? == Outcome::Talked);
        done(&["set", "--port", "4118", "--untested"])?;
        stays_closed(&manager, &[AGENT, 4122])?;
        ensure!(refused(2, &["set", "--relay", "none"])?.contains("relay's port 4122"));
        done(&["set", "--relay", "any", "--untested"])?;
        done(&["set", "--relay", "none", "--untested"])?;

        ensure!(refused(2, &["set"])?.contains("name an option"));
        ensure!(refused(2, &["set", "--allow-from", "none"])?.contains("--allow-from any"));
        ensure!(refused(2, &["set", "--log=perhaps"])?.contains("--log"));
        ensure!(
            refused(2, &["set", "--otherwise", "continue", "--early-drop"])?.contains("choose")
        );
        ensure!(refused(1, &["set", "--allow-from", "192.0.2.0/24"])?.contains("--replace"));
        done(&["set", "--direction", "agent-initiated", "--replace", "--untested"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1", STRANGER])?;
        let said = refused(2, &["set", "--direction", "bidirectional"])?;
        ensure!(said.contains("name sources with --allow-from"), "{said}");
        done(&["undo", "--untested"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        stays_closed(&manager, &[AGENT])
    })
}

fn sources_are_dropped_only_where_somebody_says_so() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1", "--allow-from", OTHER])?;
        let before = state()?;
        let wider = ["install", "--no-boot", "--untested", "--allow-from", "region:us-1"];
        let said = refused(1, &wider)?;
        ensure!(said.contains("203.0.113.9 would no longer be admitted"), "{said}");
        let advice = said.lines().find(|line| line.contains("--replace")).context("no advice")?;
        ensure!(state()? == before && history()?.len() == 1);
        // Nobody asks where nobody is dropped.
        let more =
            ["--allow-from", "region:us-1", "--allow-from", OTHER, "--allow-from", "192.0.2.0/24"];
        done(&[&["install", "--no-boot", "--untested"], &more[..]].concat())?;
        let (code, said) = on_a_terminal(&wider, "n\n")?;
        ensure!(code == Some(1) && said.contains("Go on? [y/N]"), "{code:?}: {said}");
        expect(&manager, Outcome::Talked, &[OTHER])?;
        let (code, said) = on_a_terminal(&wider, "y\n")?;
        ensure!(code == Some(0), "{code:?}: {said}");
        expect(&manager, Outcome::Silent, &[OTHER])?;
        done(&["undo", "--untested", "--replace"])?;
        expect(&manager, Outcome::Talked, &[OTHER])?;
        // The command that the refusal names does it.
        run(["sh", "-c", advice.trim()])?;
        expect(&manager, Outcome::Silent, &[OTHER])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}

fn a_dry_run_speaks_of_sources_and_changes_nothing() -> Result<()> {
    Lab::run(|_| {
        let first = ["install", "--no-boot", "--dry-run", "--allow-from", OTHER];
        let said = refused(1, &first)?;
        ensure!(said.contains("would be closed to all but") && said.contains(OTHER), "{said}");
        ensure!(!Path::new(POLICY).exists());
        let lines: String = (0..200_000_u32)
            .map(|n| format!("10.{}.{}.{}\n", n >> 15, (n >> 7) & 255, (n & 127) * 2))
            .collect();
        fs::write("/run/large.list", lines)?;
        install(&["--allow-from", "18.97.19.0/27", "--allow-from", "file:/run/large.list"])?;
        let before = state()?;
        for words in [
            &["allow", OTHER][..],
            &["deny", "18.97.19.0/27"],
            &["set", "--allow-from", OTHER],
            &["install", "--no-boot", "--allow-from", OTHER],
        ] {
            let said = refused(1, &[words, &["--dry-run"]].concat())?;
            let [comes, goes] = [
                said.contains("203.0.113.9 would be admitted"),
                said.contains("18.97.19.0/27 would no longer be admitted"),
            ];
            ensure!(
                [comes, goes] == [words[0] != "deny", words[0] != "allow"],
                "{words:?}: {said}"
            );
            ensure!(said.lines().count() < 12, "{said}");
            ensure!(!said.contains("cmp") && !said.contains("element"), "{said}");
        }
        let said = refused(1, &["allow", OTHER, "--dry-run", "--verbose"])?;
        ensure!(said.contains("in tables and programs"), "{said}");
        ensure!(state()? == before);
        // What was edited by hand.
        let policy = fs::read_to_string(POLICY)?;
        fs::write(POLICY, policy.replace("18.97.19.0/27", "18.97.19.0/28"))?;
        let said = refused(1, &["apply", "--dry-run"])?;
        ensure!(said.contains("18.97.19.16/28 would no longer be admitted"), "{said}");
        ensure!(state()?.1 == before.1);
        done(&["apply"])?;
        let said = done(&["history"])?;
        ensure!(said.contains("18.97.19.16/28 no longer admitted"), "{said}");
        ensure!(done(&["apply", "--dry-run"])?.contains("nothing would change"));
        Ok(())
    })
}

fn undo_goes_back_step_by_step_and_history_tells_the_way() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        ensure!(refused(2, &["undo"])?.contains("no policy to go back to"));
        install(&["--allow-from", "region:us-1"])?;
        done(&["allow", OTHER, "--untested"])?;
        done(&["allow", "192.0.2.7", "--untested"])?;
        done(&["undo", "--untested"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.7"])?;
        expect(&manager, Outcome::Talked, &[OTHER])?;
        done(&["undo", "--untested"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.7", OTHER])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        ensure!(refused(2, &["undo"])?.contains("no policy to go back to"));
        done(&["undo", "--to", "3", "--untested"])?;
        expect(&manager, Outcome::Talked, &["192.0.2.7", OTHER])?;
        ensure!(refused(2, &["undo", "--to", "99"])?.contains("there is no change 99"));
        let entries = history()?;
        ensure!(entries.len() == 6, "{entries:#?}");
        ensure!(entries[1]["changes"][0] == "203.0.113.9 admitted to TCP port 4118");
        ensure!(entries[3]["back_to"] == 2 && entries[5]["back_to"] == 3, "{entries:#?}");
        let by = run(["id", "--user", "--name"])?;
        ensure!(entries[1]["by"] == by.trim(), "{entries:#?}");
        for number in 10..40 {
            done(&["allow", &format!("192.0.2.{number}"), "--untested"])?;
        }
        ensure!(history()?.len() == 20);
        let mode = fs::metadata("/var/lib/agent-fw/history.json")?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        done(&["uninstall"])?;
        ensure!(!Path::new("/var/lib/agent-fw").exists());
        Ok(())
    })
}

fn undo_asks_where_a_list_has_changed_since() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::write("/run/my.list", format!("{OTHER}\n192.0.2.7\n"))?;
        install(&["--allow-from", "file:/run/my.list"])?;
        done(&["set", "--allow-from", "region:us-1", "--replace", "--untested"])?;
        fs::write("/run/my.list", "192.0.2.7\n192.0.2.8\n")?;
        let said = refused(1, &["undo"])?;
        ensure!(
            said.contains("/run/my.list is not as it was") && said.contains("--replace"),
            "{said}"
        );
        let (code, said) = on_a_terminal(&["undo", "--untested"], "n\n")?;
        ensure!(code == Some(2) && said.contains("192.0.2.7"), "{code:?}: {said}");
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let (code, said) = on_a_terminal(&["undo", "--untested"], "y\n")?;
        ensure!(code == Some(0), "{code:?}: {said}");
        expect(&manager, Outcome::Talked, &["192.0.2.7", "192.0.2.8"])?;
        expect(&manager, Outcome::Silent, &[OTHER, "34.205.5.1"])
    })
}

fn a_list_from_standard_input_can_be_gone_back_to() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let words = ["install", "--no-boot", "--untested", "--allow-from", "file:-"];
        let program = agent_fw_path();
        let program = program.to_str().context("a path")?;
        agent_fw_lab::feed([&[program], &words[..]].concat(), "192.0.2.7\n")?;
        done(&["set", "--allow-from", "region:us-1", "--replace", "--untested"])?;
        done(&["undo", "--untested"])?;
        expect(&manager, Outcome::Talked, &["192.0.2.7"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1"])?;
        done(&["uninstall"])?;
        ensure!(!Path::new("/etc/agent-fw").exists());
        Ok(())
    })
}

fn a_list_that_shrinks_is_not_taken_without_a_word() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let list = "/run/my.list";
        fs::write(list, "# four\n192.0.2.1\n192.0.2.2\n192.0.2.3\n192.0.2.4\n")?;
        let words = ["--allow-from", "file:/run/my.list"];
        install(&words)?;
        // Half is taken.
        fs::write(list, "192.0.2.1\n192.0.2.2\n")?;
        done(&["apply"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.3"])?;
        for text in ["", "# nobody\n"] {
            fs::write(list, text)?;
            let said = refused(1, &["apply"])?;
            ensure!(said.contains("/run/my.list has 0 of the 2 entries"), "{said}");
            ensure!(refused(1, &["apply", "--dry-run"])?.contains("--allow-shrink"));
            let said = agent_fw(["install", "--no-boot", "--replace", words[0], words[1]])?;
            ensure!(said.code == Some(1) && said.stderr.contains("--allow-shrink"), "{said}");
            // At boot the last good policy is in force.
            run(["nft", "flush", "ruleset"])?;
            let said = agent_fw(["apply", "--boot"])?;
            ensure!(said.code == Some(1), "{said}");
            expect(&manager, Outcome::Talked, &["192.0.2.1", "192.0.2.2"])?;
            expect(&manager, Outcome::Silent, &[STRANGER])?;
        }
        fs::write(list, "192.0.2.9\n")?;
        done(&["apply", "--allow-shrink"]).map(drop)?;
        expect(&manager, Outcome::Talked, &["192.0.2.9"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.1", STRANGER])
    })
}

/// Puts something in systemd's place that starts a command when so much time has passed, as
/// systemd-run's timer does. The real one is tested at the boots of machines.
fn stand_in_for_systemd(lab: &Lab) -> Result<()> {
    lab.overlay("/usr/sbin")?;
    fs::create_dir_all("/run/systemd/system")?;
    let program = "/usr/sbin/systemd-run";
    fs::write(
        program,
        "#!/bin/sh\nfor word in \"$@\"; do\n  case $word in --on-active=*) after=${word#*=};; esac\ndone\n\
         while [ \"$1\" != -- ]; do shift; done\nshift\n\
         (sleep \"${after%s}\"; exec \"$@\") >/run/taken-back 2>&1 </dev/null &\n",
    )?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    fs::write("/usr/sbin/systemctl", "#!/bin/sh\nexit 0\n")?;
    fs::set_permissions("/usr/sbin/systemctl", fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Waits for a moment at which this is so.
fn until(what: &str, so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn a_change_on_trial_is_taken_back_unless_it_is_confirmed() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        stand_in_for_systemd(lab)?;
        let (policy, _) = state()?;
        let good = fs::read_to_string("/var/lib/agent-fw/last-good.json")?;
        let said = done(&["allow", OTHER, "--untested", "--confirm", "8"])?;
        ensure!(said.contains("agent-fw confirm"), "{said}");
        expect(&manager, Outcome::Talked, &[OTHER])?;
        // On disk it is the old one; and yet it is what is wanted.
        ensure!(state()?.0 == policy);
        ensure!(fs::read_to_string("/var/lib/agent-fw/last-good.json")? == good);
        done(&["verify"])?;
        done(&["apply"])?;
        ensure!(fs::read_to_string("/var/lib/agent-fw/last-good.json")? == good);
        let said = done(&["status"])?;
        ensure!(said.contains("on trial"), "{said}");
        expect(&manager, Outcome::Talked, &[OTHER])?;
        // Another change meanwhile is refused.
        let said = refused(2, &["allow", "192.0.2.7", "--untested"])?;
        ensure!(said.contains("a change is on trial"), "{said}");
        until("it is taken back", || Ok(from(&manager, OTHER, AGENT)? == Outcome::Silent))?;
        until("it is the old policy", || Ok(agent_fw(["verify"])?.code == Some(0)))?;
        ensure!(state()?.0 == policy);
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        ensure!(refused(1, &["confirm"])?.contains("nothing to confirm"));
        ensure!(history()?.len() == 1, "what was taken back is no change");

        done(&["allow", OTHER, "--untested", "--confirm", "6"])?;
        done(&["confirm"])?;
        ensure!(fs::read_to_string(POLICY)?.contains(OTHER) && history()?.len() == 2);
        std::thread::sleep(Duration::from_secs(7));
        expect(&manager, Outcome::Talked, &[OTHER])?;
        done(&["verify"])?;
        // At once.
        done(&["deny", OTHER, "--untested", "--confirm", "3600"])?;
        expect(&manager, Outcome::Silent, &[OTHER])?;
        done(&["undo"])?;
        expect(&manager, Outcome::Talked, &[OTHER])?;
        done(&["verify"]).map(drop)
    })
}

fn a_first_policy_on_trial_leaves_nothing_behind() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        stand_in_for_systemd(lab)?;
        let said = install(&["--allow-from", "region:us-1", "--confirm", "5"])?;
        ensure!(said.contains("the port is open again"), "{said}");
        expect(&manager, Outcome::Silent, &[STRANGER])?;
        ensure!(!Path::new(POLICY).exists());
        until("it is taken back", || Ok(from(&manager, STRANGER, AGENT)? == Outcome::Talked))?;
        until("nothing is left", || Ok(state()? == (String::new(), String::new())))?;
        ensure!(refused(1, &["status"])?.contains("none"));
        Ok(())
    })
}

fn the_guard_defends_what_is_on_trial_until_its_time_is_up() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        stand_in_for_systemd(lab)?;
        let mut guard = command([agent_fw_path()]);
        let mut guard = guard.arg("guard").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_secs(1));
        let result = (|| {
            done(&["allow", OTHER, "--untested", "--confirm", "9"])?;
            expect(&manager, Outcome::Talked, &[OTHER])?;
            // Whether the kernel keeps it, or the guard puts it back.
            drop(run(["nft", "flush", "ruleset"]));
            until("it is put back", || Ok(agent_fw(["verify"])?.code == Some(0)))?;
            expect(&manager, Outcome::Talked, &[OTHER])?;
            expect(&manager, Outcome::Silent, &[STRANGER])?;
            until("it is taken back", || Ok(from(&manager, OTHER, AGENT)? == Outcome::Silent))?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            until("it is what is wanted", || Ok(agent_fw(["verify"])?.code == Some(0)))
        })();
        guard.kill()?;
        guard.wait()?;
        result
    })
}

fn a_change_on_trial_does_not_outlive_a_reboot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        stand_in_for_systemd(lab)?;
        done(&["allow", OTHER, "--untested", "--confirm", "600"])?;
        // What a reboot leaves: the disk.
        run(["nft", "flush", "ruleset"])?;
        fs::remove_dir_all("/run/agent-fw")?;
        done(&["apply", "--boot"])?;
        expect(&manager, Outcome::Silent, &[OTHER, STRANGER])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])
    })
}

fn without_systemd_nothing_is_put_on_trial() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let before = state()?;
        let said = refused(2, &["allow", OTHER, "--confirm", "60"])?;
        ensure!(said.contains("--confirm needs systemd"), "{said}");
        ensure!(refused(2, &["allow", OTHER, "--confirm", "1"])?.contains("--confirm"));
        ensure!(state()? == before);
        Ok(())
    })
}

fn require_open_fails_where_another_firewall_stops_a_source() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        run(["ip", "route", "add", "34.205.5.0/27", "via", &manager.v4().to_string()])?;
        let words = ["install", "--no-boot", "--allow-from", "34.205.5.0/27", "--require-open"];
        done(&words)?;
        run(["nft", "add", "table", "inet", "theirs"])?;
        run([
            "nft",
            "add chain inet theirs input { type filter hook input priority 0; policy drop; }",
        ])?;
        let said = refused(1, &words)?;
        ensure!(said.contains("not open"), "{said}");
        let finished = try_install(&["--allow-from", "34.205.5.0/27", "--require-open"])?;
        ensure!(finished.code == Some(2), "with --untested it cannot be: {finished}");
        Ok(())
    })
}
