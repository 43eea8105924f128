//! `cargo xtask build`, the kernel's half: the BPF objects, built with what the machine offers.
//!
//! Two roads lead there. The usual one is rustup's nightly with its `rust-src`, which compiles
//! `core` for BPF. The other is Debian's `rustc-web` with `libstd-rust-web-dev-bpf`, which brings
//! `core` compiled. Where neither is there, the second one's packages are installed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "agent-fw-ebpf";
const LINKER_VERSION: &str = "0.13.0";
/// The versions of LLVM that it can be built with.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Frames hold integers at odd places; the architectures that agent-fw runs on read them so.
const CPU_FEATURES: &str = "+allows-misaligned-mem-access";
/// Code stays in the order in which the source has it. LLVM moves what it holds for likely, but cannot
/// turn BPF's conditions round, so that each move costs the frames that are most frequent a jump.
const CODE_ORDER: &str = "-disable-block-placement";
/// The instructions that every kernel from 5.1 knows.
const CPU: &str = "v3";

/// The program that is shipped, and the one that measures it.
const PRODUCT: Binary = Binary { name: "agent-fw-object", file: "agent-fw.o" };
const BENCH: Binary = Binary { name: "agent-fw-bench-object", file: "agent-fw-bench.o" };

/// Debian's packages for the second road.
const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// What bpf-linker links to, besides LLVM.
const LINKER_LIBRARIES: [&str; 2] = ["libzstd-dev", "zlib1g-dev"];

struct Binary {
    name: &'static str,
    file: &'static str,
}

/// The objects that were built.
#[derive(Debug)]
pub(crate) struct Object {
    /// The program that is shipped.
    pub(crate) path: PathBuf,
    /// The one that measures it.
    pub(crate) bench: PathBuf,
    /// How they were built.
    pub(crate) road: Road,
}

/// How a BPF object can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// rustup's nightly compiles `core` from `rust-src`.
    Nightly,
    /// Debian's rustc, with `core` compiled.
    Debian,
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly and its rust-src",
            Self::Debian => "Debian's rustc-web and libstd-rust-web-dev-bpf",
        })
    }
}

/// Builds the objects into `target/bpf`, and installs what that takes.
pub(crate) fn build(workspace: &Path) -> Result<Object> {
    let toolchain = Toolchain::find_or_install()?;
    eprintln!("xtask: building the BPF objects with {}", toolchain.road);
    // A directory of its own, so that this build does not wait for the one that runs this task.
    build_into(workspace, &toolchain, &workspace.join("target/ebpf"), &workspace.join("target/bpf"))
}

/// Builds in one directory, and puts the objects into another.
fn build_into(
    workspace: &Path,
    toolchain: &Toolchain,
    target: &Path,
    place: &Path,
) -> Result<Object> {
    let linker = linker(crate::process::workspace(), toolchain)?;
    compile(workspace, toolchain, &linker, target)?;
    Ok(Object {
        path: deliver(target, toolchain, &PRODUCT, place)?,
        bench: deliver(target, toolchain, &BENCH, place)?,
        road: toolchain.road,
    })
}

/// A compiler that can build for BPF.
struct Toolchain {
    road: Road,
    /// The version of its LLVM, which bpf-linker's must match.
    llvm: u32,
}

impl Toolchain {
    fn find_or_install() -> Result<Self> {
        for road in [Road::Nightly, Road::Debian].into_iter().filter(|road| road.is_open()) {
            let toolchain = Self::on(road)?;
            if toolchain.is_linkable() {
                return Ok(toolchain);
            }
            let llvm = toolchain.llvm;
            eprintln!("xtask: not with {road}: bpf-linker would need llvm-{llvm}-dev for it");
        }
        ensure!(
            Path::new("/usr/bin/apt-get").is_file(),
            "no Rust compiler here can build for BPF; install one with \
             `rustup toolchain install nightly --component rust-src`"
        );
        install_packages(&DEBIAN_RUST.map(OsString::from), "to build for BPF")?;
        ensure!(Road::Debian.is_open(), "{DEBIAN_RUSTC} still cannot build for BPF");
        Self::on(Road::Debian)
    }

    fn on(road: Road) -> Result<Self> {
        let version = output(road.rustc().arg("-vV"))?;
        let llvm = llvm_version(&version).context("rustc does not tell its LLVM's version")?;
        Ok(Self { road, llvm })
    }

