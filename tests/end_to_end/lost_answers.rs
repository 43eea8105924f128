//! Where the kernel's acknowledgements find no room, as in a container whose root may not enlarge a
//! socket's buffer: what a command says is so.

use crate::tests;
use agent_fw_lab::{Lab, agent_fw_path, command};
use anyhow::{Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

tests![what_is_said_of_a_policy_is_so_though_acknowledgements_are_lost];

/// Acknowledgements of a list: those of a set, of its elements, of a counter and of two rules.
const ACKNOWLEDGEMENTS: usize = 5;
/// An acknowledgement occupies at least so much of a socket's buffer, which may be twice what is
/// allowed.
const BYTES: usize = 640;

/// As many lists as have more acknowledgements than there can be room for.
fn lists() -> Result<usize> {
    let allowed: usize = fs::read_to_string("/proc/sys/net/core/rmem_max")?.trim().parse()?;
    Ok(allowed * 2 / (BYTES * ACKNOWLEDGEMENTS))
}

/// The acknowledgements of a namespace's sockets to netfilter that were lost so far.
fn lost(process: u32) -> u64 {
    /// `NETLINK_NETFILTER`.
    const NETFILTER: &str = "12";
    let sockets = fs::read_to_string(format!("/proc/{process}/net/netlink")).unwrap_or_default();
    let drops = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&NETFILTER)).then(|| fields.get(8)?.parse::<u64>().ok()).flatten()
    };
    sockets.lines().filter_map(drops).sum()
}

fn what_is_said_of_a_policy_is_so_though_acknowledgements_are_lost() -> Result<()> {
    Lab::run(|_| {
        let mut install = String::from("install --no-boot --untested --replace");
        for number in 0..lists()? {
            let (third, fourth) = (number / 250, number % 250);
            let prefixes = format!("10.{third}.{fourth}.0/25\n11.{third}.{fourth}.0/25\n");
            fs::write(format!("/run/list-{number}"), prefixes)?;
            write!(install, " --allow-from file:/run/list-{number}")?;
        }
        // Made, exchanged for another, and exchanged for one that takes most of it away.
        let one = "install --no-boot --untested --replace --allow-from 198.51.100.3".to_owned();
        let steps = [
            (format!("{install} --allow-from 198.51.100.1"), "198.51.100.1"),
            (format!("{install} --allow-from 198.51.100.2"), "198.51.100.2"),
            (one, "198.51.100.3"),
        ];
        let program = agent_fw_path();
        let program = program.display();
        let step = |(install, marker): &(String, &str)| {
            format!(
                "{program} {install} > /dev/null; echo code $?
                 nft list table inet agent_fw | grep --quiet '{marker}'; echo in force $?
                 {program} verify; echo verified $?\n"
            )
        };
        let script: String = steps.iter().map(step).collect();
        fs::write("/run/script", script)?;
        // In a user namespace of its own, nobody may go beyond net.core.rmem_max.
        let words = ["unshare", "--user", "--map-root-user", "--net", "sh", "/run/script"];
        let mut container = command(words);
        let container = container.stdin(Stdio::null());
        let mut container = container.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let process = container.id();
        let mut most_lost = 0;
        while container.try_wait()?.is_none() {
            most_lost = lost(process).max(most_lost);
            std::thread::sleep(Duration::from_millis(1));
        }
        let output = container.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        println!("{most_lost} acknowledgements were lost");
        ensure!(most_lost > 0, "every acknowledgement found room: {said} {errors}");
        let code = |line: &str, word: &str| line.strip_prefix(word)?.trim().parse::<i32>().ok();
        let ends = |word| said.lines().filter_map(|line| code(line, word)).collect::<Vec<_>>();
        let (codes, in_force) = (ends("code "), ends("in force "));
        ensure!(codes.len() == 3 && in_force.len() == 3, "{said} {errors}");
        for (step, (code, in_force)) in codes.iter().zip(in_force).enumerate() {
            ensure!(
                (*code == 0) == (in_force == 0),
                "step {step}: exit code {code}: {said} {errors}"
            );
        }
        // Nothing that failed has left anything else than a whole policy there.
        ensure!(ends("verified ") == [0; 3], "{said} {errors}");
        Ok(())
    })
}
