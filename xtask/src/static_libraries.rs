//! libnftnl and libmnl as archives, which a static program is linked with: Debian's own, of the first
//! release that has them for both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::apt::Suite;
use crate::architecture::Architecture;
use crate::cache::cached;
use crate::process::{find, output, run, workspace};
use crate::setup::{self, Group};

/// Debian 13. Debian 12's libmnl-dev has no archive.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 2] = ["libnftnl-dev", "libmnl-dev"];
/// What glibc has and musl has not, and those libraries call.
const FORTIFY: &str = include_str!("fortify.c");
/// Where their versions are written, a line a package.
const VERSIONS: &str = "versions";

/// The libraries for an architecture.
pub(crate) struct StaticLibraries {
    architecture: Architecture,
    directory: PathBuf,
}

impl StaticLibraries {
    /// Fetches them where they are not there yet, and what compiles and links with them.
    pub(crate) fn ensure(architecture: Architecture) -> Result<Self> {
        setup::ensure(&[match architecture {
            _ if Architecture::of_this_machine() == Some(architecture) => Group::Static,
            Architecture::Aarch64 => Group::StaticAarch64,
            Architecture::X86_64 => Group::StaticX86_64,
        }])?;
        ensure_target(architecture)?;
        let all = workspace().join("target/static-libraries");
        fs::create_dir_all(&all).context("cannot make the directory for libraries")?;
        let recipe = (SUITE, PACKAGES, FORTIFY, architecture);
        let directory = cached(&all, architecture.name(), &recipe, |place| {
            eprintln!("xtask: fetching {} of Debian {SUITE}", PACKAGES.join(" and "));
            let apt = place.join("apt");
            let suite = Suite::of_architecture(apt, SUITE, Some(architecture.debian()))?;
            let version = |package| Ok(format!("{package} {}\n", suite.unpack(package)?));
            let versions = PACKAGES.into_iter().map(version).collect::<Result<String>>()?;
            fs::write(place.join(VERSIONS), versions)?;
            let found = format!("usr/lib/{}-linux-gnu", architecture.name());
            merge(architecture, &suite.root().join(found), place)?;
            suite.remove()
        })?;
        Ok(Self { architecture, directory })
    }

    /// Has cargo build static programs with them.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        let target = self.architecture.target();
        cargo.args(["--target", target]);
        cargo.env("LIBNFTNL_LIB_DIR", &self.directory).env("LIBMNL_LIB_DIR", &self.directory);
        cargo.env(format!("CC_{}", target.replace('-', "_")), self.architecture.compiler());
        if Architecture::of_this_machine() != Some(self.architecture) {
            let name = target.replace('-', "_").to_uppercase();
            cargo.env(format!("CARGO_TARGET_{name}_LINKER"), "rust-lld");
        }
    }

    pub(crate) fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Their names and versions in Debian: where their sources are.
    pub(crate) fn versions(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join(VERSIONS))?)
    }
}

/// Makes one archive of both, and of what they want: the linker then finds each whatever the order.
fn merge(architecture: Architecture, from: &Path, to: &Path) -> Result<()> {
    let source = to.join("fortify.c");
    fs::write(&source, FORTIFY)?;
    let object = to.join("fortify.o");
    let mut compile = Command::new(architecture.compiler());
    run(compile.args(["-O2", "-c", "-o"]).arg(&object).arg(&source))?;
    let script = format!(
        "create {nftnl}\naddlib {from}/libnftnl.a\naddlib {from}/libmnl.a\naddmod {object}\n\
         save\ncreate {mnl}\nsave\nend\n",
        nftnl = to.join("libnftnl.a").display(),
        // The crates ask for it by its name, too.
        mnl = to.join("libmnl.a").display(),
        from = from.display(),
        object = object.display(),
    );
    let steps = to.join("merge.ar");
    fs::write(&steps, script)?;
    let mut ar = Command::new(architecture.tool("ar"));
    let merged = ar.arg("-M").stdin(fs::File::open(&steps)?).stdout(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&merged.stderr);
    ensure!(merged.status.success(), "the libraries cannot be merged: {}", said.trim());
    [source, object, steps].iter().try_for_each(|path| Ok(fs::remove_file(path)?))
}

/// Rust's own library for static programs.
fn ensure_target(architecture: Architecture) -> Result<()> {
    let target = architecture.target();
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(target).exists() {
        return Ok(());
    }
    ensure!(
        find("rustup").is_some(),
        "rustc has no library for {target}, and there is no rustup that brings it: install it"
    );
    run(Command::new("rustup").args(["target", "add", target]))
}
