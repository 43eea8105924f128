//! Nothing that fails, and nothing that is advised, lowers what is in force.

use crate::scene::{AGENT, expect, install, status, try_install};
use crate::tests;
use crate::xdp::{attached, flags};
use agent_fw_lab::{Finished, Lab, Listener, Outcome, Peer, agent_fw, agent_fw_path, command, run};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

tests![
    a_policy_whose_interface_is_missing_leaves_what_was_in_force,
    a_renamed_interface_keeps_its_program_and_is_still_the_policys,
    an_interface_has_other_names_too,
    a_missing_interface_and_a_table_that_stands_in_are_no_reason_to_advise_anything,
    what_is_advised_for_a_missing_interface_closes_the_port_and_is_not_advised_again,
    what_is_advised_after_every_kind_of_loss_closes_the_port,
    another_namespace_takes_no_program_off,
    an_older_versions_pins_are_sorted_by_namespace,
    with_few_descriptors_both_are_exchanged_or_neither_is,
    a_change_of_mode_leaves_no_moment_open,
    a_name_that_no_interface_can_have_is_refused,
];

const POLICY: &str = "/etc/agent-fw/policy.toml";

/// Changes the policy by hand.
fn edit(from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(POLICY)?;
    ensure!(text.contains(from), "{text}");
    Ok(fs::write(POLICY, text.replace(from, to))?)
}

fn is_closed(peer: &Peer) -> Result<()> {
    expect(peer, Outcome::Silent, &["198.51.100.7"])?;
    expect(peer, Outcome::Talked, &["34.205.5.1"])
}

fn ruleset() -> Result<String> {
    run(["nft", "--stateless", "list", "ruleset"])
}

fn a_policy_whose_interface_is_missing_leaves_what_was_in_force() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        // It would arrive.
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        for backend in ["nft", "xdp", "both"] {
            let more: &[&str] = if backend == "nft" { &[] } else { &["--interface", "manager0"] };
            let words = [&["--allow-from", "region:us-1", "--backend", backend], more].concat();
            install(&words)?;
            let (table, program) = (ruleset()?, attached("manager0")?);
            let written = fs::read_to_string(POLICY)?;
            for wanted in ["xdp", "both"] {
                fs::write(POLICY, &written)?;
                edit(&format!("backend = \"{backend}\""), &format!("backend = \"{wanted}\""))?;
                let named = if backend == "nft" { "[]" } else { "[\"manager0\"]" };
                edit(&format!("interfaces = {named}"), "interfaces = [\"eth9\"]")?;
                let refused = agent_fw(["apply"])?;
                ensure!(refused.code == Some(3), "{backend} to {wanted}: {refused}");
                ensure!(refused.stderr.contains("eth9"), "{refused}");
                ensure!(ruleset()? == table, "{backend} to {wanted}: the table is another");
                ensure!(attached("manager0")? == program, "{backend} to {wanted}: the program");
                is_closed(&manager).with_context(|| format!("{backend} to {wanted}"))?;
            }
            fs::write(POLICY, &written)?;
            // The same by flags.
            let missing = flags("xdp", "eth9", &[]);
            ensure!(try_install(&missing)?.code == Some(2));
            ensure!(ruleset()? == table && attached("manager0")? == program);
            ensure!(status()?.1 == Some(0), "{backend}: {:#}", status()?.0);
        }
        Ok(())
    })
}

fn a_renamed_interface_keeps_its_program_and_is_still_the_policys() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let rename = |from: &str, to: &str| run(["ip", "link", "set", from, "name", to]);
        for backend in ["xdp", "both"] {
            install(&flags(backend, "manager0", &[]))?;
            rename("manager0", "lan0")?;
            let (seen, code) = status()?;
            ensure!(code == Some(0), "{backend}: {seen:#}");
            ensure!(seen["xdp"]["interfaces"][0]["name"] == "lan0", "{seen:#}");
            agent_fw(["verify"])?.success()?;
            agent_fw(["apply"])?.success()?;
            agent_fw(["apply", "--boot"])?.success()?;
            ensure!(attached("lan0")?.is_some(), "{backend}: no program");
            rename("lan0", "manager0")?;
            is_closed(&manager)?;
        }
        Ok(())
    })
}

fn an_interface_has_other_names_too() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        run(["ip", "link", "property", "add", "dev", "manager0", "altname", "enp0s3"])?;
        for name in ["enp0s3", "manager0@if2"] {
            install(&flags("xdp", name, &[]))?;
            ensure!(attached("manager0")?.is_some(), "{name}: no program");
            ensure!(status()?.1 == Some(0), "{name}: {:#}", status()?.0);
            agent_fw(["apply"])?.success()?;
            is_closed(&manager)?;
        }
        Ok(())
    })
}

