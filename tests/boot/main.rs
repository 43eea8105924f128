//! The boot tests: a Debian with systemd in a virtual machine, and a neighbour that knocks at the
//! agent's port without pause, from before the power is on.
//!
//! `cargo xtask test` makes the machines' parts and names the kernels; without it there is nothing
//! to run.

mod host;
mod installed_before;
mod interface;
mod life;
mod neighbour;

use agent_fw_lab::vm::{Kernel, Parts};
use libtest_mimic::{Arguments, Trial};

/// The kernels to test, in the environment: their versions, separated by commas.
const KERNELS: &str = "AGENT_FW_KERNELS";

fn main() {
    let mut arguments = Arguments::from_args();
    // Each machine has a processor.
    arguments.test_threads.get_or_insert(2);
    let Some(parts) = Parts::from_environment() else {
        println!("boot tests: `cargo xtask test` makes the virtual machines and runs them");
        return;
    };
    let wanted = std::env::var(KERNELS).unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').collect();
    let kernels = Kernel::ALL.into_iter().filter(|kernel| wanted.contains(&kernel.version()));
    let trials = kernels
        .flat_map(|kernel| life::TESTS.iter().map(move |(name, test)| (kernel, *name, *test)));
    let trials = trials.map(|(kernel, name, test)| {
        let parts = parts.clone();
        let run = move || test(&parts, kernel).map_err(|error| format!("{error:?}").into());
        Trial::test(format!("{name}_on_{kernel}"), run)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
