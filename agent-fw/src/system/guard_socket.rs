//! The guard owns the table in the kernel. A command that is to change it asks the guard to let go
//! of it for as long as a connection stays open.

use super::file;
use anyhow::Context as _;
use nix::sys::stat::{Mode, umask};
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the guard takes connections. The file stays when the guard has gone; nobody answers then.
const SOCKET: &str = "/run/agent-fw/guard";
/// What the guard says when it has let go.
const LET_GO: u8 = b'.';
/// So long a command waits at its end for the guard.
const FAREWELL: Duration = Duration::from_secs(3);

/// The guard's side.
pub struct GuardSocket(UnixListener);

/// A command at the door.
pub struct TableLease(UnixStream);

impl GuardSocket {
    /// Takes connections from now on. The caller is the only guard here.
    pub fn open() -> anyhow::Result<Self> {
        let opened = || {
            file::make_directory(Path::new(SOCKET).parent().unwrap_or(Path::new("/")))?;
            match fs::remove_file(SOCKET) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Nobody but root may ask. The guard has one thread.
            let before = umask(Mode::from_bits_truncate(0o177));
            let listener = UnixListener::bind(SOCKET);
            umask(before);
            let listener = listener?;
            listener.set_nonblocking(true)?;
            Ok(Self(listener))
        };
        opened().with_context(|| format!("cannot open {SOCKET}"))
    }

    /// Whoever waits to be let in.
    pub fn guest(&self) -> Option<TableLease> {
        let (stream, _) = self.0.accept().ok()?;
        Some(TableLease(stream))
    }
}

impl AsFd for GuardSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl TableLease {
    /// Tells the command that it may change the table, and waits until it has done so, has ended, or
    /// has taken too long. `awake` is called every `interval`. The command goes on when this guest is
    /// dropped.
    pub fn serve(
        &mut self,
        deadline: Duration,
        interval: Option<Duration>,
        mut awake: impl FnMut(),
    ) -> io::Result<()> {
        let end = Instant::now() + deadline;
        self.0.set_nonblocking(false)?;
        self.0.write_all(&[LET_GO])?;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(io::Error::other(format!("not done in {} s", deadline.as_secs())));
            }
            self.0.set_read_timeout(Some(interval.map_or(rest, |interval| interval.min(rest))))?;
            match self.0.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => awake(),
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }
}

/// The guard has let go of the table, for as long as this lives. Dropping it waits, for a moment at
/// most, until the guard stands again, so that what it had in the kernel meanwhile is gone when the
/// command ends.
#[derive(Debug)]
pub struct Release {
    connection: UnixStream,
}

impl Drop for Release {
    fn drop(&mut self) {
        let connection = &mut self.connection;
        let ended = connection.shutdown(Shutdown::Write);
        if ended.and_then(|()| connection.set_read_timeout(Some(FAREWELL))).is_ok() {
            drop(connection.read(&mut [0]));
        }
    }
}

/// Whether a guard stands: somebody takes connections there. Nobody is disturbed by that question.
pub fn is_open() -> bool {
    // A line of it ends with the name that a socket is bound to.
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.ends_with(&format!(" {SOCKET}")))
}

/// Asks the guard to let go; `None` if there is none here.
pub fn ask(patience: Duration) -> anyhow::Result<Option<Release>> {
    let mut connection = match UnixStream::connect(SOCKET) {
        Ok(connection) => connection,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {SOCKET}")),
    };
    connection.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
    match connection.read(&mut [0]) {
        Ok(1) => Ok(Some(Release { connection })),
        // It has ended, and so has its hold.
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!(
                "`agent-fw guard` has not let go of the table in {} s, changed nothing; \
                 `systemctl restart agent-fw-guard` starts it anew",
                patience.as_secs()
            )
        }),
    }
}
