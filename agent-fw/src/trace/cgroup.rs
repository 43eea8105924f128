//! BPF programs that judge the packets of a cgroup's sockets, such as systemd makes of
//! `IPAddressDeny=`.

use super::path::Conclusion;
use crate::netlink::bpf::{self, Program};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Which packets of the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    In,
    Out,
}

/// What becomes of a frame by the programs of the cgroup with this number; nothing, where they let it
/// pass or there are none.
pub(super) fn judge(
    cgroup: u64,
    direction: Direction,
    frame: &[u8],
    interface: u32,
) -> Option<Conclusion> {
    let path = directory(cgroup)?;
    let programs = match programs(&path, direction) {
        // A kernel without them has none.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return None,
        Err(error) => {
            let why = format!("the BPF programs of cgroup {} ({error})", path.display());
            return Some(Conclusion::NotKnown(format!("it cannot be told what is done by {why}")));
        }
        Ok(programs) => programs,
    };
    programs.into_iter().find_map(|number| one(number, &path, frame, interface))
}

fn programs(path: &Path, direction: Direction) -> io::Result<Vec<u32>> {
    let directory = File::open(path)?;
    match direction {
        Direction::In => bpf::cgroup_incoming(&directory),
        Direction::Out => bpf::cgroup_outgoing(&directory),
    }
}

fn one(number: u32, path: &Path, frame: &[u8], interface: u32) -> Option<Conclusion> {
    /// What such a program returns for a packet that passes; another bit only slows the sender down.
    const PASSES: u32 = 1;
    let named =
        |name: &str| format!("BPF program {name} (number {number}) of cgroup {}", path.display());
    let ran = Program::of(number).and_then(|program| {
        let result = program.run_tc(frame, interface)?;
        Ok((named(&program.name), result))
    });
    match ran {
        Ok((_, result)) if result & PASSES != 0 => None,
        Ok((name, _)) => Some(Conclusion::ByProgram(format!(
            "at the socket, by {name}, such as systemd makes of IPAddressDeny="
        ))),
        Err(error) => {
            let name = named("");
            Some(Conclusion::NotKnown(format!("{name} could not be run on the packet ({error})")))
        }
    }
}

/// The directory of a cgroup: its number is the inode's.
fn directory(cgroup: u64) -> Option<PathBuf> {
    let root = root()?;
    let mut due = vec![root];
    while let Some(path) = due.pop() {
        if fs::metadata(&path).is_ok_and(|found| found.ino() == cgroup) {
            return Some(path);
        }
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        due.extend(entries.filter(is_directory).map(|entry| entry.path()));
    }
    None
}

/// Where the tree of cgroups is mounted.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").ok()?;
    let mut all = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    all.next_back()
}
