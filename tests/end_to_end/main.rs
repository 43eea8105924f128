//! The end-to-end tests: the command `agent-fw` on this kernel, with real packets, each test in
//! a laboratory of its own. A test's name is the sentence that it proves.

mod admission;
mod bystanders;
mod chance;
mod disguise;
mod doctor;
mod explain;
mod lifecycle;
mod messages;
mod mutation;
mod openness;
mod random_host;
mod ruleset;
mod scene;
mod specification;
mod tc;
mod updates;
mod verdicts;
mod verify;
mod verify_xdp;
mod watch;
mod xdp;

use agent_fw_lab::Lab;
use libtest_mimic::{Arguments, Trial};
use std::path::Path;

/// A test, by its name.
type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Lists functions of a module as tests.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[crate::Test] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use tests;

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of a test's time is waiting for packets that must not come.
    arguments.test_threads.get_or_insert(6);
    let missing = Lab::missing();
    if let Some(reason) = missing {
        eprintln!("skipped: all end-to-end tests: {reason}");
    }
    let systemd = Path::new("/usr/bin/systemctl").exists();
    if !systemd {
        eprintln!("skipped: the tests of the boot unit: this machine has no systemctl");
    }
    let trials = [
        admission::TESTS,
        bystanders::TESTS,
        disguise::TESTS,
        doctor::TESTS,
        explain::TESTS,
        lifecycle::TESTS,
        messages::TESTS,
        openness::TESTS,
        ruleset::TESTS,
        specification::TESTS,
        tc::TESTS,
        updates::TESTS,
        verdicts::TESTS,
        verify::TESTS,
        verify_xdp::TESTS,
        watch::TESTS,
        xdp::TESTS,
    ]
    .concat()
    .into_iter()
    .map(|(name, test)| {
        let run = move || test().map_err(|error| format!("{error:?}").into());
        let skipped = missing.is_some() || !systemd && name.contains("boot_unit");
        Trial::test(name, run).with_ignored_flag(skipped)
    })
    .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
