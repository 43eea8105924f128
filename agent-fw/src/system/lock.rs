//! One agent-fw at a time: the lock, with the name of whoever holds it.

use crate::system::guard_socket;
use crate::system::guard_socket::Release;
use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// The lock's file. It stays when nobody holds it: what counts is the kernel's lock on it, which
/// goes with the process that has it.
const LOCK: &str = "/run/agent-fw/lock";
/// How often a lock that is held is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// So long the guard is waited for at least, however long the lock took.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// The right to change this host's state, for as long as it lives.
pub struct Lock {
    // Given back first, so that the guard finds it free.
    _held: Flock<File>,
    _leave: Option<Release>,
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
    let deadline = Instant::now() + patience;
    let lock = acquire(command, patience)?;
    // While it waits for the lock, the guard answers.
    let rest = deadline.saturating_duration_since(Instant::now()).max(LEAST_PATIENCE);
    Ok(Lock { _leave: guard_socket::ask(rest)?, ..lock })
}

/// Takes the lock for `command`, waiting for at most `patience`.
pub fn acquire(command: &str, patience: Duration) -> anyhow::Result<Lock> {
    let deadline = Instant::now() + patience;
    loop {
        let file = open_private(Path::new(LOCK)).with_context(|| format!("cannot open {LOCK}"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) if !is_in_place(&held) => {}
            Ok(mut held) => {
                inherit(&held).with_context(|| format!("cannot lock {LOCK}"))?;
                // On a full /run the name is missing; the lock holds all the same.
                drop(sign(&mut held, command));
                return Ok(Lock { _held: held, _leave: None });
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                std::thread::sleep(RETRY);
            }
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(Busy { holder: holder(unlocked), waited: patience }.into());
            }
            Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {LOCK}")),
        }
    }
}

/// Opens a lock's file, which is root's alone: whoever may open it may take it. One that others
/// may open is replaced, and whoever holds that one holds nothing.
pub(crate) fn open_private(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        super::file::make_directory(directory)?;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut opening = OpenOptions::new();
    let opening = opening.read(true).write(true).create(true).truncate(false);
    match opening.mode(0o600).custom_flags(flags).open(path) {
        Ok(file) if is_private(&file.metadata()?) => Ok(file),
        _ => replace(path),
    }
}

fn is_private(metadata: &Metadata) -> bool {
    let owner = nix::unistd::geteuid().as_raw();
    metadata.is_file() && metadata.uid() == owner && metadata.mode() & 0o7777 == 0o600
}

fn replace(path: &Path) -> std::io::Result<File> {
    let scratch = path.with_added_extension(std::process::id().to_string());
    drop(std::fs::remove_file(&scratch));
    let mut making = OpenOptions::new();
    let file = making.read(true).write(true).create_new(true).mode(0o600).open(&scratch)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    std::fs::rename(&scratch, path).inspect_err(|_| drop(std::fs::remove_file(&scratch)))?;
    Ok(file)
}

/// Whether a file is the one that others lock: it has not been replaced.
fn is_in_place(file: &File) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let mine = file.metadata().map(identity);
    let current = std::fs::symlink_metadata(LOCK).map(identity);
    matches!((mine, current), (Ok(mine), Ok(current)) if mine == current)
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

/// Whoever holds the lock, as they have signed it; a process that has ended does not.
fn holder(mut file: File) -> String {
    let mut text = String::new();
    let signed = file.read_to_string(&mut text).is_ok();
    let process = text.rsplit(' ').next().unwrap_or_default();
    let lives =
        process.parse::<u32>().is_ok_and(|id| Path::new("/proc").join(id.to_string()).exists());
    if signed && lives {
        text.escape_debug().to_string()
    } else {
        "a process of unknown name".to_owned()
    }
}
