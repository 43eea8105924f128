//! Rule files in the vendor's vocabulary: what is said of each rule, and who gets through.

use crate::scene::{AGENT, expect, install, try_install};
use crate::tests;
use agent_fw_lab::{Finished, Lab, Listener, MacAddr, Outcome, agent_fw, agent_fw_path, feed};
use anyhow::{Context as _, Result, ensure};
use boon::{Compiler, Schemas};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

tests![
    each_rule_file_is_judged_and_compiled_as_its_golden_files_say,
    a_negated_range_keeps_exactly_its_addresses_out,
    lists_of_addresses_macs_and_ports_admit_exactly_their_members,
    a_negated_mac_address_is_the_only_one_kept_out,
    rules_beside_allow_from_admit_the_sources_of_both,
    rules_hold_on_a_port_that_a_list_contains_and_on_no_other,
    rules_from_standard_input_are_there_at_the_next_boot,
    a_rule_file_that_stops_restricting_never_opens_the_port,
    unknown_fields_are_ignored_only_when_asked_for,
    what_can_be_read_fits_the_schema_and_what_it_does_not_know_fits_it_not,
];

/// A file for each case: what is in it, what `rules check` says, what `compile` makes of it.
fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("end_to_end/rule_files")
}

/// The rule file of a case.
fn rules(case: &str) -> Result<String> {
    let directory = cases().join(case);
    let names = ["rules.json", "rules.toml"];
    let mut paths = names.iter().map(|name| directory.join(name));
    let path = paths.find(|path| path.exists()).with_context(|| format!("no case {case}"))?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// The command, started in a directory, so that names of files are the same everywhere.
pub(crate) fn inside(directory: &str, arguments: &[&str]) -> Result<Finished> {
    let agent_fw = agent_fw_path();
    let program = agent_fw.to_str().context("a path in UTF-8")?;
    agent_fw_lab::output([&["env", "-C", directory, program], arguments].concat())
}

pub(crate) fn transcript(finished: &Finished) -> String {
    let Finished { stdout, stderr, code, .. } = finished;
    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    format!("{stdout}{stderr}exit code {code}\n")
}

/// `AGENT_FW_GOLDEN=write` writes the golden files anew; the difference is then for review.
fn each_rule_file_is_judged_and_compiled_as_its_golden_files_say() -> Result<()> {
    let writes = std::env::var_os("AGENT_FW_GOLDEN").is_some_and(|value| value == "write");
    let mut count = 0;
    for entry in fs::read_dir(cases())? {
        let directory = entry?.path();
        let case = directory.file_name().and_then(|name| name.to_str()).context("a name")?;
        let (path, directory) = (rules(case)?, directory.to_str().context("a path")?);
        let name = if path.ends_with("json") { "rules.json" } else { "rules.toml" };
        for (golden, arguments) in [
            ("check.txt", ["rules", "check", name].as_slice()),
            ("compile.txt", &["compile", "--allow-wide", "--rules", name]),
        ] {
            let version = concat!("agent-fw ", env!("CARGO_PKG_VERSION"));
            let found = transcript(&inside(directory, arguments)?);
            let found = found.replace(version, "agent-fw VERSION");
            let golden = Path::new(directory).join(golden);
            if writes {
                fs::write(&golden, &found)?;
            }
            let expected = fs::read_to_string(&golden)
                .with_context(|| format!("cannot read {}", golden.display()))?;
            ensure!(found == expected, "{}: now\n{found}", golden.display());
        }
        count += 1;
    }
    ensure!(count >= 10, "only {count} cases");
    Ok(())
}

fn a_negated_range_keeps_exactly_its_addresses_out() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--allow-wide", "--rules", &rules("02-not-a-range")?])?;
        expect(&manager, Outcome::Silent, &["198.51.100.7", "198.51.100.10", "198.51.100.13"])?;
        expect(&manager, Outcome::Talked, &["198.51.100.6", "198.51.100.14", "2001:db8::1"])
    })
}