fn a_missing_interface_and_a_table_that_stands_in_are_no_reason_to_advise_anything() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        // As after a boot under another name: no program, and nothing known but the name.
        agent_fw(["uninstall", "--keep-policy"])?.success()?;
        fs::remove_file("/var/lib/agent-fw/interfaces.json")?;
        edit("\"manager0\"", "\"eth9\"")?;
        let said = agent_fw(["apply", "--boot"])?.success()?;
        ensure!(said.contains("eth9") && said.contains("holds until it comes"), "{said}");
        is_closed(&manager)?;
        let shown = agent_fw(["status"])?;
        ensure!(shown.code == Some(0), "{shown}");
        ensure!(advised(&shown).is_empty(), "{shown}");
        ensure!(status()?.0["closed"] == true, "{:#}", status()?.0);
        agent_fw(["verify"])?.success()?;
        // `apply` says what is missing, and leaves the table there.
        ensure!(agent_fw(["apply"])?.code == Some(3));
        is_closed(&manager)
    })
}

/// The commands between backticks that a person is told to run.
fn advised(said: &Finished) -> Vec<Vec<String>> {
    let text = format!("{}\n{}", said.stdout, said.stderr);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let quoted = words.split('`').skip(1).step_by(2);
    let commands = quoted.filter_map(|quoted| quoted.strip_prefix("agent-fw "));
    let changing = commands.filter(|command| command.starts_with("apply"));
    changing.map(|command| command.split(' ').map(str::to_owned).collect()).collect()
}

/// Runs what `status`, `verify` and `doctor` advise, until they advise nothing more.
fn follow_advice(situation: &str, peer: &Peer) -> Result<()> {
    for asked in ["status", "verify", "doctor"] {
        let said = agent_fw([asked])?;
        for advice in advised(&said) {
            agent_fw(&advice)?
                .success()
                .with_context(|| format!("{situation}, as {asked} says"))?;
            is_closed(peer).with_context(|| format!("{situation}, after {advice:?}"))?;
        }
        let again = agent_fw([asked])?;
        ensure!(advised(&again).is_empty(), "{situation}, {asked}: advised again: {again}");
    }
    is_closed(peer).with_context(|| situation.to_owned())
}

fn what_is_advised_for_a_missing_interface_closes_the_port_and_is_not_advised_again() -> Result<()>
{
    Lab::run(|lab| {
        let (manager, _branch) = (lab.peer("manager")?, lab.peer("branch")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "branch0", &[]))?;
        run(["ip", "link", "delete", "branch0"])?;
        // Nothing guards the other interface.
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        let shown = agent_fw(["status"])?;
        ensure!(!advised(&shown).is_empty(), "{shown}");
        follow_advice("an interface was unplugged", &manager)
    })
}

/// What somebody else may do, as a command.
const LOSSES: [(&str, &[&str]); 5] = [
    ("nft", &["nft", "flush", "ruleset"]),
    ("nft", &["nft", "insert", "rule", "inet", "agent_fw", "gate", "accept"]),
    ("both", &["nft", "delete", "table", "inet", "agent_fw"]),
    ("both", &["rm", "-r", "/sys/fs/bpf/agent-fw"]),
    ("xdp", &["rm", "-r", "/sys/fs/bpf/agent-fw"]),
];

fn what_is_advised_after_every_kind_of_loss_closes_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        for (backend, loss) in LOSSES {
            let words = if backend == "nft" {
                vec!["--allow-from", "region:us-1"]
            } else {
                flags(backend, "manager0", &[])
            };
            install(&words)?;
            run(loss)?;
            // The kernel lets go of a program that nothing holds some time later.
            std::thread::sleep(Duration::from_millis(300));
            let what = format!("{backend}, {}", loss.join(" "));
            ensure!(!advised(&agent_fw(["status"])?).is_empty(), "{what}: nothing is advised");
            follow_advice(&what, &manager)?;
        }
        Ok(())
    })
}

