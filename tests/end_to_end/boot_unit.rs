//! What applies the policy at boot, as files and as the command that the unit runs. The boots
//! themselves are tested in virtual machines.

use crate::scene::{AGENT, check, expect, install, status};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, command, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

tests![
    install_brings_the_boot_unit_and_uninstall_takes_it_away,
    the_boot_unit_of_a_package_is_used_and_left_there,
    the_boot_unit_may_do_little_else,
    a_timer_beside_the_boot_unit_writes_metrics_and_goes_with_it,
    the_boot_unit_runs_no_program_that_others_can_change,
    with_a_faulty_policy_the_last_good_one_is_enforced_at_boot,
    without_any_good_policy_the_port_is_closed_at_boot,
    until_a_missing_interface_comes_the_table_holds,
    whether_the_boot_unit_the_guard_and_the_timer_are_on_is_said,
    the_advice_where_the_boot_unit_is_off_enables_it,
    the_status_line_of_the_boot_unit_quotes_no_private_file,
];

const UNITS: &str = "/etc/systemd/system";
const POLICY: &str = "/etc/agent-fw/policy.toml";

/// Every file below the directories of units and rules that is about agent-fw.
fn traces() -> Result<String> {
    run(["find", UNITS, "/etc/udev/rules.d", "/var/lib", "-path", "*agent-fw*"])
}

/// The interfaces for which udev starts the unit, by name.
fn awaited() -> Vec<String> {
    let files = fs::read_dir("/run/agent-fw/interfaces").into_iter().flatten().flatten();
    let mut names: Vec<_> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    // By its index, one that goes is known.
    names.retain(|name| !name.starts_with("ifindex-"));
    names.sort();
    names
}

/// `agent-fw install` as `cargo xtask install` runs it: the program is where a unit may name it.
fn install_with_unit(lab: &Lab, flags: &[&str]) -> Result<String> {
    lab.overlay("/usr/local/bin")?;
    let program = "/usr/local/bin/agent-fw";
    copy_program(program)?;
    run([program, "install", "--untested", "--replace"].iter().chain(flags))
}

/// Copied by another process: one that this one has open for writing, and so has a child of some
/// other test for a moment, cannot be started.
fn copy_program(to: &str) -> Result<()> {
    run([Path::new("cp"), &agent_fw_path(), Path::new(to)]).map(drop)
}

fn install_brings_the_boot_unit_and_uninstall_takes_it_away() -> Result<()> {
    Lab::run(|lab| {
        lab.peer("manager")?;
        fs::create_dir_all("/etc/udev/rules.d")?;
        let xdp = ["--allow-from", "region:us-1", "--backend", "both", "--interface", "manager0"];
        install_with_unit(lab, &xdp)?;
        let unit = fs::read_to_string(format!("{UNITS}/agent-fw.service"))?;
        ensure!(unit.contains("Before=network-pre.target"), "{unit}");
        ensure!(unit.contains("agent-fw apply --boot"), "{unit}");
        let link = format!("{UNITS}/sysinit.target.wants/agent-fw.service");
        ensure!(fs::symlink_metadata(&link).is_ok(), "it is not enabled");
        ensure!(Path::new("/etc/udev/rules.d/99-agent-fw.rules").exists());
        ensure!(awaited() == ["manager0"], "{:?}", awaited());
        ensure!(install_with_unit(lab, &xdp)?.contains("no change"), "it was written again");
        agent_fw(["uninstall"])?.success()?;
        ensure!(traces()?.is_empty(), "left: {}", traces()?);
        Ok(())
    })
}

fn the_boot_unit_of_a_package_is_used_and_left_there() -> Result<()> {
    Lab::run(|lab| {
        let unit = format!("{UNITS}/agent-fw.service");
        let theirs = "[Service]\nExecStart=/usr/bin/agent-fw apply --boot\n\
                      [Install]\nWantedBy=sysinit.target\n";
        fs::write(&unit, theirs)?;
        install_with_unit(lab, &["--allow-from", "region:us-1"])?;
        ensure!(fs::read_to_string(&unit)? == theirs, "the unit was replaced");
        ensure!(!Path::new(UNITS).join("nftables.service.d").exists());
        agent_fw(["uninstall"])?.success()?;
        ensure!(fs::read_to_string(&unit)? == theirs, "the unit was removed");
        Ok(())
    })
}

fn the_boot_unit_may_do_little_else() -> Result<()> {
    Lab::run(|lab| {
        install_with_unit(lab, &["--allow-from", "region:us-1"])?;
        for unit in ["agent-fw.service", "agent-fw-interface@.service", "agent-fw-metrics@.service"]
        {
            let path = format!("{UNITS}/{unit}");
            // A template is judged by one of its instances.
            let judged = path.replace("@.", "@eth0.");
            if judged != path {
                fs::copy(&path, &judged)?;
            }
            let mut analyze = command(["systemd-analyze", "security", "--no-pager"]);
            let output = analyze.args(["--offline=yes", "--threshold=20"]).arg(&judged).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success() && said.contains("exposure level"), "{unit}: {said}");
        }
        Ok(())
    })
}