fn lists_of_addresses_macs_and_ports_admit_exactly_their_members() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--rules", &rules("03-lists-of-all-kinds")?])?;
        let members = [
            "192.0.2.7",
            "192.168.0.255",
            "10.1.255.254",
            "192.168.9.2",
            "192.168.9.125",
            "2001:db8:1::1",
            "2001:db8:2::5",
            "2001:db8:2::9",
        ];
        let others = [
            "192.0.2.8",
            "192.168.1.0",
            "10.2.0.1",
            "192.168.9.1",
            "192.168.9.126",
            "2001:db8:1:1::1",
            "2001:db8:2::4",
            "2001:db8:2::a",
        ];
        expect(&manager, Outcome::Silent, &members[..2])?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 0x0a]))?;
        expect(&manager, Outcome::Talked, &members)?;
        expect(&manager, Outcome::Silent, &others)?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 2]))?;
        expect(&manager, Outcome::Silent, &members[..2])?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 1]))?;
        expect(&manager, Outcome::Talked, &members[..2])
    })
}

fn a_negated_mac_address_is_the_only_one_kept_out() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        install(&["--rules", &rules("06-the-same-words-in-toml")?])?;
        expect(&manager, Outcome::Talked, &["192.0.2.15", "2001:db8:5::1"])?;
        expect(&manager, Outcome::Silent, &["192.0.2.16", "2001:db8:6::1"])?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 0x0b]))?;
        expect(&manager, Outcome::Silent, &["192.0.2.15", "2001:db8:5::1"])
    })
}

fn rules_beside_allow_from_admit_the_sources_of_both() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let (one, two) = (rules("05-the-union-of-several")?, rules("01-manager-and-others")?);
        let words = ["--rules", &one, "--rules", &two, "--allow-from", "203.0.113.7"];
        install(&words)?;
        let admitted = ["192.0.2.0", "192.0.2.3", "2001:db8::1", "34.205.5.31", "203.0.113.7"];
        expect(&manager, Outcome::Talked, &admitted)?;
        let others = ["192.0.2.4", "34.205.5.32", "203.0.113.8"];
        expect(&manager, Outcome::Silent, &others)?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 2]))?;
        expect(&manager, Outcome::Talked, &others)?;
        ensure!(agent_fw(["verify"])?.code == Some(0), "the kernel is not as the rules say");
        Ok(())
    })
}

fn rules_hold_on_a_port_that_a_list_contains_and_on_no_other() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(4122)?;
        let _other = Listener::bind(4118)?;
        manager.set_mac(MacAddr([2, 0x41, 0x18, 0, 0, 1]))?;
        let file = rules("03-lists-of-all-kinds")?;
        install(&["--port", "4122", "--rules", &file])?;
        for (source, port, outcome) in [
            ("192.0.2.7", 4122, Outcome::Talked),
            ("192.0.2.8", 4122, Outcome::Silent),
            // The rule's list has it, too, but the agent does not listen there.
            ("192.0.2.8", 4118, Outcome::Talked),
        ] {
            let seen = crate::scene::from(&manager, source, port)?;
            ensure!(seen == outcome, "from {source} to {port}: {seen}, should be {outcome}");
        }
        let refused = try_install(&["--port", "4121", "--rules", &file])?;
        ensure!(refused.code == Some(2), "{refused}");
        Ok(())
    })
}

fn rules_from_standard_input_are_there_at_the_next_boot() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let agent_fw = agent_fw_path();
        let command = [agent_fw.as_os_str(), "install".as_ref(), "--no-boot".as_ref()];
        let flags = ["--allow-wide", "--rules", "-"].map(AsRef::as_ref);
        let words = command.into_iter().chain(flags);
        feed(words, &fs::read_to_string(rules("02-not-a-range")?)?)?;
        agent_fw_lab::run(["nft", "flush", "ruleset"])?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])?;
        agent_fw_lab::agent_fw(["apply"])?.success()?;
        expect(&manager, Outcome::Silent, &["198.51.100.7", "198.51.100.13"])?;
        expect(&manager, Outcome::Talked, &["198.51.100.14", "2001:db8::1"])?;
        agent_fw_lab::agent_fw(["uninstall", "--yes"])?.success()?;
        ensure!(!Path::new("/etc/agent-fw/lists").exists(), "kept rules are left behind");
        Ok(())
    })
}

