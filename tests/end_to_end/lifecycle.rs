//! Installing, applying and removing: all of it or nothing, whatever happens in between.

use crate::scene::{AGENT, expect, install, status, try_install};
use crate::tests;
use agent_fw_lab::{
    Lab, Listener, Outcome, agent_fw, agent_fw_path, command, feed, kill_agent_fw_after, rounds,
    run,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

tests![
    the_policy_file_is_readable_by_all_and_written_by_root,
    installing_again_changes_nothing_and_says_so,
    a_dry_run_shows_the_difference_and_changes_nothing,
    kill_9_at_any_moment_of_install_leaves_the_old_or_the_new_policy,
    twenty_installs_at_once_leave_one_of_their_policies_whole,
    a_lock_that_is_held_is_waited_for_and_its_holder_named,
    when_the_policy_file_cannot_be_written_the_old_policy_stays_in_force,
    when_the_boot_unit_cannot_be_enabled_everything_is_undone,
    the_boot_unit_is_enabled_unless_told_otherwise,
    uninstall_leaves_no_trace_and_can_be_repeated,
    a_policy_edited_by_hand_is_neither_deleted_nor_replaced_without_a_word,
    an_edited_policy_is_enforced_by_apply,
    a_faulty_policy_file_leaves_the_kernel_as_it_was,
    status_tells_every_change_behind_its_back,
    without_cap_net_admin_one_line_says_so,
    a_hosts_own_regions_override_the_built_in_ones,
    a_policy_that_lost_its_sources_does_not_open_the_port,
    flags_that_name_nobody_do_not_open_a_closed_port,
    a_table_that_was_altered_is_undone_to_the_policy_of_before,
    the_users_own_files_are_left_alone,
    a_full_disk_behind_the_output_does_not_stop_an_installation,
    standard_input_by_another_name_is_kept_for_the_next_boot,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";

fn the_policy_file_is_readable_by_all_and_written_by_root() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let metadata = fs::metadata(POLICY)?;
        ensure!(metadata.permissions().mode() & 0o7777 == 0o644, "{:o}", metadata.mode());
        ensure!((metadata.uid(), metadata.gid()) == (0, 0));
        let beside: Vec<_> = fs::read_dir("/etc/agent-fw")?.flatten().collect();
        ensure!(beside.len() == 1, "left behind: {beside:?}");
        Ok(())
    })
}

fn installing_again_changes_nothing_and_says_so() -> Result<()> {
    Lab::run(|_| {
        let flags = ["--allow-from", "region:us-1", "--log"];
        install(&flags)?;
        let before =
            (run(["nft", "--handle", "list", "ruleset"])?, fs::metadata(POLICY)?.mtime_nsec());
        let said = install(&flags)?;
        ensure!(said.contains("no change"), "{said}");
        let after =
            (run(["nft", "--handle", "list", "ruleset"])?, fs::metadata(POLICY)?.mtime_nsec());
        ensure!(before == after);
        Ok(())
    })
}

fn a_dry_run_shows_the_difference_and_changes_nothing() -> Result<()> {
    Lab::run(|_| {
        let dry = try_install(&["--allow-from", "region:us-1", "--dry-run"])?;
        ensure!(dry.code == Some(1) && dry.stdout.contains("would be closed to all but"), "{dry}");
        ensure!(
            !Path::new("/etc/agent-fw").exists() && run(["nft", "list", "ruleset"])?.is_empty()
        );
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        let dry = try_install(&["--allow-from", "region:us-1", "--dry-run"])?;
        ensure!(dry.code == Some(0) && dry.stdout.contains("nothing would change"), "{dry}");
        let dry = try_install(&["--allow-from", "region:gb-1", "--dry-run", "--verbose"])?;
        ensure!(dry.code == Some(1), "{dry}");
        ensure!(dry.stdout.contains("(region gb-1) would be admitted"), "{dry}");
        for part in
            ["missing: element 18.98.162.128/27", "not in this policy: element 34.205.5.0/27"]
        {
            ensure!(dry.stdout.contains(part), "{dry}");
        }
        ensure!(run(["nft", "--handle", "list", "ruleset"])? == before);
        Ok(())
    })
}

