//! The packages: what is in them, and what becomes of a host on which the system's package manager
//! installs, upgrades and removes them.
//!
//! `cargo xtask test` builds the packages and names them in the environment; without it there is
//! nothing to run.

mod contents;
mod dpkg;
mod fleet;
mod rpm;

use agent_fw_lab::{Lab, PACKAGES};
use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use std::path::Path;

/// A test, by its name.
type Test = (&'static str, fn() -> Result<()>);

/// Lists functions of a module as tests.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[crate::Test] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use tests;

fn main() {
    let arguments = Arguments::from_args();
    if std::env::var_os(PACKAGES).is_none() {
        println!("packages: `cargo xtask test` builds them and runs their tests");
        return;
    }
    let missing = Lab::missing();
    let debian = Path::new("/var/lib/dpkg/status").is_file();
    if let Some(reason) = missing {
        eprintln!("skipped: all tests of packages: {reason}");
    }
    if !debian {
        eprintln!("skipped: the tests of dpkg: this machine is no Debian");
    }
    let trials = [contents::TESTS, dpkg::TESTS, fleet::TESTS, rpm::TESTS].concat();
    let trials = trials.into_iter().map(|(name, test)| {
        let run = move || test().map_err(|error| format!("{error:?}").into());
        let skipped = missing.is_some() || !debian && name.contains("debian");
        Trial::test(name, run).with_ignored_flag(skipped)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