fn a_rule_file_that_stops_restricting_never_opens_the_port() -> Result<()> {
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        let file = "/run/rules.json";
        fs::copy(rules("01-manager-and-others")?, file)?;
        install(&["--rules", file])?;
        // A near miss, a source of any in so many words, and no rules at all.
        let text = fs::read_to_string(file)?;
        let near_miss = text.replace("\"ip\"", "\"ipv4\"");
        for (changed, code) in [(near_miss.as_str(), 2), ("[]", 2), ("{}", 2), ("", 2)] {
            fs::write(file, changed)?;
            let applied = agent_fw(["apply"])?;
            ensure!(applied.code == Some(code) || applied.code == Some(3), "{applied}");
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
            expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
            ensure!(try_install(&["--rules", file])?.code == Some(2));
            expect(&manager, Outcome::Silent, &["198.51.100.7"])?;
        }
        let any = text
            .replace("\"masked-ip\"", "\"any\"")
            .replace("\"sourceIPValue\": \"34.205.5.0\",", "")
            .replace("\"sourceIPMask\": \"255.255.255.224\",", "");
        fs::write(file, any)?;
        let asked = try_install(&["--rules", file])?;
        ensure!(asked.code == Some(2) && asked.stderr.contains("--allow-wide"), "{asked}");
        let refused = try_install(&["--rules", file, "--allow-wide"])?;
        let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(refused.code == Some(2) && said.contains("would open the port"), "{refused}");
        expect(&manager, Outcome::Silent, &["198.51.100.7"])
    })
}

fn unknown_fields_are_ignored_only_when_asked_for() -> Result<()> {
    Lab::run(|_| {
        let file = "/run/rules.json";
        let text = fs::read_to_string(rules("02-not-a-range")?)?;
        fs::write(file, text.replace("\"name\"", "\"newField\": 1,\n\"name\""))?;
        let refused = try_install(&["--rules", file])?;
        ensure!(refused.code == Some(2), "{refused}");
        ensure!(refused.stderr.contains("/run/rules.json:3: [0].newField: unknown"), "{refused}");
        try_install(&["--rules", file, "--lenient", "--allow-wide"])?.success()?;
        // What was asked for is kept for the next boot.
        agent_fw_lab::agent_fw(["apply"])?.success()?;
        Ok(())
    })
}

/// A rule file as the data that it is, and the form of schema that is about it.
fn data(path: &str) -> Result<(Value, &'static str)> {
    let text = fs::read_to_string(path)?;
    if path.ends_with("toml") {
        return Ok((toml::from_str(&text)?, "toml"));
    }
    Ok((serde_json::from_str(&text)?, "json"))
}

pub(crate) fn fits_schema(data: &Value, form: &str) -> Result<bool> {
    let schema = agent_fw(["rules", "schema", "--format", form])?.success()?;
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let at = "file:///schema.json";
    let added = compiler.add_resource(at, serde_json::from_str(&schema)?);
    added.map_err(|error| anyhow::anyhow!("{error}"))?;
    let index = compiler.compile(at, &mut schemas);
    let index = index.map_err(|error| anyhow::anyhow!("not a schema: {error}"))?;
    Ok(schemas.validate(data, index).is_ok())
}

fn what_can_be_read_fits_the_schema_and_what_it_does_not_know_fits_it_not() -> Result<()> {
    let (mut fitting, mut unfit) = (0, 0);
    for entry in fs::read_dir(cases())? {
        let case = entry?.file_name().to_string_lossy().into_owned();
        let path = rules(&case)?;
        // Its JSON reader takes the last of two fields of one name.
        if case.contains("stands-twice") {
            continue;
        }
        let is_read = agent_fw(["rules", "check", &path])?.code != Some(2);
        let (mut data, form) = data(&path)?;
        ensure!(fits_schema(&data, form)? == is_read, "{case}: is read: {is_read}");
        if !is_read {
            unfit += 1;
            continue;
        }
        fitting += 1;
        let list = if data.is_array() { &mut data } else { &mut data["firewallRules"] };
        list[0]["sourceIPTypo"] = "any".into();
        ensure!(!fits_schema(&data, form)?, "{case}: with an unknown field");
    }
    ensure!(fitting >= 7 && unfit >= 2, "{fitting} fit, {unfit} do not");
    Ok(())
}
