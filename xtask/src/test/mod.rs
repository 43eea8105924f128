//! `cargo xtask test`: every test, on this kernel and on stock ones, and one count of them all.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;

use agent_fw_lab::vm::{Accelerator, Kernel};
use agent_fw_lab::{PACKAGES, WHOLE};
use anyhow::{Context, Result, anyhow};

use crate::process::{cargo, find, is_root};
use crate::setup::{self, Group};
use crate::vm::{self, Suite, UserModeSuite, Workshop};
use crate::{dist, product};

mod count;
mod full_run;

use count::{Count, Failures};

/// The packages whose tests need root: they build network namespaces and load BPF programs.
const ROOTS: [&str; 2] = [LAB, "agent-fw-ebpf"];
/// The laboratory.
const LAB: &str = "agent-fw-lab";
/// Without it, the tests that load the object are left out.
const LOADER: &str = "agent-fw-ebpf/aya";

/// How many random cases are tried where everything is asked for.
const LONG: [(&str, &str); 4] = [
    ("AGENT_FW_PAIRS", "100000"),
    ("AGENT_FW_PACKETS", "1000000"),
    ("AGENT_FW_MUTATIONS", "500"),
    ("AGENT_FW_RULESETS", "300"),
];

/// Where tests run, and which.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Everything that may depend on the kernel on each of the stock kernels, the long runs of
    /// random cases, and ten power cuts: some hours. Without it, a stock kernel runs what only
    /// another kernel can show
    #[arg(long, conflicts_with = "filter")]
    all: bool,
    /// Only the tests whose names contain this
    #[arg(long, value_name = "WORD")]
    filter: Option<String>,
    /// Only on this kernel; repeatable. Without it, all tests on this machine's, and those that
    /// depend on the kernel on each of the others
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<Where>,
    /// Keep the disks of virtual machines, for a look inside
    #[arg(long)]
    keep: bool,
}

/// A kernel that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    /// This machine's
    Host,
    /// Debian 12's, in a virtual machine
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, in a virtual machine
    #[value(name = "6.12")]
    V6_12,
    /// One with VRF, MPLS, IPVS and more, in user mode: an ordinary program. Without --kernel, it
    /// runs the tests that this machine's own kernel may lack something for
    #[value(name = "user-mode", alias = "uml")]
    UserMode,
}

impl Options {
    fn includes(&self, place: Where) -> bool {
        self.kernel.is_empty() || self.kernel.contains(&place)
    }

    /// Whether a stock kernel runs all that may depend on it: what is named is wanted whole.
    fn is_whole(&self) -> bool {
        self.all || self.filter.is_some() || !self.kernel.is_empty()
    }

    fn kernels(&self) -> Vec<Kernel> {
        let known = [(Where::V6_1, Kernel::V6_1), (Where::V6_12, Kernel::V6_12)];
        let wanted = known.into_iter().filter(|(place, _)| self.includes(*place));
        wanted.map(|(_, kernel)| kernel).collect()
    }
}

/// Runs all tests, or those that the options choose. Fails if one failed and, where CI is `true`,
/// if one was skipped.
pub(crate) fn test(options: &Options) -> Result<ExitCode> {
    setup::ensure(&[Group::Test])?;
    let binary = product::build()?;
    let mut count = Count::default();
    let kernels = options.kernels();
    let needs_packages = options.includes(Where::Host) || !kernels.is_empty();
    let packages = if needs_packages { packages(&binary, &mut count)? } else { None };
    let mut succeeded = true;
    if options.includes(Where::Host) {
        succeeded &= on_this_kernel(options, &binary, packages.as_deref(), &mut count)?;
    }
    if options.includes(Where::UserMode) {
        match vm::missing() {
            Some(reason) => count.skip(format!("all tests on a kernel in user mode: {reason}")),
            None => succeeded &= in_user_mode(options, &binary, &mut count)?,
        }
    }
    if let Some(reason) = vm::missing() {
        for kernel in kernels {
            count.skip(format!("all tests on kernel {kernel}: {reason}"));
        }
    } else if let Some(packages) = packages.filter(|_| !kernels.is_empty()) {
        succeeded &= in_machines(options, &kernels, &binary, &packages, &mut count)?;
    }
    if succeeded && count.failed == 0 && options.all && options.kernel.is_empty() {
        full_run::record(&count)?;
    }
    Ok(conclude(&count, succeeded))
}