/// Writes a list of prefixes, so large that the kernel is busy for a while.
fn write_list(path: &str, network: u8) -> Result<()> {
    let lines: String =
        (0..30_000_u32).map(|n| format!("{network}.{}.{}.0/28\n", n >> 8, n & 255)).collect();
    Ok(fs::write(path, lines)?)
}

/// How often an installation is killed.
const KILLS: u32 = 60;

fn kill_9_at_any_moment_of_install_leaves_the_old_or_the_new_policy() -> Result<()> {
    Lab::run(|_| {
        write_list("/run/old.list", 11)?;
        write_list("/run/new.list", 12)?;
        let old = ["--allow-from", "file:/run/old.list"];
        let new = ["install", "--no-boot", "--replace", "--allow-from", "file:/run/new.list"];
        install(&old)?;
        let old_hash = status()?.0["kernel_policy"].clone();
        let start = Instant::now();
        agent_fw(new)?.success()?;
        let duration = start.elapsed();
        let new_hash = status()?.0["kernel_policy"].clone();
        ensure!(old_hash != new_hash);

        let kills = rounds(KILLS);
        let (mut left_old, mut left_new) = (0, 0);
        for kill in 0..kills {
            install(&old)?;
            // From its first instruction to well after its usual end.
            kill_agent_fw_after(duration * kill * 2 / kills, new)?;
            let (found, _) = status()?;
            let hash = &found["kernel_policy"];
            ensure!(*hash == old_hash || *hash == new_hash, "after kill {kill}: {found:#}");
            left_old += u32::from(*hash == old_hash);
            left_new += u32::from(*hash == new_hash);
            // Whole: nothing is missing from the table that its stamp does not tell.
            let list = if *hash == old_hash { "old" } else { "new" };
            let flag = format!("file:/run/{list}.list");
            let dry = try_install(&["--dry-run", "--allow-from", &flag])?;
            // But for sets that were being made ready, which no rule uses.
            let words = dry.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            let found: Vec<&str> = words.split("not in this policy: ").skip(1).collect();
            let unused = |part: &&str| part.trim_end().ends_with("which no rule uses");
            let rest = ["missing: ", "should be "].iter().any(|other| words.contains(other));
            let harmless = found.iter().all(unused) && !rest;
            ensure!(harmless, "after kill {kill}, with the {list} policy: {dry}");
            // And what would be applied at boot is the old or the new one, too.
            agent_fw(["apply"])?.success()?;
            ensure!(status()?.1 == Some(0), "after kill {kill}: {:#}", status()?.0);
        }
        println!("{kills} kills: {left_old} left the old policy, {left_new} the new one");
        let few = kills / 12;
        ensure!(
            left_old > few && left_new > few,
            "the kills did not meet both sides of the change"
        );
        Ok(())
    })
}

fn twenty_installs_at_once_leave_one_of_their_policies_whole() -> Result<()> {
    Lab::run(|_| {
        let spawn = |n: u32| {
            let source = format!("192.0.2.{n}");
            command([agent_fw_path()])
                .args([
                    "install",
                    "--no-boot",
                    "--replace",
                    "--wait",
                    "60",
                    "--allow-from",
                    &source,
                ])
                .stdout(Stdio::null())
                .spawn()
        };
        let children = (1..=20).map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        for mut child in children {
            ensure!(child.wait()?.success());
        }
        let (found, code) = status()?;
        ensure!(code == Some(0), "{found:#}");
        Ok(())
    })
}

fn a_lock_that_is_held_is_waited_for_and_its_holder_named() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let holder = fs::OpenOptions::new().read(true).write(true).open("/run/agent-fw/lock")?;
        let signed = format!("agent-fw install, process {}", std::process::id());
        fs::write("/run/agent-fw/lock", &signed)?;
        holder.lock()?;
        let start = Instant::now();
        let busy = try_install(&["--allow-from", "region:gb-1", "--wait", "1"])?;
        ensure!(busy.code == Some(3), "{busy}");
        ensure!(busy.stderr.contains(&signed), "{busy}");
        ensure!(start.elapsed() >= Duration::from_secs(1), "it did not wait");
        // A dry run changes nothing and needs no lock.
        let dry = try_install(&["--allow-from", "region:us-1", "--dry-run"])?;
        ensure!(dry.code == Some(0), "{dry}");
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(holder);
        });
        install(&["--allow-from", "region:gb-1", "--wait", "30"])?;
        release.join().ok().context("the holder panicked")?;
        Ok(())
    })
}