    /// Whether bpf-linker knows this LLVM, and its headers are here or can be installed.
    fn is_linkable(&self) -> bool {
        let package = format!("llvm-{}-dev", self.llvm);
        LINKER_LLVM.contains(&self.llvm)
            && (self.llvm_prefix().join("include/llvm-c").exists()
                || output(Command::new("apt-cache").args(["show", &package])).is_ok())
    }

    fn llvm_prefix(&self) -> PathBuf {
        PathBuf::from(format!("/usr/lib/llvm-{}", self.llvm))
    }
}

/// The major version of LLVM, in what `rustc -vV` prints.
fn llvm_version(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

impl Road {
    /// Whether the compiler is there, and `core` for BPF with it.
    fn is_open(self) -> bool {
        let Ok(sysroot) = self.sysroot() else { return false };
        let core = match self {
            Self::Nightly => "lib/rustlib/src/rust/library/core/Cargo.toml".into(),
            Self::Debian => format!("lib/rustlib/{TARGET}/lib"),
        };
        sysroot.join(core).exists()
    }

    /// Where the compiler and its libraries are.
    fn sysroot(self) -> Result<PathBuf> {
        Ok(output(self.rustc().args(["--print", "sysroot"]))?.trim().into())
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => rustup_run("rustc"),
            Self::Debian => Command::new(DEBIAN_RUSTC),
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::Nightly => {
                let mut cargo = rustup_run("cargo");
                cargo.args(["-Z", "build-std=core"]);
                cargo
            }
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                // aya-ebpf asks for an unstable feature; this compiler is a stable one.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }
}

fn rustup_run(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]);
    command
}

/// bpf-linker, built once and kept below `target`.
fn linker(workspace: &Path, toolchain: &Toolchain) -> Result<PathBuf> {
    let tools = workspace.join("target/tools");
    let root = tools.join(format!("bpf-linker-{LINKER_VERSION}-llvm-{}", toolchain.llvm));
    let linker = root.join("bin/bpf-linker");
    if linker.is_file() {
        return Ok(linker);
    }
    install_llvm(toolchain)?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", &format!("llvm-{}", toolchain.llvm)])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(tools.join("build"))
        .env("LLVM_PREFIX", toolchain.llvm_prefix());
    eprintln!("xtask: building bpf-linker {LINKER_VERSION}, once: about a minute");
    run(&mut cargo)?;
    Ok(linker)
}

fn install_llvm(toolchain: &Toolchain) -> Result<()> {
    let prefix = toolchain.llvm_prefix();
    if prefix.join("include/llvm-c").exists() {
        return Ok(());
    }
    ensure!(
        Path::new("/usr/bin/apt-get").is_file(),
        "bpf-linker needs LLVM {} with its headers in {}",
        toolchain.llvm,
        prefix.display()
    );
    let mut packages = vec![OsString::from(format!("llvm-{}-dev", toolchain.llvm))];
    packages.extend(LINKER_LIBRARIES.map(OsString::from));
    install_packages(&packages, "to link for BPF")
}

fn install_packages(packages: &[OsString], purpose: &str) -> Result<()> {
    let names: Vec<_> = packages.iter().map(|name| name.to_string_lossy()).collect();
    eprintln!("xtask: installing {} {purpose}", names.join(", "));
    run(apt_get()?.arg("update").arg("--quiet=2"))?;
    let mut install = apt_get()?;
    install.args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(packages);
    run(&mut install)
}

/// `apt-get`, as root.
fn apt_get() -> Result<Command> {
    let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut apt_get = if is_root {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--", "apt-get"]);
        sudo
    };
    apt_get.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(apt_get)
}

fn compile(workspace: &Path, toolchain: &Toolchain, linker: &Path, target: &Path) -> Result<()> {
    let mut cargo = toolchain.road.cargo();
    cargo
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "--package", PACKAGE, "--bins"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(target);
    // What the cargo that runs this task has set is meant for the host.
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    // The workspace's profile is the host's: a program in the kernel cannot panic.
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(workspace, toolchain, linker)?)
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    run(&mut cargo)
}

/// Compiler flags, in the form in which paths with spaces survive.
fn rust_flags(workspace: &Path, toolchain: &Toolchain, linker: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> = [
        format!("-Ctarget-cpu={CPU}"),
        format!("-Clink-arg=--cpu-features={CPU_FEATURES}"),
        "-Clink-arg=--btf".into(),
        format!("-Clink-arg=--llvm-args={CODE_ORDER}"),
    ]
    .map(OsString::from)
    .into();
    flags.push(flag("-Clinker=", linker, ""));
    // The object's BTF names source files: not by where they lie on this machine.
    flags.push(flag("--remap-path-prefix=", &toolchain.road.sysroot()?, "=rust"));
    flags.push(flag("--remap-path-prefix=", &cargo_home()?, "=cargo"));
    flags.push(flag("--remap-path-prefix=", workspace, "=agent-fw"));
    Ok(flags.join(OsStr::new("\x1f")))
}