fn another_namespace_takes_no_program_off() -> Result<()> {
    Lab::run(|lab| {
        let (manager, other) = (lab.peer("manager")?, lab.peer("other")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let program = attached("manager0")?;
        let text = fs::read_to_string(POLICY)?;
        // Another network namespace, with the same files and the same BPF file system.
        other.enter(|| -> Result<()> {
            install(&flags("xdp", "eth0", &[]))?;
            ensure!(attached("eth0")?.is_some(), "no program there");
            agent_fw(["apply"])?.success()?;
            Ok(())
        })??;
        ensure!(attached("manager0")? == program, "the first namespace's program has gone");
        is_closed(&manager)?;
        other.enter(|| agent_fw(["uninstall", "--yes"])?.success())??;
        ensure!(attached("manager0")? == program, "the first namespace's program has gone");
        fs::create_dir_all("/etc/agent-fw")?;
        fs::write(POLICY, text)?;
        ensure!(status()?.1 == Some(0), "{:#}", status()?.0);
        is_closed(&manager)?;
        agent_fw(["uninstall", "--yes"])?.success()?;
        crate::xdp::is_clean("manager0")
    })
}

fn an_older_versions_pins_are_sorted_by_namespace() -> Result<()> {
    Lab::run(|lab| {
        let (manager, other) = (lab.peer("manager")?, lab.peer("other")?);
        let _agent = Listener::bind(AGENT)?;
        install(&flags("both", "manager0", &[]))?;
        let program = attached("manager0")?;
        let here = crate::xdp::pins()?;
        let above = std::path::Path::new(crate::xdp::PINS);
        for entry in fs::read_dir(&here)?.flatten() {
            fs::rename(entry.path(), above.join(entry.file_name()))?;
        }
        fs::remove_dir(&here)?;
        // They are not the other namespace's.
        let theirs = other.enter(|| agent_fw(["status", "--json"]))??;
        ensure!(theirs.stdout.contains("\"interfaces\": []"), "{theirs}");
        let (seen, code) = status()?;
        ensure!(code == Some(0) && here.exists(), "{seen:#}");
        agent_fw(["apply"])?.success()?;
        ensure!(attached("manager0")?.is_some() && program.is_some());
        is_closed(&manager)?;
        agent_fw(["uninstall"])?.success()?;
        crate::xdp::is_clean("manager0")
    })
}

fn with_few_descriptors_both_are_exchanged_or_neither_is() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("both", "manager0", &[]))?;
        let (mut refused, mut done) = (0, 0);
        for descriptors in 5..36 {
            let written = fs::read_to_string(POLICY)?;
            // Disjoint from what is in force: half of each would admit nobody.
            fs::write(POLICY, written.replace("region:us-1", "198.51.100.0/24"))?;
            let mut limited = command(["prlimit"]);
            let limited = limited.arg(format!("--nofile={descriptors}")).arg(agent_fw_path());
            let code = limited.arg("apply").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            let sources = ["34.205.5.1", "198.51.100.7"];
            let (admitted, others) = if code.success() {
                done += 1;
                ([sources[1]], [sources[0]])
            } else {
                refused += 1;
                ([sources[0]], [sources[1]])
            };
            let what = || format!("with {descriptors} descriptors, {code}");
            expect(&manager, Outcome::Talked, &admitted).with_context(what)?;
            expect(&manager, Outcome::Silent, &others).with_context(what)?;
            fs::write(POLICY, &written)?;
            agent_fw(["apply"])?.success().with_context(what)?;
        }
        println!("{refused} times nothing was changed, {done} times all");
        ensure!(refused > 3 && done > 3, "{refused} and {done}: one side was not met");
        Ok(())
    })
}

fn a_change_of_mode_leaves_no_moment_open() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&flags("xdp", "manager0", &[]))?;
        let unlisted = std::net::Ipv4Addr::new(198, 51, 100, 7);
        manager.add_address(unlisted.into())?;
        agent_fw_lab::while_knocking(&manager, unlisted, AGENT, || {
            for _ in 0..6 {
                for mode in ["generic", "native"] {
                    install(&flags("xdp", "manager0", &["--xdp-mode", mode]))?;
                    ensure!(attached("manager0")?.is_some_and(|(seen, _)| seen == mode));
                }
            }
            Ok(())
        })?;
        ensure!(run(["nft", "list", "tables"])?.is_empty(), "the table is still there");
        Ok(())
    })
}

fn a_name_that_no_interface_can_have_is_refused() -> Result<()> {
    Lab::run(|lab| {
        lab.peer("manager")?;
        install(&flags("both", "manager0", &[]))?;
        for name in ["../../x", "..", "a/b", "a b", "\\u001b[2J", ""] {
            let written = fs::read_to_string(POLICY)?;
            edit("\"manager0\"", &format!("\"manager0\", \"{name}\""))?;
            let refused = agent_fw(["apply"])?;
            ensure!(refused.code == Some(2), "{name}: {refused}");
            ensure!(refused.stderr.contains("no name of an interface"), "{refused}");
            ensure!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
            ensure!(agent_fw(["apply", "--boot"])?.code == Some(1), "{name}");
            fs::write(POLICY, written)?;
        }
        ensure!(!fs::exists("/run/x")? && !fs::exists("/x")?, "a file was made");
        agent_fw(["apply"])?.success()?;
        ensure!(status()?.1 == Some(0), "{:#}", status()?.0);
        Ok(())
    })
}