fn when_the_policy_file_cannot_be_written_the_old_policy_stays_in_force() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let (before, _) = status()?;
        let text = fs::read_to_string(POLICY)?;
        // A directory where the new file should be prepared.
        fs::create_dir("/etc/agent-fw/policy.toml.new")?;
        let failed = try_install(&["--allow-from", "region:gb-1"])?;
        ensure!(failed.code == Some(3), "{failed}");
        ensure!(failed.stderr.contains("the previous policy remains in force"), "{failed}");
        ensure!(failed.stderr.contains("cannot write /etc/agent-fw/policy.toml"), "{failed}");
        ensure!(fs::read_to_string(POLICY)? == text);
        let (after, code) = status()?;
        ensure!(code == Some(0) && after == before, "{before:#}\nbecame\n{after:#}");
        expect(&manager, Outcome::Silent, &["18.98.162.129"])?;
        // The same on a host that had nothing: nothing is left.
        agent_fw(["uninstall"])?.success()?;
        fs::create_dir_all("/etc/agent-fw/policy.toml.new")?;
        let failed = try_install(&["--allow-from", "region:gb-1"])?;
        ensure!(failed.code == Some(3), "{failed}");
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        Ok(())
    })
}

/// A unit as a package would bring it.
const UNIT: &str = "[Service]\nType=oneshot\nExecStart=/usr/local/bin/agent-fw apply\n\
                    [Install]\nWantedBy=multi-user.target\n";
const LINK: &str = "/etc/systemd/system/multi-user.target.wants/agent-fw.service";

fn when_the_boot_unit_cannot_be_enabled_everything_is_undone() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let (before, text) = (status()?.0, fs::read_to_string(POLICY)?);
        // A unit without a section [Install] that is masked: systemctl refuses it.
        fs::create_dir_all("/etc/systemd/system")?;
        std::os::unix::fs::symlink("/dev/null", "/etc/systemd/system/agent-fw.service")?;
        let failed = agent_fw(["install", "--replace", "--allow-from", "region:gb-1"])?;
        ensure!(failed.code == Some(3), "{failed}");
        ensure!(failed.stderr.contains("systemctl enable"), "{failed}");
        ensure!(failed.stderr.contains("the previous policy remains in force"), "{failed}");
        ensure!(fs::read_to_string(POLICY)? == text && status()?.0 == before);
        install(&["--allow-from", "region:gb-1"])?;
        Ok(())
    })
}

fn the_boot_unit_is_enabled_unless_told_otherwise() -> Result<()> {
    Lab::run(|_| {
        fs::create_dir_all("/etc/systemd/system")?;
        fs::write("/etc/systemd/system/agent-fw.service", UNIT)?;
        install(&["--allow-from", "region:us-1"])?;
        ensure!(!fs::exists(LINK)?, "--no-boot enabled the unit");
        agent_fw(["install", "--allow-from", "region:us-1"])?.success()?;
        ensure!(fs::symlink_metadata(LINK).is_ok(), "the unit is not enabled");
        agent_fw(["uninstall"])?.success()?;
        ensure!(fs::symlink_metadata(LINK).is_err(), "the unit is still enabled");
        Ok(())
    })
}

fn uninstall_leaves_no_trace_and_can_be_repeated() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let agent_fw_install = ["install", "--no-boot", "--early-drop", "--allow-from", "file:-"];
        let program = agent_fw_path();
        let words = [program.as_os_str()].into_iter();
        feed(words.chain(agent_fw_install.iter().map(AsRef::as_ref)), "192.0.2.1\n")?;
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(run(["nft", "list", "ruleset"])?.is_empty());
        ensure!(!fs::exists("/etc/agent-fw")?);
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        agent_fw(["uninstall"])?.success()?;
        let (found, code) = status()?;
        ensure!(code == Some(1) && found["installed"] == false, "{found:#}");
        Ok(())
    })
}