/// That the timer runs is tested in virtual machines; here, what it runs.
fn a_timer_beside_the_boot_unit_writes_metrics_and_goes_with_it() -> Result<()> {
    Lab::run(|lab| {
        fs::create_dir_all("/etc/udev/rules.d")?;
        let directory = "/var/lib/node exporter-1";
        let words = ["--allow-from", "region:us-1", "--metrics", directory];
        ensure!(install_with_unit(lab, &words).is_err(), "there is no such directory");
        ensure!(run(["nft", "list", "ruleset"])?.is_empty() && traces()?.is_empty());
        fs::create_dir_all(directory)?;
        install_with_unit(lab, &words)?;
        let timer = r"agent-fw-metrics@var-lib-node\x20exporter\x2d1.timer";
        let link = Path::new(UNITS).join("timers.target.wants").join(timer);
        ensure!(fs::symlink_metadata(&link).is_ok(), "it is not enabled: {}", traces()?);
        run(["systemd-analyze", "verify", &format!("{UNITS}/{timer}")])?;
        // What the unit says, with its directory.
        let unit = fs::read_to_string(format!("{UNITS}/agent-fw-metrics@.service"))?;
        let runs = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let runs = runs.context("it runs nothing")?;
        run(runs.split(' ').map(|word| word.replace("%f", directory)))?;
        let file = Path::new(directory).join("agent-fw.prom");
        ensure!(fs::read_to_string(&file)?.contains("agent_fw_closed 1"));
        // What is no longer so is not said for ever.
        agent_fw(["uninstall", "--keep-policy"])?.success()?;
        ensure!(!file.exists() && fs::symlink_metadata(&link).is_ok());
        agent_fw(["apply"])?.success()?;
        run(runs.split(' ').map(|word| word.replace("%f", directory)))?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(!file.exists() && traces()?.is_empty(), "left: {}", traces()?);
        Ok(())
    })
}

fn the_boot_unit_runs_no_program_that_others_can_change() -> Result<()> {
    Lab::run(|_| {
        let directory = "/var/lib/theirs";
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777))?;
        copy_program("/var/lib/theirs/agent-fw")?;
        let mut theirs = command(["/var/lib/theirs/agent-fw"]);
        let output = theirs.args(["install", "--allow-from", "region:us-1"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(output.status.code() == Some(3), "{said}");
        ensure!(
            words.contains("can change /var/lib/theirs") && words.contains("--no-boot"),
            "{said}"
        );
        ensure!(!Path::new(POLICY).exists() && run(["nft", "list", "ruleset"])?.is_empty());
        Ok(())
    })
}

fn with_a_faulty_policy_the_last_good_one_is_enforced_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::write("/run/list", "198.51.100.0/24\n")?;
        install(&["--allow-from", "region:us-1", "--allow-from", "file:/run/list"])?;
        let hash = status()?.0["kernel_policy"].clone();
        // The list is gone, and so is the table: as after a boot.
        fs::remove_file("/run/list")?;
        run(["nft", "flush", "ruleset"])?;
        let faulty = agent_fw(["apply"])?;
        ensure!(faulty.code == Some(2), "without --boot that is an error: {faulty}");
        let fallen = agent_fw(["apply", "--boot"])?;
        ensure!(fallen.code == Some(1) && fallen.stdout.contains("last good"), "{fallen}");
        ensure!(status()?.0["kernel_policy"] == hash);
        expect(&manager, Outcome::Talked, &["34.205.5.1", "198.51.100.7"])?;
        expect(&manager, Outcome::Silent, &["203.0.113.1"])
    })
}

fn without_any_good_policy_the_port_is_closed_at_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for damage in ["", "{\"policy\":7}"] {
            fs::create_dir_all("/etc/agent-fw")?;
            fs::create_dir_all("/var/lib/agent-fw")?;
            fs::write(POLICY, "nonsense")?;
            fs::write("/var/lib/agent-fw/last-good.json", damage)?;
            let closed = agent_fw(["apply", "--boot"])?;
            ensure!(closed.code == Some(1), "{closed}");
            let words = closed.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(words.contains("TCP port 4118 is closed to every source"), "{closed}");
            expect(&manager, Outcome::Silent, &["34.205.5.1", "198.51.100.7"])?;
            run(["nft", "flush", "ruleset"])?;
            expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        }
        Ok(())
    })
}

