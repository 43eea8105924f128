//! Virtual machines: a real Debian on a stock kernel, booted by QEMU, and a kernel in user mode.
//!
//! `cargo xtask test` makes what they consist of and names it in the environment. A machine's
//! console is kept as a file in [`LOGS`]; whatever fails says where it is.

mod accelerator;
mod image;
mod machine;
mod orders;
mod user_mode;

pub use accelerator::Accelerator;
pub use image::{Image, Payload};
pub use machine::{Console, Machine};
pub use orders::{Answer, Order, Orders, serve};
pub use user_mode::UserMode;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names the directory with QEMU, in the environment.
pub const QEMU: &str = "AGENT_FW_QEMU";
/// Names the directory with Debian, in the environment.
pub const DEBIAN: &str = "AGENT_FW_DEBIAN";
/// Names the directory for console logs, in the environment.
pub const LOGS: &str = "AGENT_FW_VM_LOGS";

/// Where a payload is, inside.
pub const PAYLOAD: &str = "/opt/agent-fw";

/// A stock kernel of Debian's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Debian 12's own.
    V6_1,
    /// The newer one that Debian 12 offers, which is Debian 13's.
    V6_12,
}

impl Kernel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The two numbers by which it is known.
    #[must_use]
    pub fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}

/// What machines are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    qemu: PathBuf,
    debian: PathBuf,
    logs: PathBuf,
}

impl Parts {
    /// Those in these directories.
    pub fn new(qemu: &Path, debian: &Path, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Self { qemu: qemu.to_owned(), debian: debian.to_owned(), logs: logs.to_owned() })
    }

    /// Those that the environment names; `None` if it names none.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let directory = |name| std::env::var_os(name).map(PathBuf::from);
        Self::new(&directory(QEMU)?, &directory(DEBIAN)?, &directory(LOGS)?).ok()
    }

    /// A file of `/boot`: `vmlinuz`, `initrd.img`.
    fn boot_file(&self, kind: &str, kernel: Kernel) -> Result<PathBuf> {
        let boot = self.debian.join("boot");
        let prefix = format!("{kind}-{}.", kernel.version());
        for entry in fs::read_dir(&boot).context("Debian has no /boot")?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                return Ok(entry.path());
            }
        }
        bail!("there is no {prefix}… in {}", boot.display())
    }
}