fn a_policy_edited_by_hand_is_neither_deleted_nor_replaced_without_a_word() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let edited = fs::read_to_string(POLICY)?.replace("us-1", "gb-1");
        fs::write(POLICY, &edited)?;
        let refused = agent_fw(["uninstall"])?;
        ensure!(refused.code == Some(2) && refused.stderr.contains("--yes"), "{refused}");
        ensure!(fs::read_to_string(POLICY)? == edited);
        ensure!(status()?.0["installed"] == true, "the table went before the question");
        let said = install(&["--allow-from", "region:de-1"])?;
        ensure!(said.contains("policy.toml.replaced"), "{said}");
        ensure!(fs::read_to_string("/etc/agent-fw/policy.toml.replaced")? == edited);
        let refused = agent_fw(["uninstall"])?;
        let names_it = refused.stderr.contains("policy.toml.replaced was edited");
        ensure!(refused.code == Some(2) && names_it, "{refused}");
        fs::write(POLICY, &edited)?;
        agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(!fs::exists("/etc/agent-fw")?);
        Ok(())
    })
}

fn an_edited_policy_is_enforced_by_apply() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let none = agent_fw(["apply"])?;
        ensure!(none.code == Some(2) && none.stderr.contains("agent-fw install"), "{none}");
        install(&["--allow-from", "region:us-1"])?;
        fs::write(POLICY, "allow_from = [\"198.51.100.0/24\"]\n")?;
        let (found, code) = status()?;
        ensure!(code == Some(1) && found["agree"] == false, "{found:#}");
        agent_fw(["apply"])?.success()?;
        ensure!(status()?.1 == Some(0));
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1"])
    })
}

fn a_faulty_policy_file_leaves_the_kernel_as_it_was() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        for (text, expected) in [
            ("allow_from = [\"region:us-9\"]\n", "there is no region `us-9`"),
            ("allow_from = [\"file:/nowhere\"]\n", "cannot read /nowhere"),
            ("allow_form = []\n", "policy.toml:1:1: unknown field `allow_form`"),
            ("port = \"4118\"\n", "policy.toml:1:8: "),
            ("\u{0}", "found a zero byte"),
        ] {
            fs::write(POLICY, text)?;
            let failed = agent_fw(["apply"])?;
            ensure!(failed.code == Some(2), "{text}: {failed}");
            ensure!(failed.stderr.contains(expected), "{text}: {failed}");
            ensure!(status()?.1 == Some(1), "{text}: the status is good");
            ensure!(run(["nft", "--handle", "list", "ruleset"])? == before, "{text}");
        }
        Ok(())
    })
}

/// Changes of the live table, of which each must be noticed.
const CHANGES: [&str; 23] = [
    "flush ruleset",
    "delete table inet agent_fw",
    "flush chain inet agent_fw gate",
    "flush chain inet agent_fw agent_port",
    "flush set inet agent_fw from_region_us-1_v4_27",
    "delete element inet agent_fw from_region_us-1_v4_27 { 34.205.5.0 }",
    "delete element inet agent_fw from_region_us-1_v4_27 { 34.205.5.0 }; add element inet agent_fw \
     from_region_us-1_v4_27 { 9.9.9.9 }",
    "delete element inet agent_fw from_region_us-1_v4_27 { 34.205.5.0 }; add element inet agent_fw \
     from_region_us-1_v4_27 { 34.205.5.32 }",
    "flush set inet agent_fw source_macs",
    "insert rule inet agent_fw gate accept",
    "insert rule inet agent_fw agent_port accept",
    "insert rule inet agent_fw agent_port ip saddr 9.9.9.9 accept",
    "insert rule inet agent_fw agent_port ip saddr 9.9.9.9 continue",
    "add rule inet agent_fw gate tcp dport 22 drop",
    "add rule inet agent_fw gate meta mark set 7",
    "add chain inet agent_fw more",
    "add chain inet agent_fw more { type filter hook input priority -400; }",
    "add chain inet agent_fw more { type nat hook prerouting priority -100; }",
    "chain inet agent_fw gate { policy drop; }",
    "add set inet agent_fw more { type ipv4_addr; }",
    "add counter inet agent_fw more",
    "add quota inet agent_fw more { over 1 mbytes }",
    "add table inet agent_fw { flags dormant; }",
];

