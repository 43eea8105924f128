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

/// The rule file of a case.
pub(crate) fn rules(case: &str) -> Result<String> {
    let path = cases().join(case).join("rules.json");
    ensure!(path.exists(), "no case {case}");
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
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
    let version = concat!("agent-fw ", env!("CARGO_PKG_VERSION"));
    Ok(format!("{stdout}{stderr}exit code {code}\n").replace(version, "agent-fw VERSION"))
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
    ensure!(names.len() >= 11, "only {} cases", names.len());
    Ok(())
}
