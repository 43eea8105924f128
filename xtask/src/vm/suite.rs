//! The end-to-end tests and those of the XDP program, on a stock kernel in a virtual machine, and on
//! a kernel in user mode.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent_fw_lab::vm::{Accelerator, Console, Image, Kernel, Machine, PAYLOAD, Parts, Payload};
use agent_fw_lab::{EMULATED, RARE, WHOLE};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{UserMode, Workshop, directory};
use crate::process::{cargo, workspace};

/// A boot takes seconds; a machine that hangs is tried once more.
const BOOT: Duration = Duration::from_mins(2);
/// The tests take minutes under emulation.
const TESTS: Duration = Duration::from_mins(45);

/// The test binaries that run there, by the names of their targets.
const BINARIES: [&str; 2] = ["end_to_end", "kernel"];
/// What tests read, below `tests/`. They know its path of when they were built.
const DATA: [&str; 2] = ["end_to_end/firewall_policies", "end_to_end/rule_files"];
/// Random cases are about the compiler, not the kernel: a sample will do, where each takes ten
/// times as long.
const SETTINGS: [&str; 2] = ["AGENT_FW_PACKETS=20000", "AGENT_FW_FRAMES=10000"];
/// The console is a file as much as a screen.
const ARGUMENTS: [&str; 1] = ["--color=never"];

/// The tests, built, and what machines need to run them.
pub(crate) struct Suite {
    parts: Parts,
    payload: Payload,
    keep: bool,
}

impl Suite {
    /// The tests whose names contain `filter`: of those that may depend on the kernel, the `whole`,
    /// or what only another kernel shows.
    pub(crate) fn build(
        workshop: &Workshop,
        agent_fw: &Path,
        filter: Option<&str>,
        whole: bool,
    ) -> Result<Self> {
        let [(_, qemu), (_, debian), (_, logs)] = workshop.environment();
        let parts = Parts::new(qemu, debian, logs)?;
        Ok(Self { parts, payload: payload(agent_fw, filter, whole)?, keep: false })
    }

    /// The machines' disks are kept, if so.
    pub(crate) fn keep(self, keep: bool) -> Self {
        Self { keep, ..self }
    }

    /// Runs the tests on this kernel. Each line that they print goes to `line`. Tells whether all
    /// is well.
    pub(crate) fn run(&self, kernel: Kernel, mut line: impl FnMut(&str)) -> Result<bool> {
        let name = format!("suite-{kernel}");
        let mut image = Image::make(&self.parts, &name, &self.payload)?;
        let mut result = attempt(&self.parts, kernel, &image, &name, &mut line);
        if let Ok(None) = result {
            eprintln!("xtask: the machine did not boot; once more");
            result = attempt(&self.parts, kernel, &image, &name, &mut line);
        }
        if self.keep {
            eprintln!("xtask: kept the disk: {}", image.keep().display());
        }
        match result? {
            Some(good) => Ok(good),
            None => bail!("the machine {name} did not boot; its console is in target/vm/logs"),
        }
    }
}

/// The tests on the kernel in user mode. They run from where they were built.
pub(crate) struct UserModeSuite {
    kernel: UserMode,
    guest: PathBuf,
    payload: PathBuf,
}

impl UserModeSuite {
    /// The tests whose names contain `filter`; unless all are wanted, of those the ones that need
    /// what a machine's own kernel often lacks.
    pub(crate) fn build(agent_fw: &Path, filter: Option<&str>, all: bool) -> Result<Self> {
        let (kernel, built) = (UserMode::ensure()?, build()?);
        let find = |name: &str| built.get(name).with_context(|| format!("cargo built no {name}"));
        let payload = directory().canonicalize()?.join("payload");
        if payload.exists() {
            fs::remove_dir_all(&payload)?;
        }
        fs::create_dir_all(payload.join("tests"))?;
        for name in BINARIES.into_iter().filter(|name| all || *name == BINARIES[0]) {
            symlink(find(name)?, payload.join("tests").join(name))?;
        }
        let object = workspace().join("target/bpf/agent-fw.o");
        let mut environment = vec![
            format!("AGENT_FW={}", agent_fw.display()),
            format!("AGENT_FW_OBJECT={}", object.display()),
        ];
        if !all {
            environment.push(format!("{RARE}=1"));
        }
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain(filter).collect();
        fs::write(payload.join("arguments"), arguments.join("\n"))?;
        fs::write(payload.join("environment"), environment.join("\n"))?;
        Ok(Self { kernel, guest: find("guest")?.clone(), payload })
    }