fn status_tells_every_change_behind_its_back() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1", "--allow-mac", "02:00:00:00:00:01"])?;
        for change in CHANGES {
            ensure!(status()?.1 == Some(0), "before `{change}`: {:#}", status()?.0);
            feed(["nft", "-f", "-"], change)?;
            let (found, code) = status()?;
            ensure!(code == Some(1) && found["agree"] == false, "after `{change}`: {found:#}");
            ensure!(found["closed"] == false, "after `{change}`: {found:#}");
            agent_fw(["apply"])?.success().with_context(|| format!("after `{change}`"))?;
            ensure!(status()?.1 == Some(0), "`{change}` is not put right: {:#}", status()?.0);
            // The names that the next change speaks of.
            run(["nft", "flush", "ruleset"])?;
            agent_fw(["apply"])?.success()?;
        }
        ensure!(status()?.1 == Some(0));
        Ok(())
    })
}

fn without_cap_net_admin_one_line_says_so() -> Result<()> {
    Lab::run(|_| {
        for subcommand in ["install", "apply", "status", "uninstall"] {
            let program = agent_fw_path();
            let refused = agent_fw_lab::output([
                "setpriv".as_ref(),
                "--bounding-set=-net_admin".as_ref(),
                "--inh-caps=-net_admin".as_ref(),
                program.as_os_str(),
                subcommand.as_ref(),
            ])?;
            ensure!(refused.code == Some(3), "{refused}");
            ensure!(refused.stderr.lines().count() == 1, "{refused}");
            ensure!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused}");
            ensure!(refused.stderr.trim_end().len() <= 80, "{refused}");
        }
        Ok(())
    })
}

fn a_hosts_own_regions_override_the_built_in_ones() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::create_dir_all("/etc/agent-fw")?;
        let region = "place = 'here'\nsubnets = ['192.0.2.0/24']\ndomain = 'a.example'\n\
                      as_of = '2026-01-02'\nsource = 'our own'\n";
        fs::write("/etc/agent-fw/regions.toml", format!("[us-1]\n{region}[lab]\n{region}"))?;
        let shown = agent_fw(["regions", "show", "us-1"])?.success()?;
        ensure!(shown.contains("192.0.2.0/24") && shown.contains("our own"), "{shown}");
        ensure!(agent_fw(["regions", "list"])?.success()?.contains("\nlab "));
        install(&["--allow-from", "region:us-1"])?;
        expect(&manager, Outcome::Talked, &["192.0.2.1"])?;
        expect(&manager, Outcome::Silent, &["34.205.5.1"])?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(fs::exists("/etc/agent-fw/regions.toml")?, "the user's file is gone");
        fs::write("/etc/agent-fw/regions.toml", "[lab]\nplace = 7\n")?;
        let failed = try_install(&["--allow-from", "region:us-1"])?;
        ensure!(failed.code == Some(2), "{failed}");
        ensure!(failed.stderr.contains("/etc/agent-fw/regions.toml:2:9"), "{failed}");
        Ok(())
    })
}

fn a_policy_that_lost_its_sources_does_not_open_the_port() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let before = run(["nft", "--handle", "list", "ruleset"])?;
        for text in ["", "port = 4118\n", "allow_from = []\n", "allow_from = [\"file:-\"]\n"] {
            fs::write(POLICY, text)?;
            let refused = agent_fw(["apply"])?;
            ensure!(refused.code == Some(2), "{text:?}: {refused}");
            ensure!(run(["nft", "--handle", "list", "ruleset"])? == before, "{text:?}");
        }
        fs::write(POLICY, "allow_from = [\"any\"]\n")?;
        let said = agent_fw(["apply", "--accept-opening"])?.success()?;
        ensure!(said.contains("not closed"), "it does not say that the port is open: {said}");
        Ok(())
    })
}

fn flags_that_name_nobody_do_not_open_a_closed_port() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        let refused = agent_fw(["install", "--no-boot", "--log"])?;
        ensure!(refused.code == Some(2), "{refused}");
        ensure!(refused.stderr.contains("--allow-from any"), "{refused}");
        ensure!(status()?.0["closed"] == true, "the port was opened");
        install(&["--log", "--allow-from", "any"])?;
        ensure!(status()?.0["closed"] == false);
        // Nor are they a reason to leave an open port open without a word.
        ensure!(agent_fw(["install", "--no-boot"])?.code == Some(2));
        Ok(())
    })
}

