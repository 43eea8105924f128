//! What is compiled from whole policies, after the vendor's examples of firewall rules.

use crate::tests;
use agent_fw_lab::{Finished, agent_fw_path};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

tests![each_firewall_policy_is_compiled_as_its_golden_file_says];

/// A directory for each case: its rules, and what is made of them.
fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("end_to_end/firewall_policies")
}

/// Rule files, by their cases: a machine that tests run in has no sources.
macro_rules! embed {
    ($($case:literal),* $(,)?) => {
        const RULES: &[(&str, &str)] = &[$((
            $case,
            include_str!(concat!("../firewall_policies/", $case, "/rules.json")),
        )),*];
    };
}

embed![
    "01-allow-list-of-a-web-server",
    "02-force-allow-and-deny",
    "03-bypass-without-its-outgoing-twin",
    "04-bypass-with-its-outgoing-twin",
    "05-prohibit-one-thing",
    "06-allow-arp-and-watch",
    "07-rules-that-never-decide",
    "08-refused-schedule",
    "09-refused-mac-of-outgoing",
    "10-refused-priority-of-allow",
    "11-refused-ports-without-a-protocol",
    "12-documented-deny-above-force-allow",
    "13-documented-priority-before-action",
    "14-documented-bypass-in-pairs",
    "15-shadowed-by-several",
    "16-narrowed-443",
];

/// The rule file of a case, as it is in the lab of the calling thread.
pub(crate) fn rules(case: &str) -> Result<String> {
    let known = RULES.iter().find(|(name, _)| *name == case);
    let (_, text) = known.with_context(|| format!("no case {case}"))?;
    let path = format!("/run/{case}.json");
    fs::write(&path, text)?;
    Ok(path)
}

/// The names of all cases, in order.
pub(super) fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(cases())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn compile(case: &str) -> Result<String> {
    let program = agent_fw_path();
    let directory = cases().join(case);
    let words = ["compile", "--rules", "rules.json", "--policy"];
    let mut argv = vec!["env".into(), "-C".into(), directory.into_os_string()];
    argv.push(program.into_os_string());
    argv.extend(words.map(Into::into));
    let Finished { stdout, stderr, code, .. } = agent_fw_lab::output(argv)?;
    let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!("{stdout}{stderr}exit code {code}\n").replace(version, "VERSION"))
}

/// `AGENT_FW_GOLDEN=write` writes the golden files anew; the difference is then for review.
fn each_firewall_policy_is_compiled_as_its_golden_file_says() -> Result<()> {
    let writes = std::env::var_os("AGENT_FW_GOLDEN").is_some_and(|value| value == "write");
    let names = names()?;
    for case in &names {
        let found = compile(case)?;
        let golden = cases().join(case).join("compile.txt");
        if writes {
            fs::write(&golden, &found)?;
        }
        let expected = fs::read_to_string(&golden)
            .with_context(|| format!("cannot read {}", golden.display()))?;
        ensure!(found == expected, "{}: now\n{found}", golden.display());
    }
    let embedded: Vec<&str> = RULES.iter().map(|(case, _)| *case).collect();
    ensure!(names == embedded, "not every case is in the list of this file");
    Ok(())
}
