//! The end-to-end tests: the command `agent-fw` on this kernel, with real packets, each test in
//! a laboratory of its own. A test's name is the sentence that it proves.

mod admission;
mod advice;
mod agent_tls;
mod below;
mod boot_unit;
mod breadth;
mod bystanders;
mod chance;
mod changes;
mod closed;
mod consent;
mod cut_off;
mod detours;
mod disguise;
mod dispatcher;
mod doctor;
mod encapsulation;
mod enforcement;
mod exceptions;
mod explain;
mod explain_all;
mod firewall;
mod foreign;
mod guard;
mod half_done;
mod help;
mod hostile;
mod kernel_features;
mod late_gate;
mod lifecycle;
mod little_room;
mod live_sessions;
mod loopback;
mod lost_answers;
mod memories;
mod messages;
mod metrics;
mod mutation;
mod neighbour;
mod openness;
mod outbound;
mod own_frames;
mod path_mtu;
mod ports;
mod random_host;
mod regions;
mod relay;
mod rule_files;
mod ruleset;
mod scene;
mod selection;
mod silent_files;
mod specification;
mod tc;
mod unpinned;
mod unplugged;
mod updates;
mod vendor_answers;
mod vendor_facts;
mod vendor_packets;
mod verdicts;
mod verify;
mod verify_xdp;
mod watch;
mod way_back;
mod way_out;
mod without_lock;
mod xdp;
mod xdp_alone;
mod xdp_others;
mod xdp_stacked;
mod xdp_tags;

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
    let trials = selection::of_this_kernel();
    let trials = trials.into_iter().map(|(name, test)| {
        let run = move || test().map_err(|error| format!("{error:?}").into());
        let skipped = missing.is_some() || !systemd && name.contains("the_boot_unit");
        Trial::test(name, run).with_ignored_flag(skipped)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