fn a_table_that_was_altered_is_undone_to_the_policy_of_before() -> Result<()> {
    let long = "x".repeat(127);
    let alterations = [
        format!("add rule inet agent_fw agent_port tcp dport 22 accept comment \"{long}\""),
        "insert rule inet agent_fw agent_port ip saddr { 1.2.3.4, 198.51.100.7 } accept".to_owned(),
        "insert rule inet agent_fw agent_port ip saddr 198.51.100.7 counter accept".to_owned(),
    ];
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for alteration in alterations {
            install(&["--allow-from", "region:us-1"])?;
            feed(["nft", "-f", "-"], &alteration)?;
            // Enabling the unit is the last step; a masked one makes it fail.
            let unit = "/etc/systemd/system/agent-fw.service";
            fs::create_dir_all("/etc/systemd/system")?;
            std::os::unix::fs::symlink("/dev/null", unit)?;
            let failed = agent_fw(["install", "--replace", "--allow-from", "203.0.113.1"])?;
            fs::remove_file(unit)?;
            ensure!(failed.code == Some(3), "{failed}");
            ensure!(failed.stderr.contains("the previous policy remains in force"), "{failed}");
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            expect(&manager, Outcome::Silent, &["203.0.113.1"])?;
        }
        Ok(())
    })
}

fn the_users_own_files_are_left_alone() -> Result<()> {
    Lab::run(|_| {
        fs::create_dir_all("/etc/agent-fw/lists")?;
        let (office, branch) = ("/etc/agent-fw/lists/office.txt", "/etc/agent-fw/lists/branch.txt");
        fs::write(office, "192.0.2.1\n")?;
        fs::write(branch, "192.0.2.2\n")?;
        install(&["--allow-from", &format!("file:{office}")])?;
        // An edited policy is kept each time that it is replaced, and asked about at the end.
        for (round, region) in [("# first\n", "region:us-1"), ("# second\n", "region:gb-1")] {
            fs::write(POLICY, fs::read_to_string(POLICY)? + round)?;
            install(&["--allow-from", region])?;
        }
        let kept = |name: &str| fs::read_to_string(format!("{POLICY}.{name}"));
        ensure!(kept("replaced")?.ends_with("# first\n"));
        ensure!(kept("replaced.2")?.ends_with("# second\n"));
        let asked = agent_fw(["uninstall"])?;
        ensure!(asked.code == Some(2), "{asked}");
        agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(fs::exists(office)? && fs::exists(branch)?, "the user's lists are gone");
        ensure!(!fs::exists(POLICY)? && run(["nft", "list", "ruleset"])?.is_empty());
        Ok(())
    })
}

fn a_full_disk_behind_the_output_does_not_stop_an_installation() -> Result<()> {
    Lab::run(|_| {
        install(&["--allow-from", "region:us-1"])?;
        fs::write(POLICY, fs::read_to_string(POLICY)? + "# edited\n")?;
        let code = command([agent_fw_path()])
            .args(["install", "--no-boot", "--replace", "--allow-from", "region:gb-1"])
            .stdout(fs::OpenOptions::new().write(true).open("/dev/full")?)
            .stderr(fs::OpenOptions::new().write(true).open("/dev/full")?)
            .status()?
            .code();
        ensure!(code == Some(3), "the lost output is not told by the exit code: {code:?}");
        ensure!(status()?.1 == Some(0), "{:#}", status()?.0);
        ensure!(fs::read_to_string(POLICY)?.contains("gb-1"));
        Ok(())
    })
}

fn standard_input_by_another_name_is_kept_for_the_next_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::write("/run/some.list", "192.0.2.7\n")?;
        let installed = command([agent_fw_path()])
            .args(["install", "--no-boot", "--allow-from", "file:/dev/stdin"])
            .stdin(fs::File::open("/run/some.list")?)
            .stdout(Stdio::null())
            .status()?;
        ensure!(installed.success());
        fs::remove_file("/run/some.list")?;
        run(["nft", "flush", "ruleset"])?;
        agent_fw(["apply"])?.success()?;
        expect(&manager, Outcome::Talked, &["192.0.2.7"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.8"])
    })
}
