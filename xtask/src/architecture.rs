//! The architectures that packages are made for, by everybody's name for them.

use std::fmt;

/// An architecture of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// Intel's and AMD's, of 64 bits.
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// ARM's, of 64 bits: AWS Graviton, for one.
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Architecture {
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// This machine's, if packages are made for it.
    pub(crate) fn of_this_machine() -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == std::env::consts::ARCH)
    }

    /// Rust's name, and rpm's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What Rust builds static programs for.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// A program of the GNU tools for it: `gcc`, `ar`.
    pub(crate) fn tool(self, name: &str) -> String {
        if Self::of_this_machine() == Some(self) {
            name.to_owned()
        } else {
            format!("{}-linux-gnu-{name}", self.name())
        }
    }

    /// What compiles C for static programs.
    pub(crate) fn compiler(self) -> String {
        if Self::of_this_machine() == Some(self) { "musl-gcc".to_owned() } else { self.tool("gcc") }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
