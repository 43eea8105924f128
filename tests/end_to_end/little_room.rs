//! A guard for whose messages there is little room, as in a container whose root may not enlarge a
//! socket's buffer: where a second table like the gate's finds none, the port is closed to everybody
//! while somebody else is at work.

use crate::scene::{AGENT, Guard, SAID, expect, install, is_linux, until};
use crate::tests;
use agent_fw_lab::{Lab, Listener, Outcome, agent_fw, agent_fw_path, command, run, while_knocking};
use anyhow::Result;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;

tests![without_room_for_a_second_table_the_guard_closes_the_port_to_everybody];

/// Starts a program whose sockets' buffers for sending stay as they are: to enlarge one (`SO_SNDBUF`,
/// `SO_SNDBUFFORCE`) does nothing.
const WITHOUT_ROOM: &str = "my ($set, $control) = splice @ARGV, 0, 2; \
    my $f = join '', map { pack 'SCCL', @$_ } [0x20,0,0,0], [0x15,0,6,$set], [0x20,0,0,24], \
    [0x15,0,4,1], [0x20,0,0,32], [0x15,1,0,32], [0x15,0,1,7], [6,0,0,0x50000], [6,0,0,0x7fff0000]; \
    my $p = pack 'Sx6P', 9, $f; syscall($control, 22, 2, $p) == 0 or die $!; exec @ARGV or die $!";

/// The numbers of `setsockopt` and `prctl`.
const CALLS: [&str; 2] = if cfg!(target_arch = "aarch64") { ["208", "167"] } else { ["54", "157"] };

/// As many addresses, with one of the region's, as have a table that does not fit into one message
/// of usual size.
fn list() -> Result<String> {
    /// An element takes at least so much of a message.
    const BYTES: u32 = 16;
    let most: u32 = fs::read_to_string("/proc/sys/net/core/wmem_default")?.trim().parse()?;
    let mut list = String::from("34.205.5.1\n");
    for number in 0..most / BYTES {
        writeln!(list, "{}", Ipv4Addr::from_bits(0x0a00_0000 + 2 * number))?;
    }
    Ok(list)
}

fn without_room_for_a_second_table_the_guard_closes_the_port_to_everybody() -> Result<()> {
    if !is_linux(6, 9) {
        println!("before Linux 6.9, a guard that has no room for a second table does not stand");
        return Ok(());
    }
    Lab::run(|lab| {
        let manager = lab.peer("manager")?;
        let _agent = Listener::bind(AGENT)?;
        fs::write("/run/list", list()?)?;
        install(&["--allow-from", "file:/run/list"])?;
        // What was owned once takes no room to be owned again.
        drop(Guard::start()?);
        let mut little = command(["perl", "-e", WITHOUT_ROOM]);
        little.args(CALLS).arg(agent_fw_path());
        let guard = Guard::start_by(little)?;
        let said = |what: &str| Ok(fs::read_to_string(SAID)?.contains(what));
        expect(&manager, Outcome::Talked, &["34.205.5.1"])?;
        let unlisted = Ipv4Addr::new(198, 51, 100, 7);
        let closed = "no source reaches the port";
        manager.add_address(unlisted.into())?;
        while_knocking(&manager, unlisted, AGENT, || {
            let mut held_off = UnixStream::connect("/run/agent-fw/guard")?;
            held_off.read_exact(&mut [0])?;
            until("it is said", || said(closed))?;
            expect(&manager, Outcome::Silent, &["34.205.5.1"])?;
            drop(held_off);
            until("as before", || Ok(expect(&manager, Outcome::Talked, &["34.205.5.1"]).is_ok()))?;
            // Somebody takes all away meanwhile: the guard cannot put it back, a command can.
            fs::write(SAID, "")?;
            let mut held_off = UnixStream::connect("/run/agent-fw/guard")?;
            held_off.read_exact(&mut [0])?;
            run(["nft", "flush", "ruleset"])?;
            expect(&manager, Outcome::Silent, &["34.205.5.1"])?;
            drop(held_off);
            until("it fails", || said("error"))?;
            expect(&manager, Outcome::Silent, &["34.205.5.1"])?;
            agent_fw(["apply"])?.success()?;
            until("as before", || Ok(expect(&manager, Outcome::Talked, &["34.205.5.1"]).is_ok()))?;
            Ok(())
        })?;
        drop(guard);
        run(["nft", "flush", "ruleset"])?;
        manager.remove_address(unlisted.into())?;
        expect(&manager, Outcome::Talked, &["198.51.100.7"])
    })
}
