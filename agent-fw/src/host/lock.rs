//! One agent-fw at a time: the lock, with the name of whoever holds it.

use super::handover::{self, Leave};
use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The lock's file. It stays when nobody holds it: what counts is the kernel's lock on it, which
/// goes with the process that has it.
const LOCK: &str = "/run/agent-fw/lock";
/// How often a lock that is held is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The right to change this host's state, for as long as it lives.
pub struct Lock {
    // Given back first, so that the guard finds it free.
    _held: Flock<File>,
    _leave: Option<Leave>,
}

/// Somebody else holds the lock.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("another agent-fw is at work ({holder}); waited {} s for it, changed nothing", .waited.as_secs())]
pub struct Busy {
    /// Who, in words.
    pub holder: String,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Takes the lock for a command that changes the table, which the guard lets go of meanwhile.
pub fn acquire_for_change(command: &str, patience: Duration) -> anyhow::Result<Lock> {
    // The guard needs the lock for what it may be doing: it is asked before.
    let leave = handover::ask(patience)?;
    Ok(Lock { _leave: leave, ..acquire(command, patience)? })
}

/// Takes the lock for `command`, waiting for at most `patience`.
pub fn acquire(command: &str, patience: Duration) -> anyhow::Result<Lock> {
    let deadline = Instant::now() + patience;
    let mut file = open().with_context(|| format!("cannot open {LOCK}"))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                inherit(&held).with_context(|| format!("cannot lock {LOCK}"))?;
                // On a full /run the name is missing; the lock holds all the same.
                drop(sign(&mut held, command));
                return Ok(Lock { _held: held, _leave: None });
            }
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = unlocked;
                std::thread::sleep(RETRY);
            }
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(Busy { holder: holder(unlocked), waited: patience }.into());
            }
            Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {LOCK}")),
        }
    }
}

fn open() -> std::io::Result<File> {
    if let Some(directory) = Path::new(LOCK).parent() {
        super::file::make_directory(directory)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(LOCK)
}

/// Programs that are run under the lock hold it, too: what a killed agent-fw has begun is at its end
/// before the next one looks.
fn inherit(file: &File) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}

fn sign(file: &mut File, command: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "agent-fw {command}, process {}", std::process::id())
}

fn holder(mut file: File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.is_empty() => text,
        _ => "unnamed".to_owned(),
    }
}
