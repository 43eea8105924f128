//! A network namespace that threads can enter.

use std::fs::{self, File};
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// A network namespace, held open by this value and its clones.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// The namespace of the calling thread.
    pub(crate) fn current(name: &str) -> Result<Self> {
        // Not /proc/self: that is the main thread's, which stays where it was.
        Self::open(name, Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace that `path` stands for.
    pub(crate) fn open(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// Runs `work` on a thread inside this namespace and returns its value. A panic in there
    /// goes on here. Commands and sockets that `work` starts belong to the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter the namespace of {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Sets a kernel parameter of this namespace, e.g. `net/ipv4/ip_forward` to `1`.
    pub fn set_sysctl(&self, parameter: &str, value: &str) -> Result<()> {
        self.enter(|| set_sysctl(parameter, value))?
    }
}

/// Sets a kernel parameter of the calling thread's namespace.
pub(crate) fn set_sysctl(parameter: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(parameter);
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}