fn until_a_missing_interface_comes_the_table_holds() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::create_dir_all("/etc/agent-fw")?;
        let policy = "allow_from = [\"region:us-1\"]\nbackend = \"xdp\"\n\
                      interfaces = [\"manager0\", \"later0\"]\n";
        fs::write(POLICY, policy)?;
        agent_fw(["apply", "--boot"])?.success()?;
        let table = run(["nft", "list", "tables"])?;
        ensure!(table.contains("inet agent_fw"), "nothing holds: {table}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        ensure!(awaited() == ["later0", "manager0"], "{:?}", awaited());
        // It comes, and udev has the unit apply the policy.
        let later = lab.peer("later")?;
        agent_fw(["apply", "--boot"])?.success()?;
        ensure!(run(["nft", "list", "tables"])?.is_empty(), "the table is still there");
        expect(&later, Outcome::Silent, &["198.51.100.7"])?;
        expect(&later, Outcome::Talked, &["34.205.5.1"]).context("by the interface that came")?;
        // What a policy of before awaited is awaited no longer.
        fs::write(POLICY, policy.replace("\"manager0\", ", ""))?;
        agent_fw(["apply"])?.success()?;
        ensure!(awaited() == ["later0"], "{:?}", awaited());
        agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(awaited().is_empty(), "{:?}", awaited());
        Ok(())
    })
}

fn whether_the_boot_unit_the_guard_and_the_timer_are_on_is_said() -> Result<()> {
    Lab::run(|lab| {
        let is_said = |said: &str, words: &str| -> Result<()> {
            ensure!(said.contains(&format!("boot: {words}")), "installed: {said}");
            let shown = agent_fw(["status"])?;
            ensure!(shown.stdout.contains(&format!("boot: {words}")), "{shown}");
            let (health, seen) = check("the next boot")?;
            let due = if words.contains("NOT") { "note" } else { "good" };
            ensure!(health == due && seen == words, "{health}: {seen}");
            Ok(())
        };
        let said = install(&["--allow-from", "region:us-1"])?;
        is_said(&said, "the policy is NOT applied at boot; guard off, metrics timer off")?;
        let said = install_with_unit(lab, &["--allow-from", "region:us-1"])?;
        is_said(&said, "the policy is applied at boot; guard off, metrics timer off")?;
        // As `systemctl disable` leaves it.
        fs::remove_file(format!("{UNITS}/sysinit.target.wants/agent-fw.service"))?;
        let again = "the policy is NOT applied at boot; guard off, metrics timer off";
        is_said(&format!("boot: {again}"), again)?;
        let (shown, _) = status()?;
        let boot = &shown["boot"];
        ensure!(boot["unit"] == false && boot["guard"] == false, "{boot}");
        // All three, and each of them off again.
        fs::create_dir_all("/var/lib/node")?;
        let all = ["--allow-from", "region:us-1", "--guard", "--metrics", "/var/lib/node"];
        let said = install_with_unit(lab, &all)?;
        is_said(&said, "the policy is applied at boot; guard on, metrics timer on")?;
        fs::remove_file(format!("{UNITS}/sysinit.target.wants/agent-fw-guard.service"))?;
        let without = "the policy is applied at boot; guard off, metrics timer on";
        is_said(&format!("boot: {without}"), without)?;
        agent_fw(["uninstall"])?.success()?;
        ensure!(traces()?.is_empty(), "left: {}", traces()?);
        Ok(())
    })
}

fn the_advice_where_the_boot_unit_is_off_enables_it() -> Result<()> {
    Lab::run(|lab| {
        // A name that a shell would take for more than one word.
        fs::write("/var/lib/my list", "203.0.113.0/24\n")?;
        let words = ["--allow-from", "file:/var/lib/my list", "--port", "4200", "--log"];
        install(&words)?;
        let policy = fs::read_to_string(POLICY)?;
        let doctor = agent_fw(["doctor"])?.stdout;
        let doctor = doctor.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, advice) = doctor.split_once("run `").context("it advises nothing")?;
        let (command, _) = advice.split_once('`').context("where does it end?")?;
        lab.overlay("/usr/local/bin")?;
        copy_program("/usr/local/bin/agent-fw")?;
        run(["sh", "-c", command])?;
        let (health, seen) = check("the next boot")?;
        ensure!(health == "good", "{health}: {seen}");
        ensure!(fs::read_to_string(POLICY)? == policy, "it has installed something else");
        Ok(())
    })
}

/// Anybody may read what `systemctl status` shows of a unit.
fn the_status_line_of_the_boot_unit_quotes_no_private_file() -> Result<()> {
    Lab::run(|_| {
        let list = "/run/private.list";
        fs::write(list, "34.205.5.0/27\n")?;
        install(&["--allow-from", &format!("file:{list}")])?;
        fs::write(list, "root:secret\n")?;
        fs::set_permissions(list, fs::Permissions::from_mode(0o600))?;
        let socket = UnixDatagram::bind("/run/notify")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut unit = command([agent_fw_path()]);
        let ended = unit.args(["apply", "--boot"]).env("NOTIFY_SOCKET", "/run/notify").output()?;
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(!ended.status.success() && said.contains("secret"), "the journal: {said}");
        let mut line = [0; 4096];
        let length = socket.recv(&mut line)?;
        let line = String::from_utf8_lossy(&line[..length]);
        ensure!(line.contains("STATUS=") && !line.contains("secret"), "{line}");
        Ok(())
    })
}