    /// Runs the tests. Each line that they print goes to `line`. Tells whether all is well.
    pub(crate) fn run(&self, mut line: impl FnMut(&str)) -> Result<bool> {
        let payload = self.payload.to_string_lossy();
        let mut console =
            self.kernel.start("suite-user-mode", &self.guest, &["suite", &payload])?;
        follow(&mut console, &mut line)
    }
}

/// Runs the machine once. `None`: it did not come as far as the first test.
fn attempt(
    parts: &Parts,
    kernel: Kernel,
    image: &Image,
    name: &str,
    line: &mut impl FnMut(&str),
) -> Result<Option<bool>> {
    let init = [&format!("{PAYLOAD}/guest"), "suite"];
    let machine = Machine::new(parts, kernel, image, name).throwaway().init(init);
    let mut console = machine.start()?;
    if console.wait_for("guest: start", BOOT).is_err() {
        return Ok(None);
    }
    follow(&mut console, line).map(Some)
}

/// Hands on what the tests print, until the machine ends. Tells whether all is well.
fn follow(console: &mut Console, line: &mut impl FnMut(&str)) -> Result<bool> {
    let (deadline, mut good) = (Instant::now() + TESTS, true);
    while let Some(said) = console.line(deadline)? {
        match said.strip_prefix("guest: ") {
            Some("end") => return Ok(good),
            Some(trouble) => {
                println!("guest: {trouble}");
                good = false;
            }
            None => line(&said),
        }
    }
    bail!("the machine ended in the middle of the tests; see {}", console.log().display())
}

fn payload(agent_fw: &Path, filter: Option<&str>, whole: bool) -> Result<Payload> {
    let built = build()?;
    let find = |name: &str| built.get(name).with_context(|| format!("cargo built no {name}"));
    let arguments: Vec<&str> = ARGUMENTS.into_iter().chain(filter).collect();
    let mut payload = Payload::default()
        .copy(format!("{PAYLOAD}/guest"), find("guest")?)
        .copy(format!("{PAYLOAD}/agent-fw"), agent_fw)
        .copy(format!("{PAYLOAD}/agent-fw.o"), &workspace().join("target/bpf/agent-fw.o"))
        .text(format!("{PAYLOAD}/arguments"), arguments.join("\n"));
    for name in BINARIES {
        payload = payload.copy(format!("{PAYLOAD}/tests/{name}"), find(name)?);
    }
    for directory in DATA {
        payload = payload.tree(&workspace().join("tests").join(directory))?;
    }
    let mut environment = SETTINGS.map(str::to_owned).to_vec();
    if Accelerator::of_this_machine() == Accelerator::Tcg {
        environment.push(format!("{EMULATED}=1"));
    }
    if whole {
        environment.push(format!("{WHOLE}=1"));
    }
    environment.push(format!("AGENT_FW={PAYLOAD}/agent-fw"));
    environment.push(format!("AGENT_FW_OBJECT={PAYLOAD}/agent-fw.o"));
    Ok(payload.text(format!("{PAYLOAD}/environment"), environment.join("\n")))
}

/// Builds the tests and what runs them inside; where they are, by the names of their targets.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo();
    command.args([
        "test",
        "--release",
        "--no-run",
        "--workspace",
        "--features",
        "agent-fw-ebpf/aya",
    ]);
    command.args(["--bins", "--tests", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let text = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
    Ok(text.lines().filter_map(executable).collect())
}

/// The target's name and its executable, of a message of cargo's about one. A program's own tests
/// are not the program.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"][0] == "test";
    if !is_test && message["profile"]["test"] == true {
        return None;
    }
    Some((target["name"].as_str()?.to_owned(), message["executable"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn a_programs_own_tests_are_not_taken_for_it() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"target":{{"name":"guest","kind":["{kind}"]}},"profile":{{"test":{test}}},"executable":"/guest"}}"#
            )
        };
        assert!(executable(&message("bin", false)).is_some());
        assert!(executable(&message("bin", true)).is_none());
        assert!(executable(&message("test", true)).is_some());
        assert!(executable("{}").is_none());
    }
}