fn on_this_kernel(
    options: &Options,
    binary: &Path,
    packages: Option<&Path>,
    count: &mut Count,
) -> Result<bool> {
    let filter = options.filter.as_deref();
    if is_root() {
        let mut all = cargo_test(&["--workspace", "--features", LOADER], filter);
        all.envs(options.all.then_some(LONG).into_iter().flatten());
        return run_tests(all.envs(packages.map(|place| (PACKAGES, place))), count);
    }
    let [lab, ebpf] = ROOTS;
    let mut others = cargo_test(&["--workspace", "--exclude", lab, "--exclude", ebpf], filter);
    let mut succeeded = run_tests(&mut others, count)?;
    if find("sudo").is_some() {
        eprintln!("xtask: the tests of {lab} and {ebpf} need root: using sudo for them");
        let packages = packages.map(|place| format!("{PACKAGES}={}", place.display()));
        let settings = [Some(format!("AGENT_FW={}", binary.display())), packages];
        let settings: Vec<String> =
            settings.into_iter().flatten().map(|setting| format!("'{setting}'")).collect();
        let settings = settings.join(", ");
        let runner = format!("target.'cfg(unix)'.runner=['sudo', 'env', {settings}]");
        let selection = ["--config", &runner, "--package", lab, "--package", ebpf];
        let mut rooted = cargo_test(&[&selection[..], &["--features", LOADER]].concat(), filter);
        succeeded &= run_tests(&mut rooted, count)?;
    } else {
        for package in ROOTS {
            count.skip(format!("all tests of {package}: they need root, and there is no sudo"));
        }
    }
    Ok(succeeded)
}

/// The packages to be tested, with the program as it is shipped; `None` where they cannot be.
fn packages(binary: &Path, count: &mut Count) -> Result<Option<PathBuf>> {
    if let Some(reason) = dist::untestable() {
        count.skip(format!("all tests of packages: {reason}"));
        return Ok(None);
    }
    dist::for_tests(&product::package_files_beside(binary, LOADER)?).map(Some)
}

fn in_user_mode(options: &Options, binary: &Path, count: &mut Count) -> Result<bool> {
    println!("\nxtask: what kernels often lack (VRF, MPLS, IPVS), on a kernel in user mode");
    let all = options.kernel.contains(&Where::UserMode);
    let suite = UserModeSuite::build(binary, options.filter.as_deref(), all)?;
    let mut failures = Failures::default();
    suite.run(|line| {
        println!("user mode: {line}");
        count.read(line, &mut failures);
    })
}

fn in_machines(
    options: &Options,
    kernels: &[Kernel],
    binary: &Path,
    packages: &Path,
    count: &mut Count,
) -> Result<bool> {
    let workshop = Workshop::ensure()?;
    let accelerator = Accelerator::of_this_machine();
    println!(
        "\nxtask: boots, reboots and crashes of a Debian in virtual machines, by {accelerator}"
    );
    // Built as for this machine's tests, so that nothing is built twice.
    let selection = ["--workspace", "--features", LOADER, "--test", "boot"];
    let mut boots = cargo_test(&selection, options.filter.as_deref());
    let versions: Vec<&str> = kernels.iter().map(|kernel| kernel.version()).collect();
    boots.envs(workshop.environment()).env("AGENT_FW_KERNELS", versions.join(","));
    boots.env(PACKAGES, packages).envs(options.all.then_some((WHOLE, "1")));
    let mut succeeded = run_tests(&mut boots, count)?;
    println!("\nxtask: what depends on the kernel, on those of Debian's, in virtual machines");
    let suite = Suite::build(&workshop, binary, options.filter.as_deref(), options.is_whole())?;
    let suite = suite.keep(options.keep);
    let (said, lines) = mpsc::channel();
    // A machine has one processor.
    thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .iter()
            .map(|&kernel| {
                let (said, suite) = (said.clone(), &suite);
                let say = move |line: &str| drop(said.send((kernel, line.to_owned())));
                scope.spawn(move || suite.run(kernel, say))
            })
            .collect();
        drop(said);
        let mut failures = Kernel::ALL.map(|kernel| (kernel, Failures::default()));
        for (kernel, line) in lines {
            println!("{kernel}: {line}");
            if let Some((_, failures)) = failures.iter_mut().find(|(of, _)| *of == kernel) {
                count.read(&line, failures);
            }
        }
        for machine in machines {
            let ended = machine.join().map_err(|_| anyhow!("what watches a machine panicked"));
            succeeded &= ended??;
        }
        Ok(succeeded)
    })
}

fn conclude(count: &Count, succeeded: bool) -> ExitCode {
    let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
    println!();
    for reason in &count.reasons {
        println!("skipped: {reason}");
    }
    if strict && count.skipped > 0 {
        println!("CI=true: what is skipped counts as failed");
    }
    // Once more, where whoever looks at the end of a long output finds it.
    for line in &count.failures {
        println!("{line}");
    }
    if !succeeded && count.failed == 0 {
        println!("something else than a test failed: see above");
    }
    println!("{}", full_run::last());
    println!("{count}");
    let good = succeeded && count.failed == 0 && !(strict && count.skipped > 0);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cargo_test(selection: &[&str], filter: Option<&str>) -> Command {
    let mut command = cargo();
    // All binaries, whatever fails before them: the count is to be whole.
    command.args(["test", "--release", "--no-fail-fast"]).args(selection);
    command.arg("--").args(filter);
    command
}

/// Runs `cargo test`, shows what it says and adds up its results. Tells whether it succeeded.
fn run_tests(command: &mut Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo's output is not connected")?;
    let mut screen = std::io::stdout();
    let mut failures = Failures::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo says")?;
        screen.write_all(&line).and_then(|()| screen.write_all(b"\n")).context("cannot print")?;
        count.read(&String::from_utf8_lossy(&line), &mut failures);
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}