fn flag(name: &str, path: &Path, value: &str) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag.push(value);
    flag
}

/// Where cargo keeps the sources of crates.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

/// Puts an object, without the debug information that no kernel reads, where it is looked for. One
/// that has not changed stays as it is: agent-fw is built anew whenever it is newer.
fn deliver(target: &Path, toolchain: &Toolchain, binary: &Binary, place: &Path) -> Result<PathBuf> {
    let built = target.join(TARGET).join("release").join(binary.name);
    fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    let object = place.join(binary.file);
    let incoming = object.with_extension("new");
    let strip = toolchain.llvm_prefix().join("bin/llvm-strip");
    if strip.is_file() {
        run(Command::new(strip).arg("--strip-debug").arg("-o").arg(&incoming).arg(&built))?;
    } else {
        fs::copy(&built, &incoming).with_context(|| {
            format!("cannot copy {} to {}", built.display(), incoming.display())
        })?;
    }
    let is_known = fs::read(&object).is_ok_and(|old| fs::read(&incoming).is_ok_and(|n| n == old));
    let placed = if is_known { fs::remove_file(&incoming) } else { fs::rename(&incoming, &object) };
    placed.with_context(|| format!("cannot place {}", object.display()))?;
    Ok(object)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({})", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use super::{PACKAGE, Road, TARGET, Toolchain, build_into, cargo_home, llvm_version, run};
    use crate::process::workspace;

    #[test]
    fn the_version_of_llvm_is_read() {
        let said = "rustc 1.97.0-nightly (0123456 2026-05-01)\nrelease: 1.97.0-nightly\n\
                    LLVM version: 22.1.2\n";
        assert_eq!(llvm_version(said), Some(22));
        assert_eq!(llvm_version("rustc 1.97.0-nightly"), None);
    }

    #[test]
    fn nightly_compiles_core_and_debian_has_it_compiled() {
        let words = |road: Road| {
            let cargo = road.cargo();
            let program = cargo.get_program().to_string_lossy().into_owned();
            let args = cargo.get_args().map(|arg| arg.to_string_lossy().into_owned());
            std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words(Road::Nightly), "rustup run nightly cargo -Z build-std=core");
        assert_eq!(words(Road::Debian), "/usr/bin/cargo");
    }

    /// Where sources lie on this machine, and perhaps on no other.
    fn places(toolchain: &Toolchain) -> Vec<PathBuf> {
        let mut places = vec![workspace().to_owned(), cargo_home().expect("cargo has a home")];
        if toolchain.road == Road::Nightly {
            places.push(toolchain.road.sysroot().expect("rustc has one"));
        }
        places
    }

    #[test]
    fn a_second_build_gives_the_same_bytes_which_name_no_place_of_this_machine() {
        let (first, again) =
            (workspace().join("target/ebpf"), workspace().join("target/ebpf-again"));
        let toolchain = Toolchain::find_or_install().expect("`cargo xtask build` has found one");
        // What it depends on is not built again, which would take a minute.
        let _ = fs::remove_dir_all(&again);
        run(Command::new("cp").arg("--archive").arg(first).arg(&again)).expect("it was built");
        let mut clean = toolchain.road.cargo();
        clean.current_dir(workspace()).args(["clean", "--release", "--package", PACKAGE]);
        clean.args(["--target", TARGET, "--target-dir"]).arg(&again);
        run(&mut clean).expect("there is something to clean");
        let second = build_into(workspace(), &toolchain, &again, &again).expect("it is built");
        for object in [second.path, second.bench] {
            let name = object.file_name().expect("a file has a name");
            let first = fs::read(workspace().join("target/bpf").join(name));
            let first = first.expect("`cargo xtask build` has built it");
            let bytes = fs::read(&object).expect("it was just built");
            let same = first == bytes;
            for place in places(&toolchain) {
                let place = place.to_str().expect("a path in UTF-8").as_bytes();
                let is_named = bytes.windows(place.len()).any(|text| text == place);
                assert!(!is_named, "{name:?} names {}", place.escape_ascii());
            }
            assert!(same, "{name:?} differs; if sources changed, `cargo xtask build` goes first");
        }
        let _ = fs::remove_dir_all(&again);
    }
}
